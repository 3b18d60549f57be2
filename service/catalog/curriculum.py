"""The curriculum query: which clips, in which order, by tier, tags and any metric.

It reads one table, `curriculum`, in one of two ways, and never more than a bounded number of rows a page:

* **collect**: when one of the filters alone leaves at most `_FEW` clips (counted, up to that bound, in its index), those are
fetched
  and sorted. This is the whole answer.
* **walk**: otherwise the index of the sort column is followed from the cursor and the other filters are checked on the way,
for at most
  `_BUDGET` rows. When they run out before the page is full, the page is short and its cursor says where to go on: the end of
  a list is
  where there is no cursor.

Clips without a value for the sort column come last in either direction.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

from sqlalchemy import ColumnElement, Select, and_, exists, func, or_, select, tuple_
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from amp_core.errors import InputRefused
from service.catalog import clips, rollouts
from service.catalog.engine import Session
from service.catalog.records import ListedClip, Page
from service.catalog.tables import METRIC_COLUMNS, TIERS, clip_tags, curriculum

MAX_LIMIT: Final = 500
SORTS: Final = ("created_at", "duration_sec", *METRIC_COLUMNS)
_FEW: Final = 2_000
_BUDGET: Final = 6_000
_c = curriculum.c


@dataclass(frozen=True)
class ClipQuery:
    """What to list. Checked when it is made; raises `InputRefused`.

    One rollout speaks for each clip: its best, or with `mode` its best in that mode. `tier` and `metrics` ask about that
    one, so every
    clip is in exactly one tier; with any of the three, clips without such a rollout are not listed.

    Args:
      tier: 0, 1 or -1 (Rejected).
      robot: exact name.
      mode: `rollout`, `teacher_forced`, `tracked`.
      tags: the clip bears all of them.
      min_duration_sec: of the uploaded motion.
      name: part of the name, in any case.
      metrics: name → (least, most), either of them None; both inclusive.
      sort: one of `SORTS`.
      descending: the highest first.
      limit: 1 to 500.
      cursor: `Page.next_cursor` of the same query.
    """

    tier: int | None = None
    robot: str | None = None
    mode: str | None = None
    tags: tuple[str, ...] = ()
    min_duration_sec: float | None = None
    name: str | None = None
    metrics: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)
    sort: str = "created_at"
    descending: bool = True
    limit: int = 50
    cursor: str | None = None

    def __post_init__(self) -> None:
        if self.tier is not None and self.tier not in TIERS:
            raise InputRefused(f"the tier {self.tier!r} does not exist", key="tier", expected="0, 1 or -1")
        if self.sort not in SORTS:
            raise InputRefused(
                f"clips cannot be sorted by {self.sort[:80]!r}", key="sort", expected="one of " + ", ".join(SORTS)
            )
        if not 1 <= self.limit <= MAX_LIMIT:
            raise InputRefused(f"the limit is {self.limit}", key="limit", expected=f"1 to {MAX_LIMIT}")
        if self.min_duration_sec is not None and not math.isfinite(self.min_duration_sec):
            raise InputRefused("the duration is not a number", key="min_duration_sec", expected="seconds")
        for name, bounds in self.metrics.items():
            if name not in METRIC_COLUMNS:
                raise InputRefused(
                    f"there is no metric {name[:80]!r}", key=name[:80], expected="one of " + ", ".join(METRIC_COLUMNS)
                )
            if any(bound is not None and not math.isfinite(bound) for bound in bounds):
                raise InputRefused("a bound of the range is not a number", key=name, expected="finite numbers")
        for text in (self.robot, self.mode, self.name, *self.tags):
            if text is not None and ("\0" in text or not text.isprintable() or len(text) > 400):
                raise InputRefused(
                    "a filter holds characters that no name has", expected="printable text of at most 400 characters"
                )

    def fingerprint(self) -> str:
        """A short digest of everything but the cursor and the limit: a cursor belongs to one list."""
        facts = [
            self.tier,
            self.robot,
            self.mode,
            sorted(set(self.tags)),
            self.min_duration_sec,
            self.name,
            sorted((name, list(bounds)) for name, bounds in self.metrics.items()),
            self.sort,
            self.descending,
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class _Position:
    """After which row a page begins. `key` is None among the clips without a value for the sort column."""

    key: float | None
    clip_id: str


_Columns = ReadOnlyColumnCollection[str, Any]
_Rows = list[Any]


def list_clips(session: Session, query: ClipQuery) -> Page[ListedClip]:
    """One page of the curriculum; raises `InputRefused` for a cursor that is not this list's."""
    position = None if query.cursor is None else _decode(query.cursor, query)
    scope = rollouts.ANY_MODE if query.mode is None else query.mode
    few = _few(session, query, scope)
    if few is not None:
        rows, last = _collect(session, query, few, position)
    else:
        rows, last = _walk(session, query, scope, position)
    return Page(_listed(session, rows), None if last is None else _encode(last, query))


def _filters(query: ClipQuery, c: _Columns) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    if query.tier is not None:
        found.append(c.tier == query.tier)
    if query.robot is not None:
        found.append(c.robot == query.robot)
    if query.min_duration_sec is not None:
        found.append(c.duration_sec >= query.min_duration_sec)
    for name in query.metrics:
        found.extend(_range(query, name, c))
    if query.name:
        found.append(c.name_folded.contains(query.name.casefold(), autoescape=True))
    for tag in sorted(set(query.tags)):
        found.append(exists().where(clip_tags.c.clip_id == c.clip_id, clip_tags.c.tag == tag))
    return found


def _range(query: ClipQuery, name: str, c: _Columns) -> list[ColumnElement[bool]]:
    low, high = query.metrics[name]
    if low is None and high is None:
        return [c[name].is_not(None)]
    bounds = [c[name] >= low] if low is not None else []
    return bounds + ([c[name] <= high] if high is not None else [])


def _needed(query: ClipQuery) -> list[ColumnElement[Any]]:
    """The columns that the page and its filters look at, and no more: rows are wide."""
    names = {query.sort, "clip_id", "rollout_id", *query.metrics}
    if query.tier is not None:
        names.add("tier")
    if query.robot is not None:
        names.add("robot")
    if query.min_duration_sec is not None:
        names.add("duration_sec")
    if query.name:
        names.add("name_folded")
    return [_c[name] for name in sorted(names)]


def _few(session: Session, query: ClipQuery, scope: str) -> Select[Any] | None:
    """The rows that one of the filters alone leaves, when they are few; None when no filter is that selective.

    The database's own planner is not asked: without statistics it guesses, and it knows nothing of filters that exclude each
    other.
    """
    conditions: list[ColumnElement[bool]] = []
    for tag in sorted(set(query.tags)):
        conditions.append(_c.clip_id.in_(select(clip_tags.c.clip_id).where(clip_tags.c.tag == tag).limit(_FEW + 1)))
    if query.tier is not None:
        conditions.append(_c.tier == query.tier)
    conditions.extend(and_(*_range(query, name, _c)) for name in query.metrics)
    if query.min_duration_sec is not None:
        conditions.append(_c.duration_sec >= query.min_duration_sec)
    if query.robot is not None:
        conditions.append(_c.robot == query.robot)
    if query.mode is not None:
        conditions.append(_c.clip_id > "")
    for condition in conditions:
        rows = select(_c.clip_id).where(_c.scope == scope, condition).limit(_FEW + 1).subquery()
        if session.execute(select(func.count()).select_from(rows)).scalar_one() <= _FEW:
            return select(*_needed(query)).where(_c.scope == scope, condition).limit(_FEW + 1)
    return None


def _collect(
    session: Session, query: ClipQuery, few: Select[Any], position: _Position | None
) -> tuple[_Rows, _Position | None]:
    rows = few.subquery()
    key, clip_id = rows.c[query.sort], rows.c.clip_id
    conditions = _filters(query, rows.c)
    if position is not None and position.key is not None:
        conditions.append(or_(key.is_(None), _beyond(query, (key, clip_id), (position.key, position.clip_id))))
    elif position is not None:
        conditions += [key.is_(None), _beyond(query, (clip_id,), (position.clip_id,))]
    statement = (
        select(key.label("key"), clip_id, rows.c.rollout_id)
        .where(*conditions)
        .order_by(key.is_(None), *_order(query, key, clip_id))
        .limit(query.limit + 1)
    )
    return _cut(query, list(session.execute(statement).all()))


def _walk(session: Session, query: ClipQuery, scope: str, position: _Position | None) -> tuple[_Rows, _Position | None]:
    found: _Rows = []
    if position is None or position.key is not None:
        inside: list[ColumnElement[bool]] = [_c[query.sort].is_not(None)]
        if query.sort in query.metrics:
            inside += _range(query, query.sort, _c)
        if position is not None:
            inside.append(_beyond(query, (_c[query.sort], _c.clip_id), (position.key, position.clip_id)))
        found, last = _stretch(session, query, scope, inside, query.limit)
        if last is not None:
            return found, last
        position = None
    if not curriculum.c[query.sort].nullable or query.sort in query.metrics:
        return found, None
    inside = [_c[query.sort].is_(None)]
    if position is not None:
        inside.append(_beyond(query, (_c.clip_id,), (position.clip_id,)))
    if len(found) == query.limit:
        # The page is full at the very end of the clips with a value; whether any without one follow is the next page's
        # business.
        return found, _Position(None, "~" if query.descending else "")
    rest, last = _stretch(session, query, scope, inside, query.limit - len(found))
    return found + rest, last


def _stretch(
    session: Session, query: ClipQuery, scope: str, inside: list[ColumnElement[bool]], limit: int
) -> tuple[_Rows, _Position | None]:
    """Follow the sort column's index for at most `_BUDGET` rows; the position is None when the stretch was followed to its
    end."""
    in_order = _order(query, _c[query.sort], _c.clip_id)
    base = select(*_needed(query)).where(_c.scope == scope, *inside).order_by(*in_order).limit(_BUDGET)
    walked = base.subquery()
    statement = (
        select(walked.c[query.sort].label("key"), walked.c.clip_id, walked.c.rollout_id)
        .where(*_filters(query, walked.c))
        .limit(limit + 1)
    )
    if session.dialect.name == "postgresql":
        # It may join the tags in any order, and knows that this one costs nothing where it does not. SQLite would sort the
        # whole
        # stretch before the first row; it evaluates filters row by row, in the stretch's order.
        statement = statement.order_by(*_order(query, walked.c[query.sort], walked.c.clip_id))
    rows = list(session.execute(statement).all())
    if len(rows) > limit:
        return rows[:limit], _Position(rows[limit - 1].key, rows[limit - 1].clip_id)
    edge = select(_c[query.sort].label("key"), _c.clip_id).where(_c.scope == scope, *inside).order_by(*in_order)
    end = session.execute(edge.offset(_BUDGET - 1).limit(1)).one_or_none()
    return rows, None if end is None else _Position(end.key, end.clip_id)


def _order(query: ClipQuery, key: ColumnElement[Any], clip_id: ColumnElement[Any]) -> list[ColumnElement[Any]]:
    # Both databases can follow one ascending index either way when every column turns round; where the values are NULL this
    # still holds.
    return [key.desc(), clip_id.desc()] if query.descending else [key.asc(), clip_id.asc()]


def _beyond(query: ClipQuery, columns: tuple[Any, ...], values: tuple[Any, ...]) -> ColumnElement[bool]:
    if len(columns) == 1:
        return cast(ColumnElement[bool], columns[0] < values[0] if query.descending else columns[0] > values[0])
    left, right = tuple_(*columns), tuple_(*values)
    return left < right if query.descending else left > right


def _cut(query: ClipQuery, rows: _Rows) -> tuple[_Rows, _Position | None]:
    if len(rows) <= query.limit:
        return rows, None
    last = rows[query.limit - 1]
    return rows[: query.limit], _Position(last.key, last.clip_id)


def _listed(session: Session, rows: _Rows) -> tuple[ListedClip, ...]:
    if not rows:
        return ()
    found = clips.by_ids(session, [row.clip_id for row in rows])
    spoken = rollouts.summaries(session, [row.rollout_id for row in rows if row.rollout_id is not None])
    return tuple(ListedClip(found[row.clip_id], spoken.get(row.rollout_id)) for row in rows)


def _encode(position: _Position, query: ClipQuery) -> str:
    facts = json.dumps([query.fingerprint(), position.key, position.clip_id], separators=(",", ":"))
    return base64.urlsafe_b64encode(facts.encode()).decode().rstrip("=")


def _decode(cursor: str, query: ClipQuery) -> _Position:
    refused = InputRefused(
        "the cursor cannot be read",
        key="cursor",
        expected="`next_cursor` of the page before, unchanged",
        remedy="Begin without a cursor",
    )
    if len(cursor) > 1000:
        raise refused
    try:
        facts = json.loads(
            base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True), parse_constant=_refuse
        )
    except (binascii.Error, ValueError, RecursionError):
        raise refused from None
    if not isinstance(facts, list) or len(facts) != 3:
        raise refused
    fingerprint, key, clip_id = facts
    if isinstance(key, bool) or not isinstance(key, int | float | None) or not isinstance(clip_id, str):
        raise refused
    if (key is not None and abs(key) > 1e300) or not clip_id.isascii() or not clip_id.isprintable():
        raise refused
    if key is None and not curriculum.c[query.sort].nullable:
        raise refused
    if fingerprint != query.fingerprint():
        raise InputRefused(
            "the cursor belongs to a list with other filters or another order",
            key="cursor",
            expected="the same query as for the page before",
            remedy="Begin without a cursor",
        )
    return _Position(key, clip_id)


def _refuse(name: str) -> float:
    raise ValueError(name)
