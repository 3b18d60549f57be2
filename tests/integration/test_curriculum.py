"""The curriculum query against a plain Python one, on SQLite and on PostgreSQL."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from catalogkit import Clock, add_clip, add_rollout, new_clip, opened, recipe, result
from sqlalchemy import event, select

from amp_core.errors import InputRefused
from amp_core.tiers import GATE_PROFILES
from ampref_service.catalog import Catalog, clips, curriculum, rollouts, tables
from ampref_service.catalog.curriculum import ClipQuery, list_clips
from ampref_service.catalog.distribution import count_facets, measure_histogram
from ampref_service.catalog.records import Clip, ListedClip, RolloutSummary

COUNT = 60


@pytest.fixture
def catalog(database_url: str) -> Iterator[Catalog]:
    with open_filled(database_url) as filled:
        yield filled


@pytest.fixture(scope="module")
def shared_catalog(shared_database_url: str) -> Iterator[Catalog]:
    """The same for all tests that change nothing in it."""
    with open_filled(shared_database_url) as filled:
        yield filled


@contextlib.contextmanager
def open_filled(url: str) -> Iterator[Catalog]:
    """Clips of every kind: equal sort values, NULLs, several rollouts in several modes, none at all."""
    clock = Clock()
    rng = random.Random(5)
    with opened(url, clock) as found:
        for number in range(COUNT):
            clock.at += rng.choice([0, 1])
            clip = add_clip(
                found,
                f"{rng.choice(['Walk', 'run'])}_{number:02}",
                robot=rng.choice(["wildrobot", "other"]),
                duration_sec=float(rng.randint(1, 6)),
                tags=[tag for tag in ("x", "y") if rng.random() < 0.5],
            )
            for seed in range(rng.choice([0, 1, 1, 3])):
                mode = rng.choice(["rollout", "teacher_forced"])
                metrics = {"height_std": rng.choice([0.01, 0.02, 0.03, float("nan")]), "slip_rate": rng.random()}
                fell = rng.choice([None, 3, 50])
                profile = rng.choice(tuple(GATE_PROFILES))
                new = result(rng.choice([0, 1, -1]), mode, profile=profile, **metrics, fell_at_frame=fell)
                add_rollout(found, clip, new, recipe(mode, seed, profile=profile))
                clock.at += 1
        yield found


def everything(catalog: Catalog, query: dict[str, Any], limit: int) -> tuple[list[ListedClip], int]:
    items: list[ListedClip] = []
    cursor, pages = None, 0
    with catalog.session() as session:
        while True:
            page = list_clips(session, ClipQuery(**query, limit=limit, cursor=cursor))
            items += page.items
            pages += 1
            cursor = page.next_cursor
            assert len(page.items) <= limit
            assert pages < 1000
            if cursor is None:
                return items, pages


def remember_lists(catalog: Catalog) -> Callable[[dict[str, Any]], list[ListedClip]]:
    """Whole lists of a catalog in which nothing changes; each is asked for once."""
    lists: dict[str, list[ListedClip]] = {}

    def list_all(query: dict[str, Any]) -> list[ListedClip]:
        key = repr(sorted((name, value) for name, value in query.items() if value not in (None, {})))
        if key not in lists:
            lists[key] = everything(catalog, query, 200)[0]
        return lists[key]

    return list_all


def _place(rollout: Any) -> tuple[bool, int, bool, bool, float]:
    """By a profile of today first, then the best tier, freely simulated before forced, the usual profile, and the newest."""
    is_old, is_forced = rollout.gate_profile == "amp-0.11", rollout.mode == "teacher_forced"
    return is_old, {0: 0, 1: 1, -1: 2}[rollout.tier], is_forced, rollout.gate_profile != "amp-0.12", -rollout.created_at


def by_hand(known: list[Any], query: ClipQuery) -> list[tuple[str, str | None]]:
    """The whole list, without SQL for filters or order."""
    found = []
    for clip, made in known:
        scored = [item for item in made if query.mode in (None, item.mode) and query.gate_profile in (None, item.gate_profile)]
        best = min(scored, key=_place, default=None)
        if not set(query.tags) <= set(clip.tags) or query.robot not in (None, clip.robot):
            continue
        if clip.duration_sec < (query.min_duration_sec or 0) or (query.name or "").casefold() not in clip.name.casefold():
            continue
        if best is None and (query.tier is not None or query.metrics or query.mode or query.gate_profile):
            continue
        if best is not None and query.tier not in (None, best.tier):
            continue
        inside = True
        for name, (low, high) in query.metrics.items():
            value = None if best is None else best.metrics[name]
            inside &= value is not None and (low is None or value >= low) and (high is None or value <= high)
        if inside:
            found.append((clip, best))
    sign = -1 if query.descending else 1

    def key(item: Any) -> Any:
        clip, best = item
        value = (
            getattr(clip, query.sort, None)
            if query.sort in ("created_at", "duration_sec")
            else best and best.metrics[query.sort]
        )
        return (value is None, sign * (value or 0), [sign * ord(char) for char in clip.id])

    return [(clip.id, best and best.id) for clip, best in sorted(found, key=key)]


QUERIES: list[dict[str, Any]] = [
    {},
    {"descending": False},
    {"sort": "duration_sec"},
    {"sort": "fell_at_frame"},
    {"sort": "fell_at_frame", "descending": False},
    {"sort": "height_std", "descending": False},
    {"tier": 0},
    {"tier": -1, "sort": "slip_rate"},
    {"mode": "teacher_forced", "sort": "height_std"},
    {"mode": "tracked"},
    {"mode": "rollout", "tier": 1},
    {"gate_profile": "amp-0.12", "sort": "slip_rate"},
    {"gate_profile": "amp-0.11", "tier": 0, "descending": False},
    {"gate_profile": "amp-0.12-dynamic", "mode": "rollout", "sort": "height_std"},
    {"gate_profile": "amp-0.13"},
    {"robot": "other", "sort": "slip_rate", "descending": False},
    {"tags": ("x",)},
    {"tags": ("x", "y", "x"), "sort": "fell_at_frame"},
    {"tags": ("z",)},
    {"min_duration_sec": 4.0},
    {"name": "wALK_"},
    {"name": "%"},
    {"name": "_0"},
    {"metrics": {"height_std": (0.02, None)}},
    {"metrics": {"height_std": (0.01, 0.02), "slip_rate": (None, 0.6)}, "sort": "height_std"},
    {"metrics": {"fell_at_frame": (None, None)}, "sort": "fell_at_frame"},
    {"metrics": {"fell_at_frame": (2.5, 3.5)}},
    *({"metrics": {"fell_at_frame": (bound, None)}} for bound in (-1e300, -(2.0**31) - 1, 2.0**31, 2.0**63, 1e19, 1e300)),
    *({"metrics": {"fell_at_frame": (None, bound)}} for bound in (-1e300, -(2.0**31) - 1, 2.0**31, 2.0**63, 1e19, 1e300)),
    {"metrics": {"slip_rate": (0.9, 0.1)}},
    {
        "tier": 1,
        "robot": "wildrobot",
        "tags": ("y",),
        "min_duration_sec": 2,
        "metrics": {"slip_rate": (0.1, None)},
        "sort": "slip_rate",
    },
]


@pytest.mark.parametrize("way", ["filter", "walk", "walk and filter", "walk and scan"])
def test_every_list_is_what_plain_python_makes_of_it(
    shared_catalog: Catalog, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(curriculum, "_FEW", 1000 if way == "filter" else -1)
    monkeypatch.setattr(curriculum, "_FEWER_THAN_A_SCAN", 1000 if way == "walk and filter" else -1)
    monkeypatch.setattr(curriculum, "_LONGEST_WALK", 1000 if way == "walk" else 7)
    with shared_catalog.session() as session:
        ids = list(session.execute(select(tables.clips.c.id)).scalars())
        known = [clips.get_with_rollouts(session, clip_id)[:2] for clip_id in ids]
    for asked in QUERIES:
        expected = by_hand(known, ClipQuery(**asked))
        for limit in (4, 200):
            found, pages = everything(shared_catalog, asked, limit)
            assert [(item.id, item.rollout and item.rollout.id) for item in found] == expected, (asked, limit)
            assert pages == max(1, math.ceil(len(expected) / limit)), "a page is full unless the list ends"


@pytest.mark.parametrize(
    ("asked", "few", "plan"),
    [
        ({}, -1, "COVERING INDEX ix_curriculum_slip_rate (slip_rate>?)"),
        ({"tier": 0, "robot": "other", "mode": "rollout"}, -1, "COVERING INDEX ix_curriculum_slip_rate"),
        ({"min_duration_sec": 2}, -1, "COVERING INDEX ix_curriculum_slip_rate (slip_rate>?)"),
        ({"metrics": {"slip_rate": (0.2, 0.5)}}, -1, "ix_curriculum_slip_rate (slip_rate>? AND slip_rate<?)"),
        ({"metrics": {"height_std": (0.01, None)}}, -1, "INDEX ix_curriculum_slip_rate (slip_rate>?)"),
        ({"tags": ("x",)}, -1, "COVERING INDEX ix_curriculum_slip_rate (slip_rate>?)"),
        ({"gate_profile": "amp-0.11"}, -1, "INDEX ix_curriculum_slip_rate (slip_rate>?)"),
        ({"gate_profile": "amp-0.11"}, 1000, "INDEX ix_curriculum_gate_profile (gate_profile=?)"),
        ({"name": "walk"}, -1, "INDEX ix_curriculum_slip_rate (slip_rate>?)"),
        ({"tier": 0}, 1000, "INDEX ix_curriculum_tier (tier=?)"),
        ({"metrics": {"height_std": (0.01, None)}}, 1000, "INDEX ix_curriculum_height_std (height_std>?)"),
        ({"tags": ("x",)}, 1000, "COVERING INDEX ix_clip_tags_tag_clip_id (tag=?)"),
        ({"parent": "clip_1"}, 1000, "INDEX ix_clips_parent_id (parent_id=?)"),
    ],
)
def test_sqlite_begins_where_it_is_told_to(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], few: int, plan: str
) -> None:
    monkeypatch.setattr(curriculum, "_FEW", few)
    statements: list[tuple[str, Any]] = []
    with opened(sqlite_url) as catalog:
        event.listen(catalog.engine, "before_cursor_execute", lambda *args: statements.append(args[2:4]))
        with catalog.session() as session:
            list_clips(session, ClipQuery(**asked, sort="slip_rate"))
            statement, values = next(entry for entry in statements if "ORDER BY" in entry[0])
            steps = [str(row[3]) for row in session.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values)]
    assert any(plan in step for step in steps), steps
    assert ("USE TEMP B-TREE FOR ORDER BY" in steps) == ("ix_curriculum_slip_rate" not in plan), steps


def test_a_superseded_profile_hides_no_verdict_of_today(sqlite_url: str) -> None:
    with opened(sqlite_url, Clock()) as catalog:
        clip = add_clip(catalog, "ice")

        def listed(**asked: Any) -> list[tuple[int, str]]:
            with catalog.session() as session:
                items = list_clips(session, ClipQuery(**asked)).items
            return [(item.rollout.tier, item.rollout.gate_profile) for item in items if item.rollout]

        add_rollout(catalog, clip, result(0, profile="amp-0.11"))
        assert listed(tier=0) == [(0, "amp-0.11")], "the one verdict there is, by its own profile"
        add_rollout(catalog, clip, result(1))
        assert (listed(tier=0), listed(tier=1)) == ([], [(1, "amp-0.12")])
        add_rollout(catalog, clip, result(0, profile="amp-0.11"), recipe(seed=1, profile="amp-0.11"))
        assert (listed(tier=0), listed(mode="rollout")) == ([], [(1, "amp-0.12")])
        assert listed(gate_profile="amp-0.11", tier=0) == listed(gate_profile="amp-0.11", mode="rollout") == [(0, "amp-0.11")]
        with catalog.session() as session:
            assert clips.count(session) == {"total": 1, "0": 0, "1": 1, "-1": 0, "unscored": 0}
        add_rollout(catalog, clip, result(0, profile="amp-0.12-dynamic"))
        assert listed() == [(0, "amp-0.12-dynamic")], "the best of the profiles of today"
        assert listed(gate_profile="amp-0.12") == [(1, "amp-0.12")]


@pytest.mark.parametrize("mode", [None, "teacher_forced"])
def test_a_list_shows_what_clips_and_rollouts_say(catalog: Catalog, mode: str | None) -> None:
    # The curriculum repeats them, so each field could be forgotten or left behind; tags are the ones that change later.
    with catalog.begin() as session:
        tagged = list_clips(session, ClipQuery(mode=mode)).items[3].id
        clips.add_tags(session, tagged, ["late", "a"])
    plain = add_clip(catalog, "with options", read_options={"fps": 30.0, "quat_order": "wxyz"})
    add_rollout(catalog, plain, result(0, "teacher_forced", height_std=float("nan")), recipe("teacher_forced"))
    items, _ = everything(catalog, {"mode": mode}, 200)
    assert {tagged, plain.id} <= {item.id for item in items}
    with catalog.session() as session:
        for item in items:
            clip = clips.get(session, item.id)
            for field in dataclasses.fields(Clip):
                assert getattr(item, field.name) == getattr(clip, field.name), field.name
            if item.rollout is not None:
                rollout = rollouts.get(session, item.rollout.id)
                for field in dataclasses.fields(RolloutSummary):
                    assert getattr(item.rollout, field.name) == getattr(rollout, field.name), field.name
        found = list_clips(session, ClipQuery(mode=mode, tags=("late",))).items
        assert [(item.id, item.tags[0]) for item in found] == [(tagged, "a")]


def test_a_list_stands_still_while_clips_come(catalog: Catalog) -> None:
    with catalog.session() as session:
        first = list_clips(session, ClipQuery(limit=20))
    before, _ = everything(catalog, {}, 200)
    for number in range(5):
        add_clip(catalog, f"newer {number}")
    with catalog.session() as session:
        second = list_clips(session, ClipQuery(limit=20, cursor=first.next_cursor))
    assert [item.id for item in first.items + second.items] == [item.id for item in before[:40]]


def test_a_new_best_rollout_moves_its_clip_at_once(sqlite_url: str) -> None:
    with opened(sqlite_url, Clock()) as catalog:
        clip = add_clip(catalog)

        def tiers() -> list[int | None]:
            with catalog.session() as session:
                items = list_clips(session, ClipQuery()).items
            return [item.rollout and item.rollout.tier for item in items]

        assert tiers() == [None]
        for seed, (tier, shown) in enumerate([(-1, -1), (1, 1), (-1, 1), (0, 0), (1, 0)]):
            add_rollout(catalog, clip, result(tier), recipe(seed=seed))
            assert tiers() == [shown]


def forged(query: ClipQuery, *facts: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps([query.fingerprint(), *facts]).encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "x",
        "!!!!",
        "a" * 2000,
        base64.urlsafe_b64encode(b"[1,2").decode(),
        base64.urlsafe_b64encode(b"\xff\xfe").decode(),
        base64.urlsafe_b64encode(b"[" * 600).decode(),
        base64.urlsafe_b64encode(b'{"a": 1}').decode(),
        forged(ClipQuery(), "0; DROP TABLE clips", "clip_1"),
        forged(ClipQuery(), float("nan"), "clip_1"),
        forged(ClipQuery(), True, "clip_1"),
        forged(ClipQuery(), 10**400, "clip_1"),
        forged(ClipQuery(), 10**200, "clip_1"),
        forged(ClipQuery(), 1.0, 5),
        forged(ClipQuery(), 1.0, "clip\0"),
        forged(ClipQuery(), None, "clip_1"),
        forged(ClipQuery(), [1.0], "clip_1"),
        forged(ClipQuery(tier=0), 1.0, "clip_1"),
        base64.urlsafe_b64encode(f'["{ClipQuery().fingerprint()}",1e999,"clip_1"]'.encode()).decode(),
    ],
)
def test_a_cursor_that_is_not_this_lists_is_refused(sqlite_url: str, cursor: str) -> None:
    with opened(sqlite_url) as catalog, catalog.session() as session:
        with pytest.raises(InputRefused) as refused:
            list_clips(session, ClipQuery(cursor=cursor))
        assert refused.value.key == "cursor"


@pytest.mark.parametrize("key", [2**31, -(2**31) - 1, 2**53, 1.5])
def test_a_cursor_holds_what_its_integer_column_can(database_url: str, key: float) -> None:
    query = ClipQuery(sort="fell_at_frame")
    with opened(database_url) as catalog, catalog.session() as session, pytest.raises(InputRefused):
        list_clips(session, dataclasses.replace(query, cursor=forged(query, key, "clip_1")))


CHANGES: dict[str, Any] = {
    "tier": 0,
    "robot": "wildrobot",
    "robots": ("wildrobot",),
    "mode": "tracked",
    "gate_profile": "amp-0.12",
    "tags": ("x",),
    "min_duration_sec": 1.0,
    "name": "walk",
    "parent": "clip_1",
    "metrics": {"slip_rate": (0.0, None)},
    "sort": "slip_rate",
    "descending": False,
}


def test_a_cursor_belongs_to_all_filters_and_the_order() -> None:
    assert CHANGES.keys() == {field.name for field in dataclasses.fields(ClipQuery)} - {"limit", "cursor"}
    fingerprints = {ClipQuery(**{name: value}).fingerprint() for name, value in CHANGES.items()}
    assert len(fingerprints | {ClipQuery().fingerprint()}) == len(CHANGES) + 1
    assert ClipQuery(limit=3, cursor="x").fingerprint() == ClipQuery().fingerprint()


@pytest.mark.parametrize(("limit", "length"), [(50, 2_500), (51, 5_000), (200, 10_000)])
def test_a_walk_is_as_long_as_its_page(sqlite_url: str, monkeypatch: pytest.MonkeyPatch, limit: int, length: int) -> None:
    monkeypatch.setattr(curriculum, "_FEW", -1)
    offsets: list[int] = []

    def read_offset(_: Any, __: Any, statement: str, parameters: tuple[Any, ...], *___: Any) -> None:
        if "OFFSET" in statement and length - 1 in parameters:
            offsets.append(length - 1)

    with opened(sqlite_url) as catalog, catalog.session() as session:
        event.listen(catalog.engine, "before_cursor_execute", read_offset)
        list_clips(session, ClipQuery(name="walk", limit=limit))
    assert offsets == [length - 1]


def test_a_name_that_grows_when_folded_is_listed(database_url: str) -> None:
    with opened(database_url) as catalog:
        clip = add_clip(catalog, "\N{LATIN SMALL LIGATURE FFI}" * 200)  # 600 characters in "ffi"
        with catalog.session() as session:
            assert [item.id for item in list_clips(session, ClipQuery(name="FFI" * 100)).items] == [clip.id]


@pytest.mark.parametrize(
    ("asked", "key"),
    [
        ({"tier": 2}, "tier"),
        ({"sort": "password"}, "sort"),
        ({"limit": 0}, "limit"),
        ({"limit": 201}, "limit"),
        ({"metrics": {"no_such": (0, 1)}}, "no_such"),
        ({"metrics": {"slip_rate": (float("nan"), None)}}, "slip_rate"),
        ({"min_duration_sec": float("inf")}, "min_duration_sec"),
        ({"name": "a\0b"}, None),
        *(({name: "a" * 401}, None) for name in ("robot", "mode", "name", "parent")),
        ({"tags": ("a\0b",)}, None),
        ({"tags": ("a,b",)}, "tags"),
    ],
)
def test_a_bad_question_is_refused_by_its_field(asked: dict[str, Any], key: str | None) -> None:
    with pytest.raises(InputRefused) as refused:
        ClipQuery(**asked)
    assert refused.value.key == key


def test_a_filter_may_have_400_characters() -> None:
    assert ClipQuery(name="a" * 400).name == "a" * 400


def test_an_unscored_clip_is_listed_until_somebody_asks_about_results(database_url: str) -> None:
    with opened(database_url) as catalog:
        with catalog.begin() as session:
            made = clips.submit(session, new_clip(), recipe())
        with catalog.session() as session:
            listed = list_clips(session, ClipQuery(sort="slip_rate")).items
            assert [(item.id, item.rollout) for item in listed] == [(made.clip.id, None)]
            for asked in ({"tier": 0}, {"mode": "rollout"}, {"metrics": {"slip_rate": (None, None)}}):
                assert list_clips(session, ClipQuery(**asked)).items == ()


# Histograms and facets, by the lists that they describe


@pytest.mark.parametrize("few", [-1, 1000])
def test_a_histogram_counts_what_the_other_filters_leave(
    shared_catalog: Catalog, monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    monkeypatch.setattr(curriculum, "_FEW", few)
    monkeypatch.setattr(curriculum, "_FEWER_THAN_A_SCAN", few)
    list_all = remember_lists(shared_catalog)
    for asked in QUERIES:
        others = {name: value for name, value in asked.items() if name not in ("sort", "descending")}
        for metric in ("slip_rate", "height_std", "fell_at_frame", "duration_sec"):
            query = others | {"metrics": {k: v for k, v in others.get("metrics", {}).items() if k != metric}}
            query |= {"min_duration_sec": None} if metric == "duration_sec" else {}
            items = list_all(query)
            values = [
                item.duration_sec if metric == "duration_sec" else item.rollout and item.rollout.metrics[metric]
                for item in items
            ]
            known = sorted(value for value in values if value is not None)
            with shared_catalog.session() as session:
                histogram = measure_histogram(session, ClipQuery(**others), metric, 12)
            label = (asked, metric, histogram)
            assert (histogram.total, histogram.missing) == (len(items), len(items) - len(known)), label
            assert (histogram.low, histogram.high) == ((known[0], known[-1]) if known else (None, None)), label
            assert len(histogram.counts) <= 12, label
            assert histogram.below + sum(histogram.counts) + histogram.above == len(known), label
            for begin, end, count in zip(histogram.edges[:-1], histogram.edges[1:], histogram.counts, strict=True):
                is_last = end == histogram.edges[-1] and metric != "fell_at_frame" and histogram.above == 0
                assert count == sum(begin <= value < end or (is_last and value == end) for value in known), label


def test_one_wild_value_does_not_flatten_a_histogram(database_url: str) -> None:
    with opened(database_url, Clock()) as catalog:
        for number in range(250):
            slip, fall = (4e8 if number == 7 else number / 250), (10_000_000 if number == 7 else number % 10)
            add_rollout(
                catalog, add_clip(catalog, f"{number}"), result(0, slip_rate=slip, fell_at_frame=fall, contact_rate=0.5)
            )
        with catalog.session() as session:
            histogram = measure_histogram(session, ClipQuery(), "slip_rate", 24)
            assert histogram.edges == tuple(number / 20 for number in range(21))
            assert (histogram.below, sum(histogram.counts), histogram.above, histogram.high) == (0, 249, 1, 4e8)
            assert histogram.counts[1:4] == (12, 13, 12)
            narrow = measure_histogram(session, ClipQuery(metrics={"slip_rate": (0.1, 0.2)}), "slip_rate", 24)
            assert narrow == histogram, "a metric's own range is left out"
            frames = measure_histogram(session, ClipQuery(), "fell_at_frame", 24)
            assert (frames.edges, frames.above) == (tuple(range(11)), 1)
            assert set(frames.counts) == {24, 25}
            assert measure_histogram(session, ClipQuery(name="no such"), "slip_rate").edges == ()
            same = measure_histogram(session, ClipQuery(), "contact_rate")
            assert (sum(same.counts), same.edges[0] <= 0.5 <= same.edges[-1]) == (250, True)


@pytest.mark.parametrize("few", [-1, 1000])
def test_a_facet_counts_what_its_filter_would_leave(shared_catalog: Catalog, monkeypatch: pytest.MonkeyPatch, few: int) -> None:
    monkeypatch.setattr(curriculum, "_FEW", few)
    monkeypatch.setattr(curriculum, "_FEWER_THAN_A_SCAN", few)
    list_all = remember_lists(shared_catalog)
    for asked in [*QUERIES, {"robots": ("other",)}, {"robots": ("other",), "tags": ("x",), "tier": 0}]:
        query = {name: value for name, value in asked.items() if name not in ("sort", "descending")}
        with shared_catalog.session() as session:
            facets = count_facets(session, ClipQuery(**query))
        assert facets.total == len(list_all(query)), asked
        for name in ("tier", "robot", "mode", "gate_profile"):
            for facet in getattr(facets, name):
                if facet.value is not None:
                    items = list_all(query | {name: facet.value})
                    assert facet.clips == len(items), (asked, name, facet)
        items = list_all(query | {"tier": None})
        assert sum(facet.clips for facet in facets.tier) == len(items), asked
        tags = Counter(tag for item in list_all(query) for tag in item.tags)
        assert {facet.value: facet.clips for facet in facets.tag} == dict(tags), asked


def test_nothing_is_counted_of_an_empty_catalog(database_url: str) -> None:
    with opened(database_url) as catalog, catalog.session() as session:
        assert count_facets(session, ClipQuery()).total == 0
        assert measure_histogram(session, ClipQuery(), "slip_rate").total == 0
        with pytest.raises(InputRefused, match="no histogram"):
            measure_histogram(session, ClipQuery(), "created_at")
