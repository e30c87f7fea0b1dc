"""Real tables to draw: what they hold, from which package, and in which split they may appear.

A split owns its tables: what dev and test charts show comes from files that no trained chart is
made from. Values are the tables' own, or plain means and counts of them (noted per table).

* `Grid`: comparable numbers, rows × columns. Rows that are a series run along the columns in time.
* `Points`: two columns to set against each other.
"""

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from llava_mole.errors import ConfigError

try:
    import pandas as pd
except ImportError as error:
    raise ConfigError(
        "package 'pandas' is missing: it reads the tables that the charts show. "
        'Install it with: pip install -e ".[starter]"'
    ) from error

PACKAGES = {"vega_datasets": "vega-datasets", "statsmodels": "statsmodels", "plotly": "plotly"}
"""Import name -> name on the package index."""


@dataclass(frozen=True)
class Grid:
    """Numbers of one unit: ``values`` (rows × columns), NaN where the table has none."""

    table: str
    title: str
    """Key of `charts_questions.TITLES`."""
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: np.ndarray
    series: bool = True
    """Columns follow each other in time."""
    bars: bool = True
    """Rows may stand side by side as bars: a unit that starts at 0."""
    parts: bool = False
    """Rows, and columns, are parts of a whole: a pie may show them."""


@dataclass(frozen=True)
class Points:
    table: str
    title: str
    x: np.ndarray
    y: np.ndarray


Part = Grid | Points


def load_tables() -> dict[str, list[Part]]:
    """Split -> what its tables hold, in a fixed order.

    Raises:
        ConfigError: a package is missing or has another content than expected.
    """
    return {
        split: [part for name in names for part in _parts(name)] for split, names in SPLITS.items()
    }


def _parts(name: str) -> list[Part]:
    try:
        return READERS[name](name)
    except (OSError, KeyError, ValueError) as error:
        package = PACKAGES[name.split("/")[0]]
        raise ConfigError(
            f"table '{name}' of package {package!r} cannot be read ({error!r}): expected the "
            'version that the starter extra asks for: pip install -e ".[starter]"'
        ) from error


def versions() -> dict[str, str]:
    """Versions of the packages that the tables come from."""
    return {package: version(package) for package in (*PACKAGES.values(), "pandas")}


# --- reading --------------------------------------------------------------------------------------


def _file(package: str, *place: str) -> Path:
    """A file inside a package, found without importing the package."""
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ConfigError(
            f"package {PACKAGES[package]!r} is missing: charts are drawn from its tables. "
            'Install it with: pip install -e ".[starter]"'
        )
    return Path(found.submodule_search_locations[0]).joinpath(*place)


@cache
def _frame(name: str) -> Any:
    package, table = name.split("/")
    if package == "vega_datasets":
        csv = _file(package, "_data", f"{table}.csv")
        if csv.is_file():
            return pd.read_csv(csv)
        return pd.DataFrame(json.loads(_file(package, "_data", f"{table}.json").read_text("utf-8")))
    if package == "statsmodels":
        folder = table.replace("-", "_")
        return pd.read_csv(_file(package, "datasets", folder, f"{folder}.csv"))
    place = _file(package, "package_data", "datasets", f"{table}.csv.gz")
    with gzip.open(place, "rt", encoding="utf-8") as file:
        return pd.read_csv(file)


def _names(values: Any) -> tuple[str, ...]:
    return tuple(str(value) for value in values)


def _letters(count: int) -> tuple[str, ...]:
    """A, B, C …: for rows whose names would need translating."""
    return tuple(
        chr(65 + number % 26) + ("" if number < 26 else str(number // 26))
        for number in range(count)
    )


def _grid(name: str, title: str, frame: Any, *, lettered: bool = False, **how: bool) -> Grid:
    """A pivoted frame as it stands: its index are the rows."""
    values = frame.to_numpy(dtype=float)
    rows = _letters(len(frame)) if lettered else _names(frame.index)
    return Grid(name, title, rows, _names(frame.columns), values, **how)


def _line(name: str, title: str, labels: Any, values: Any, *, bars: bool = True) -> Grid:
    """One series."""
    row = np.asarray(values, dtype=float)[None]
    return Grid(name, title, ("",), _names(labels), row, bars=bars)


def _points(name: str, title: str, frame: Any, *pairs: tuple[str, str]) -> list[Part]:
    parts: list[Part] = []
    for first, second in pairs:
        both = frame[[first, second]].dropna().to_numpy(dtype=float)
        parts.append(Points(name, title, both[:, 0], both[:, 1]))
    return parts


# --- trained tables -------------------------------------------------------------------------------


def _seattle(name: str) -> list[Part]:
    """Daily weather 2012 to 2015: monthly means and sums, means of each day of the year."""
    frame = _frame(name).copy()
    day = pd.to_datetime(frame["date"])
    frame["year"], frame["month"] = day.dt.year, day.dt.month
    frame["week"] = day.dt.day_of_year // 7

    def table(column: str, by: str = "month", how: str = "mean") -> Any:
        return frame.pivot_table(index="year", columns=by, values=column, aggfunc=how)

    weather = frame.pivot_table(index="weather", columns="month", values="date", aggfunc="count")
    return [
        _grid(name, "temperature", table("temp_max"), bars=False),
        _grid(name, "temperature", table("temp_min", "week"), bars=False),
        _grid(name, "precipitation", table("precipitation", how="sum"), parts=True),
        _grid(name, "wind_speed", table("wind")),
        _grid(name, "days", weather.fillna(0), lettered=True, series=False, parts=True),
        *_points(name, "temperature", frame[frame["precipitation"] > 0], ("temp_max", "temp_min")),
        *_points(name, "wind_speed", frame, ("temp_max", "wind")),
    ]


def _employment(name: str) -> list[Part]:
    frame = _frame(name).drop(columns=["nonfarm_change"]).set_index("month").T
    frame.columns = [month[:7] for month in frame.columns]
    # Of the sums within sums, those that are parts of no other: they may share a pie.
    sectors = [
        "mining_and_logging", "construction", "durable_goods", "nondurable_goods",
        "wholesale_trade", "retail_trade", "transportation_and_warehousing", "utilities",
        "information", "financial_activities", "professional_and_business_services",
        "education_and_health_services", "leisure_and_hospitality", "other_services", "government",
    ]  # fmt: skip
    leaves = frame.loc[sectors]
    several = Grid(
        name, "employment", _letters(len(leaves)), tuple(leaves.columns),
        leaves.to_numpy(float), series=False, parts=True,
    )  # fmt: skip
    return [_grid(name, "employment", frame, lettered=True), several]


def _barley(name: str) -> list[Part]:
    frame = _frame(name).pivot_table(index="variety", columns=["site", "year"], values="yield")
    sites = _frame(name).pivot_table(index="site", columns=["variety", "year"], values="yield")
    return [_grid(name, "barley", part, lettered=True, series=False) for part in (frame, sites)]


def _cars(name: str) -> list[Part]:
    frame = _frame(name).copy()
    frame["Year"] = frame["Year"].str[:4]
    parts: list[Part] = [
        _grid(name, title, frame.pivot_table(index="Origin", columns="Year", values=column))
        for title, column in (("horsepower", "Horsepower"), ("weight", "Weight_in_lbs"))
    ]
    pairs = [
        ("Horsepower", "Miles_per_Gallon"),
        ("Weight_in_lbs", "Miles_per_Gallon"),
        ("Displacement", "Horsepower"),
        ("Weight_in_lbs", "Acceleration"),
    ]
    return parts + _points(name, "cars", frame, *pairs)


def _stocks(name: str) -> list[Part]:
    frame = _frame(name).copy()
    frame["month"] = pd.to_datetime(frame["date"]).dt.strftime("%Y-%m")
    return [
        _grid(
            name, "share_price", frame.pivot_table(index="symbol", columns="month", values="price")
        )
    ]


def _wheat(name: str) -> list[Part]:
    frame = _frame(name)
    return [
        _line(name, "wheat_price", frame["year"], frame["wheat"]),
        _line(name, "wages", frame["year"], frame["wages"]),
    ]


def _driving(name: str) -> list[Part]:
    frame = _frame(name)
    return [
        _line(name, "distance_driven", frame["year"], frame["miles"]),
        _line(name, "petrol_price", frame["year"], frame["gas"]),
        *_points(name, "petrol_price", frame, ("miles", "gas")),
    ]


def _iris(name: str) -> list[Part]:
    names = ["sepalLength", "sepalWidth", "petalLength", "petalWidth"]
    pairs = [(x, y) for place, x in enumerate(names) for y in names[place + 1 :]]
    return _points(name, "irises", _frame(name), *pairs)


def _fertility(name: str) -> list[Part]:
    frame = _frame(name).set_index("Country Code")
    years = [column for column in frame.columns if column.isdigit()]
    known = frame[years].dropna(axis="columns", how="all").dropna()
    return [_grid(name, "births", known)]


def _macro(name: str) -> list[Part]:
    frame = _frame(name)
    labels = frame["year"].astype(int).astype(str)
    columns = {
        "gdp": "realgdp", "investment": "realinv", "price_index": "cpi",
        "interest": "tbilrate", "unemployment": "unemp",
    }  # fmt: skip
    return [
        *(_line(name, title, labels, frame[column]) for title, column in columns.items()),
        _line(name, "inflation", labels, frame["infl"], bars=False),
        *_points(name, "unemployment", frame, ("unemp", "infl"), ("tbilrate", "unemp")),
    ]


def _sunspots(name: str) -> list[Part]:
    frame = _frame(name)
    return [_line(name, "sunspots", frame["YEAR"], frame["SUNACTIVITY"])]


def _longley(name: str) -> list[Part]:
    frame = _frame(name)
    columns = {"gdp": "GNP", "population": "POP", "unemployment": "UNEMP"}
    return [_line(name, title, frame["YEAR"], frame[column]) for title, column in columns.items()]


# --- tables for dev -------------------------------------------------------------------------------


def _san_francisco(name: str) -> list[Part]:
    """Hourly temperatures of 2010: means of each hour by month, of each week."""
    frame = _frame(name).copy()
    time = pd.to_datetime(frame["date"])
    frame["month"], frame["hour"], frame["week"] = (
        time.dt.month,
        time.dt.hour,
        time.dt.day_of_year // 7,
    )
    weeks = frame.groupby("week")["temp"].mean()
    hours = frame.pivot_table(index="month", columns="hour", values="temp")
    # Twelve hours on: the night lies in the middle.
    turned = hours[[(hour + 12) % 24 for hour in range(24)]]
    return [
        _grid(name, "temperature", hours, bars=False),
        _grid(name, "temperature", turned, bars=False),
        _line(name, "temperature", weeks.index, weeks, bars=False),
    ]


def _iowa(name: str) -> list[Part]:
    frame = _frame(name).copy()
    frame["year"] = frame["year"].str[:4]
    pivot = frame.pivot_table(index="source", columns="year", values="net_generation")
    return [_grid(name, "electricity", pivot, lettered=True, parts=True)]


def _el_nino(name: str) -> list[Part]:
    frame = _frame(name).set_index("YEAR")
    frame.columns = [str(number) for number in range(1, 13)]
    return [_grid(name, "sea_temperature", frame, bars=False)]


def _grunfeld(name: str) -> list[Part]:
    frame = _frame(name)
    pivot = frame.pivot_table(index="firm", columns="year", values="invest")
    value = frame.pivot_table(index="firm", columns="year", values="value")
    return [
        _grid(name, "investment", pivot, lettered=True, parts=True),
        _grid(name, "firm_value", value, lettered=True),
        *_points(name, "investment", frame, ("value", "invest"), ("capital", "invest")),
    ]


def _wind(name: str) -> list[Part]:
    pivot = _frame(name).pivot_table(index="direction", columns="strength", values="frequency")
    return [_grid(name, "wind_frequency", pivot, series=False, parts=True)]


def _engel(name: str) -> list[Part]:
    return _points(name, "food_spending", _frame(name), ("income", "foodexp"))


def _shares(name: str) -> list[Part]:
    return [_grid(name, "share_price", _frame(name).set_index("date").T)]


# --- tables for test ------------------------------------------------------------------------------


def _gapminder(name: str) -> list[Part]:
    frame = _frame(name)
    columns = {"life_expectancy": "lifeExp", "population": "pop", "income": "gdpPercap"}
    pivots = {
        title: frame.pivot_table(index="iso_alpha", columns="year", values=column)
        for title, column in columns.items()
    }
    parts: list[Part] = [_grid(name, title, pivot) for title, pivot in pivots.items()]
    parts.append(_grid(name, "population", pivots["population"], series=False, parts=True))
    rich = frame[frame["gdpPercap"] < 40_000]
    return parts + _points(name, "life_expectancy", rich, ("gdpPercap", "lifeExp"))


def _crimea(name: str) -> list[Part]:
    frame = _frame(name)
    frame = frame.assign(month=frame["date"].str[:7]).set_index("month").drop(columns="date")
    return [_grid(name, "deaths", frame.T, lettered=True, parts=True)]


def _nile(name: str) -> list[Part]:
    frame = _frame(name)
    return [_line(name, "river_flow", frame["year"], frame["volume"])]


def _equipment(name: str) -> list[Part]:
    """Monthly index of orders 1995 to 2016, also as years × months and as means of the years."""
    frame = _frame(name)
    values = frame.iloc[:, 1]
    time = pd.to_datetime(frame["DATE"], format="%b-%d-%Y")
    by_month = pd.DataFrame({"year": time.dt.year, "month": time.dt.month, "value": values})
    years = by_month.groupby("year")["value"].mean()
    return [
        _line(name, "equipment", time.dt.strftime("%Y-%m"), values),
        _line(name, "equipment", years.index, years),
        _grid(
            name, "equipment", by_month.pivot_table(index="year", columns="month", values="value")
        ),
    ]


def _co2(name: str) -> list[Part]:
    """Weekly since 1958: monthly means, as years × months and as one series."""
    frame = _frame(name).dropna()
    time = pd.to_datetime(frame["date"].astype(str), format="%Y%m%d")
    table = pd.DataFrame({"year": time.dt.year, "month": time.dt.month, "co2": frame["co2"]})
    monthly = table.groupby(["year", "month"])["co2"].mean()
    labels = [f"{year}-{month:02}" for year, month in monthly.index]
    by_year = table.pivot_table(index="year", columns="month", values="co2").dropna()
    return [
        _line(name, "carbon_dioxide", labels, monthly, bars=False),
        _grid(name, "carbon_dioxide", by_year, bars=False),
    ]


def _states(name: str) -> list[Part]:
    frame = _frame(name).set_index("state")
    bars: list[Part] = [
        Grid(name, title, _letters(len(frame)), ("",), frame[[column]].to_numpy(float), False)
        for title, column in (("poverty", "poverty"), ("urban", "urban"))
    ]
    return bars + _points(name, "poverty", frame, ("hs_grad", "poverty"), ("urban", "poverty"))


def _tips(name: str) -> list[Part]:
    frame = _frame(name)
    counts = frame.pivot_table(index="size", columns="day", values="tip", aggfunc="count")
    return [
        _grid(name, "tips", counts.fillna(0), series=False, parts=True),
        *_points(name, "tips", frame, ("total_bill", "tip")),
    ]


SPLITS: dict[str, tuple[str, ...]] = {
    "train": (
        "vega_datasets/seattle-weather", "vega_datasets/us-employment", "vega_datasets/barley",
        "vega_datasets/cars", "vega_datasets/stocks", "vega_datasets/wheat",
        "vega_datasets/driving", "vega_datasets/iris", "statsmodels/fertility",
        "statsmodels/macrodata", "statsmodels/sunspots", "statsmodels/longley",
    ),
    "dev": (
        "vega_datasets/sf-temps", "vega_datasets/iowa-electricity", "statsmodels/elnino",
        "statsmodels/grunfeld", "statsmodels/engel", "plotly/wind", "plotly/stocks",
    ),
    "test": (
        "plotly/gapminder", "plotly/tips", "vega_datasets/crimea", "statsmodels/nile",
        "statsmodels/elec-equip", "statsmodels/co2", "statsmodels/statecrime",
    ),
}  # fmt: skip

READERS: dict[str, Callable[[str], list[Part]]] = {
    "vega_datasets/seattle-weather": _seattle,
    "vega_datasets/us-employment": _employment,
    "vega_datasets/barley": _barley,
    "vega_datasets/cars": _cars,
    "vega_datasets/stocks": _stocks,
    "vega_datasets/wheat": _wheat,
    "vega_datasets/driving": _driving,
    "vega_datasets/iris": _iris,
    "statsmodels/fertility": _fertility,
    "statsmodels/macrodata": _macro,
    "statsmodels/sunspots": _sunspots,
    "statsmodels/longley": _longley,
    "vega_datasets/sf-temps": _san_francisco,
    "vega_datasets/iowa-electricity": _iowa,
    "statsmodels/elnino": _el_nino,
    "statsmodels/grunfeld": _grunfeld,
    "statsmodels/engel": _engel,
    "plotly/wind": _wind,
    "plotly/stocks": _shares,
    "plotly/gapminder": _gapminder,
    "plotly/tips": _tips,
    "vega_datasets/crimea": _crimea,
    "statsmodels/nile": _nile,
    "statsmodels/elec-equip": _equipment,
    "statsmodels/co2": _co2,
    "statsmodels/statecrime": _states,
}
