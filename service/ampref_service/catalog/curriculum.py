"""The curriculum query: which clips, in which order, by tier, tags and any metric.

It reads one table, `curriculum`, whose rows hold all that a page shows, in one of two ways, and never more than a bounded
number of rows a page:

* **collect**: when one of the filters alone leaves at most `_FEW` clips (counted, up to that bound, in its index), those are
  fetched and sorted. This is the whole answer.
* **walk**: otherwise the index of the sort column is followed from the cursor and the other filters are checked on the way, for
  at most `_BUDGET` rows. When they run out before the page is full, the page is short and its cursor says where to go on: the
  end of a list is where there is no cursor.

Clips without a value for the sort column come last in either direction.

The statements are written out: which index is followed is decided here and not by a planner (SQLite's has no statistics, and
neither knows of filters that exclude each other), and putting them together must not cost more than running them. Only names
of columns are ever put into their text; values are parameters.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from amp_core.errors import InputRefused
from amp_core.lineage import LINEAGE_COLUMNS
from ampref_service.catalog import rollouts
from ampref_service.catalog.engine import Session
from ampref_service.catalog.records import ListedClip, Page, RolloutSummary
from ampref_service.catalog.tables import METRIC_COLUMNS, TIERS, curriculum

MAX_LIMIT: Final = 200
SORTS: Final = ("created_at", "duration_sec", *METRIC_COLUMNS)
_FEW: Final = 1_000
_BUDGET: Final = 2_000
_EXACT: Final = 2**53


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
      parent: the id of a clip: its variants.
      metrics: name → (least, most), either of them None; both inclusive.
      sort: one of `SORTS`.
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
    """After which row a page begins. `key` is None among the clips without a value for the sort column."""

    key: float | None
    clip_id: str


_CLIP: Final = (
    "clip_id",
    "name",
    "robot",
    "robot_digest",
    "source_digest",
    "source_format",
    "size",
    "frames_in",
    "fps_in",
    "duration_sec",
    "created_at",
    "parent_id",
    *LINEAGE_COLUMNS,
)
_ROLLOUT: Final = ("rollout_id", "recipe_digest", "mode", "tier", "tier_reason", "frames", "scored_at")
_SHOWN: Final = ", ".join(f"c.{name}" for name in (*_CLIP, "read_options", "tags", *_ROLLOUT, *METRIC_COLUMNS))
_METRICS_AT: Final = len(_CLIP) + 2 + len(_ROLLOUT)
_PLACE: Final = {name: place for place, name in enumerate((*_CLIP, "", "", *_ROLLOUT, *METRIC_COLUMNS))}
_PARAMETER: Final = re.compile(r":(\w+)")
_Rows = Sequence[Sequence[Any]]


def list_clips(session: Session, query: ClipQuery) -> Page[ListedClip]:
    """One page of the curriculum; raises `InputRefused` for a cursor that is not this list's."""
    position = None if query.cursor is None else _decode(query.cursor, query)
    rows, last = _Listing(session, query).page(position)
    return Page(_listed(rows), None if last is None else _encode(last, query))


def _listed(rows: _Rows) -> tuple[ListedClip, ...]:
    names, clip_end, rollout_at = tuple(METRIC_COLUMNS), len(_CLIP), len(_CLIP) + 2
    new_clip: Callable[..., ListedClip] = ListedClip
    new_rollout: Callable[..., RolloutSummary] = RolloutSummary
    found = []
    for row in rows:
        options, tags = row[clip_end], row[clip_end + 1]
        rollout = None
        if row[rollout_at] is not None:
            metrics = dict(zip(names, row[_METRICS_AT:], strict=True))
            rollout = new_rollout(*row[rollout_at:_METRICS_AT], metrics)
        found.append(
            new_clip(
                *row[:clip_end],
                {} if options == "{}" else json.loads(options),
                tuple(tags[1:-1].split(",")) if tags else (),
                rollout,
            )
        )
    return tuple(found)


class _Listing:
    """The statements of one query, in its transaction."""

    def __init__(self, session: Session, query: ClipQuery) -> None:
        self._session = session
        self._query = query
        self._sqlite = session.dialect.name == "sqlite"
        self._find = "instr" if self._sqlite else "strpos"
        self._key = f"c.{query.sort}"
        self._scope = rollouts.ANY_MODE if query.mode is None else query.mode
        self._nullable = bool(curriculum.c[query.sort].nullable)

    def page(self, position: _Position | None) -> tuple[_Rows, _Position | None]:
        few = self._few()
        return self._walk(position) if few is None else self._collect(few, position)

    def _run(self, statement: str, values: Mapping[str, Any]) -> _Rows:
        if not self._sqlite:
            statement = _PARAMETER.sub(r"%(\1)s", statement)
        return self._session.exec_driver_sql(statement, dict(values)).all()

    def _from(self, column: str) -> str:
        """The table; on SQLite read by the index of `column` and by no other."""
        return f"curriculum AS c INDEXED BY ix_curriculum_{column}" if self._sqlite else "curriculum AS c"

    def _narrow(self) -> list[tuple[str, str, dict[str, Any]]]:
        """Each filter that an index answers: its column, condition and values."""
        query = self._query
        found: list[tuple[str, str, dict[str, Any]]] = []
        if query.tier is not None:
            found.append(("tier", "c.tier = :tier", {"tier": query.tier}))
        for number, name in enumerate(query.metrics):
            found.append((name, *self._range(number, name)))
        if query.min_duration_sec is not None:
            found.append(("duration_sec", "c.duration_sec >= :seconds", {"seconds": query.min_duration_sec}))
        if query.parent is not None:
            found.append(("parent_id", "c.parent_id = :parent", {"parent": query.parent}))
        if query.robot is not None:
            found.append(("robot", "c.robot = :robot", {"robot": query.robot}))
        return found

    def _range(self, number: int, name: str) -> tuple[str, dict[str, Any]]:
        low, high = self._query.metrics[name]
        if METRIC_COLUMNS[name] is int:
            # As whole numbers: PostgreSQL does not look for a fraction in an index of integers.
            low = None if low is None else math.ceil(max(low, -_EXACT))
            high = None if high is None else math.floor(min(high, _EXACT))
        conditions: list[str] = []
        values: dict[str, Any] = {}
        for mark, sign, bound in ((f"low{number}", ">=", low), (f"high{number}", "<=", high)):
            if bound is not None:
                conditions.append(f"c.{name} {sign} :{mark}")
                values[mark] = bound
        return " AND ".join(conditions) or f"c.{name} IS NOT NULL", values

    def _filters(self) -> tuple[list[str], dict[str, Any]]:
        """Every filter, as it is checked row by row."""
        conditions: list[str] = []
        values: dict[str, Any] = {}
        for _, condition, given in self._narrow():
            conditions.append(condition)
            values |= given
        for number, tag in enumerate(sorted(set(self._query.tags))):
            conditions.append(f"{self._find}(c.tags, :tag{number}) > 0")
            values[f"tag{number}"] = f",{tag},"
        if self._query.name:
            conditions.append(f"{self._find}(c.name_folded, :part) > 0")
            values["part"] = self._query.name.casefold()
        return conditions, values

    def _few(self) -> tuple[str, str, dict[str, Any]] | None:
        """The source of the rows that one of the filters alone leaves, when they are few: FROM, WHERE and values."""
        sources: list[tuple[str, str, dict[str, Any]]] = []
        counts: list[str] = []
        values: dict[str, Any] = {"scope": self._scope}

        def add(counted: str, source: str, condition: str, given: dict[str, Any]) -> None:
            counts.append(f"(SELECT count(*) FROM (SELECT 1 FROM {counted} LIMIT {_FEW + 1}) AS few)")
            sources.append((source, condition, given))
            values.update(given)

        for number, tag in enumerate(sorted(set(self._query.tags))):
            mark = f"bears{number}"
            add(
                f"clip_tags AS t WHERE t.tag = :{mark}",
                "clip_tags AS t CROSS JOIN curriculum AS c",
                f"t.tag = :{mark} AND c.clip_id = t.clip_id",
                {mark: tag},
            )
        for column, condition, given in self._narrow():
            add(f"{self._from(column)} WHERE c.scope = :scope AND {condition}", self._from(column), condition, given)
        if self._query.mode is not None:
            add("curriculum AS c WHERE c.scope = :scope", "curriculum AS c", "c.clip_id > ''", {})
        if not counts:
            return None
        found = self._run(f"SELECT {', '.join(counts)}", values)[0]
        return next((source for source, count in zip(sources, found, strict=True) if count <= _FEW), None)

    def _collect(self, few: tuple[str, str, dict[str, Any]], position: _Position | None) -> tuple[_Rows, _Position | None]:
        source, where, given = few
        conditions, values = self._filters()
        values |= given | {"scope": self._scope}
        if position is not None and position.key is not None:
            beyond, place = self._beyond(position)
            conditions.append(f"({self._key} IS NULL OR {beyond})")
            values |= place
        elif position is not None:
            beyond, place = self._beyond(position)
            conditions += [f"{self._key} IS NULL", beyond]
            values |= place
        rows = self._select(
            source, ["c.scope = :scope", where], conditions, values, self._query.limit, f"{self._key} IS NULL, {self._order()}"
        )
        return self._cut(rows, self._query.limit)

    def _walk(self, position: _Position | None) -> tuple[_Rows, _Position | None]:
        query = self._query
        found: _Rows = []
        if position is None or position.key is not None:
            inside = f"{self._key} IS NOT NULL"
            values: dict[str, Any] = {}
            if query.sort in query.metrics:
                inside, values = self._range(list(query.metrics).index(query.sort), query.sort)
            found, last = self._stretch(inside, values, position, query.limit)
            if last is not None:
                return found, last
            position = None
        if not self._nullable or query.sort in query.metrics:
            return found, None
        if len(found) == query.limit:
            # The page is full at the very end of the clips with a value; whether any without one follow is the next page's
            # business.
            return found, _Position(None, "~" if query.descending else "")
        rest, last = self._stretch(f"{self._key} IS NULL", {}, position, query.limit - len(found))
        return [*found, *rest], last

    def _stretch(
        self, inside: str, given: dict[str, Any], position: _Position | None, limit: int
    ) -> tuple[_Rows, _Position | None]:
        """Follow the sort column's index for at most `_BUDGET` rows; the position is None when the stretch was followed to its
        end."""
        values = given | {"scope": self._scope}
        base = ["c.scope = :scope", inside]
        if position is not None:
            beyond, place = self._beyond(position)
            base.append(beyond)
            values |= place
        conditions, more = self._filters()
        source = self._from(self._query.sort)
        if not conditions:
            return self._cut(self._select(source, base, [], values, limit, self._order()), limit)
        if self._sqlite:
            edge = self._edge(source, base, values)
            ahead, place = ([], {}) if edge is None else self._until(edge)
            rows = self._select(source, [*base, *ahead], conditions, values | place | more, limit, self._order())
            found, last = self._cut(rows, limit)
            return found, last or edge
        found, last = self._cut(self._select(source, base, conditions, values | more, limit, self._order()), limit)
        return found, last or self._edge(source, base, values)

    def _edge(self, source: str, base: list[str], values: dict[str, Any]) -> _Position | None:
        """Where the budget of a stretch is used up, or None when it ends before. It reads the index only."""
        found = self._run(
            f"SELECT {self._key}, c.clip_id FROM {source} WHERE {' AND '.join(base)} "
            f"ORDER BY {self._order()} LIMIT 1 OFFSET {_BUDGET - 1}",
            values,
        )
        return _Position(found[0][0], found[0][1]) if found else None

    def _select(
        self, source: str, base: list[str], conditions: list[str], values: dict[str, Any], limit: int, order: str
    ) -> _Rows:
        """Up to `limit` + 1 rows of what `base` leaves of the source and `conditions` leave of that."""
        values = values | {"most": limit + 1}
        if self._sqlite:
            where = " AND ".join([*base, *conditions])
            return self._run(f"SELECT {_SHOWN} FROM {source} WHERE {where} ORDER BY {order} LIMIT :most", values)
        # PostgreSQL's planner does not look through the inner LIMIT: what `base` leaves is found by its index whatever the
        # conditions are, and not beyond the budget.
        bound = max(_BUDGET if conditions else limit + 1, _FEW + 1)
        inner = f"SELECT c.* FROM {source} WHERE {' AND '.join(base)}"
        if order == self._order():
            inner += f" ORDER BY {order}"
        outer = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        return self._run(f"SELECT {_SHOWN} FROM ({inner} LIMIT {bound}) AS c{outer} ORDER BY {order} LIMIT :most", values)

    def _order(self) -> str:
        # Both databases can follow one ascending index either way when every column turns round; where the values are NULL this
        # still holds.
        way = "DESC" if self._query.descending else "ASC"
        return f"{self._key} {way}, c.clip_id {way}"

    def _beyond(self, position: _Position) -> tuple[str, dict[str, Any]]:
        """What lies behind a position in the list."""
        sign = "<" if self._query.descending else ">"
        if position.key is None:
            return f"c.clip_id {sign} :after_id", {"after_id": position.clip_id}
        values = {"after_key": position.key, "after_id": position.clip_id}
        return f"({self._key}, c.clip_id) {sign} (:after_key, :after_id)", values

    def _until(self, edge: _Position) -> tuple[list[str], dict[str, Any]]:
        """What lies before a position in the list, and itself."""
        sign = ">=" if self._query.descending else "<="
        if edge.key is None:
            return [f"c.clip_id {sign} :edge_id"], {"edge_id": edge.clip_id}
        return [f"({self._key}, c.clip_id) {sign} (:edge_key, :edge_id)"], {"edge_key": edge.key, "edge_id": edge.clip_id}

    def _cut(self, rows: _Rows, limit: int) -> tuple[_Rows, _Position | None]:
        if len(rows) <= limit:
            return rows, None
        last = rows[limit - 1]
        return rows[:limit], _Position(last[_PLACE[self._query.sort]], last[0])


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
    if (
        (key is not None and abs(key) > (_EXACT if isinstance(key, int) else 1e300))
        or not clip_id.isascii()
        or not clip_id.isprintable()
    ):
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
