"""`llava-mole inspect`: what a source holds, what is wrong with it, which benchmark is in it."""
