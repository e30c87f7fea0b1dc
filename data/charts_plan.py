"""Which charts there are: values from a split's tables, arranged so that answers come out even.

Charts whose marks have an order or colours come in families of four: as many marks, the same
colours, and a largest value that takes another of four colours and another of four places in each.
So a family asked about with one set of four options has each of them right once. Values are never
changed; they are chosen (clear margins, a clear course) and, where a table's rows have no order,
put in order.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

if __package__:
    from data.charts_layouts import COLOURS, FONTS, LAYOUTS
    from data.charts_tables import Grid, Part, Points
    from data.common import even, round_robin
else:
    from charts_layouts import COLOURS, FONTS, LAYOUTS
    from charts_tables import Grid, Part, Points
    from common import even, round_robin

from llava_mole.errors import ConfigError

FAMILY = 4
SHARES = {
    "bars": 0.16, "plain": 0.20, "rows": 0.06, "pie": 0.22, "donut": 0.04,
    "line": 0.14, "area": 0.10, "scatter": 0.04, "heatmap": 0.04,
}  # fmt: skip
"""Drawing -> share of a split's charts. "plain" are upright bars of one colour, "rows" lie."""
CHART_TYPE = {
    "bars": "bar", "plain": "bar", "rows": "bar", "pie": "pie", "line": "line", "area": "area",
    "scatter": "scatter", "heatmap": "heatmap",
}  # fmt: skip
"""What a chart is called. A donut is not asked: some would call it a pie."""
TRENDS = ("rise", "fall", "peak", "dip")
PLACES = 5
"""Most bars of a chart that is asked for the place of its highest."""
TRIES = 400
"""At one table, before the next one's turn."""


@dataclass(frozen=True)
class Chart:
    """One picture: all that decides its pixels, and the answers."""

    key: str
    split: str
    drawing: str
    """A key of `SHARES`."""
    table: str
    title: str
    labels: tuple[str, ...]
    """Of the marks, in drawing order; of a heat map's columns."""
    values: tuple[tuple[float, ...], ...]
    """One row; of a scatter plot x and y; of a heat map its rows."""
    colours: tuple[str, ...]
    """One a mark, or one for all."""
    layout: str
    font: str
    language: str
    """Of the text on the chart."""
    family: str = ""
    """Charts with the same one can be asked with the same four options."""
    answers: dict[str, str] = field(default_factory=dict)
    """Kind of question -> answer (a key of `charts_questions.LABELS`)."""


def plan(parts: dict[str, list[Part]], counts: dict[str, int], seed: int) -> list[Chart]:
    """About ``counts[split]`` charts for each split (families are whole).

    Raises:
        ConfigError: the tables have no values for a chart that is needed.
    """
    return [
        chart
        for split, count in counts.items()
        for chart in _Split(split, parts[split], random.Random(f"{seed}:{split}")).charts(count)
    ]


class _Split:
    """The charts of one split, one draw after the other."""

    def __init__(self, split: str, parts: Sequence[Part], rng: random.Random) -> None:
        self.split, self.rng = split, rng
        grids = [part for part in parts if isinstance(part, Grid)]
        self.bars = _Turns([grid for grid in grids if grid.bars], rng)
        self.parts = _Turns([grid for grid in grids if grid.parts], rng)
        self.series = _Turns([grid for grid in grids if grid.series], rng)
        self.heat = _Turns([g for g in grids if len(g.rows) > 2 and len(g.columns) > 3], rng)
        self.points = _Turns([part for part in parts if isinstance(part, Points)], rng)
        self.layouts = round_robin([lay.name for lay in LAYOUTS if lay.split == split], rng)
        self.fonts = round_robin(
            [(f.name, language) for f in FONTS if f.split == split for language in f.languages], rng
        )
        self.number = 0

    def charts(self, count: int) -> Iterator[Chart]:
        for drawing, share in SHARES.items():
            families = max(1, round(share * count / FAMILY))
            if drawing in ("line", "area"):
                for _ in range(families):
                    for trend in TRENDS:
                        yield self._course(drawing, trend)
            elif drawing in ("scatter", "heatmap"):
                for _ in range(families * FAMILY):
                    yield self._scatter() if drawing == "scatter" else self._heatmap()
            else:
                sizes = (4, 5, 3, 6, 2) if drawing in ("bars", "plain") else (4, 5, 3)
                for size in even(sizes, families, self.rng):
                    yield from self._family(drawing, size)

    def _chart(self, drawing: str, table: str, title: str, **rest: object) -> Chart:
        font, language = next(self.fonts)
        key, self.number = f"{self.split}-{self.number:05}", self.number + 1
        answers = dict(rest.pop("answers", {}))  # type: ignore[call-overload]
        if drawing in CHART_TYPE:
            answers["chart_type"] = CHART_TYPE[drawing]
        return Chart(
            key, self.split, drawing, table, title, layout=next(self.layouts), font=font,
            language=language, answers=answers, **rest,
        )  # type: ignore[arg-type]  # fmt: skip

    def _family(self, drawing: str, size: int) -> Iterator[Chart]:
        rng = self.rng
        palette = rng.sample(sorted(COLOURS), size)
        tops, places = _lots(palette, rng), _lots(range(min(size, PLACES)), rng)
        family = f"{self.split}-{self.number:05}"
        for top, place in zip(tops, places, strict=True):
            table, title, labels, values = self._values(drawing, size, place)
            answers = {}
            if drawing == "plain":
                colours = (rng.choice(sorted(COLOURS)),)
                answers["colour"] = colours[0]
            else:
                colours = _coloured(values, palette, top, rng)
                if size > 2:
                    answers["largest" if drawing in ("pie", "donut") else "largest_bar"] = top
            if drawing in ("bars", "plain"):
                answers["count"] = str(size)
                if 2 < size <= PLACES:
                    answers["place"] = str(place + 1)
            yield self._chart(
                drawing, table, title, labels=labels, values=(values,), colours=colours,
                family=family, answers=answers,
            )  # fmt: skip

    def _values(
        self, drawing: str, size: int, place: int
    ) -> tuple[str, str, tuple[str, ...], tuple[float, ...]]:
        """Table, title, labels and values whose largest stands at ``place``."""
        rng = self.rng
        for grid in self.parts if drawing in ("pie", "donut") else self.bars:
            along = grid.series and (len(grid.rows) < size or rng.random() < 0.4)
            if (len(grid.columns) if along else len(grid.rows)) < size:
                continue
            if along:  # bars in time: their order is the table's
                row = rng.randrange(len(grid.rows))
                step = rng.randint(1, max(1, (len(grid.columns) - 1) // (size - 1)))
                start = rng.randrange(len(grid.columns) - step * (size - 1))
                picked = list(range(start, start + step * size, step))
                values = grid.values[row, picked]
                names = [grid.columns[column] for column in picked]
            else:
                picked = rng.sample(range(len(grid.rows)), size)
                values = grid.values[picked, rng.randrange(len(grid.columns))]
                names = [grid.rows[row] for row in picked]
            if not _clear(values, drawing):
                continue
            top = int(values.argmax())
            if top != place and along and drawing in ("bars", "plain"):
                continue
            order = list(range(size))
            if not along:
                order[top], order[place] = order[place], order[top]
            return (
                grid.table,
                grid.title,
                tuple(names[index] for index in order),
                tuple(float(values[index]) for index in order),
            )
        raise self._nothing(f"{size} {drawing} with a clear largest value")

    def _course(self, drawing: str, trend: str) -> Chart:
        rng = self.rng
        for grid in self.series:
            row = grid.values[rng.randrange(len(grid.rows))]
            length = rng.randint(6, 26)
            step = rng.choice((1, 1, 1, 2, 3, 4, 6))
            if step * length > len(row):
                continue
            start = rng.randrange(len(row) - step * length + 1)
            part = slice(start, start + step * length, step)
            values = row[part]
            if course(values) != trend:
                continue
            colour = rng.choice(sorted(COLOURS))
            return self._chart(
                drawing, grid.table, grid.title, labels=grid.columns[part],
                values=(tuple(map(float, values)),), colours=(colour,),
                answers={"trend": trend, "colour": colour},
            )  # fmt: skip
        raise self._nothing(f"a series with a clear {trend}")

    def _scatter(self) -> Chart:
        points = next(iter(self.points))
        size = min(len(points.x), self.rng.randint(25, 90))
        chosen = sorted(self.rng.sample(range(len(points.x)), size))
        values = tuple(tuple(map(float, axis[chosen])) for axis in (points.x, points.y))
        return self._chart(
            "scatter", points.table, points.title, labels=(), values=values,
            colours=(self.rng.choice(sorted(COLOURS)),),
        )  # fmt: skip

    def _heatmap(self) -> Chart:
        rng = self.rng
        for grid in self.heat:
            across = rng.randint(4, min(10, len(grid.columns)))
            start = rng.randrange(len(grid.columns) - across + 1)
            rows = sorted(rng.sample(range(len(grid.rows)), min(len(grid.rows), rng.randint(3, 7))))
            values = grid.values[rows, start : start + across]
            if np.isfinite(values).all() and values.std() > 0.05 * abs(values.mean()):
                break
        else:
            raise self._nothing("a heat map")
        labels = grid.columns[start : start + across] if grid.series else ()
        return self._chart(
            "heatmap", grid.table, grid.title, labels=labels,
            values=tuple(tuple(map(float, row)) for row in values),
            colours=(rng.choice(sorted(COLOURS)),),
        )  # fmt: skip

    def _nothing(self, wanted: str) -> ConfigError:
        return ConfigError(
            f"the {self.split} tables have no values for {wanted}: expected the versions of the "
            'table packages that the starter extra asks for: pip install -e ".[starter]"'
        )


class _Turns:
    """Endless turns at the tables: each has `TRIES` in a row, whichever of its parts they hit."""

    def __init__(self, parts: Sequence, rng: random.Random) -> None:
        self.rng = rng
        self.tables: dict[str, list] = {}
        for part in parts:
            self.tables.setdefault(part.table, []).append(part)
        self.order = round_robin(self.tables, rng)

    def __iter__(self) -> Iterator:
        for _ in range(2 * len(self.tables)):
            table = self.tables[next(self.order)]
            for _ in range(TRIES):
                yield self.rng.choice(table)


def _lots(values: Sequence, rng: random.Random) -> list:
    """Four of the values, all different where there are four."""
    chosen = rng.sample(list(values), min(FAMILY, len(values)))
    return [chosen[number % len(chosen)] for number in range(FAMILY)]


def _clear(values: np.ndarray, drawing: str) -> bool:
    """Whether the largest stands out and every mark can be seen."""
    if not np.isfinite(values).all() or values.min() <= 0:
        return False
    ordered = np.sort(values)
    round_ = drawing in ("pie", "donut")
    if ordered[-1] < (1.5 if round_ else 1.25) * ordered[-2]:
        return False
    return bool(ordered[0] >= (0.05 * ordered.sum() if round_ else 0.07 * ordered[-1]))


def _coloured(
    values: Sequence[float], palette: Sequence[str], top: str, rng: random.Random
) -> tuple[str, ...]:
    """The palette in the order of the marks, ``top`` at the largest value."""
    rest = [colour for colour in palette if colour != top]
    rng.shuffle(rest)
    rest.insert(values.index(max(values)), top)
    return tuple(rest)


def course(values: np.ndarray) -> str | None:
    """'rise', 'fall', 'peak' or 'dip' of a series, None where a reader might hesitate.

    A rise ends near its top, starts near its bottom and climbs nearly all the way (rank correlation
    with time); a peak has its highest value in the middle, both ends low, and climbs and falls as
    steadily. Falls and dips are their mirror images.
    """
    if not np.isfinite(values).all() or np.ptp(values) == 0:
        return None
    level = (values - values.min()) / np.ptp(values)
    along = _rank_correlation(level)
    if along > 0.85 and level[0] < 0.2 and level[-1] > 0.8:
        return "rise"
    if along < -0.85 and level[0] > 0.8 and level[-1] < 0.2:
        return "fall"
    for name, shape in (("peak", level), ("dip", 1 - level)):
        top = int(shape.argmax())
        middle = 0.25 <= top / (len(shape) - 1) <= 0.75
        if middle and top >= 2 and len(shape) - top >= 3 and max(shape[0], shape[-1]) < 0.3:
            up, down = _rank_correlation(shape[: top + 1]), _rank_correlation(shape[top:])
            if up > 0.8 and down < -0.8:
                return name
    return None


def _rank_correlation(values: np.ndarray) -> float:
    """Spearman's, with time; ties in order of appearance."""
    ranks = np.empty(len(values))
    ranks[np.argsort(values, kind="stable")] = np.arange(len(values))
    difference = ranks - np.arange(len(values))
    return 1 - 6 * float(difference @ difference) / (len(values) * (len(values) ** 2 - 1))
