"""`llava-mole sweep FILE`: the command line of a sweep. Imports nothing heavy."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from llava_mole.errors import ConfigError
from llava_mole.sweeping import DEVELOPMENT, SPLITS, TEST

if TYPE_CHECKING:
    from llava_mole.sweeping.sweep_file import Sweep

DESCRIPTION = """\
Train every arm of a sweep file with every seed, score what each run learnt on held-out questions,
and say of each claim whether the runs support it.

An arm is a recipe with some keys changed. The same seed gives every arm the same samples in the
same order (checked), so arms are compared seed by seed and picture by picture. A sweep that was
stopped, by kill -9 too, goes on with the same command; finished runs are not done again."""

EPILOG = """\
a sweep file (configs/experiments/example-sweep.yaml has a comment on each knob):
  base: my-recipe.yaml
  output_dir: runs/sweeps/mine
  seeds: [0, 1, 2, 3, 4]
  arms:
    lora: {set: {model.experts: null}}
    moe: {set: {model.experts.num_experts: 4}}
  evaluate: {domains: {charts: datasets/charts}}
  claims:
    experts_help: {first: moe, second: lora, no_worse: 0.02}

examples:
  llava-mole sweep FILE --dry-run              arms, trained parameters, steps, what differs
  llava-mole sweep FILE                        all runs, then the report on dev
  llava-mole sweep FILE --only lora moe --seeds 0 1
  llava-mole sweep FILE --parallel 4           four at once: a device each, or a share of the cores
  llava-mole sweep FILE --one moe/seed-3       a single run, e.g. a task of a cluster's job array
  llava-mole sweep FILE --prepare              before the first of these: what arms start from
  llava-mole sweep FILE --report               tables and verdicts anew, from the folders alone
  llava-mole sweep FILE --pack DIR             two files to publish, from which --report --from DIR
                                               works out every table and verdict again
  llava-mole sweep FILE --split test           the arms that `protocol` has chosen, on test

exit status: 0: no run failed; 1: a run failed; 2: what is asked for is impossible. docs/sweep.md"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="sweep file (YAML)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="print what would be done, and stop")
    what.add_argument(
        "--prepare",
        action="store_true",
        help="train the models that arms start from, copy runs that another sweep has done "
        "(`starts`, `reuse` of the file), and stop; needed before --one only",
    )
    what.add_argument(
        "--report", action="store_true", help="write the report from the runs' folders, and stop"
    )
    what.add_argument(
        "--one", metavar="ARM/seed-N", help="do this run in this process, and write no report"
    )
    what.add_argument(
        "--pack", type=Path, metavar="DIR",
        help="write who was right about which question to two small files, and stop; runs that "
        "a pack there has and the folders lack stay in it",
    )  # fmt: skip
    parser.add_argument(
        "--from", type=Path, metavar="DIR",
        help="with --report: from what --pack wrote, not from the runs' folders",
    )  # fmt: skip
    parser.add_argument("--only", nargs="+", metavar="ARM", help="only these arms' runs")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="only these seeds' runs")
    parser.add_argument(
        "--split", choices=SPLITS, default=DEVELOPMENT,
        help="questions to score: dev while choosing (default); test for what was chosen",
    )  # fmt: skip
    parser.add_argument(
        "--parallel", default="1", metavar="K|gpus",
        help="runs at once: a number, or gpus for one a device (default 1)",
    )  # fmt: skip
    parser.add_argument(
        "--again", action="store_true",
        help="where a run is there with another recipe, put it aside and do it anew",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="DIR", help="instead of the file's output_dir")


def load(args: argparse.Namespace) -> Sweep:
    from llava_mole.sweeping.sweep_file import read_sweep

    sweep = read_sweep(args.file)
    if args.out is not None:
        sweep.output_dir = str(args.out)
    return sweep


def asked_arms(sweep: Sweep, args: argparse.Namespace) -> list[str] | None:
    """On test those that were chosen, unless arms are named."""
    if args.only is None and args.split == TEST and sweep.protocol.chosen:
        return sweep.protocol.chosen
    return args.only


def one_of(sweep: Sweep, name: str) -> tuple[str, int]:
    """Arm and seed of ARM/seed-N. Raises ConfigError for what is none."""
    arm, _, seed = name.rpartition("/seed-")
    if not arm or not seed.isdecimal():
        raise ConfigError(f"--one {name}: a run is ARM/seed-N, such as {next(iter(sweep.arms))}"
                          f"/seed-{sweep.seeds[0]}")  # fmt: skip
    return arm, int(seed)


def wanted_workers(args: argparse.Namespace) -> int:
    """Processes that one run is shared by; a sweep itself is one."""
    if args.one is None:
        return 1
    from llava_mole.sweeping.plan import plan_runs
    from llava_mole.sweeping.watching import watch_sweep
    from llava_mole.training.sharing import workers_of

    watch_sweep()
    sweep = load(args)
    arm, seed = one_of(sweep, args.one)
    (run,) = plan_runs(sweep, args.file, arms=[arm], seeds=[seed])
    return workers_of(run.recipe)


def run(args: argparse.Namespace) -> int:
    """The exit status.

    Raises:
        ConfigError, DataError, CheckpointError, TrainingError: with what to do.
    """
    from rich.console import Console

    from llava_mole.sweeping.report import claim_line, make_report, to_markdown, write_report

    sweep = load(args)
    console = Console()
    packed = getattr(args, "from")  # no name that Python would take
    if packed is not None and not args.report:
        raise ConfigError("--from: only with --report")
    if (args.report or args.pack is not None) and (args.only or args.seeds):
        raise ConfigError("--only, --seeds: not with --report or --pack, which are of all runs")
    if args.one is not None:
        return do_one(sweep, args)
    if args.pack is not None:
        from llava_mole.sweeping.answers import read_answers
        from llava_mole.sweeping.packing import add_to_pack

        kept, other = add_to_pack(sweep, read_answers(sweep, args.split), args.pack)
        for names, what in ((kept, "kept"), (other, "replaced, with other answers")):
            if names:
                console.print(f"of the pack before, {what}: {', '.join(names)}", soft_wrap=True)
        console.print(f"pack: {args.pack}", markup=False, soft_wrap=True)
        return 0
    failed, answers = 0, None
    if packed is not None:
        from llava_mole.sweeping.packing import read_pack

        answers = read_pack(sweep, args.split, packed)
    if not args.report:
        from llava_mole.sweeping.beforehand import to_train, train_starts, waiting
        from llava_mole.sweeping.dry_run import dry_run
        from llava_mole.sweeping.plan import check_asked, plan_runs
        from llava_mole.sweeping.reusing import copy_runs
        from llava_mole.sweeping.scheduling import check_before, do_runs
        from llava_mole.training.resume import only_run

        asked = asked_arms(sweep, args)
        check_asked(sweep, asked, args.seeds)
        arms = asked or sweep.arm_names()
        missing = to_train(sweep, args.file, arms)
        later = waiting(sweep, args.file, arms, missing)
        runs = plan_runs(sweep, args.file, arms=asked, seeds=args.seeds, later=later)
        if args.dry_run:
            return dry_run(sweep, runs, args.split, console, missing=missing, later=later)
        parallel = at_once(args.parallel)
        check_before(sweep, arms, args.split, parallel)
        with only_run(sweep.out):
            if train_starts(missing, console):
                return 1
            if later:
                runs = plan_runs(sweep, args.file, arms=asked, seeds=args.seeds)
            if args.prepare:
                copy_runs(sweep, runs, args.split, console)
                console.print(f"trained first: {len(missing)}; runs that may begin: {len(runs)}")
                return 0
            failed = do_runs(
                sweep, args.file, runs, split=args.split, parallel=parallel,
                again=args.again, console=console,
            )  # fmt: skip
    report = make_report(sweep, args.split, answers)
    folder = write_report(sweep, report)
    if args.report:
        console.print(to_markdown(sweep, report), markup=False, soft_wrap=True)
    else:
        for one in report.verdicts:
            console.print(claim_line(one), markup=False, soft_wrap=True)
    console.print(f"report: {folder / 'report.md'}", markup=False, soft_wrap=True)
    return 1 if failed else 0


def do_one(sweep: Sweep, args: argparse.Namespace) -> int:
    """One run, in this process or in the ranks that share it."""
    from llava_mole import ranks
    from llava_mole.sweeping.one_run import do_run
    from llava_mole.sweeping.plan import plan_runs
    from llava_mole.sweeping.scoring import check_files

    arm, seed = one_of(sweep, args.one)
    (planned,) = plan_runs(sweep, args.file, arms=[arm], seeds=[seed])
    check_files(sweep.evaluate, args.split)
    ranks.join()
    do_run(sweep, planned, split=args.split, again=args.again)
    return 0


def at_once(text: str) -> int | None:
    """Raises ConfigError for what is neither a number from 1 nor gpus."""
    if text == "gpus":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"--parallel {text}: a number from 1, or gpus")
    return int(text)
