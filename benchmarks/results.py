"""docs/results.md: its tables and pictures, worked out from what the experiments' runs answered.

    python benchmarks/results.py                # from configs/experiments/results
    python benchmarks/results.py --check        # say what differs, write nothing

A pack (`llava-mole sweep FILE --pack DIR`) holds who was right about which question. For each
sweep configs/experiments/NAME-sweep.yaml with a pack in configs/experiments/results/NAME, and each
split that is packed, the page's blocks

    <!-- NAME SPLIT claims -->  …  <!-- end -->

are written anew, `claims` being one of claims, domains, languages, kinds, costs, notes; words
outside of them are left alone. Pictures that the page shows, NAME-SPLIT-PART.png in
docs/images/results with claims, domains or languages as PART, are drawn anew.
After new runs: `llava-mole sweep configs/experiments/NAME-sweep.yaml --split SPLIT --pack
configs/experiments/results/NAME`, then this.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run from a clone, installed or not

from llava_mole.sweeping import SPLITS  # noqa: E402
from llava_mole.sweeping.figures import draw_claims, draw_marks  # noqa: E402
from llava_mole.sweeping.packing import read_pack  # noqa: E402
from llava_mole.sweeping.report import SweepReport, claims_table, make_report  # noqa: E402
from llava_mole.sweeping.sweep_file import read_sweep  # noqa: E402
from llava_mole.sweeping.tables import (  # noqa: E402
    DOMAIN,
    LANGUAGE,
    costs_table,
    kinds_table,
    marks_table,
)

EXPERIMENTS = ROOT / "configs/experiments"
PACKS = EXPERIMENTS / "results"
PAGE = ROOT / "docs/results.md"
PICTURES = ROOT / "docs/images/results"
BLOCK = re.compile(r"(<!-- (\S+) (dev|test) (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
PARTS: dict[str, Callable[[SweepReport], str]] = {
    "claims": lambda report: claims_table(report.verdicts),
    "domains": lambda report: marks_table(report.marks, DOMAIN),
    "languages": lambda report: marks_table(report.marks, LANGUAGE),
    "kinds": lambda report: kinds_table(report.marks),
    "costs": lambda report: costs_table(report.costs),
    "notes": lambda report: "".join(f"- {note}\n" for note in report.notes),
}
SHOWN: dict[str, Callable[[SweepReport, Path], None]] = {
    "claims": lambda report, path: draw_claims(report.verdicts, path),
    "domains": lambda report, path: draw_marks(report.marks, DOMAIN, path),
    "languages": lambda report, path: draw_marks(report.marks, LANGUAGE, path),
}


def reports(packs: Path) -> dict[tuple[str, str], SweepReport]:
    """(experiment, split) -> its report, of every pack there is."""
    found = {}
    for folder in sorted(packs.iterdir()):
        sweep = read_sweep(EXPERIMENTS / f"{folder.name}-sweep.yaml")
        for split in SPLITS:
            if (folder / f"{split}.json").is_file():
                answers = read_pack(sweep, split, folder)
                found[folder.name, split] = make_report(sweep, split, answers)
    return found


def filled(text: str, known: dict[tuple[str, str], SweepReport]) -> str:
    """The page with its blocks written anew.

    Raises:
        SystemExit: a block names no pack, or no part of a report; a comment is no block.
    """

    def block(match: re.Match[str]) -> str:
        start, name, split, part, _, end = match.groups()
        if (name, split) not in known or part not in PARTS:
            shown = ", ".join(f"{one} {other}" for one, other in known)
            raise SystemExit(f"{start.strip()}: packs are {shown}; parts {', '.join(PARTS)}")
        return f"{start}{PARTS[part](known[name, split]).rstrip()}\n{end}"

    if text.count("<!--") != 2 * len(BLOCK.findall(text)):
        raise SystemExit("a comment that is no block: <!-- NAME dev|test PART --> … <!-- end -->")
    return BLOCK.sub(block, text)


def draw(known: dict[tuple[str, str], SweepReport], folder: Path, page: str) -> None:
    """Those that the page shows."""
    for (name, split), report in known.items():
        paths = {part: folder / f"{name}-{split}-{part}.png" for part in SHOWN}
        for part, path in paths.items():
            if path.name in page:
                SHOWN[part](report, path)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--packs", type=Path, default=PACKS, help="folder of packs")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--pictures", type=Path, default=PICTURES)
    parser.add_argument("--check", action="store_true", help="1 if the page is not up to date")
    args = parser.parse_args(argv)
    known = reports(args.packs)
    before = args.page.read_text("utf-8")
    after = filled(before, known)
    if args.check:
        if after != before:
            print(f"{args.page} is not what the packs say: python benchmarks/results.py")
        return int(after != before)
    args.page.write_text(after, "utf-8")
    draw(known, args.pictures, after)
    print(f"{args.page}: {len(BLOCK.findall(after))} blocks from {len(known)} packs")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
