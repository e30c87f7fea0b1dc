"""All experiments of docs/results.md anew, in one command that can be stopped and goes on.

    python benchmarks/experiments.py --list          # every step, and what it took here
    python benchmarks/experiments.py                 # all of them; `make experiments` installs too
    python benchmarks/experiments.py --only domain-mix language-84-english

Data are built, every sweep that has a pack in configs/experiments/results is run for the arms that
the pack holds, those first whose runs others go on from or share, and packed into OUT/packs; a
sweep trains what its arms start from. Routing is measured again where the pack has it. In the end
OUT/results.md and OUT/results-development.md are the pages with tables and pictures of these runs;
words between them are of the runs that are committed. Steps that are done are not done again.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run from a clone, installed or not

from llava_mole.sweeping import SPLITS, TEST  # noqa: E402
from llava_mole.sweeping.sweep_file import Sweep, read_sweep  # noqa: E402

EXPERIMENTS = Path("configs/experiments")
PACKS = EXPERIMENTS / "results"
DOMAINS = ("charts", "documents", "flags", "digits", "openmoji")
STYLES = {"documents": "sentence", "flags": "capitals", "digits": "json"}
PAGES = ("results.md", "results-development.md")
PICTURES = "images/results"
TOKENS = "{name}-{split}-{run}-tokens.png"
"""A run's questions token by token, drawn anew where docs has the picture."""
OTHER = re.compile(r"start_from: runs/sweeps/([\w.-]+)/")
DATA = re.compile(r"datasets/([\w.-]+)")


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: of the data or of the sweep.
        words: after the interpreter.
        made: where these are there, the step is done; empty: the command itself knows.
        hours: of one core that it took; None: not known.
    """

    name: str
    words: tuple[str, ...]
    made: tuple[Path, ...] = ()
    hours: float | None = None

    @property
    def done(self) -> bool:
        return bool(self.made) and all(path.exists() for path in self.made)


def packed(name: str) -> dict[str, dict[str, Any]]:
    """Split -> what the committed pack of an experiment says of its runs."""
    return {
        split: json.loads(path.read_text("utf-8"))["runs"]
        for split in SPLITS
        if (path := ROOT / PACKS / name / f"{split}.json").is_file()
    }


def names_of_packs() -> list[str]:
    """Every sweep that has a pack."""
    return sorted({path.parent.name for path in (ROOT / PACKS).glob("*/*.json")})


def sweep_path(name: str) -> Path:
    return EXPERIMENTS / f"{name}-sweep.yaml"


def others(name: str) -> list[str]:
    """Sweeps whose runs this one starts from or shares."""
    path = ROOT / sweep_path(name)
    shared = [Path(folder).name for folder in read_sweep(path).reuse]
    return [*OTHER.findall(without_comments(path)), *shared]


def in_order(names: Sequence[str]) -> list[str]:
    """These and the others that they need, each after what it needs."""
    found: list[str] = []
    for name in names:
        found += [one for one in [*in_order(others(name)), name] if one not in found]
    return found


def data_of(names: Sequence[str]) -> list[str]:
    """Data sets that sweeps, and what they start from, read."""
    paths = {sweep_path(name) for name in names}
    for name in names:
        sweep = read_sweep(ROOT / sweep_path(name))
        paths |= {Path(sweep.base), *(Path(start.recipe) for start in sweep.starts.values())}
    return sorted({found for path in paths for found in DATA.findall(without_comments(path))})


def without_comments(path: Path) -> str:
    return re.sub(r"(?m)^ *#.*$", "", (ROOT / path).read_text("utf-8"))


def build(data: Sequence[str]) -> Iterator[Step]:
    plain = {name.partition("-")[0] for name in data}
    for name in DOMAINS:
        if name in plain:
            made = f"datasets/{name}"
            yield Step(made, (f"data/{name}.py", "--out", made), (ROOT / made,))
    for name, style in STYLES.items():
        if f"{name}-{style}" in data:
            made = f"datasets/{name}-{style}"
            words = ("data/answer_styles.py", "--data", f"datasets/{name}", "--style", style)
            yield Step(made, (*words, "--out", made), (ROOT / made,))


def sweep(name: str, parallel: str, packs: Path) -> Iterator[Step]:
    """The runs that the committed pack holds, the same packed anew, their routing."""
    path = sweep_path(name)
    known = read_sweep(ROOT / path)
    shared = {arm for arms in known.reuse.values() for arm in arms}
    for split, runs in packed(name).items():
        arms = {run.partition("/")[0] for run in runs}
        own = [run for name, run in runs.items() if name.partition("/")[0] not in shared]
        hours = sum(run["done"]["minutes"] for run in own) / 60
        words = ("-m", "llava_mole.cli", "sweep", str(path), "--split", split)
        only = ("--only", *(arm for arm in known.arms if arm in arms))
        chosen = () if arms == set(known.arms) or split == TEST else only
        yield Step(name, (*words, "--parallel", parallel, *chosen), hours=hours)
        yield Step(name, (*words, "--pack", str(packs / name)))
        yield from route(known, name, split, packs)


def route(known: Sweep, name: str, split: str, packs: Path) -> Iterator[Step]:
    for path in sorted((ROOT / PACKS / name / f"routing-{split}").glob("*.json")):
        arm, _, seed = path.stem.rpartition("-seed-")
        model = Path("runs/sweeps", name, "runs", arm, f"seed-{seed}", "model")
        summary = packs / name / f"routing-{split}" / path.name
        made = (ROOT / summary,)
        data = [f"{one}=datasets/{one}/eval_{split}.tsv" for one in known.evaluate.domains]
        words = ("benchmarks/routing_report.py", "--model", str(model), "--items", "10")
        page = ["--summary", str(summary), "--out", f"runs/routing/{name}/{arm}-seed-{seed}"]
        tokens = Path(PICTURES, TOKENS.format(name=name, split=split, run=path.stem))
        if (ROOT / "docs" / tokens).is_file():
            page += ["--token-map", str(packs.parent / tokens)]
            made += (ROOT / packs.parent / tokens,)
        yield Step(name, (*words, *page, "--data", *data), made)


def steps(names: Sequence[str], parallel: str, out: Path) -> list[Step]:
    found = [*build(data_of(names))]
    for name in names:
        found += sweep(name, parallel, out / "packs")
    if set(names) == set(names_of_packs()):
        pages = [str(out / name) for name in PAGES]
        page = ("--pages", *pages, "--pictures", str(out / PICTURES))
        packs = ("--packs", str(out / "packs"))
        found.append(Step("page", ("benchmarks/results.py", *packs, *page)))
    return found


def show(found: Sequence[Step]) -> None:
    for step in found:
        took = "" if step.hours is None else f"  # {step.hours:.1f} hours of one core"
        print(f"{'done  ' if step.done else '      '}python {shlex.join(step.words)}{took}")
    hours = sum(step.hours or 0 for step in found)
    print(f"{hours:.0f} hours of one core, by the clocks of the committed runs")
    print("data and what arms start from take minutes")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = names_of_packs()
    parser.add_argument("--only", nargs="+", choices=every, metavar="SWEEP", default=every,
                        help=f"of {', '.join(every)}")  # fmt: skip
    parser.add_argument("--parallel", default="2", metavar="K|gpus",
                        help="runs at once, as llava-mole sweep has it (default 2)")  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("runs/experiments"))
    parser.add_argument("--list", action="store_true", help="print the steps and stop")
    args = parser.parse_args(argv)
    found = steps(in_order(args.only), args.parallel, args.out)
    if args.list:
        show(found)
        return 0
    (ROOT / args.out / PICTURES).mkdir(parents=True, exist_ok=True)
    for name in PAGES:
        shutil.copy(ROOT / "docs" / name, ROOT / args.out / name)
    for number, step in enumerate(found, start=1):
        if step.done:
            continue
        print(f"[{number}/{len(found)}] python {shlex.join(step.words)}", flush=True)
        ended = subprocess.run([sys.executable, *step.words], cwd=ROOT).returncode
        if ended:
            print(f"stopped there (exit status {ended}); the same command goes on from it")
            return ended
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
