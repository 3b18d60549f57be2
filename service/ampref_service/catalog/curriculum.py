"""The curriculum query: which clips, in which order, by tier, tags and any metric; and the rows that it reads.

A page is one keyset SELECT on `curriculum`, whose few columns are the filters and sort columns; then what it shows is read from
clips and rollouts. Three ways lead to a page:

* **walk**: follow the index of the sort column from the cursor. Tier, robot, mode and duration are columns of that index, so
  that a page of rare clips costs no more than one pass through it.
* **filter**: fetch the clips that a metric's range or a tag leaves, and sort them: the cheaper way where they are few.
* **scan**: read every row once and sort what the filters leave, where a walk with other filters came to nothing.

PostgreSQL chooses between the first two by its statistics. SQLite has none for ranges, so the clips that a filter leaves are
counted there: up to `_FEW` before a walk, up to `_FEWER_THAN_A_SCAN` after one that came to nothing.

A gate profile is a filter like a metric's range: it is no column of the sort columns' indexes, which would all grow by a text.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

from sqlalchemy import (
    ColumnElement,
    Integer,
    Row,
    Select,
    and_,
    bindparam,
    delete,
    exists,
    func,
    insert,
    literal,
    not_,
    or_,
    select,
    tuple_,
    update,
)
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
    rollout_thumbnails,
    rollouts,
)

MAX_LIMIT: Final = 200
_FEW: Final = 5_000
"""Up to so many clips of one filter are fetched and sorted rather than met on a walk."""
_FEWER_THAN_A_SCAN: Final = 20_000
"""Up to so many clips of one filter are fetched rather than met on a scan; to fetch one costs as much as to scan five."""
_LONGEST_WALK: Final = 2_500
"""After so many rows for every 50 clips of a page, a walk is given up that other filters than the index's thin out."""
_INTEGERS: Final = range(-(2**31), 2**31)
"""What an integer column of PostgreSQL can be compared with; SQLite takes 64 bits."""


@dataclass(frozen=True)
class ClipQuery:
    """What to list. Checked when it is made; raises `InputRefused`.

    One rollout speaks for each clip: its best, or its best of those in `mode` and by `gate_profile`. `tier` and `metrics` ask
    about that rollout, so every clip is in exactly one tier; with any of the four, clips without such a rollout are not listed.

    Args:
      tier: 0, 1 or -1 (Rejected).
      robot: exact name.
      robots: of all clips, those for one of these robots; None for all.
      mode: `rollout`, `teacher_forced`, `tracked`, `assisted`, `recorded`.
      gate_profile: the profile that gave the tier, such as `amp-0.12`.
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
    gate_profile: str | None = None
    tags: tuple[str, ...] = ()
    min_duration_sec: float | None = None
    name: str | None = None
    parent: str | None = None
    metrics: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)
    sort: str = "created_at"
    descending: bool = True
    limit: int = 50
    cursor: str | None = None
    robots: tuple[str, ...] | None = None

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
        for text in (self.robot, self.mode, self.gate_profile, self.name, self.parent, *self.tags):
            visible = (text or "").replace("\u200c", "").replace("\u200d", "")  # The joiners, which names may hold.
            if text is not None and ("\0" in text or not visible.isprintable() or len(text) > 400):
                raise InputRefused(
                    "a filter holds characters that no name has", expected="printable text of at most 400 characters"
                )
        if any("," in tag for tag in self.tags):
            raise InputRefused("a tag has a comma, which no tag has", key="tags", expected="several tags, one by one")

    @property
    def mark(self) -> str | None:
        """The column of `curriculum` that is 1 in the rows that speak for clips; None where a clip has one row at most."""
        if self.mode is None:
            return "best" if self.gate_profile is None else "best_by_profile"
        return "best_in_mode" if self.gate_profile is None else None

    def fingerprint(self) -> str:
        """A short digest of everything but the cursor and the limit: a cursor belongs to one list."""
        facts = [
            self.tier,
            self.robot,
            self.mode,
            self.gate_profile,
            sorted(set(self.tags)),
            self.min_duration_sec,
            self.name,
            self.parent,
            sorted((name, list(bounds)) for name, bounds in self.metrics.items()),
            self.sort,
            self.descending,
            *([sorted(self.robots)] if self.robots is not None else []),
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
    listing = _Listing(session, query)
    rows: list[Row[Any]] = []
    # The clips with a value for the sort column, then those without one.
    if position is None or position.key is not None:
        rows = listing.fetch(position, query.limit + 1)
        position = None
    if listing.allows_null and len(rows) <= query.limit:
        rows += listing.fetch(position, query.limit + 1 - len(rows), with_value=False)
    page = rows[: query.limit]
    cursor = encode_cursor(query, page[-1].key, page[-1].clip_id) if len(rows) > query.limit else None
    return Page(_read_clips(session, [row.clip_id for row in page], query), cursor)


def select_clips(session: Session, query: ClipQuery, *expressions: ColumnElement[Any], only_best: bool = True) -> Select[Any]:
    """A statement of expressions over `curriculum`, with a row for each clip of a query, in no order.

    Args:
      only_best: whether only the row that speaks for a clip is there; else all of its rows that pass the filters are.
    """
    return _Listing(session, query).select_all(*expressions, only_best=only_best)


_SCAN: Final = ""


class _Listing:
    """The statements of one query.

    A statement starts at an index: a column's, by its name; that of `tag NAME` or of `parent`; or, as `_SCAN`, at none. Columns
    that are not to be looked up in an index stand behind a unary plus, which no planner sees through.
    """

    def __init__(self, session: Session, query: ClipQuery) -> None:
        self._session = session
        self._query = query
        self._sqlite = session.dialect.name == "sqlite"
        values = {"tier": query.tier, "robot": query.robot, "mode": query.mode, "gate_profile": query.gate_profile}
        self._filters: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
        """The filters on one column: a value, or the range (least, most)."""
        if query.min_duration_sec is not None:
            self._filters["duration_sec"] = (query.min_duration_sec, None)
        self._filters |= query.metrics
        self.allows_null = bool(curriculum.c[query.sort].nullable) and query.sort not in query.metrics
        uncovered_columns = self._filters.keys() - {query.sort, *COVERED_COLUMNS}
        self._is_bounded = bool(uncovered_columns or query.tags or query.name or query.parent)
        self._start = self._find_rare_filter(_FEW)

    def _find_rare_filter(self, limit: int) -> str | None:
        """The filter that leaves the fewest clips, if those are up to `limit`; None on PostgreSQL, which has statistics."""
        if not self._sqlite:
            return None
        rows: dict[str, Select[Any]] = {
            name: select(literal(1)).where(_matches(curriculum.c[name], value))
            for name, value in self._filters.items()
            if name != self._query.sort
        }
        rows |= {f"tag {tag}": select(literal(1)).where(clip_tags.c.tag == tag) for tag in self._query.tags}
        if self._query.parent is not None:
            rows["parent"] = select(literal(1)).where(clips.c.parent_id == self._query.parent)
        if not rows:
            return None
        parts = [select(func.count()).select_from(part.limit(limit + 1).subquery()) for part in rows.values()]
        counts = self._session.execute(select(*(part.scalar_subquery() for part in parts))).one()
        count, name = min(zip(counts, rows, strict=True))
        return name if count <= limit else None

    def fetch(self, position: _Position | None, count: int, *, with_value: bool = True) -> list[Row[Any]]:
        """Up to `count` clips after a position, of those with a value for the sort column or of those without one.

        Each row is `clip_id` and `key`, the sort value.
        """
        rows = self._select(self._start or self._query.sort, position, with_value)
        last = None
        if self._start is None and self._is_bounded:
            # Together the filters may leave nothing at all.
            all_rows = self._select(self._query.sort, position, with_value, covered_only=True)
            length = _LONGEST_WALK * math.ceil(self._query.limit / 50)
            last = self._session.execute(all_rows.offset(length - 1).limit(1)).one_or_none()
        if last is None:
            return list(self._session.execute(rows.limit(count)))
        end = self._is_after(_Position(last.key, last.clip_id), self._columns(self._query.sort))
        walk = list(self._session.execute(rows.where(not_(end)).limit(count)))
        if len(walk) == count:
            return walk
        start = self._find_rare_filter(_FEWER_THAN_A_SCAN) or _SCAN
        # PostgreSQL plans a limit that it cannot see as a tenth of the rows. With a small one it would expect the first rows to
        # fill the page, sort all of them and look up the tags of one after the other.
        limit = select(literal(count)).scalar_subquery()
        return list(self._session.execute(self._select(start, position, with_value).limit(limit)))

    def select_all(self, *expressions: ColumnElement[Any], only_best: bool = True) -> Select[Any]:
        """Expressions over the rows of all clips, with a value for the sort column or not, in no order."""
        start = self._start or self._find_rare_filter(_FEWER_THAN_A_SCAN)
        if start is None and self._sqlite and self._query.tags:
            start = f"tag {self._query.tags[0]}"  # A third of all clips is fetched faster than it is met on a scan.
        if start is None:
            start = _SCAN if self._is_bounded else self._query.sort
        rows = select(*expressions).select_from(curriculum).where(*self._conditions(start, only_best=only_best))
        if start == "created_at":
            rows = rows.where(curriculum.c.created_at >= 0)  # Along this index clips come in the order in which their tags lie.
        return rows

    def _columns(self, start: str) -> Mapping[str, ColumnElement[Any]]:
        columns: dict[str, ColumnElement[Any]] = dict(curriculum.c.items())
        if not self._sqlite:
            hidden: set[str] = set()  # PostgreSQL knows best where to begin.
        elif start in self._filters and start != self._query.sort:
            hidden = columns.keys() - {start}
        else:
            hidden = columns.keys() - {start, "clip_id"}
        return columns | {name: hide_column(columns[name]) for name in hidden}

    def _select(self, start: str, position: _Position | None, with_value: bool, *, covered_only: bool = False) -> Select[Any]:
        """The rows of `fetch` without a limit."""
        query, c = self._query, self._columns(start)
        key = c[query.sort]
        rows = select(curriculum.c.clip_id, curriculum.c[query.sort].label("key"))
        # Without the plus PostgreSQL would follow the sort column's index once more.
        sort_key = hide_column(key) if start == _SCAN and not self._sqlite else key
        rows = rows.order_by(*self._in_order(sort_key, c["clip_id"]))
        if self.allows_null:
            rows = rows.where(key.is_not(None) if with_value else key.is_(None))
        if position is not None:
            rows = rows.where(self._is_after(position, c))
        return rows.where(*self._conditions(start, covered_only=covered_only))

    def _conditions(self, start: str, *, covered_only: bool = False, only_best: bool = True) -> Iterator[ColumnElement[bool]]:
        query, c = self._query, self._columns(start)
        marks = {query.mark: 1} if only_best and query.mark is not None else {}
        for name, value in (marks | self._filters).items():
            if not covered_only or name in (query.sort, *COVERED_COLUMNS):
                yield _matches(c[name], value)
        if query.robots is not None:
            yield c["robot"].in_(query.robots)
        if not covered_only:
            yield from self._other_filters(start, c)

    def _other_filters(self, start: str, c: Mapping[str, ColumnElement[Any]]) -> Iterator[ColumnElement[bool]]:
        query = self._query
        if query.name:
            yield c["name_folded"].contains(query.name.casefold(), autoescape=True)
        members: dict[str, tuple[ColumnElement[str], ColumnElement[bool]]] = {}
        for tag in sorted(set(query.tags)):
            tagged = clip_tags.alias()
            members[f"tag {tag}"] = tagged.c.clip_id, tagged.c.tag == tag
        if query.parent is not None:
            members["parent"] = clips.c.id, clips.c.parent_id == query.parent
        for name, (clip_id, condition) in members.items():
            if start in (name, _SCAN):
                # A join: SQLite would sort the clips of `clip_id IN (SELECT …)` first.
                yield and_(clip_id == c["clip_id"], condition)
            else:
                yield exists().where(clip_id == curriculum.c.clip_id, condition)

    def _in_order(self, *columns: ColumnElement[Any]) -> list[ColumnElement[Any]]:
        # All columns change direction together, so that one index serves both.
        return [column.desc() if self._query.descending else column.asc() for column in columns]

    def _is_after(self, position: _Position, c: Mapping[str, ColumnElement[Any]]) -> ColumnElement[bool]:
        row: ColumnElement[Any] = c["clip_id"]
        last: ColumnElement[Any] = literal(position.clip_id)
        if position.key is not None:
            row, last = tuple_(c[self._query.sort], row), tuple_(position.key, last)
        return row < last if self._query.descending else row > last


def hide_column(column: ColumnElement[Any]) -> ColumnElement[Any]:
    """A column behind a unary plus, so that no index of it is used."""
    plus: custom_op[Any] = custom_op("+")
    return UnaryExpression(column, operator=plus, type_=column.type)


def _matches(column: ColumnElement[Any], value: Any) -> Any:
    """The condition of a filter on one column: a value, or the range (least, most)."""
    if not isinstance(value, tuple):
        return column == value
    low, high = value
    if isinstance(column.type, Integer):
        # PostgreSQL does not look for a fraction in an index of integers.
        low = None if low is None else _clip_to_integers(math.ceil(low))
        high = None if high is None else _clip_to_integers(math.floor(high))
    bounds = ([column >= low] if low is not None else []) + ([column <= high] if high is not None else [])
    return and_(*bounds) if bounds else column.is_not(None)


def _clip_to_integers(bound: int) -> int:
    return min(max(bound, _INTEGERS[0]), _INTEGERS[-1])


_CLIP_NAMES = tuple(field.name for field in dataclasses.fields(Clip) if field.name != "tags")
_ROLLOUT_NAMES = tuple(field.name for field in dataclasses.fields(RolloutSummary) if field.name in rollouts.c)
_METRICS_AT = 1 + len(_CLIP_NAMES) + len(_ROLLOUT_NAMES) + 1  # Before them is the thumbnail.
# Four statements for all orders and filters, made once: their many columns would fill the statement cache, where they are a
# burden to the garbage collector.
_CLIPS_BY_ID = (
    select(
        curriculum.c.clip_id,
        *(clips.c[name] for name in _CLIP_NAMES),
        *(rollouts.c[name] for name in _ROLLOUT_NAMES),
        rollout_thumbnails.c.digest,
        *(curriculum.c[name] for name in METRIC_COLUMNS),
    )
    .join(clips, clips.c.id == curriculum.c.clip_id)
    .outerjoin(rollouts, rollouts.c.id == curriculum.c.rollout_id)
    .outerjoin(rollout_thumbnails, rollout_thumbnails.c.rollout_id == curriculum.c.rollout_id)
    .where(curriculum.c.clip_id.in_(bindparam("clip_ids", expanding=True)))
)
# An expression, or SQLite would rather look at all rows of a profile than at those of the clips.
_IN_MODE, _BY_PROFILE = ((curriculum.c[name] + "") == bindparam(name) for name in ("mode", "gate_profile"))
_CLIPS_BY_MARK = {
    "best": _CLIPS_BY_ID.where(curriculum.c.best == 1),
    "best_in_mode": _CLIPS_BY_ID.where(curriculum.c.best_in_mode == 1, _IN_MODE),
    "best_by_profile": _CLIPS_BY_ID.where(curriculum.c.best_by_profile == 1, _BY_PROFILE),
    None: _CLIPS_BY_ID.where(_IN_MODE, _BY_PROFILE),
}
_TAGS_BY_ID = (
    select(clip_tags.c.clip_id, clip_tags.c.tag)
    .where(clip_tags.c.clip_id.in_(bindparam("clip_ids", expanding=True)))
    .order_by(clip_tags.c.clip_id, clip_tags.c.tag)
)


def _read_clips(session: Session, clip_ids: list[str], query: ClipQuery) -> tuple[ListedClip, ...]:
    """Clips with the rollouts that speak for them in a query, in the order of `clip_ids`."""
    tags: dict[str, list[str]] = {clip_id: [] for clip_id in clip_ids}
    for clip_id, tag in session.execute(_TAGS_BY_ID, {"clip_ids": clip_ids}):
        tags[clip_id].append(tag)
    clip_of: dict[str, ListedClip] = {}
    scope = {"mode": query.mode, "gate_profile": query.gate_profile}
    values = {"clip_ids": clip_ids} | {name: value for name, value in scope.items() if value is not None}
    for row in session.execute(_CLIPS_BY_MARK[query.mark], values):
        clip_id, clip, summary = row[0], row[1 : 1 + len(_CLIP_NAMES)], row[1 + len(_CLIP_NAMES) : _METRICS_AT]
        rollout = None
        if summary[0] is not None:
            metrics = dict(zip(METRIC_COLUMNS, row[_METRICS_AT:], strict=True))
            *facts, thumbnail_digest = summary
            rollout = RolloutSummary(
                **dict(zip(_ROLLOUT_NAMES, facts, strict=True)), metrics=metrics, thumbnail_digest=thumbnail_digest
            )
        clip_of[clip_id] = ListedClip(**dict(zip(_CLIP_NAMES, clip, strict=True)), tags=tuple(tags[clip_id]), rollout=rollout)
    return tuple(clip_of[clip_id] for clip_id in clip_ids)


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
    column = curriculum.c[query.sort]
    if key is None:
        fits_column = bool(column.nullable)
    elif isinstance(column.type, Integer):
        fits_column = type(key) is int and key in _INTEGERS
    else:
        fits_column = type(key) is float and math.isfinite(key)
    if not fits_column or not isinstance(clip_id, str) or not clip_id.isascii() or not clip_id.isprintable():
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
    session.execute(_ADD, _clip_columns(clip) | dict.fromkeys(("mode", "gate_profile"), UNSCORED) | dict.fromkeys(_SCOPES, 1))


_SCOPES: Final[Mapping[str, str | None]] = {"best": None, "best_in_mode": "mode", "best_by_profile": "gate_profile"}
"""The marks of a row, each with the column that the rows have in common of which it marks the best; None for all of a clip."""


def set_best_rollout(session: Session, clip: Mapping[str, Any], rollout: Mapping[str, Any], marks: Mapping[str, int]) -> None:
    """Let a rollout speak for its clip in queries for its mode and profile, and in others where a mark is 1.

    Args:
      clip, rollout: their columns.
      marks: of the rollout's row, the columns `best`, `best_in_mode` and `best_by_profile`.
    """
    rows = curriculum.c.clip_id == clip["id"]
    for mark, column in _SCOPES.items():
        if marks[mark]:
            scope = [] if column is None else [curriculum.c[column] == rollout[column]]
            session.execute(update(curriculum).where(rows, curriculum.c[mark] == 1, *scope).values({mark: 0}))
    is_replaced = and_(*(curriculum.c[name] == rollout[name] for name in ("mode", "gate_profile")))
    session.execute(delete(curriculum).where(rows, or_(curriculum.c.mode == UNSCORED, is_replaced)))
    columns = {name: rollout[name] for name in ("mode", "gate_profile", "tier", *METRIC_COLUMNS)}
    session.execute(_ADD, _clip_columns(clip) | columns | {"rollout_id": rollout["id"], **marks})


# The same object for every row: putting a statement together costs more than running it.
_ADD = insert(curriculum).inline()


def _clip_columns(clip: Mapping[str, Any]) -> dict[str, Any]:
    columns = {name: clip[name] for name in ("robot", "created_at", "duration_sec")}
    return columns | {"clip_id": clip["id"], "name_folded": clip["name"].casefold()[:400]}
