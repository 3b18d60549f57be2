"""What a purge deletes, and what it never does, on both databases."""

from __future__ import annotations

from typing import Any

import pytest
from catalogkit import Clock, add_clip, add_rollout, lock, recipe, result, rows
from sqlalchemy import select

from ampref_service.catalog import Catalog, audit, clips, datasets, purging
from ampref_service.catalog import tables as t
from ampref_service.catalog.records import Bounds, Clip, PurgeFilter, PurgeReport, Segment, Select
from ampref_service.jobs import JobQueue

DAY = 86_400.0
REJECTED = PurgeFilter("rejected", 90.0)
SEGMENTS = Select("wildrobot", segments=True)


def end_jobs(catalog: Catalog) -> None:
    """Fail every job that waits."""
    queue = JobQueue(catalog)
    while claim := queue.claim("w"):
        queue.fail(claim, {"detail": "not wanted"}, retry=False)


def add(catalog: Catalog, name: str, tier: int | None = -1, **facts: Any) -> Clip:
    """A clip without a live job, scored unless its tier is None."""
    clip = add_clip(catalog, name, **facts)
    end_jobs(catalog)
    if tier is not None:
        add_rollout(catalog, clip, result(tier))
    return clip


def count(catalog: Catalog, criteria: PurgeFilter = REJECTED) -> PurgeReport:
    with catalog.session() as session:
        return purging.count_candidates(session, criteria)


def clip_names(catalog: Catalog) -> list[str]:
    with catalog.session() as session:
        return sorted(session.execute(select(t.clips.c.name)).scalars())


def test_old_rejected_clips_go_and_nothing_else(catalog: Catalog, clock: Clock) -> None:
    for name, tier in (("good", 0), ("fair", 1), ("bad", -1), ("worse", -1), ("unscored", None)):
        add(catalog, name, tier)
    rescored = add(catalog, "rescored")
    scaled = add(catalog, "good on ice")
    add_rollout(catalog, scaled, result(0), recipe(seed=3, friction=0.7))
    waiting = add(catalog, "waiting")
    held = add(catalog, "held", None)
    add_rollout(catalog, held, result(-1, segments=(Segment(0, 30, 0, 0.5),)))
    lock(catalog, wanted=Select("wildrobot", segments=True, clips=("held",)))
    clock.at += 100 * DAY
    add(catalog, "young")
    add_rollout(catalog, rescored, result(-1), recipe(seed=1))
    with catalog.begin() as session:
        clips.request_rollout(session, waiting.id, recipe(seed=9))
    expected = PurgeReport(clips=2, rollouts=2, num_bytes=2 * 1000 + 5000, names=("bad", "worse"))
    assert count(catalog) == expected
    names = clip_names(catalog)
    assert purging.purge(catalog, REJECTED, limit=10, actor="tester").clips == 2
    assert clip_names(catalog) == [name for name in names if name not in ("bad", "worse")]
    assert purging.purge(catalog, REJECTED, limit=10) == PurgeReport()
    with catalog.session() as session:
        log = audit.list_events(session, limit=1000)
    assert [event.detail["name"] for event in log if event.action == "clip.delete"] == ["bad", "worse"]
    [purge] = [event for event in log if event.action == "purge"]
    assert (purge.actor, purge.detail["clips"], purge.detail["older_than_days"]) == ("tester", 2, 90.0)


def test_an_archived_version_holds_nothing(catalog: Catalog, clock: Clock) -> None:
    clip = add(catalog, "held", None)
    add_rollout(catalog, clip, result(-1, segments=(Segment(0, 30, 0, 0.5),)))
    version = lock(catalog, wanted=SEGMENTS)
    clock.at += 100 * DAY
    assert count(catalog).clips == 0
    with catalog.session() as session:
        assert purging.count_released(session, version.id) == (1, 1)
    assert version.manifest_digest is not None
    with catalog.begin() as session:
        datasets.archive_version(session, "walk", "1.0.0", "old", expected_manifest=version.manifest_digest)
    assert (count(catalog).clips, count(catalog).with_windows) == (1, 1)
    assert purging.purge(catalog, REJECTED, limit=10).clips == 1
    assert (rows(catalog, t.clips), rows(catalog, t.rollouts), rows(catalog, t.version_members)) == (0, 0, 1)


def test_a_purge_is_done_in_parts_and_within_bounds(catalog: Catalog, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(purging, "BATCH", 2)
    for number in range(5):
        add(catalog, f"bad {number}", robot="g1" if number == 4 else "wildrobot")
    clock.at += 100 * DAY
    assert purging.purge(catalog, REJECTED, limit=3).clips == 3
    assert count(catalog).clips == 2
    assert count(catalog, PurgeFilter("rejected", 90.0, robot="wildrobot")).names == ("bad 3",)
    assert count(catalog, PurgeFilter("rejected", 90.0, bounds=Bounds(None, ("h1",)))).clips == 0
    assert purging.purge(catalog, PurgeFilter("rejected", 90.0, robot="g1"), limit=10).clips == 1
    assert clip_names(catalog) == ["bad 3"]


def test_unscored_clips_go_when_asked_for(catalog: Catalog, clock: Clock) -> None:
    add(catalog, "unscored", None)
    add_clip(catalog, "queued")
    clock.at += 100 * DAY
    assert count(catalog).clips == 0
    assert purging.purge(catalog, PurgeFilter("unscored", 90.0), limit=10).clips == 1
    assert clip_names(catalog) == ["queued"]


def test_unreferenced_rollouts_go_without_their_clips(catalog: Catalog, clock: Clock) -> None:
    """Neither the best of a clip's mode and profile nor what a version holds is unreferenced."""
    clip = add(catalog, "walk", 0)
    for seed in range(1, 4):
        add_rollout(catalog, clip, result(-1, slip_rate=seed / 10), recipe(seed=seed))
    forced = add_rollout(catalog, clip, result(-1, "teacher_forced"))
    clock.at += 100 * DAY
    young = add_rollout(catalog, clip, result(-1, slip_rate=0.9), recipe(seed=4))
    criteria = PurgeFilter("rejected", 90.0, unreferenced_rollouts=True)
    assert (count(catalog, criteria).clips, count(catalog, criteria).rollouts) == (0, 3)
    with catalog.session() as session:
        before = session.execute(select(t.curriculum)).all()
    assert purging.purge(catalog, criteria, limit=10).rollouts == 3
    with catalog.session() as session:
        assert session.execute(select(t.curriculum)).all() == before
        kept = set(session.execute(select(t.rollouts.c.id)).scalars())
    assert {forced.id, young.id} < kept
    assert len(kept) == 3
