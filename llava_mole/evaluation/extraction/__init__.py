"""From a free reply to the option it chooses, or to None: rules in six languages, no guessing.

The order of the work, a file each:

1. `normalise`: one alphabet; markup, reasoning blocks and left-over tokens go.
2. `fields`: what a reply marks as its answer (`\\boxed{}`, tags, JSON) is read alone.
3. `letters`, `positions`, `texts`, `yes_no`: where options are named.
4. `reply`, `judge`: what is said of each: claimed, rejected, conceded, asked, supposed.
5. `decide`, `readings`, `spoken`: one option, or none.

What words mean is in `words_*.py`, one file per language.
"""

from llava_mole.evaluation.extraction.decide import extract_choice

VERSION = 3
"""Of the rules. Recorded with results: another version may read the same replies otherwise."""

__all__ = ["VERSION", "extract_choice"]
