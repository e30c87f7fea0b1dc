"""What a mixture will be, before it is paid for: shares, passes, tokens, and its first rows.

Requested shares are what the recipe asks for, by source and, through what each source holds, by
domain, language and kind of question. Realised ones are counted from the planned rows.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tqdm.auto import tqdm

from llava_mole.building import build_processor, context_length
from llava_mole.data.pool import Pool
from llava_mole.data.quoting import why
from llava_mole.data.rows import MixtureRows
from llava_mole.data.sample import Sample
from llava_mole.errors import ConfigError
from llava_mole.processing import Encoded, LlavaMoleProcessor
from llava_mole.training.data import (
    TrainingData,
    encode_sample,
    planned_rows,
    read_data,
    read_stages,
)
from llava_mole.training.reading import read_mapping
from llava_mole.training.schema import load_mixture, load_recipe

MANY_PASSES = 4
"""Passes over the same data that are nearly as good as fresh data (Muennighoff et al. 2023)."""
MEASURED = 300
"""Samples of a source whose tokens are counted."""
GROUPS = ("domains", "languages", "kinds")
PICTURES = ("png", "pdf", "svg")


@dataclass
class SourceMix:
    """One source in a mixture."""

    name: str
    described: str
    held: int
    """Samples in its files."""
    left_out: dict[str, int]
    """reason -> samples that take no part"""
    requested: float
    """Share of samples, 0 to 1."""
    realised: float = 0.0
    rows: int = 0
    drawn: int = 0
    """Samples, repeats included."""
    distinct: int = 0
    """Different samples among them."""
    passes: float = 0.0
    """Times that each of its samples comes, on average."""
    repeat_limit: float | None = None
    limited: bool = False
    """The repeat limit keeps it below its share."""
    tokens_per_sample: float | None = None
    supervised_per_sample: float | None = None
    longest: int | None = None
    """Tokens of the longest sample, where all were measured."""


@dataclass
class MixReport:
    """A mixture of so many rows."""

    rows: int
    pass_rows: int
    drawn: int
    sources: list[SourceMix]
    shares: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    """domains, languages, kinds -> name -> (requested, realised)"""

    def warnings(self) -> list[str]:
        """What a reader should know before training."""
        found = []
        for source in self.sources:
            limit = source.repeat_limit
            if source.limited:
                found.append(
                    f"{source.name}: held at its repeat limit of {limit:g}, so that "
                    f"{source.requested:.1%} requested become {source.realised:.1%}; the other "
                    "sources fill up"
                )
            elif limit is None and source.passes > MANY_PASSES:
                found.append(
                    f"{source.name}: each of its {source.held - sum(source.left_out.values()):,} "
                    f"samples comes {source.passes:.1f} times; past {MANY_PASSES} little is "
                    "gained: give it a smaller weight or a repeat_limit"
                )
            elif limit is not None and source.passes > limit * 1.001:
                found.append(
                    f"{source.name}: {source.passes:.1f} times in all, its repeat_limit of "
                    f"{limit:g} holds for one pass and {self.rows / self.pass_rows:.1f} are drawn"
                )
            if not source.drawn:
                found.append(f"{source.name}: nothing of it is drawn")
        return found

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "warnings": self.warnings()}


def mix_report(
    data: TrainingData,
    rows: MixtureRows,
    processor: LlavaMoleProcessor | None = None,
    *,
    progress: bool = True,
) -> MixReport:
    """Count what `rows` will draw.

    Args:
        data: the sources.
        rows: of a stage.
        processor: counts tokens of some samples of each source; None: no tokens.
        progress: show a bar where it takes long.
    """
    mixture, pools = rows.mixture, rows.pools
    times = [np.zeros(len(pool.source), dtype=np.int64) for pool in pools]
    drawn_rows = np.zeros(len(pools), dtype=np.int64)
    bar = tqdm(total=len(rows), desc="planned rows", unit="row", delay=1, disable=not progress)
    with bar:
        for start in range(0, len(rows), 1 << 16):
            stop = min(start + (1 << 16), len(rows))
            plan = mixture.plan(start, stop)
            drawn_rows += np.bincount(plan.source, minlength=len(pools))
            for number, pool in enumerate(pools):
                here = plan.source == number
                sizes = np.diff(pool.starts)[plan.group[here]]
                alone = plan.group[here][sizes == 1]
                np.add.at(times[number], pool.records[pool.starts[alone]], 1)
                shared = np.flatnonzero(here)[sizes > 1]
                for row in shared:
                    records = pool.visit(
                        int(plan.group[row]), int(plan.epoch[row]), int(plan.visit[row]),
                        rows.questions, rows.seed,
                    )  # fmt: skip
                    times[number][records] += 1
            bar.update(stop - start)
    total = max(1, int(sum(count.sum() for count in times)))
    sources = []
    for number, pool in enumerate(pools):
        count = times[number]
        sources.append(
            SourceMix(
                name=pool.name,
                described=described(pool),
                held=len(pool.source),
                left_out=pool.left_out,
                requested=float(mixture.requested[number]),
                realised=float(count.sum() / total),
                rows=int(drawn_rows[number]),
                drawn=int(count.sum()),
                distinct=int((count > 0).sum()),
                passes=float(count.sum() / max(1, len(pool.records))),
                repeat_limit=pool.planned.repeat_limit,
                limited=bool(mixture.held[number]),
            )
        )
        if processor is not None and len(pool.records):
            tokens, supervised, longest = measured(pool, processor)
            sources[-1].tokens_per_sample, sources[-1].supervised_per_sample = tokens, supervised
            sources[-1].longest = longest if len(pool.records) <= MEASURED else None
    report = MixReport(len(rows), mixture.rows, total, sources)
    for plural in GROUPS:
        report.shares[plural] = shares_by(plural, pools, mixture.requested, times, total)
    return report


def described(pool: Pool) -> str:
    source: Any = pool.source
    return source.describe() if hasattr(source, "describe") else f"{len(source):,} samples"


def shares_by(
    plural: str,
    pools: Sequence[Pool],
    requested: np.ndarray,
    times: Sequence[np.ndarray],
    total: int,
) -> dict[str, tuple[float, float]]:
    """name -> (requested, realised) share of samples. A source asks for what it holds, in
    proportion; its kinds by their weights."""
    asked: dict[str, float] = {}
    given: dict[str, float] = {}
    for number, pool in enumerate(pools):
        names, codes = getattr(pool.index, plural), getattr(pool.index, plural[:-1])
        weight = np.zeros(len(pool.source))
        weight[pool.records] = 1.0
        if pool.drawn_by_weight:
            kinds = pool.index.kind[pool.records].astype(np.int64)
            by_kind = np.bincount(kinds, minlength=len(pool.index.kinds)).clip(min=1)
            wanted = np.array([pool.weights.get(kind, 1.0) for kind in pool.index.kinds])
            weight[pool.records] = (wanted / by_kind)[kinds]
        held = np.bincount(codes, weight, minlength=len(names))
        drawn = np.bincount(codes, times[number], minlength=len(names))
        for name, mine, came in zip(names, held / max(held.sum(), 1e-30), drawn, strict=True):
            asked[name] = asked.get(name, 0.0) + float(requested[number] * mine)
            given[name] = given.get(name, 0.0) + float(came / total)
    there = [name for name in sorted(asked) if asked[name] or given[name]]
    return {name: (asked[name], given[name]) for name in there}


def measured(pool: Pool, processor: LlavaMoleProcessor) -> tuple[float, float, int]:
    """Mean tokens, and supervised ones, of samples spread over the source; of the longest."""
    places = np.unique(np.linspace(0, len(pool.records) - 1, MEASURED).astype(np.int64))
    numbers = np.sort(pool.records[places])
    encoded = [encode_sample(processor, pool.source[int(number)]) for number in numbers]
    lengths = [len(item.input_ids) for item in encoded]
    supervised = float(np.mean([item.supervised for item in encoded]))
    return float(np.mean(lengths)), supervised, max(lengths)


# --- to look at -----------------------------------------------------------------------------------


def print_mix(report: MixReport, console: Console, title: str) -> None:
    """Sources, tables and warnings."""
    for source in report.sources:
        out = ", ".join(f"{count:,} {why}" for why, count in source.left_out.items())
        line = f"{source.name}: {source.described}" + (f"; left out: {out}" if out else "")
        console.print(line, markup=False, highlight=False)
    console.print(source_table(report, title))
    for plural in GROUPS:
        shares = report.shares[plural]
        if set(shares) == {""}:
            continue
        table = Table(plural[:-1], "requested", "realised", title=f"by {plural[:-1]}")
        for name, (asked, given) in sorted(shares.items(), key=lambda pair: -pair[1][1]):
            table.add_row(escape(name) or "(none)", f"{asked:.1%}", f"{given:.1%}")
        console.print(table)
    for line in report.warnings():
        console.print(f"warning: {line}", style="yellow", markup=False)


def source_table(report: MixReport, title: str) -> Table:
    """One line a source, in 80 columns."""
    table = Table(title=escape(title))
    table.add_column("source", overflow="fold")
    columns = ["requested", "realised", "rows", "samples", "passes"]
    counted = any(source.tokens_per_sample for source in report.sources)
    for column in columns + ["tokens", "learnt"] * counted:
        table.add_column(column, justify="right", no_wrap=True)
    for source in report.sources:
        tokens, learnt = source.tokens_per_sample or 0.0, source.supervised_per_sample or 0.0
        cells = [rounded(tokens * source.drawn), rounded(learnt * source.drawn)] * counted
        table.add_row(
            escape(source.name),
            f"{source.requested:.1%}",
            f"{source.realised:.1%}",
            f"{source.rows:,}",
            f"{source.drawn:,}",
            f"{source.passes:.2f}",
            *cells,
        )
    table.caption = (
        f"{report.rows:,} rows, {report.drawn:,} samples; a pass has {report.pass_rows:,} rows"
        + "; tokens of separate rows, about" * counted
    )
    return table


def rounded(number: float) -> str:
    """1.23 M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g}"


def save_picture(report: MixReport, path: Path) -> None:
    """Requested beside realised shares by source, domain and language, and the passes; as PNG, PDF
    or SVG by the name's suffix."""
    from matplotlib.figure import Figure

    panels: list[tuple[str, list[str], list[tuple[float, float]]]] = [
        ("source", [s.name for s in report.sources],
         [(s.requested, s.realised) for s in report.sources]),
        *((plural[:-1], list(report.shares[plural]), list(report.shares[plural].values()))
          for plural in GROUPS if set(report.shares[plural]) != {""}),
    ]  # fmt: skip
    most = max(max(len(names) for _, names, _ in panels), 3)
    figure = Figure(figsize=(4.2 * (len(panels) + 1), 1.4 + 0.42 * most), layout="constrained")
    axes = figure.subplots(1, len(panels) + 1)
    for axis, (title, names, shares) in zip(axes, panels, strict=False):
        places = np.arange(len(names))
        asked, given = ([100 * pair[i] for pair in shares] for i in (0, 1))
        axis.barh(places - 0.2, asked, 0.38, color="#b9c4d0", label="requested")
        axis.barh(places + 0.2, given, 0.38, color="#2f6db3", label="realised")
        axis.set_yticks(places, [name or "(none)" for name in names])
        axis.set_title(f"share by {title}, %")
        axis.invert_yaxis()
    axes[0].legend(loc="best", fontsize="small")
    passes = [source.passes for source in report.sources]
    places = np.arange(len(passes))
    axes[-1].barh(places, passes, 0.6, color="#c07f2f")
    for place, source in zip(places, report.sources, strict=True):
        if source.repeat_limit is not None:
            axes[-1].plot([source.repeat_limit] * 2, [place - 0.4, place + 0.4], color="black")
    axes[-1].set_yticks(places, [source.name for source in report.sources])
    axes[-1].set_title("passes over each source (line: limit)")
    axes[-1].invert_yaxis()
    figure.suptitle(f"{report.rows:,} rows, {report.drawn:,} samples")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}")
    figure.savefig(beside, format=path.suffix.lstrip(".").lower(), dpi=110)
    beside.replace(path)


def print_rows(rows: MixtureRows, count: int, console: Console) -> None:
    """The first rows of the order: file and line of every sample."""
    for index in range(min(count, len(rows))):
        images, samples = rows.plan(index)
        pool, _ = rows.records(index)
        names = [image.name if isinstance(image, Path) else "(in the file)" for image in images]
        shown = ", ".join(names) or "text only"
        lines = [f"  {s.source} [{s.language}] {question(s)}" for s in samples]
        text = "\n".join([f"row {index}: {pool.name}, {shown}", *lines])
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def question(sample: Sample, characters: int = 60) -> str:
    """The first user turn, in a line."""
    said = next((turn.text for turn in sample.turns if turn.role == "user"), "")
    text = " ".join(said.replace("<image>", " ").split())
    return text if len(text) <= characters else text[: characters - 1] + "…"


def passes_of(rows: MixtureRows) -> str:
    """'0.65 passes', for a stage."""
    number = len(rows) / rows.mixture.rows
    return f"{number:.2f} passes" if not math.isclose(number, 1) else "one pass"


def mix(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    stage: str | None = None,
    questions: int = 1,
    show: int = 0,
    picture: Path | bool = False,
    json_file: Path | None = None,
    tokens: bool = True,
    console: Console | None = None,
) -> MixReport:
    """What `llava-mole mix` does: read the data, plan, print, save.

    Args:
        path: a recipe, of which one stage is planned, or a mixture file: one pass is.
        overrides: dotted keys.
        stage: of the recipe; None: its language stage with most rows.
        questions: samples of a picture that share a row, for a mixture file.
        show: print so many rows of the order.
        picture: file to save a picture of the mix in; True: `mix.png` in the recipe's output_dir,
            `NAME.mix.png` beside a mixture file; False: none.
        json_file: file to save the report in.
        tokens: count tokens of some samples, with the recipe's tokenizer.

    Raises:
        ConfigError, DataError, CheckpointError: with what to do.
    """
    console = console or Console()
    if json_file is not None:
        check_output("--json", json_file)
    if isinstance(picture, Path):
        check_output("--picture", picture, PICTURES)
    values = read_mapping(path, "recipe")
    processor = None
    if "sources" in values:
        if stage is not None:
            raise ConfigError(f"--stage {stage}: {path} is a mixture file; it has no stages")
        usual = path.with_name(f"{path.stem}.mix.png")
        data = read_data(load_mixture(path, overrides))
        rows = one_pass(data, questions)
        title = f"{path}: one pass"
    else:
        recipe = load_recipe(path, overrides)
        usual = Path(recipe.output_dir) / "mix.png"
        planned = [one for one in recipe.stages if one.kind == "language"]
        names = [one.name for one in planned]
        if stage is not None and stage not in names:
            raise ConfigError(f"--stage {stage}: {path} has the language stages {', '.join(names)}")
        if not planned:
            raise ConfigError(f"{path}: no stage of kind language, so nothing is drawn")
        read = dict(zip((one.name for one in recipe.stages), read_stages(recipe), strict=True))
        if tokens or any(recipe.data_of(one).max_length is not None for one in planned):
            processor = build_processor(recipe.model)[0]
            for of_stage in {id(one): one for one in read.values()}.values():
                of_stage.leave_out_long(processor, context_length(recipe.model))
        drawn = {one.name: planned_rows(recipe, one, read[one.name], processor) for one in planned}
        name = stage or max(drawn, key=lambda one: len(drawn[one]))
        data, rows = read[name], drawn[name]
        title = f"stage {name}: {passes_of(rows)}"
        for other in names:
            if other != name:
                console.print(f"stage {other}: {len(drawn[other]):,} rows, "
                              f"{passes_of(drawn[other])}; see it with --stage {other}",
                              markup=False)  # fmt: skip
    report = mix_report(data, rows, processor if tokens else None)
    print_mix(report, console, title)
    if show:
        print_rows(rows, show, console)
    if picture is not False:
        drawn_in = usual if picture is True else Path(picture)
        check_output("--picture", drawn_in, PICTURES)
        save_picture(report, drawn_in)
        console.print(f"picture of the mix: {drawn_in}", markup=False, soft_wrap=True)
    if json_file is not None:
        write_beside(json_file, json.dumps(report.to_dict(), indent=2, ensure_ascii=False) + "\n")
    return report


def one_pass(data: TrainingData, questions: int) -> MixtureRows:
    """A pass over a mixture that no recipe trains on."""
    pools = data.pools(data.recipe.kind_weights)
    mixture = data.mixture(pools, questions, seed=0)
    return MixtureRows(
        pools, mixture, no_tokens, rows=mixture.rows, questions=questions, seed=0,
        variants=data.variants, variant_share=data.recipe.variant_share,
    )  # fmt: skip


def no_tokens(sample: Sample) -> Encoded:
    """Rows that are looked at are not encoded."""
    raise ConfigError(f"{sample.source}: this plan has no tokenizer")


def check_output(option: str, path: Path, suffixes: Sequence[str] = ()) -> None:
    """Raises ConfigError for a file that cannot be written, before anything is worked out."""
    if suffixes and path.suffix.lstrip(".").lower() not in suffixes:
        raise ConfigError(f"{option} {path}: expected a name that ends in {', '.join(suffixes)}")
    if path.is_dir():
        raise ConfigError(f"{option} {path}: is a folder; name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{option} {path}: {why(error)}") from error
    if not os.access(path.parent, os.W_OK):
        raise ConfigError(f"{option} {path}: the folder cannot be written")


def write_beside(path: Path, text: str) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
