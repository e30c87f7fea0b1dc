"""docs/results.md: its tables and pictures, worked out from what the experiments' runs answered.

    python benchmarks/results.py                # from configs/experiments/results
    python benchmarks/results.py --check        # say what differs, write nothing

A pack (`llava-mole sweep FILE --pack DIR`) holds who was right about which question. For each
sweep configs/experiments/NAME-sweep.yaml with a pack in configs/experiments/results/NAME, and each
split that is packed, the page's blocks

    <!-- NAME SPLIT claims -->  …  <!-- end -->

are written anew, `claims` being one of claims, domains, languages, kinds, costs, notes, routing;
words outside of them are left alone. Pictures that the page shows, NAME-SPLIT-PART.png in
docs/images/results with claims, domains, languages, routing-domain, routing-language, use or gates
as PART, are drawn anew. Routing is what `benchmarks/routing_report.py --summary` left in
configs/experiments/results/NAME/routing-SPLIT.
After new runs: `llava-mole sweep configs/experiments/NAME-sweep.yaml --split SPLIT --pack
configs/experiments/results/NAME`, then this.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run from a clone, installed or not

from llava_mole.evaluation.routing_summary import (  # noqa: E402
    Summaries,
    draw_gates,
    draw_information,
    draw_use,
    information_rows,
    read_summaries,
    told,
)
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
ROUTING: dict[str, Callable[[Summaries, Path], None]] = {
    "routing-domain": lambda summaries, path: draw_information(summaries, path, "domain"),
    "routing-language": lambda summaries, path: draw_information(summaries, path, "language"),
    "use": lambda summaries, path: draw_use(summaries, path, "picture", "domain"),
    "gates": draw_gates,
}


@dataclass(frozen=True)
class Known:
    """What is packed of an experiment's split."""

    report: SweepReport
    routing: Summaries

    def part(self, name: str) -> str:
        if name == "routing" and self.routing:
            return information_rows(told(self.routing))
        return PARTS[name](self.report)


def reports(packs: Path) -> dict[tuple[str, str], Known]:
    """(experiment, split) -> its report and routing, of every pack there is."""
    found = {}
    for folder in sorted(packs.iterdir()):
        sweep = read_sweep(EXPERIMENTS / f"{folder.name}-sweep.yaml")
        for split in SPLITS:
            if (folder / f"{split}.json").is_file():
                answers = read_pack(sweep, split, folder)
                routing = read_summaries(folder / f"routing-{split}")
                found[folder.name, split] = Known(make_report(sweep, split, answers), routing)
    return found


def filled(text: str, known: dict[tuple[str, str], Known]) -> str:
    """The page with its blocks written anew.

    Raises:
        SystemExit: a block names no pack, or no part of a report; a comment is no block.
    """

    def block(match: re.Match[str]) -> str:
        start, name, split, part, _, end = match.groups()
        one = known.get((name, split))
        parts = [*PARTS, *(["routing"] if one and one.routing else [])]
        if one is None or part not in parts:
            shown = ", ".join(f"{one} {other}" for one, other in known)
            raise SystemExit(f"{start.strip()}: packs are {shown}; parts {', '.join(parts)}")
        return f"{start}{one.part(part).rstrip()}\n{end}"

    if text.count("<!--") != 2 * len(BLOCK.findall(text)):
        raise SystemExit("a comment that is no block: <!-- NAME dev|test PART --> … <!-- end -->")
    return BLOCK.sub(block, text)


def draw(known: dict[tuple[str, str], Known], folder: Path, page: str) -> None:
    """Those that the page shows."""
    for (name, split), one in known.items():
        for part in (*SHOWN, *ROUTING):
            path = folder / f"{name}-{split}-{part}.png"
            if path.name not in page:
                continue
            if part in SHOWN:
                SHOWN[part](one.report, path)
            else:
                ROUTING[part](one.routing, path)


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
