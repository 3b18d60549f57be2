"""Events in the catalog: written with what they tell of, placed once nothing can overtake them, purged from the oldest on."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Any

import pytest
from catalogkit import Clock, add_clip, lock, opened, result

from amp_core.errors import Unavailable
from ampref_service import event_feed
from ampref_service.catalog import Catalog, clips, datasets, events
from ampref_service.catalog.records import EVENT_KINDS, Bounds, Event, EventFilter, EventGap, EventPage, Select
from ampref_service.event_feed import EventFeed, find_start, purge_events, read_events
from ampref_service.jobs import JobQueue

EVERYTHING = EventFilter()


def record(catalog: Catalog, *names: str, kind: Any = "clip.deleted", **subject: str) -> None:
    for name in names:
        with catalog.begin() as session:
            events.record(session, kind, {"name": name}, **subject)


def names(page: EventPage) -> list[str]:
    return [event.data["name"] for event in page.items]


def test_every_change_leaves_its_event_in_its_own_transaction(database_url: str) -> None:
    with opened(database_url) as catalog:
        queue = JobQueue(catalog)
        walk, squat, hop = (add_clip(catalog, name) for name in ("walk", "squat", "hop"))
        with catalog.begin() as session:
            session.exec_driver_sql("UPDATE jobs SET max_attempts = 1")
        claims = {claim.job.clip_id: claim for _ in range(3) if (claim := queue.claim("a worker"))}
        rollout = queue.complete_rollout(claims[walk.id], result())
        queue.fail(claims[squat.id], {"detail": "its knee is a hinge"}, retry=False)
        queue.fail(claims[hop.id], {"detail": "the child was killed"})
        lock(catalog, "walk", "1.0.0", Select("wildrobot"))
        with catalog.begin() as session:
            datasets.yank_version(session, "walk", "1.0.0", "a foot is loose")
            datasets.unyank_version(session, "walk", "1.0.0")
            clips.delete_clip(session, squat.id)
        with contextlib.suppress(StopIteration), catalog.begin() as session:
            clips.delete_clip(session, hop.id)
            raise StopIteration  # The transaction fails.
        page = read_events(catalog, EVERYTHING)
    assert [event.kind for event in page.items] == [
        *("clip.scored", "job.failed", "job.quarantined", "version.locked", "version.yanked", "version.unyanked"),
        "clip.deleted",
    ]
    assert {event.kind for event in page.items} < set(EVENT_KINDS)
    assert [event.position for event in page.items] == [1, 2, 3, 4, 5, 6, 7]
    assert len({event.id for event in page.items}) == 7
    assert {event.robot for event in page.items} == {"wildrobot"}
    assert [event.dataset for event in page.items] == [None, None, None, "walk", "walk", "walk", None]
    scored, failed, quarantined, locked, yanked, _, deleted = (event.data for event in page.items)
    assert (scored["rollout_id"], scored["clip_id"], scored["tier"]) == ((rollout.result or {})["rollout_id"], walk.id, 0)
    assert scored["job_id"] == claims[walk.id].job.id
    assert (failed["clip_id"], failed["reason"], quarantined["clip_id"]) == (squat.id, "its knee is a hinge", hop.id)
    assert (locked["version"], locked["num_clips"], locked["ready"]) == ("1.0.0", 1, True)
    assert yanked["reason"] == "a foot is loose"
    assert deleted == {"clip_id": squat.id, "name": "squat"}


def test_a_transaction_that_commits_late_is_not_passed_by(pg_url: str) -> None:
    with opened(pg_url) as catalog:
        late, early = catalog.begin(), catalog.begin()
        with late as slow:
            events.record(slow, "clip.deleted", {"name": "late"})  # The smaller number of the sequence.
            with early as fast:
                events.record(fast, "clip.deleted", {"name": "early"})
            first = read_events(catalog, EVERYTHING)  # It does not wait for the open transaction, either.
            assert (names(first), first.next_after) == (["early"], 1)
        second = read_events(catalog, EVERYTHING, after=first.next_after)
        assert (names(second), second.next_after) == (["late"], 2)
        assert names(read_events(catalog, EVERYTHING)) == ["early", "late"]


def test_readers_beside_writers_see_every_event_once_and_in_one_order(database_url: str) -> None:
    writers, readers, each = 4, 3, 15
    seen: list[list[Event]] = [[] for _ in range(readers)]
    with opened(database_url) as catalog:

        def write(number: int) -> None:
            for i in range(each):
                record(catalog, f"{number} {i}")

        def read(items: list[Event]) -> None:
            while len(items) < writers * each:
                items.extend(read_events(catalog, EVERYTHING, after=items[-1].position if items else 0, limit=7).items)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(writers)]
        threads += [threading.Thread(target=read, args=(items,)) for items in seen]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
    assert seen[0] == seen[1] == seen[2]
    assert [event.position for event in seen[0]] == list(range(1, writers * each + 1))
    for number in range(writers):
        order = [event.data["name"] for event in seen[0] if event.data["name"].startswith(f"{number} ")]
        assert order == [f"{number} {i}" for i in range(each)]


def test_filters_and_the_newest(database_url: str) -> None:
    with opened(database_url) as catalog:
        record(catalog, "a", dataset="walk", robot="wildrobot", kind="version.locked")
        record(catalog, "b", robot="other")
        record(catalog, "c", dataset="squat", robot="wildrobot", kind="version.yanked")
        assert names(read_events(catalog, EventFilter(dataset="walk"))) == ["a"]
        assert names(read_events(catalog, EventFilter(robot="wildrobot"))) == ["a", "c"]
        only_versions = EventFilter(kinds=("version.locked", "version.yanked"))
        page = read_events(catalog, only_versions, limit=1)
        assert (names(page), page.next_after) == (["a"], 1)
        page = read_events(catalog, only_versions, after=1)
        assert (names(page), page.next_after) == (["c"], 3)
        bounds = {
            Bounds(datasets=("wal*",)): ["a", "b"],
            Bounds(datasets=("squat",)): ["b", "c"],
            Bounds(robots=("other", "third")): ["b"],
            Bounds(datasets=("squat",), robots=("wildrobot",)): ["c"],
        }
        everything = read_events(catalog, EVERYTHING).items
        for bound, visible_names in bounds.items():
            criteria = EventFilter(bounds=bound)
            assert names(read_events(catalog, criteria)) == visible_names
            # A stream compares in memory.
            assert [event.data["name"] for event in everything if criteria.matches(event)] == visible_names
        starts = [find_start(catalog, EVERYTHING, last) for last in (0, 1, 2, 9)]
        assert starts == [3, 2, 1, 0]
        assert find_start(catalog, EventFilter(robot="other"), 1) == 1
        assert find_start(catalog, EventFilter(robot="nobody"), 1) == 3


def test_old_events_are_purged_and_a_cursor_before_them_is_told_of_the_gap(database_url: str) -> None:
    clock = Clock()
    with opened(database_url, clock) as catalog:
        record(catalog, "a", "b")
        clock.at += 20 * 86400
        record(catalog, "c")
        assert purge_events(catalog, days=30) == 0
        clock.at += 11 * 86400
        assert purge_events(catalog, days=30) == 2
        page = read_events(catalog, EVERYTHING, after=1)
        assert (names(page), page.gap, page.next_after) == (["c"], EventGap(1, 3), 3)
        assert read_events(catalog, EVERYTHING).gap is None
        assert read_events(catalog, EVERYTHING, after=2).gap is None
        clock.at += 30 * 86400
        assert purge_events(catalog, days=30) == 1
        record(catalog, "d")
        page = read_events(catalog, EVERYTHING, after=3)
        assert [event.position for event in page.items] == [4], "positions go on after everything was purged"
        # Of a catalog that had more events than this one, from which this was restored, say.
        page = read_events(catalog, EVERYTHING, after=1000)
        assert (names(page), page.gap) == (["d"], EventGap(1000, 4))


def test_an_event_is_not_purged_past_a_younger_one_when_the_clock_went_back(database_url: str) -> None:
    clock = Clock()
    with opened(database_url, clock) as catalog:
        record(catalog, "a")
        clock.at -= 100 * 86400
        record(catalog, "b")
        clock.at += 110 * 86400
        assert purge_events(catalog, days=30) == 0
        assert names(read_events(catalog, EVERYTHING)) == ["a", "b"]


def test_many_followers_cost_one_query(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pages: list[EventPage] = []

    def count(*arguments: Any, **options: Any) -> EventPage:
        pages.append(read_events(*arguments, **options))
        return pages[-1]

    monkeypatch.setattr(event_feed, "read_events", count)

    async def follow(feed: EventFeed, started: list[int], criteria: EventFilter) -> list[str]:
        result = []
        async for item in feed.follow(criteria, None):
            if isinstance(item, Event):
                result.append(item.data["name"])
                if len(result) == 2:
                    return result
            else:
                started.append(1)
        return result

    async def main(catalog: Catalog) -> list[list[str]]:
        feed = EventFeed(catalog, every_sec=0.01, max_followers=40)
        started: list[int] = []
        odd = EventFilter(robot="other")
        tasks = [asyncio.create_task(follow(feed, started, odd if i % 2 else EVERYTHING)) for i in range(40)]
        while len(started) < 40 or feed._head is None:
            await asyncio.sleep(0.01)
        with pytest.raises(Unavailable, match="40 streams"):
            feed.check_room()
        await asyncio.to_thread(record, catalog, "a", "b")
        await asyncio.to_thread(record, catalog, "c", "d", robot="other")
        answers = await asyncio.gather(*tasks)
        feed.check_room()
        await feed.close()
        return answers

    with opened(sqlite_url) as catalog:
        answers = asyncio.run(main(catalog))
    assert answers[0::2] == [["a", "b"]] * 20
    assert answers[1::2] == [["c", "d"]] * 20
    assert len([page for page in pages if page.items]) <= 4
