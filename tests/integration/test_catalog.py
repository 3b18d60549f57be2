"""Clips and rollouts, on SQLite and on PostgreSQL."""

from __future__ import annotations

import dataclasses
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from catalogkit import Clock, add_clip, add_rollout, new_clip, opened, recipe, result, rows, sha, together
from sqlalchemy import func, select, text

from amp_core.errors import Conflict, InputRefused, NotFound
from amp_core.tiers import GATE_PROFILES, Tier, merit_order
from ampref_service.blobs import LocalBlobStore
from ampref_service.catalog import Catalog, audit, clips, recipes, rollouts
from ampref_service.catalog import tables as t
from ampref_service.catalog.records import JobTerms, Segment, Submission
from ampref_service.garbage import delete_unreferenced
from ampref_service.jobs import JobQueue

ROOT = Path(__file__).parents[2]


@pytest.fixture
def catalog(database_url: str) -> Iterator[Catalog]:
    with opened(database_url) as found:
        yield found


def test_a_clip_comes_with_its_job_or_not_at_all(catalog: Catalog) -> None:
    with pytest.raises(ZeroDivisionError), catalog.begin() as session:  # noqa: PT012
        clips.submit(session, new_clip(), recipe())
        raise ZeroDivisionError
    assert [rows(catalog, table) for table in (t.clips, t.jobs, t.recipes, t.curriculum, t.audit_events)] == [0] * 5
    with catalog.begin() as session:
        made = clips.submit(session, new_clip(tags=["b", "a", "b"]), recipe(), terms=JobTerms(7))
    assert (made.new_clip, made.new_job, made.rollout) == (True, True, None)
    assert made.job is not None
    assert (made.job.state, made.job.clip_id, made.job.recipe_digest, made.job.max_attempts) == (
        "queued",
        made.clip.id,
        recipe().digest,
        7,
    )
    with catalog.session() as session:
        assert clips.get(session, made.clip.id) == made.clip
        assert recipes.get(session, recipe().digest) == recipe()
    assert made.clip.tags == ("a", "b")


def test_the_same_bytes_and_recipe_are_known(catalog: Catalog) -> None:
    with catalog.begin() as session:
        first = clips.submit(session, new_clip(), recipe())
    with catalog.begin() as session:
        again = clips.submit(session, new_clip("another name", source_digest=first.clip.source_digest, tags=["late"]), recipe())
    assert (again.new_clip, again.new_job) == (False, False)
    assert again.clip == dataclasses.replace(first.clip, tags=("late",))
    assert again.job == first.job
    stored = add_rollout(catalog, first.clip)
    with catalog.begin() as session:
        once_more = clips.submit(session, new_clip(), recipe())
    assert once_more.rollout == stored
    assert (once_more.new_clip, once_more.new_job) == (False, False)
    assert rows(catalog, t.clips) == rows(catalog, t.jobs) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"robot": "other"},
        {"robot_digest": sha("a new model")},
        {"read_options": {"fps": 30.0, "quat_order": "wxyz"}},
        {"source_digest": sha("other bytes")},
    ],
)
def test_what_can_change_the_result_makes_another_clip(catalog: Catalog, changes: dict[str, Any]) -> None:
    first = add_clip(catalog)
    with catalog.begin() as session:
        other = clips.submit(session, new_clip(**changes), recipe())
    assert other.new_clip
    assert other.clip.id != first.id


def test_another_recipe_is_another_job_of_the_same_clip(catalog: Catalog) -> None:
    clip = add_clip(catalog)
    with catalog.begin() as session:
        made = clips.request_rollout(session, clip.id, recipe(seed=1))
    assert made.new_job
    with catalog.begin() as session:
        assert not clips.request_rollout(session, clip.id, recipe(seed=1)).new_job
    with catalog.session() as session:
        assert len(clips.get_with_rollouts(session, clip.id)[2]) == 2
    with pytest.raises(NotFound), catalog.begin() as session:
        clips.request_rollout(session, "clip_none", recipe())


@pytest.mark.parametrize("end", ["failed", "quarantined", "cancelled"])
def test_a_clip_whose_job_did_not_succeed_may_be_sent_again(catalog: Catalog, end: str) -> None:
    with catalog.begin() as session:
        first = clips.submit(session, new_clip(), recipe(), terms=JobTerms(1))
    queue = JobQueue(catalog)
    assert first.job is not None
    if end == "cancelled":
        queue.cancel(first.job.id)
    else:
        claim = queue.claim("w")
        assert claim is not None
        assert queue.fail(claim, {"detail": "no"}, retry=end == "quarantined").state == end
    with catalog.begin() as session:
        again = clips.submit(session, new_clip(), recipe())
    assert (again.new_clip, again.new_job) == (False, True)


def test_identical_posts_at_once_make_one_clip_and_one_job(catalog: Catalog) -> None:
    def post(number: int) -> Submission:
        with catalog.begin() as session:
            return clips.submit(session, new_clip(f"name {number}", source_digest=sha("same"), tags=[f"t{number}"]), recipe())

    found = together(8, post)
    assert all(isinstance(item, Submission) for item in found), found
    assert sum(item.new_clip for item in found) == sum(item.new_job for item in found) == 1
    assert len({item.clip.id for item in found}) == len({item.job.id for item in found}) == 1
    assert (rows(catalog, t.clips), rows(catalog, t.jobs), rows(catalog, t.recipes)) == (1, 1, 1)
    with catalog.session() as session:
        assert clips.get(session, found[0].clip.id).tags == tuple(f"t{number}" for number in range(8))


@pytest.mark.parametrize("name", ["", "  ", "a\0b", "line\nbreak", "x" * 201, "\ud800"])
def test_a_name_that_cannot_be_stored_is_refused(catalog: Catalog, name: str) -> None:
    with pytest.raises(InputRefused), catalog.begin() as session:
        clips.submit(session, dataclasses.replace(new_clip(), name=name), recipe())
    assert rows(catalog, t.clips) == 0


@pytest.mark.parametrize("tags", [[""], ["a,b"], [" a"], ["x" * 65], ["a\n"], [f"t{n}" for n in range(51)]])
def test_a_tag_that_cannot_be_used_is_refused(catalog: Catalog, tags: list[str]) -> None:
    with pytest.raises(InputRefused) as refused, catalog.begin() as session:
        clips.submit(session, new_clip(tags=tags), recipe())
    assert refused.value.key == "tags"
    assert rows(catalog, t.clips) == 0


def test_unknown_ids_are_not_found(catalog: Catalog) -> None:
    with catalog.begin() as session:
        for ask in (clips.get, clips.delete_clip, rollouts.get, recipes.get):
            with pytest.raises(NotFound):
                ask(session, "nothing")


def test_a_rollout_comes_back_as_it_was_stored(catalog: Catalog) -> None:
    clip = add_clip(catalog)
    new = result(1, segments=(Segment(0, 50, 0, 0.9), Segment(60, 90, 0, None)), height_std=0.0137, fell_at_frame=17)
    stored = add_rollout(catalog, clip, new)
    with catalog.session() as session:
        found = rollouts.get(session, stored.id)
    for name in (field.name for field in dataclasses.fields(new) if field.name != "recipe"):
        assert getattr(found, name) == getattr(new, name), name
    assert isinstance(found.metrics["fell_at_frame"], int)


def test_a_number_that_could_not_be_computed_is_null_everywhere(catalog: Catalog) -> None:
    clip = add_clip(catalog)
    new = dataclasses.replace(result(-1, height_std=float("nan"), slip_rate=float("inf")), result={"x": [float("nan"), 1.5]})
    stored = add_rollout(catalog, clip, new)
    assert stored.metrics["height_std"] is None
    assert stored.metrics["slip_rate"] is None
    assert stored.result == {"x": [None, 1.5]}


@pytest.mark.parametrize("change", [{"no_such_metric": 1.0}, None])
def test_metrics_that_are_not_the_catalogs_are_refused(catalog: Catalog, change: dict[str, float] | None) -> None:
    clip = add_clip(catalog)
    good = result()
    metrics = {**good.metrics, **(change or {})}
    if change is None:
        del metrics["slip_rate"]
    with pytest.raises(InputRefused, match=r"no_such_metric|slip_rate"):
        add_rollout(catalog, clip, dataclasses.replace(good, metrics=metrics))
    assert rows(catalog, t.rollouts) == 0


def test_the_first_result_of_a_recipe_stays(catalog: Catalog) -> None:
    clip = add_clip(catalog)
    first = add_rollout(catalog, clip, result(1))
    assert add_rollout(catalog, clip, result(0)) == first
    assert rows(catalog, t.rollouts) == 1


def test_results_at_once_make_one_rollout(catalog: Catalog) -> None:
    clip = add_clip(catalog)
    found = together(6, lambda number: add_rollout(catalog, clip, result(slip_rate=number / 10)))
    assert len({item.id for item in found}) == 1
    assert rows(catalog, t.rollouts) == 1


def test_the_best_rollout_is_of_the_best_tier_and_then_the_newest(database_url: str) -> None:
    clock = Clock()
    with opened(database_url, clock) as catalog:
        clip = add_clip(catalog)
        made = []
        for seed, tier in enumerate([-1, 1, 0, 0, 1]):
            clock.at += 1
            made.append(add_rollout(catalog, clip, result(tier), recipe(seed=seed)))
        with catalog.session() as session:
            assert [item.id for item in rollouts.for_clip(session, clip.id)] == [made[n].id for n in (3, 2, 4, 1, 0)]
            assert clips.count(session) == {"total": 1, "0": 1, "1": 0, "-1": 0, "unscored": 0}


def test_a_deleted_clip_takes_everything_of_it_along(catalog: Catalog, tmp_path: Path) -> None:
    keep = add_clip(catalog, "keep")
    clip = add_clip(catalog, "go", tags=["x"])
    stored = add_rollout(catalog, clip, result(segments=(Segment(0, 100, 0, 1.0),)))
    add_rollout(catalog, clip, result(1, "teacher_forced"))
    with catalog.begin() as session:
        gone = clips.delete_clip(session, clip.id)
    assert stored.arrays_digest in gone.blobs
    assert clip.blob_digest in gone.blobs
    assert len(gone.cancelled_jobs) == 1
    assert [rows(catalog, table) for table in (t.rollouts, t.segments, t.clip_tags)] == [0, 0, 0]
    assert [rows(catalog, table) for table in (t.clips, t.curriculum)] == [1, 1]
    with catalog.session() as session:
        assert clips.get(session, keep.id) == keep
        with pytest.raises(NotFound):
            clips.get(session, clip.id)
    with catalog.begin() as session:
        assert clips.submit(session, new_clip("go"), recipe()).new_clip, "a deleted clip may come again"


def test_a_blob_that_another_clip_names_is_kept(catalog: Catalog) -> None:
    clip = add_clip(catalog)
    add_clip(catalog, robot="other")
    with catalog.begin() as session:
        assert clips.delete_clip(session, clip.id).blobs == ()


def test_a_worker_whose_clip_was_deleted_writes_nothing(catalog: Catalog) -> None:
    clip = add_clip(catalog)
    queue = JobQueue(catalog)
    claim = queue.claim("w")
    assert claim is not None
    with catalog.begin() as session:
        clips.delete_clip(session, clip.id)
    with pytest.raises(Conflict, match="cancelled"):
        queue.complete_rollout(claim, result())
    assert rows(catalog, t.rollouts) == 0


def test_garbage_collection_spares_what_is_named_or_young(catalog: Catalog, tmp_path: Path) -> None:
    import os

    store = LocalBlobStore(tmp_path / "blobs")
    named, old, young = store.put_bytes(b"named"), store.put_bytes(b"old"), store.put_bytes(b"young")
    add_clip(catalog, blob_digest=named)
    for digest in (named, old):
        path = store.local_path(digest)
        assert path is not None
        os.utime(path, (1.0, 1.0))
    assert delete_unreferenced(catalog, store, grace_sec=3600) == [old]
    assert {digest for digest, _ in store.iter_digests()} == {named, young}


def test_of_what_is_no_tier_0_the_one_with_more_of_it_speaks(catalog: Catalog) -> None:
    clip = add_clip(catalog)

    def add(seed: int, tier: int, *segments: tuple[int, int, int]) -> str:
        windows = tuple(Segment(start, end, of, 0.5) for start, end, of in segments)
        return add_rollout(catalog, clip, result(tier, segments=windows), recipe(seed=seed)).id

    longest, shorter = add(1, -1, (0, 30, 0), (40, 80, 0)), add(2, -1, (0, 60, 0))
    none, valid = add(3, -1, (0, 90, 1)), add(4, 1)
    with catalog.session() as session:
        assert [one.id for one in rollouts.for_clip(session, clip.id)] == [valid, longest, shorter, none]
    whole, newer = add(5, 0, (0, 100, 0)), add(6, 0, (0, 40, 0))
    with catalog.session() as session:
        assert [one.id for one in rollouts.for_clip(session, clip.id)][:2] == [newer, whole], "Tier 0 is Tier 0"


@pytest.mark.parametrize("seed", range(3))
def test_the_order_in_sql_is_the_one_rule_of_merit(database_url: str, seed: int) -> None:
    rng, clock, keys = random.Random(seed), Clock(), {}
    with opened(database_url, clock) as catalog:
        clip = add_clip(catalog)
        for number in range(24):
            clock.at += 1
            tier, mode, scaled = (
                rng.choice(tuple(Tier)),
                rng.choice(("rollout", "teacher_forced", "tracked")),
                rng.random() < 0.3,
            )
            windows = tuple(
                Segment(i * 20, i * 20 + rng.choice((5, 9)), rng.choice((0, 1)), 0.5) for i in range(rng.randint(0, 3))
            )
            frames = sum(window.end - window.start for window in windows if window.tier == Tier.TIER_0)
            profile = rng.choice(tuple(GATE_PROFILES))
            of_recipe = recipe(mode, seed=number, profile=profile, friction=0.7 if scaled else 1.0)
            stored = add_rollout(catalog, clip, result(tier, mode, profile=profile, segments=windows), of_recipe)
            keys[stored.id] = (*merit_order(tier, mode, frames, profile=profile, scaled=scaled), -stored.created_at)
        with catalog.session() as session:
            assert [item.id for item in rollouts.for_clip(session, clip.id)] == sorted(keys, key=lambda key: keys[key])


def test_every_change_is_in_the_log(catalog: Catalog) -> None:
    with catalog.begin() as session:
        made = clips.submit(session, new_clip(), recipe(), actor="ann")
        clips.add_tags(session, made.clip.id, ["x"], actor="ann")
        clips.delete_clip(session, made.clip.id, actor="ann")
        events = audit.list_events(session)
    assert [event.action for event in events] == ["clip.create", "job.enqueue", "clip.tag", "clip.delete"]
    assert {event.actor for event in events} == {"ann"}
    assert [event.id for event in events] == sorted(event.id for event in events)


def test_a_writer_killed_in_the_middle_leaves_all_or_nothing(catalog: Catalog, database_url: str) -> None:
    code = (
        "import sys\nsys.path.insert(0, sys.argv[2])\nfrom catalogkit import *\nfrom ampref_service.jobs import JobQueue\n"
        "catalog = Catalog.open(sys.argv[1])\nqueue = JobQueue(catalog)\nprint('begin', flush=True)\n"
        "for number in range(100000):\n"
        "    clip = add_clip(catalog, f'clip {number}')\n"
        "    queue.complete_rollout(queue.claim('w'), result(segments=(Segment(0, 50, 0, 1.0),)))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, database_url, str(Path(__file__).parent)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "begin\n"
        until = time.monotonic() + 30
        while rows(catalog, t.rollouts) < 5 and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    with catalog.session() as session:
        if catalog.dialect == "sqlite":
            assert session.execute(text("PRAGMA integrity_check")).scalar_one() == "ok"
        known = set(session.execute(select(t.clips.c.id)).scalars())
        assert len(known) >= 5
        assert set(session.execute(select(t.jobs.c.clip_id)).scalars()) == known
        assert set(session.execute(select(t.curriculum.c.clip_id).where(t.curriculum.c.best == 1)).scalars()) == known
        done = set(session.execute(select(t.rollouts.c.clip_id)).scalars())
        assert done == set(session.execute(select(t.jobs.c.clip_id).where(t.jobs.c.state == "succeeded")).scalars())
        assert done == set(
            session.execute(select(t.curriculum.c.clip_id).where(t.curriculum.c.tier == 0, t.curriculum.c.best == 1)).scalars()
        )
        assert len(done) == session.execute(select(func.count()).select_from(t.segments)).scalar_one()
    add_clip(catalog, "the next one is not blocked by what the dead one held")
