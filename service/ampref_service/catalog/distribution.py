"""How the clips of a query are distributed: the histogram of a metric, and numbers by tier, robot, mode, profile and tag.

Every row is counted, in one pass of the database: each is given a small number (its cell of a grid, or its facets), and the
numbers are counted. PostgreSQL groups by them. SQLite would sort all rows for that; it joins them to one text instead, a
character a row, in less than half of the time and without an object a row in Python.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Integer, Row, Select, case, cast, func, literal_column, select

from amp_core.errors import InputRefused
from amp_core.metrics import METRICS
from amp_core.tiers import Tier
from ampref_service.catalog.curriculum import ClipQuery, hide_column, select_clips
from ampref_service.catalog.engine import Session, select_distinct
from ampref_service.catalog.records import Facets, FacetValue, Histogram
from ampref_service.catalog.tables import METRIC_COLUMNS, SORT_COLUMNS, UNSCORED, clip_tags, curriculum

HISTOGRAM_COLUMNS: Final = tuple(name for name in SORT_COLUMNS if name != "created_at")
FEWEST_BINS: Final = 5
MOST_BINS: Final = 100
MOST_TAGS: Final = 50
TAIL: Final = 0.005
"""The share of the clips at either end that the bins need not hold, so that one wild value does not flatten the rest."""

_UNITS = {metric.name: metric.unit for metric in METRICS} | {"duration_sec": "s"}
_CELLS = 1000
_ROUNDS = 6
_STEPS = 300  # From the end of an index to where wild values are passed, as a first guess.
_EDGE = 1e-6  # Of a cell: how far below an edge a value still counts as on it, where binary fractions miss decimal ones.
_FIRST_CHARACTER = 0x10000  # Behind the surrogates, which no text may have; over a million follow.
_TIERS = (-1, 0, 1)
_MARKS = ("best", "best_in_mode", "best_by_profile")


@dataclass(frozen=True)
class _Grid:
    """Cells of width `10 ** power`, the first of which begins at `start` of these widths.

    Such a width divides 1, 2, 2.5 and 5 times every power of ten above it, the widths of bins.
    """

    power: int
    start: int
    cells: int

    @classmethod
    def over(cls, low: float, high: float, is_whole: bool) -> _Grid:
        """A grid with `low` to `high` in its middle third, in `_CELLS` cells or up to ten times as many."""
        span = high - low or max(abs(low), 1.0)
        magnitude = max(abs(low), abs(high), 1e-9)
        # No cell is finer than the numbers are.
        finest = 0 if is_whole else math.floor(math.log10(magnitude)) - 12
        power = max(math.floor(math.log10(span / _CELLS)), finest)
        start, stop = (math.floor(_divide(end, power) + _EDGE) for end in (low - span, high + span))
        return cls(power, start, stop - start + 1)

    @property
    def is_finest(self) -> bool:
        """Whether no grid could be finer, of whole numbers."""
        return self.power == 0

    def edge(self, cell: int) -> float:
        """Where a cell begins."""
        count = self.start + cell
        # A whole number over a power of ten is rounded once, a product with a tenth twice.
        return count / 10**-self.power if self.power < 0 else float(count * 10**self.power)


def _divide(value: float, power: int) -> float:
    return value * 10.0**-power if power < 0 else value / 10.0**power


def measure_histogram(session: Session, query: ClipQuery, metric: str, bins: int = 24) -> Histogram:
    """The distribution of a metric among the clips that the other filters of a query leave.

    Args:
      metric: one of `HISTOGRAM_COLUMNS`; the query's own range of it is left out.
      bins: how many there are at most; `FEWEST_BINS` to `MOST_BINS`.

    Raises:
      InputRefused: there is no such metric.
    """
    if metric not in HISTOGRAM_COLUMNS:
        raise InputRefused(
            f"there is no histogram of {metric[:80]!r}", key="metric", expected="one of " + ", ".join(HISTOGRAM_COLUMNS)
        )
    metrics = {name: bounds for name, bounds in query.metrics.items() if name != metric}
    min_duration = None if metric == "duration_sec" else query.min_duration_sec
    query = replace(query, sort=metric, metrics=metrics, min_duration_sec=min_duration, cursor=None)
    is_whole = METRIC_COLUMNS.get(metric) is int
    grid = _Grid.over(*_find_usual_range(session, metric), is_whole)
    # The grid of all clips does, unless the filters leave a narrow part of it, or what lies outside.
    for _ in range(_ROUNDS):
        counts, missing, extremes = _count_cells(session, query, metric, grid)
        if extremes is None:
            return Histogram(metric, _UNITS[metric], (), (), 0, 0, missing, missing, None, None)
        ends = extremes
        first, last = _find_bulk(counts)
        below, above = first == 0, last == len(counts) - 1
        is_inside = not below and not above
        low, high = ends[0] if below else grid.edge(first - 1), ends[1] if above else grid.edge(last)
        if first == last and is_inside and ends[0] < ends[1]:
            # Nearly all have about the same value: whether it is one and the same is asked for.
            column = curriculum.c[metric]
            slack = _EDGE * (high - low)
            within = (column >= low - slack, column < high)
            inner = session.execute(select_clips(session, query, func.min(column), func.max(column)).where(*within)).one()
            low, high = (float(end) for end in inner)
        is_fine = last - first >= 2 * bins or low == high or ends[0] == ends[1] or (is_whole and grid.is_finest)
        if is_fine and is_inside:
            break
        finer = _Grid.over(low, high, is_whole)
        if finer == grid:
            break
        grid = finer
    if not is_whole and first < last <= grid.cells and abs(_divide(ends[1], grid.power) - grid.start - last + 1) < 2 * _EDGE:
        # The greatest value is the edge that its cell begins at: it belongs into the last bin, as 1 among shares.
        counts[last - 1] += counts[last]
        counts[last] = 0
        last -= 1
    return _make_bins(metric, grid, counts, (first, last), bins, missing, ends)


def _find_usual_range(session: Session, metric: str) -> tuple[float, float]:
    """About where all clips lie but a few at either end, by a short walk from each end of the metric's index."""
    column = curriculum.c[metric]
    values = select(column).where(column.is_not(None)).limit(1)
    for steps in (_STEPS, 0):
        orders = (values.order_by(order).offset(steps) for order in (column.asc(), column.desc()))
        low, high = (session.execute(statement).scalar_one_or_none() for statement in orders)
        if low is not None and high is not None:
            return float(min(low, high)), float(max(low, high))
    return 0.0, 1.0


def _count_cells(
    session: Session, query: ClipQuery, metric: str, grid: _Grid
) -> tuple[NDArray[np.int64], int, tuple[float, float] | None]:
    """Clips below the grid, in each cell and above it; those without a value; the least value and the greatest."""
    column = curriculum.c[metric]
    product = column * 10.0**-grid.power if grid.power < 0 else column / 10.0**grid.power
    offset = product + (_EDGE - grid.start)
    cell = cast(offset if session.dialect.name == "sqlite" else func.floor(offset), Integer)
    code = case((column.is_(None), grid.cells + 2), (offset < 0, 0), (offset >= grid.cells, grid.cells + 1), else_=cell + 1)
    statement = select_clips(session, query, *_count_codes(session, code), func.min(column), func.max(column))
    counts, rows = _read_codes(session, statement, grid.cells + 3)
    lows, highs = ([row[column] for row in rows if row[column] is not None] for column in (-2, -1))
    return counts[:-1], int(counts[-1]), (float(min(lows)), float(max(highs))) if lows else None


def _find_bulk(counts: NDArray[np.int64]) -> tuple[int, int]:
    """The first and the last place of those that hold all but `TAIL` at either end."""
    cumulative = np.cumsum(counts)
    first = np.searchsorted(cumulative, cumulative[-1] * TAIL, side="right")
    return int(first), int(np.searchsorted(cumulative, cumulative[-1] * (1 - TAIL), side="left"))


def _make_bins(
    metric: str,
    grid: _Grid,
    counts: NDArray[np.int64],
    bulk: tuple[int, int],
    bins: int,
    missing: int,
    ends: tuple[float, float],
) -> Histogram:
    """The cells of the bulk, put together to at most so many bins whose edges are round numbers."""
    begin, end = max(bulk[0] - 1, 0) + grid.start, min(bulk[1], grid.cells) + grid.start
    width = next(width for width in _iterate_widths() if -(-end // width) - begin // width <= bins)
    edges = [width * number - grid.start for number in range(begin // width, -(-end // width) + 1)]
    cumulative = np.concatenate([[0], np.cumsum(counts)])  # Before each place.
    at_edges = cumulative[np.clip(np.array(edges) + 1, 1, len(counts) - 1)]
    values = int(cumulative[-1])
    return Histogram(
        metric=metric,
        unit=_UNITS[metric],
        edges=tuple(grid.edge(edge) for edge in edges),
        counts=tuple(np.diff(at_edges).tolist()),
        below=int(at_edges[0]),
        above=values - int(at_edges[-1]),
        missing=missing,
        total=values + missing,
        low=ends[0],
        high=ends[1],
    )


def _iterate_widths() -> Iterator[int]:
    """1, 2, 5, 10, 20, 25, 50, …, in cells."""
    power = 1
    while True:
        yield from (power, 2 * power, *([25 * power // 10] if power > 1 else ()), 5 * power)
        power *= 10


def _count_codes(session: Session, code: ColumnElement[Any]) -> tuple[ColumnElement[Any], ...]:
    """What a statement begins with whose answer is read by `_read_codes`: a small number of each row, from 0 on."""
    if session.dialect.name == "sqlite":
        return (func.group_concat(func.char(code + _FIRST_CHARACTER), ""),)
    return code, func.count()


def _read_codes(session: Session, statement: Select[Any], size: int) -> tuple[NDArray[np.int64], Sequence[Row[Any]]]:
    """How many rows have each number, and the rows of the answer."""
    if session.dialect.name == "sqlite":
        rows = session.execute(statement).all()
        characters = np.frombuffer((rows[0][0] or "").encode("utf-32-le"), np.uint32)
        return np.bincount(characters.astype(np.int64) - _FIRST_CHARACTER, minlength=size), rows
    rows = session.execute(statement.group_by(literal_column("1"))).all()
    counts = np.zeros(size, np.int64)
    for row in rows:
        counts[row[0]] = row[1]
    return counts, rows


def count_facets(session: Session, query: ClipQuery) -> Facets:
    """How many clips a query has and, of each tier, robot, mode, gate profile and tag, would have with that filter.

    A filter on one of the first four is replaced; a tag comes in addition to those that are filtered by.
    """
    query = replace(query, cursor=None, sort="created_at")
    names = ("robot", "mode", "gate_profile")
    values: dict[str, list[Any]] = {"tier": [*_TIERS, None]}
    values |= {name: list(session.execute(select_distinct(curriculum.c[name])).scalars()) for name in names}
    if query.robots is not None:
        values["robot"] = [robot for robot in values["robot"] if robot in query.robots]
    if not values["robot"]:
        return Facets(0, (), (), (), (), ())
    # One pass counts the rows by all of these columns, whatever the filters on them are.
    shape = [*(len(choices) for choices in values.values()), *(2 for _ in _MARKS)]
    base_query = replace(query, tier=None, robot=None, mode=None, gate_profile=None)
    if _has_no_filter(replace(base_query, robots=None)):
        cube = _count_along_index(session, base_query, values, shape)
    else:
        code: ColumnElement[Any] = case({tier: k for k, tier in enumerate(_TIERS)}, value=curriculum.c.tier, else_=len(_TIERS))
        for name in names:
            code = code * len(values[name]) + case({value: k for k, value in enumerate(values[name])}, value=curriculum.c[name])
        for mark in _MARKS:
            code = code * 2 + curriculum.c[mark]
        statement = select_clips(session, base_query, *_count_codes(session, code), only_best=False)
        cube = _read_codes(session, statement, math.prod(shape))[0].reshape(shape)

    def count(**changes: Any) -> int:
        target = replace(query, **changes)
        place: list[Any] = [slice(None)] * len(shape)
        for axis, (name, choices) in enumerate(values.items()):
            value = getattr(target, name)
            if value is not None:
                if value not in choices:
                    return 0
                place[axis] = choices.index(value)
        if target.mark is not None:
            place[len(values) + _MARKS.index(target.mark)] = 1
        return int(cube[tuple(place)].sum())

    def list_counts(name: str) -> tuple[FacetValue, ...]:
        counts = [FacetValue(value, count(**{name: value})) for value in values[name] if value not in (UNSCORED, None)]
        return tuple(sorted(counts, key=lambda facet: -facet.clips))

    tiers = [FacetValue(int(tier), count(tier=int(tier))) for tier in Tier]
    unscored = FacetValue(None, count(tier=None) - sum(facet.clips for facet in tiers))
    return Facets(
        total=count(),
        tier=(*tiers, unscored),
        robot=list_counts("robot"),
        mode=list_counts("mode"),
        gate_profile=list_counts("gate_profile"),
        tag=_count_tags(session, query),
    )


def _has_no_filter(query: ClipQuery) -> bool:
    return query == ClipQuery(sort=query.sort, descending=query.descending, limit=query.limit)


def _count_along_index(
    session: Session, query: ClipQuery, values: Mapping[str, list[Any]], shape: Sequence[int]
) -> NDArray[np.int64]:
    """The rows by the values of columns and by marks, of a query without a filter but on robots."""
    columns = [curriculum.c[name] for name in ("robot", "mode", "gate_profile", "tier", *_MARKS)]  # In the index's order.
    statement = select(*columns, func.count()).group_by(*columns)
    if query.robots is not None:
        statement = statement.where(curriculum.c.robot.in_(query.robots))
    cube = np.zeros(shape, np.int64)
    for robot, mode, gate_profile, tier, *marks, number in session.execute(statement):
        row = {"tier": tier, "robot": robot, "mode": mode, "gate_profile": gate_profile}
        cube[tuple([*(values[name].index(value) for name, value in row.items()), *marks])] += number
    return cube


def _count_tags(session: Session, query: ClipQuery) -> tuple[FacetValue, ...]:
    number = func.count().label("number")
    if _has_no_filter(query):
        statement = select(clip_tags.c.tag, number)
    else:
        clip_id: ColumnElement[Any] = curriculum.c.clip_id
        # Behind a plus: SQLite would begin at the tags, and look up the clip of each.
        clip_id = hide_column(clip_id) if session.dialect.name == "sqlite" else clip_id
        statement = select_clips(session, query, clip_tags.c.tag, number).where(clip_tags.c.clip_id == clip_id)
    statement = statement.group_by(clip_tags.c.tag).order_by(number.desc(), clip_tags.c.tag).limit(MOST_TAGS)
    return tuple(FacetValue(tag, clips) for tag, clips in session.execute(statement))
