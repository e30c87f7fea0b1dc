"""The tests mirror llava_mole/; `helpers.py` makes their small real parts."""
