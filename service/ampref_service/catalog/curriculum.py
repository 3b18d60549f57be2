"""The curriculum query: which clips, in which order, by tier, tags and any metric; and the rows that it reads.

A page is one keyset SELECT on `curriculum`, whose few columns are the filters and sort columns; clips and rollouts are joined
to the rows of the page alone. Three ways lead to a page:

* **walk**: follow the index of the sort column from the cursor. Tier, robot, mode and duration are columns of that index, so
  that a page of rare clips costs no more than one pass through an index.
* **filter**: fetch the clips that a metric's range or a tag leaves and sort them: the cheaper way where they are few.

* **scan**: read every row once, where several filters are outside that index.

PostgreSQL chooses between the first two by its statistics. SQLite has none for ranges, so the clips that a filter leaves are
counted there first, up to `_FEW`.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

from sqlalchemy import ColumnElement, Integer, Row, Select, and_, delete, func, insert, literal, select, tuple_, update
from sqlalchemy.sql.elements import UnaryExpression
from sqlalchemy.sql.operators import custom_op

from amp_core.errors import InputRefused
from amp_core.tiers import Tier
from ampref_service.catalog.engine import Session
from ampref_service.catalog.records import Clip, ListedClip, Page, RolloutSummary
from ampref_service.catalog.tables import (
    COVERED_COLUMNS,
    METRIC_COLUMNS,
    SORT_COLUMNS,
    UNSCORED,
    clip_tags,
    clips,
    curriculum,
    rollouts,
)

MAX_LIMIT: Final = 200
_FEW: Final = 5_000
_EXACT: Final = 2**53


@dataclass(frozen=True)
class ClipQuery:
    """What to list. Checked when it is made; raises `InputRefused`.

    One rollout speaks for each clip: its best, or with `mode` its best in that mode. `tier` and `metrics` ask about that
    rollout, so every clip is in exactly one tier; with any of the three, clips without such a rollout are not listed.

    Args:
      tier: 0, 1 or -1 (Rejected).
      robot: exact name.
      mode: `rollout`, `teacher_forced`, `tracked`.
      tags: the clip has all of them.
      min_duration_sec: of the uploaded motion.
      name: part of the name, in any case.
      parent: the id of a clip: its variants.
      metrics: name → (least, most), either of them None; both inclusive.
      sort: one of `SORT_COLUMNS`. Clips without a value come last in either direction, clips of one value in the order of ids.
      descending: the highest first.
      limit: 1 to 200.
      cursor: `Page.next_cursor` of the same query.
    """

    tier: int | None = None
    robot: str | None = None
    mode: str | None = None
    tags: tuple[str, ...] = ()
    min_duration_sec: float | None = None
    name: str | None = None
    parent: str | None = None
    metrics: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)
    sort: str = "created_at"
    descending: bool = True
    limit: int = 50
    cursor: str | None = None

    def __post_init__(self) -> None:
        if self.tier is not None and self.tier not in tuple(Tier):
            raise InputRefused(f"the tier {self.tier!r} does not exist", key="tier", expected="0, 1 or -1")
        if self.sort not in SORT_COLUMNS:
            raise InputRefused(
                f"clips cannot be sorted by {self.sort[:80]!r}", key="sort", expected="one of " + ", ".join(SORT_COLUMNS)
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
        for text in (self.robot, self.mode, self.name, self.parent, *self.tags):
            if text is not None and ("\0" in text or not text.isprintable() or len(text) > 400):
                raise InputRefused(
                    "a filter holds characters that no name has", expected="printable text of at most 400 characters"
                )
        if any("," in tag for tag in self.tags):
            raise InputRefused("a tag has a comma, which no tag has", key="tags", expected="several tags, one by one")

    def fingerprint(self) -> str:
        """A short digest of everything but the cursor and the limit: a cursor belongs to one list."""
        facts = [
            self.tier,
            self.robot,
            self.mode,
            sorted(set(self.tags)),
            self.min_duration_sec,
            self.name,
            self.parent,
            sorted((name, list(bounds)) for name, bounds in self.metrics.items()),
            self.sort,
            self.descending,
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class _Position:
    """The row before a page: its sort value, None among the clips without one, and its clip."""

    key: float | None
    clip_id: str


def list_clips(session: Session, query: ClipQuery) -> Page[ListedClip]:
    """One page of the curriculum, full unless the list ends; raises `InputRefused` for a cursor that is not this list's."""
    position = None if query.cursor is None else _decode_cursor(query.cursor, query)
    access = _choose_access(session, query)
    columns = _columns_for(session, query, access)
    rows: list[Row[Any]] = []
    # The clips with a value for the sort column, then those without one, where there can be any.
    for has_value in (True, False) if _allows_null(query) else (True,):
        if len(rows) > query.limit or (has_value and position is not None and position.key is None):
            continue
        rows += session.execute(_select_page(query, access, columns, has_value, position, query.limit + 1 - len(rows)))
        position = None
    items = rows[: query.limit]
    cursor = encode_cursor(query, items[-1].key, items[-1].clip_id) if len(rows) > query.limit else None
    return Page(_to_listed(session, items), cursor)


def _allows_null(query: ClipQuery) -> bool:
    return bool(curriculum.c[query.sort].nullable) and query.sort not in query.metrics


_SCAN: Final = "every row"
_PARENT: Final = "the parent's variants"


def _tag_access(tag: str) -> str:
    return f"the tag {tag}"


def _choose_access(session: Session, query: ClipQuery) -> str | None:
    """Where a database begins: the sort column, a filter, or `_SCAN` to read every row; None to leave it to the database.

    A filter is a column by its name, `_tag_access(tag)` or `_PARENT`. How many clips several filters leave together cannot be
    told, and where they exclude each other a walk comes to no end: they are checked row by row.
    """
    filters = {name: value for name, value in _column_filters(query).items() if name != query.sort}
    num_uncovered = len(filters.keys() - set(COVERED_COLUMNS)) + len(set(query.tags)) + bool(query.name)
    if session.dialect.name != "sqlite":
        return _SCAN if num_uncovered > 1 else None
    if query.parent is not None:
        return _PARENT  # A clip's variants are few.
    candidates: dict[str, Select[Any]] = {
        name: select(literal(1)).where(_matches(curriculum.c[name], value)) for name, value in filters.items()
    }
    for tag in query.tags:
        candidates[_tag_access(tag)] = select(literal(1)).where(clip_tags.c.tag == tag)
    if candidates:
        rows = [candidate.limit(_FEW + 1).subquery() for candidate in candidates.values()]
        counts = session.execute(select(*(select(func.count()).select_from(part).scalar_subquery() for part in rows))).one()
        count, access = min(zip(counts, candidates, strict=True))
        if count <= _FEW:
            return access
    return _SCAN if num_uncovered > 1 or query.name else query.sort


_Columns = Mapping[str, ColumnElement[Any]]


def _columns_for(session: Session, query: ClipQuery, access: str | None) -> _Columns:
    """The columns, with a unary plus before those that are not to be looked up in an index: no planner sees through it."""
    columns: dict[str, ColumnElement[Any]] = dict(curriculum.c.items())
    if access is None:
        return columns
    if session.dialect.name != "sqlite":
        hidden = {query.sort}
    elif access == query.sort or access not in (_SCAN, *columns):
        hidden = columns.keys() - {access, "clip_id"}
    else:
        hidden = columns.keys() - {access}
    plus: custom_op[Any] = custom_op("+")
    return columns | {name: UnaryExpression(columns[name], operator=plus, type_=columns[name].type) for name in hidden}


def _column_filters(query: ClipQuery) -> dict[str, Any]:
    """The filters on one column each, by its name: a value, or the range (least, most)."""
    values = {"tier": query.tier, "robot": query.robot, "mode": query.mode}
    filters: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
    if query.min_duration_sec is not None:
        filters["duration_sec"] = (query.min_duration_sec, None)
    return filters | dict(query.metrics)


def _matches(column: ColumnElement[Any], value: Any) -> Any:
    """The condition of a column filter."""
    if not isinstance(value, tuple):
        return column == value
    low, high = value
    if isinstance(column.type, Integer):
        # PostgreSQL does not look for a fraction in an index of integers.
        low = None if low is None else math.ceil(max(low, -_EXACT))
        high = None if high is None else math.floor(min(high, _EXACT))
    bound = ([column >= low] if low is not None else []) + ([column <= high] if high is not None else [])
    return and_(*bound) if bound else column.is_not(None)


def _filters(query: ClipQuery, access: str | None, c: _Columns) -> list[ColumnElement[bool]]:
    conditions = [_matches(c[name], value) for name, value in _column_filters(query).items()]
    if query.mode is None:
        conditions.append(c["best"] == 1)
    if query.name:
        conditions.append(c["name_folded"].contains(query.name.casefold(), autoescape=True))
    if query.parent is not None:
        conditions.append(c["clip_id"].in_(select(clips.c.id).where(clips.c.parent_id == query.parent)))
    for tag in sorted(set(query.tags)):
        tag_query = select(clip_tags.c.clip_id).where(clip_tags.c.tag == tag)
        if access == _tag_access(tag):
            conditions.append(c["clip_id"].in_(tag_query))
        else:
            conditions.append(tag_query.where(clip_tags.c.clip_id == curriculum.c.clip_id).exists())
    return conditions


_CLIP_NAMES = tuple(field.name for field in dataclasses.fields(Clip) if field.name != "tags")
_ROLLOUT_NAMES = tuple(field.name for field in dataclasses.fields(RolloutSummary) if field.name != "metrics")
_METRICS_AT = len(_CLIP_NAMES) + len(_ROLLOUT_NAMES)
_LIST_QUERY = select(
    *(clips.c[name] for name in _CLIP_NAMES),
    *(rollouts.c[name] for name in _ROLLOUT_NAMES),
    *(curriculum.c[name] for name in METRIC_COLUMNS),
)


def _select_page(
    query: ClipQuery, access: str | None, c: _Columns, has_value: bool, position: _Position | None, count: int
) -> Select[Any]:
    """Up to `count` rows after a position: clip, rollout, metrics, and `key` (the sort value) with `clip_id`."""
    key, clip_id = c[query.sort], c["clip_id"]
    conditions = _filters(query, access, c)
    if _allows_null(query):
        conditions.append(key.is_not(None) if has_value else key.is_(None))
    if position is not None and position.key is None:
        conditions.append(clip_id < position.clip_id if query.descending else clip_id > position.clip_id)
    elif position is not None:
        row, last = tuple_(key, clip_id), tuple_(position.key, position.clip_id)
        conditions.append(row < last if query.descending else row > last)

    # Both columns change direction together, so that one index serves both.
    def in_order(*columns: ColumnElement[Any]) -> list[ColumnElement[Any]]:
        return [column.desc() if query.descending else column.asc() for column in columns]

    keys = select(curriculum.c.clip_id, curriculum.c.mode, curriculum.c[query.sort].label("key"))
    page = keys.where(*conditions).order_by(*in_order(key, clip_id)).limit(count).subquery("page")
    return (
        _LIST_QUERY.add_columns(page.c.key, page.c.clip_id)
        .select_from(page)
        .join(curriculum, and_(curriculum.c.clip_id == page.c.clip_id, curriculum.c.mode == page.c.mode))
        .join(clips, clips.c.id == page.c.clip_id)
        .outerjoin(rollouts, rollouts.c.id == curriculum.c.rollout_id)
        .order_by(*in_order(page.c.key, page.c.clip_id))
    )


def _to_listed(session: Session, rows: Sequence[Row[Any]]) -> tuple[ListedClip, ...]:
    tags: dict[str, list[str]] = {row.clip_id: [] for row in rows}
    query = select(clip_tags).where(clip_tags.c.clip_id.in_(list(tags))).order_by(clip_tags.c.clip_id, clip_tags.c.tag)
    for clip_id, tag in session.execute(query):
        tags[clip_id].append(tag)
    clip_list = []
    for row in rows:
        summary, metrics = row[len(_CLIP_NAMES) : _METRICS_AT], row[_METRICS_AT:-2]
        rollout = None
        if summary[0] is not None:
            rollout = RolloutSummary(
                **dict(zip(_ROLLOUT_NAMES, summary, strict=True)), metrics=dict(zip(METRIC_COLUMNS, metrics, strict=True))
            )
        clip_list.append(
            ListedClip(**dict(zip(_CLIP_NAMES, row, strict=False)), tags=tuple(tags[row.clip_id]), rollout=rollout)
        )
    return tuple(clip_list)


def encode_cursor(query: ClipQuery, key: float | None, clip_id: str) -> str:
    """The cursor of the page after a row of a list, by its sort value and its clip."""
    text = json.dumps([query.fingerprint(), key, clip_id], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _decode_cursor(cursor: str, query: ClipQuery) -> _Position:
    refusal = InputRefused(
        "the cursor cannot be read",
        key="cursor",
        expected="`next_cursor` of the page before, unchanged",
        remedy="Begin without a cursor",
    )

    def refuse(constant: str) -> NoReturn:
        raise ValueError(constant)

    if len(cursor) > 1000:
        raise refusal
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        fingerprint, key, clip_id = json.loads(text, parse_constant=refuse)
    except (binascii.Error, ValueError, TypeError, RecursionError):
        raise refusal from None
    if isinstance(key, bool) or not isinstance(key, int | float | None) or not isinstance(clip_id, str):
        raise refusal
    if key is not None and abs(key) > (_EXACT if isinstance(key, int) else 1e300):
        raise refusal
    if not clip_id.isascii() or not clip_id.isprintable() or (key is None and not curriculum.c[query.sort].nullable):
        raise refusal
    if fingerprint != query.fingerprint():
        raise InputRefused(
            "the cursor belongs to a list with other filters or another order",
            key="cursor",
            expected="the same query as for the page before",
            remedy="Begin without a cursor",
        )
    return _Position(key, clip_id)


def add_clip(session: Session, clip: Mapping[str, Any]) -> None:
    """List a new clip, by its columns, without a result."""
    session.execute(_ADD, _clip_columns(clip) | {"mode": UNSCORED, "best": 1})


def set_best_rollout(session: Session, clip: Mapping[str, Any], rollout: Mapping[str, Any], *, of_all_modes: bool) -> None:
    """Let a rollout speak for its clip in its mode and, with `of_all_modes`, in queries without a mode.

    Args:
      clip, rollout: their columns.
    """
    rows = curriculum.c.clip_id == clip["id"]
    if of_all_modes:
        session.execute(update(curriculum).where(rows, curriculum.c.best == 1).values(best=0))
    session.execute(delete(curriculum).where(rows, curriculum.c.mode.in_((UNSCORED, rollout["mode"]))))
    columns = {name: rollout[name] for name in ("mode", "tier", *METRIC_COLUMNS)}
    session.execute(_ADD, _clip_columns(clip) | columns | {"rollout_id": rollout["id"], "best": int(of_all_modes)})


# The same object for every row: putting a statement together costs more than running it.
_ADD = insert(curriculum).inline()


def _clip_columns(clip: Mapping[str, Any]) -> dict[str, Any]:
    columns = {name: clip[name] for name in ("robot", "created_at", "duration_sec")}
    return columns | {"clip_id": clip["id"], "name_folded": clip["name"].casefold()[:400]}
