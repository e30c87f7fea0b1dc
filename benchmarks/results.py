"""docs/results.md, docs/results-development.md, README's summary: tables and pictures from packs.

    python benchmarks/results.py                # from configs/experiments/results
    python benchmarks/results.py --check        # say what differs, write nothing

What the experiments' runs answered is packed: a pack (`llava-mole sweep FILE --pack DIR`) holds who
was right about which question. For each sweep configs/experiments/NAME-sweep.yaml with a pack in
configs/experiments/results/NAME, and each split that is packed, the pages' blocks

    <!-- NAME SPLIT claims -->  …  <!-- end -->

are written anew, `claims` being one of claims, margins (claims with `no_worse`, by domain),
differences (claims of one seed), seeds (claims by seed), arms, domains, languages, kinds, costs,
notes and routing; words outside of them are left alone. `<!-- every dev regimes -->` and
`<!-- every test summary -->` are of several experiments. Pictures that a page shows,
NAME-SPLIT-PART.png in docs/images/results with claims, domains, languages, routing-domain,
routing-language, use, cells-words, cells-answer or gates as PART, are drawn anew.
Routing is what `benchmarks/routing_report.py --summary` left in
configs/experiments/results/NAME/routing-SPLIT. After new runs: `llava-mole sweep
configs/experiments/NAME-sweep.yaml --split SPLIT --pack configs/experiments/results/NAME`, then
this.
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

from llava_mole.errors import CheckpointError, ConfigError, DataError  # noqa: E402
from llava_mole.evaluation.results import cell, points  # noqa: E402
from llava_mole.evaluation.routing_summary import (  # noqa: E402
    Summaries,
    draw_cells,
    draw_gates,
    draw_information,
    draw_use,
    information_rows,
    read_summaries,
    told,
)
from llava_mole.folders import writing_file  # noqa: E402
from llava_mole.sweeping import SPLITS, TEST  # noqa: E402
from llava_mole.sweeping.figures import draw_claims, draw_marks  # noqa: E402
from llava_mole.sweeping.packing import read_pack  # noqa: E402
from llava_mole.sweeping.report import (  # noqa: E402
    SweepReport,
    claims_table,
    from_to,
    in_words,
    make_report,
)
from llava_mole.sweeping.sweep_file import Sweep, read_sweep  # noqa: E402
from llava_mole.sweeping.tables import (  # noqa: E402
    DOMAIN,
    LANGUAGE,
    Mark,
    costs_table,
    kinds_table,
    marks_table,
)

EXPERIMENTS = ROOT / "configs/experiments"
PACKS = EXPERIMENTS / "results"
PAGES = (ROOT / "docs/results.md", ROOT / "docs/results-development.md", ROOT / "README.md")
PICTURES = ROOT / "docs/images/results"
EVERY = "every"
ALONE, EXPERTS, PLAIN = "alone_above_the_mix", "experts", "same_parameters"
REGIMES: tuple[tuple[str, str, str, str, str, str], ...] = (
    ("rank 16, 1e-3, the mix in steps of six", "domain-mix-dev", "dev", ALONE, EXPERTS, PLAIN),
    ("rank 2, 1e-3, the mix in steps of six", "domain-low-rank-dev", "dev", ALONE, EXPERTS, ""),
    ("rank 2, 1e-3, the mix in steps of six, contradictory styles", "domain-styles-dev", "dev",
     ALONE, EXPERTS, PLAIN),
    ("rank 2, the mix at 2e-3 in steps of six, contradictory styles", "domain-styles-dev", "dev",
     "", "experts_at_twice_the_rate", ""),
    ("rank 2, the mix at 4e-3 in steps of six, contradictory styles", "domain-styles-dev", "dev",
     "at_four_times_the_rate", "", ""),
    ("rank 2, 1e-3, contradictory styles", "domain-styles-dev", "dev", "in_small_steps",
     "experts_in_small_steps", ""),
    ("rank 16, 5e-4", "domain-steps-dev", "dev", ALONE, EXPERTS, ""),
    ("rank 16, 1e-3", "domain-steps-dev", "dev", "alone_both_at_1e-3", "experts_1e-3", ""),
    ("rank 16, 1e-3, half as long", "domain-regimes-dev", "dev", "half_as_long", "", ""),
    ("rank 16, 1e-3, twice as long", "domain-long-dev", "dev", "mixing_hurts_1e-3",
     "experts_help_1e-3", "same_parameters_1e-3"),
    ("rank 16, 5e-4, twice as long", "domain-long-dev", "dev", "mixing_hurts", "experts_help", ""),
    ("rank 16, 5e-4, test, five seeds", "domain-mix", "test", "mixing_hurts", "experts_help",
     PLAIN),
    ("rank 16, 1e-3, twice as long, test, five seeds", "domain-long", "test", "mixing_hurts",
     "experts_help", ""),
)  # fmt: skip
"""What is different, experiment, split, and the claims that domains alone are above the mix, that
experts are above plain LoRA, and that a plain LoRA of as many parameters is."""
SUMMARY: tuple[tuple[str, str, str, str], ...] = (
    ("mixing makes plain LoRA worse",
     "a domain alone (its own fifth of the questions) above the mix", "domain-mix", "mixing_hurts"),
    ("", "the same, both at twice the length and rate", "domain-long", "mixing_hurts"),
    ("sparse experts beat plain LoRA on the mix", "as published, 2.4 × its parameters",
     "domain-mix", "published_helps"),
    ("", "four small experts beside a LoRA, 1.7 × its parameters: chosen on dev", "domain-mix",
     "experts_help"),
    ("", "the four at twice the length and rate, both sides", "domain-long", "experts_help"),
    ("they beat it on twice the samples", "the four on the mix, plain LoRA on twice of it",
     "domain-mix", "above_twice_the_samples"),
    ("Parrot lifts languages that are rare in training", "as its paper has it",
     "language-84-english", "paper_lifts_the_five"),
    ("", "as its released code has it", "language-84-english", "code_lifts_the_five"),
    ("", "ours: in stage 1 already, a long one, mostly English; one stage 1 an arm",
     "language-84-english", "parrot_lifts_the_five"),
    ("", "the same, each of six seeds on a stage 1 of its own", "language-84-english-starts",
     "parrot_lifts_the_five"),
    ("it is the language that does it", "ours above as large a module, steered by nothing",
     "language-84-english", "by_the_language"),
)  # fmt: skip
"""A paper's claim, what stands for it here, experiment on test, claim."""
BLOCK = re.compile(r"(<!-- (\S+) (dev|test) (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


@dataclass(frozen=True)
class Known:
    """What is packed of an experiment's split."""

    sweep: Sweep
    report: SweepReport
    routing: Summaries

    def marks(self) -> list[Mark]:
        """Without arms that stand together as a composed one."""
        parts = {arm for own in self.sweep.composed.values() for arm in own.values()}
        return [mark for mark in self.report.marks if mark.arm not in parts]

    def arms(self) -> str:
        """What the arms of the tables are."""
        lines = ["| arm | | trained parameters | steps |", "|---|---|---:|---:|"]
        costs = {cost.arm: cost for cost in self.report.costs}
        for name in dict.fromkeys(mark.arm for mark in self.marks()):
            own = list(self.sweep.composed.get(name, {"": name}).values())
            first = self.sweep.arm(own[0])
            about = "; ".join(text for text in (first.about, first.other_data) if text)
            trained = f"{costs[own[0]].trained_parameters:,}"
            steps = f"{costs[own[0]].steps:,}"
            if name in self.sweep.composed:
                domain = next(iter(self.sweep.composed[name]))
                about = f"a model a domain, each on its own; {domain}: {about}"
                trained = f"{len(own)} × {trained}"
                parts = self.sweep.composed[name].items()
                steps = ", ".join(f"{domain} {costs[arm].steps:,}" for domain, arm in parts)
            lines.append(f"| {cell(name)} | {cell(about)} | {trained} | {steps} |")
        return "\n".join(lines) + "\n"

    def margins(self) -> str:
        """Claims with `no_worse`, by domain."""
        own = [one for one in self.report.verdicts if self.sweep.claims[one.claim].no_worse]
        shown = [one for one in own if one.domains]
        names = list(dict.fromkeys(name for one in shown for name in one.domains or ()))
        lines = [f"| | {' | '.join(map(cell, names))} |", "|---|" + "---|" * len(names)]
        for one in shown:
            found = one.domains or {}
            cells = [difference(*found[name]) if name in found else "–" for name in names]
            lines.append(f"| {cell(one.about or one.claim)} | {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"

    def seeds(self) -> str:
        """Claims, seed by seed."""
        own = self.report.verdicts
        seeds = sorted({seed for one in own for seed in one.seeds})
        if not seeds:
            raise SystemExit("seeds: no claim is known by seed")
        lines = [f"| | {' | '.join(f'seed {seed}' for seed in seeds)} |",
                 "|---|" + "---:|" * len(seeds)]  # fmt: skip
        for one in own:
            found = dict(zip(one.seeds, one.by_seed, strict=True))
            cells = [points(found[seed], "+") if seed in found else "–" for seed in seeds]
            lines.append(f"| {cell(one.about or one.claim)} | {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"

    def verdict(self, claim: str) -> str:
        for one in self.report.verdicts:
            if one.claim == claim and one.mean is not None and one.low is not None:
                return difference(one.mean, one.low, one.high or 0.0)
        return "–"

    def differences(self) -> str:
        """Claims without verdicts, for what one seed says."""
        lines = ["| | of | difference | 95 % over pictures |", "|---|---|---:|---|"]
        for one in self.report.verdicts:
            if one.mean is not None and one.low is not None and one.high is not None:
                claim = self.sweep.claims[one.claim]
                arms = f"{claim.first} less {claim.second}"
                cells = (one.about, arms, points(one.mean, "+"), from_to(one.low, one.high))
                lines.append(f"| {' | '.join(map(cell, cells))} |")
        return "\n".join(lines) + "\n"


Packed = dict[tuple[str, str], Known]
"""(experiment, split) -> what is packed of it."""


def difference(mean: float, low: float, high: float) -> str:
    return f"{points(mean, '+')} ({from_to(low, high)})"


def regimes(known: Packed) -> str:
    """Where domains alone are above the mix, and what experts add there."""
    heads = (
        "| regime | alone above the mix | experts above plain LoRA | as many parameters without |"
    )
    lines = [heads, "|---|---:|---:|---:|"]
    for about, name, split, *claims in REGIMES:
        own = packed(known, name, split, "regimes")
        lines.append(f"| {about} | {' | '.join(own.verdict(claim) for claim in claims)} |")
    return "\n".join(lines) + "\n"


def summary(known: Packed) -> str:
    """The papers' claims and their verdicts."""
    lines = ["| claim | here | difference | p | verdict |", "|---|---|---:|---:|---|"]
    for claim, here, name, key in SUMMARY:
        own = packed(known, name, TEST, "summary")
        [one] = [verdict for verdict in own.report.verdicts if verdict.claim == key]
        cells = (claim, here, own.verdict(key), in_words(one.p_holm), one.verdict)
        lines.append(f"| {' | '.join(map(cell, cells))} |")
    return "\n".join(lines) + "\n"


def packed(known: Packed, name: str, split: str, part: str) -> Known:
    """Raises SystemExit for what is not packed."""
    if (name, split) not in known:
        raise SystemExit(f"{part}: no pack of {name}, {split}")
    return known[name, split]


OF_ALL: dict[str, Callable[[Packed], str]] = {"regimes": regimes, "summary": summary}
PARTS: dict[str, Callable[[Known], str]] = {
    "claims": lambda known: claims_table(known.report.verdicts),
    "differences": lambda known: known.differences(),
    "margins": lambda known: known.margins(),
    "seeds": lambda known: known.seeds(),
    "arms": lambda known: known.arms(),
    "domains": lambda known: marks_table(known.marks(), DOMAIN),
    "languages": lambda known: marks_table(known.marks(), LANGUAGE),
    "kinds": lambda known: kinds_table(known.marks()),
    "costs": lambda known: costs_table(known.report.costs),
    "notes": lambda known: "".join(f"- {note}\n" for note in known.report.notes),
    "routing": lambda known: information_rows(told(known.routing)),
}
SHOWN: dict[str, Callable[[Known, Path], None]] = {
    "claims": lambda known, path: draw_claims(known.report.verdicts, path),
    "domains": lambda known, path: draw_marks(known.marks(), DOMAIN, path),
    "languages": lambda known, path: draw_marks(known.marks(), LANGUAGE, path),
    "routing-domain": lambda known, path: draw_information(known.routing, path, "domain"),
    "routing-language": lambda known, path: draw_information(known.routing, path, "language"),
    "use": lambda known, path: draw_use(known.routing, path, "picture", "domain"),
    "cells-words": lambda known, path: draw_cells(known.routing, path, "words"),
    "cells-answer": lambda known, path: draw_cells(known.routing, path, "answer"),
    "gates": lambda known, path: draw_gates(known.routing, path),
}


def reports(packs: Path) -> Packed:
    """(experiment, split) -> its report and routing, of every pack there is."""
    found = {}
    for folder in sorted(path for path in packs.glob("*") if path.is_dir()):
        sweep = read_sweep(EXPERIMENTS / f"{folder.name}-sweep.yaml")
        for split in SPLITS:
            if (folder / f"{split}.json").is_file():
                answers = read_pack(sweep, split, folder)
                routing = read_summaries(folder / f"routing-{split}")
                report = make_report(sweep, split, answers)
                check_runs(folder / f"routing-{split}", routing, report)
                found[folder.name, split] = Known(sweep, report, routing)
    return found


def check_runs(folder: Path, routing: Summaries, report: SweepReport) -> None:
    """
    Raises:
        SystemExit: a model is not that of a packed run.
    """
    runs = {(cost.arm, cost.seed): cost.digest for cost in report.costs}
    for arm, seeds in routing.items():
        for seed, one in seeds.items():
            if one.get("run") is None or one["run"] != runs.get((arm, seed)):
                raise SystemExit(
                    f"{folder}/{arm}-seed-{seed}.json: not of the run that is packed; make both "
                    "anew from one run: llava-mole sweep … --pack, routing_report.py --summary"
                )


def filled(text: str, known: Packed) -> str:
    """A page with its blocks written anew.

    Raises:
        SystemExit: a block names no pack, or no part of a report; a comment is no block.
    """

    def block(match: re.Match[str]) -> str:
        start, name, split, part, _, end = match.groups()
        if name == EVERY and part in OF_ALL:
            return f"{start}{OF_ALL[part](known).rstrip()}\n{end}"
        one = known.get((name, split))
        if one is None or part not in PARTS:
            shown = ", ".join(f"{one} {other}" for one, other in known)
            raise SystemExit(f"{start.strip()}: packs are {shown}; parts {', '.join(PARTS)}")
        if part == "routing" and not one.routing:
            raise SystemExit(f"{start.strip()}: no routing is packed; routing_report.py --summary")
        return f"{start}{PARTS[part](one).rstrip()}\n{end}"

    if text.count("<!--") != 2 * len(BLOCK.findall(text)):
        raise SystemExit("a comment that is no block: <!-- NAME dev|test PART --> … <!-- end -->")
    return BLOCK.sub(block, text)


def draw(known: Packed, folder: Path, page: str) -> None:
    """Those that the page shows."""
    for path, one, part in pictures(known, folder, page):
        try:
            SHOWN[part](one, path)
        except DataError as error:
            raise SystemExit(str(error)) from error


def pictures(known: Packed, folder: Path, page: str) -> list[tuple[Path, Known, str]]:
    """Those that the page shows, of what, and which part of it."""
    every = [
        (folder / f"{name}-{split}-{part}.png", one, part)
        for (name, split), one in known.items()
        for part in SHOWN
    ]
    return [shown for shown in every if shown[0].name in page]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--packs", type=Path, default=PACKS, help="folder of packs")
    parser.add_argument("--pages", type=Path, nargs="+", default=PAGES)
    parser.add_argument("--pictures", type=Path, default=PICTURES)
    parser.add_argument("--check", action="store_true", help="1 if a page is not up to date")
    args = parser.parse_args(argv)
    try:
        known = reports(args.packs)
    except (ConfigError, DataError, CheckpointError) as error:
        raise SystemExit(str(error)) from error
    if not known:
        raise SystemExit(f"{args.packs}: no pack; llava-mole sweep FILE --pack writes one")
    if missing := [str(page) for page in args.pages if not page.is_file()]:
        raise SystemExit(f"no such page: {', '.join(missing)}")
    before = {page: page.read_text("utf-8") for page in args.pages}
    after = {page: filled(text, known) for page, text in before.items()}
    if args.check:
        stale = []
        for page, text in after.items():
            old, new = (BLOCK.findall(one) for one in (before[page], text))
            stale += [f"{page}, {one[0].strip()}"
                      for one, other in zip(old, new, strict=True) if one != other]  # fmt: skip
            shown = [path for path, _, _ in pictures(known, args.pictures, text)]
            stale += [f"{page}, {path}: not there" for path in shown if not path.is_file()]
        for one in stale:
            print(f"{one}: not what the packs say; python benchmarks/results.py")
        if not stale:
            count = sum(len(BLOCK.findall(text)) for text in after.values())
            print(f"{len(after)} pages, {count} blocks: as the packs say")
        return int(bool(stale))
    for page, text in after.items():
        draw(known, args.pictures, text)
        with writing_file(page) as file:
            file.write(text)
        print(f"{page}: {len(BLOCK.findall(text))} blocks from {len(known)} packs")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
