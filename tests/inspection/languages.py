"""How often the language check accuses rightly declared conversations, and catches wrong ones.

python data/openmoji.py --out datasets/openmoji
PYTHONPATH=. python tests/inspection/languages.py datasets/openmoji/train.json
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from llava_mole.data import SourceSpec, open_source
from llava_mole.data.sample import IMAGE
from llava_mole.inspection.language import other_language

CONVERSATIONS = 12_000


def main() -> None:
    source = open_source(SourceSpec(Path(sys.argv[1])))
    rng = random.Random(0)
    numbers = rng.sample(range(len(source)), min(CONVERSATIONS, len(source)))
    samples = [source[number] for number in numbers]
    languages = sorted({sample.language for sample in samples})
    accused = caught = 0
    for sample in samples:
        text = "\n".join(turn.text.replace(IMAGE, " ").strip() for turn in sample.turns)
        accused += other_language(text, sample.language) is not None
        wrong = rng.choice([code for code in languages if code != sample.language])
        caught += other_language(text, wrong) is not None
    sys.stdout.write(
        f"{len(samples):,} conversations: {accused} accused; "
        f"{caught / len(samples):.1%} caught when another language is declared\n"
    )


if __name__ == "__main__":
    main()
