"""Clips, rollouts and datasets, on SQLite and on PostgreSQL."""

from __future__ import annotations

import dataclasses
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from catalogkit import Clock, add_clip, add_rollout, new_clip, opened, recipe, result, sha
from sqlalchemy import exc, func, select, text, update

from amp_core.dataset import WEIGHT_METRICS
from amp_core.errors import Conflict, InputRefused, NotFound
from amp_core.tiers import Tier, merit_order
from ampref_service.blobs import LocalBlobStore
from ampref_service.catalog import Catalog, audit, clips, datasets, locking, recipes, rollouts, selection
from ampref_service.catalog import tables as t
from ampref_service.catalog.members import list_members
from ampref_service.catalog.records import Clip, Segment, Select, Submission, Version, VersionFile, VersionMember
from ampref_service.garbage import delete_unreferenced
from ampref_service.jobs import JobQueue

ROOT = Path(__file__).parents[2]


@pytest.fixture
def catalog(database_url: str) -> Iterator[Catalog]:
    with opened(database_url) as found:
        yield found


def rows(catalog: Catalog, table: Any) -> int:
    with catalog.session() as session:
        return int(session.execute(select(func.count()).select_from(table)).scalar_one())


def together(count: int, action: Any) -> list[Any]:
    """The results, or the exceptions, of `count` threads that begin at once."""
    gate = threading.Barrier(count)
    found: list[Any] = []

    def run(number: int) -> None:
        gate.wait()
        try:
            found.append(action(number))
        except Exception as error:
            found.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == count
    return found


# Clips


def test_a_clip_comes_with_its_job_or_not_at_all(catalog: Catalog) -> None:
    with pytest.raises(ZeroDivisionError), catalog.begin() as session:  # noqa: PT012
        clips.submit(session, new_clip(), recipe())
        raise ZeroDivisionError
    assert [rows(catalog, table) for table in (t.clips, t.jobs, t.recipes, t.curriculum, t.audit_events)] == [0] * 5
    with catalog.begin() as session:
        made = clips.submit(session, new_clip(tags=["b", "a", "b"]), recipe(), max_attempts=7)
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
        first = clips.submit(session, new_clip(), recipe(), max_attempts=1)
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


# Rollouts


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


# Deleting


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


# Datasets


def lock(catalog: Catalog, name: str = "walk", version: str = "1.0.0", wanted: Select | None = None) -> Version:
    queue = JobQueue(catalog)
    wanted = wanted or Select("wildrobot")
    with catalog.begin() as session:
        begun, _ = locking.begin_version(session, name, version, wanted)
    claim = queue.claim("locker", kinds=("lock",))
    assert claim is not None
    with catalog.session() as session:
        chosen = list(selection.select_members(session, wanted))
    queue.complete(claim, work=lambda session: publish(session, begun.id, chosen) and None)
    with catalog.session() as session:
        return datasets.get_version(session, name, version)


def publish(session: Any, version_id: str, chosen: Any) -> Version:
    return locking.publish_version(
        session,
        version_id,
        members=[
            VersionMember(item.clip_id, item.rollout_id, item.name, start, end, tier)
            for item in chosen
            for start, end, tier in item.ranges
        ],
        files=[VersionFile("features.npz", sha("features"), 100), VersionFile("manifest.json", sha("manifest"), 10)],
        dataset_hash=sha("rows"),
        feature_code_hash=sha("code"),
        manifest_digest=sha("manifest"),
        num_clips=len(chosen),
        num_frames=100,
        readiness={"ready": True},
        coverage={"seconds": 2.0},
    )


@pytest.fixture
def scored(catalog: Catalog) -> Clip:
    clip = add_clip(catalog)
    add_rollout(catalog, clip)
    return clip


def test_a_version_is_invisible_until_it_is_whole(catalog: Catalog, scored: Clip) -> None:
    with catalog.begin() as session:
        begun, job = locking.begin_version(session, "walk", "1.0.0", Select("wildrobot"))
    assert (job.kind, job.version_id, job.payload["select"]["tiers"]) == ("lock", begun.id, [0])
    with catalog.session() as session:
        assert datasets.list_datasets(session) == []
        for ask in (
            lambda: datasets.get_dataset(session, "walk"),
            lambda: datasets.get_version(session, "walk", "1.0.0"),
            lambda: datasets.get_version(session, "walk", "latest"),
        ):
            with pytest.raises(NotFound):
                ask()
        chosen = list(selection.select_members(session, Select("wildrobot")))
    with pytest.raises(ZeroDivisionError), catalog.begin() as session:  # noqa: PT012
        publish(session, begun.id, chosen)
        raise ZeroDivisionError
    assert rows(catalog, t.version_members) == rows(catalog, t.version_files) == 0
    with catalog.begin() as session:
        publish(session, begun.id, chosen)
    with catalog.session() as session:
        found = datasets.get_dataset(session, "walk")
        assert found.latest == "1.0.0"
        assert [file.name for file in found.versions[0].files] == ["features.npz", "manifest.json"]
        assert [(m.clip_id, m.start, m.end, m.position) for m in list_members(session, begun.id)] == [(scored.id, 0, 100, 0)]
        assert datasets.get_file(session, "walk", "latest", "manifest.json").digest == sha("manifest")
        with pytest.raises(NotFound, match=r"one of features\.npz, manifest\.json"):
            datasets.get_file(session, "walk", "1.0.0", "other")


def test_of_concurrent_locks_of_a_version_one_wins(catalog: Catalog, scored: Clip) -> None:
    def begin(number: int) -> Any:
        with catalog.begin() as session:
            return locking.begin_version(session, "walk", "1.0.0", Select("wildrobot"))

    found = together(6, begin)
    lost = [item for item in found if isinstance(item, Conflict)]
    assert len(lost) == 5, found
    assert all("is being locked at this moment" in str(item) for item in lost)
    assert (rows(catalog, t.versions), rows(catalog, t.jobs)) == (1, 2)


def test_a_locked_version_cannot_be_begun_again(catalog: Catalog, scored: Clip) -> None:
    lock(catalog)
    with pytest.raises(Conflict, match="locked already"), catalog.begin() as session:
        locking.begin_version(session, "walk", "1.0.0", Select("wildrobot"))


@pytest.mark.parametrize("end", ["failed", "quarantined", "cancelled"])
def test_a_lock_that_ends_badly_frees_its_name_and_leaves_a_trace(catalog: Catalog, scored: Clip, end: str) -> None:
    with catalog.begin() as session:
        _, job = locking.begin_version(session, "walk", "1.0.0", Select("wildrobot"), max_attempts=1)
    queue = JobQueue(catalog)
    if end == "cancelled":
        queue.cancel(job.id)
    else:
        claim = queue.claim("w", kinds=("lock",))
        assert claim is not None
        queue.fail(claim, {"detail": "bad"}, retry=end == "quarantined")
    assert rows(catalog, t.versions) == 0
    with catalog.session() as session:
        actions = [event.action for event in audit.list_events(session, subject="version:walk==1.0.0")]
    assert actions == ["version.begin", "version.abandon"]
    assert lock(catalog).version == "1.0.0"


FORBIDDEN = [
    "UPDATE versions SET version = '9.9.9'",
    "UPDATE versions SET state = 'locking'",
    "UPDATE versions SET dataset_hash = 'x'",
    "UPDATE versions SET locked_at = 0",
    "UPDATE versions SET readiness = NULL",
    "DELETE FROM versions",
    "UPDATE versions SET coverage = NULL",
    "UPDATE version_members SET start = 1",
    "UPDATE version_members SET version_id = version_id",
    "DELETE FROM version_members",
    'INSERT INTO version_members SELECT version_id, 99, clip_id, rollout_id, name, start, "end", tier FROM version_members',
    "UPDATE version_files SET digest = 'x'",
    "DELETE FROM version_files",
    "INSERT INTO version_files SELECT version_id, 'more', digest, size, media_type FROM version_files WHERE name = "
    "'manifest.json'",
    "DELETE FROM clips",
    "DELETE FROM rollouts",
    "UPDATE audit_events SET actor = 'somebody else'",
    "DELETE FROM audit_events",
]


@pytest.mark.parametrize("statement", FORBIDDEN)
def test_the_database_itself_refuses_to_change_what_is_locked(catalog: Catalog, scored: Clip, statement: str) -> None:
    lock(catalog)
    with pytest.raises((exc.IntegrityError, exc.InternalError)), catalog.begin() as session:
        session.execute(text(statement))


@pytest.mark.parametrize("table", ["versions", "version_members", "version_files", "audit_events"])
def test_postgresql_refuses_to_empty_it_too(pg_url: str, table: str) -> None:
    with opened(pg_url) as catalog, pytest.raises(exc.IntegrityError), catalog.begin() as session:
        session.execute(text(f"TRUNCATE {table} CASCADE"))


def test_a_clip_that_a_locked_version_holds_is_not_deleted(catalog: Catalog, scored: Clip) -> None:
    lock(catalog)
    lock(catalog, "run", "2.0.0")
    with pytest.raises(Conflict, match=r"run==2\.0\.0, walk==1\.0\.0"), catalog.begin() as session:
        clips.delete_clip(session, scored.id)
    with catalog.begin() as session:
        datasets.yank_version(session, "walk", "1.0.0", "bad")
    with pytest.raises(Conflict), catalog.begin() as session:
        clips.delete_clip(session, scored.id)


def test_a_clip_that_is_deleted_while_it_is_being_locked_fails_the_lock(catalog: Catalog, scored: Clip) -> None:
    with catalog.begin() as session:
        begun, _ = locking.begin_version(session, "walk", "1.0.0", Select("wildrobot"))
    with catalog.session() as session:
        chosen = list(selection.select_members(session, Select("wildrobot")))
    with catalog.begin() as session:
        clips.delete_clip(session, scored.id)
    with pytest.raises(Conflict, match="was deleted while it was being locked"), catalog.begin() as session:
        publish(session, begun.id, chosen)
    with catalog.session() as session, pytest.raises(NotFound):
        datasets.get_dataset(session, "walk")


def test_deleting_a_clip_and_locking_it_at_once_never_do_both(catalog: Catalog) -> None:
    for number in range(5):
        clip = add_clip(catalog, f"clip {number}")
        add_rollout(catalog, clip)
        with catalog.begin() as session:
            begun, _ = locking.begin_version(session, "walk", f"{number}.0.0", Select("wildrobot", clips=(clip.id,)))
        with catalog.session() as session:
            chosen = list(selection.select_members(session, Select("wildrobot", clips=(clip.id,))))

        def act(which: int, begun: Version = begun, chosen: Any = chosen, clip: Clip = clip) -> str:
            with catalog.begin() as session:
                if which:
                    publish(session, begun.id, chosen)
                else:
                    clips.delete_clip(session, clip.id)
            return "done"

        found = together(2, act)
        assert sum(item == "done" for item in found) == 1, found
        assert sum(isinstance(item, Conflict) for item in found) == 1, found


def test_latest_is_the_highest_release_that_is_not_yanked(catalog: Catalog, scored: Clip) -> None:
    for version in ("0.9.0", "0.11.0", "0.10.1", "0.12.0-rc.1"):
        lock(catalog, version=version)
    with catalog.session() as session:
        found = datasets.get_dataset(session, "walk")
        assert found.latest == "0.11.0"
        assert [item.version for item in found.versions] == ["0.12.0-rc.1", "0.11.0", "0.10.1", "0.9.0"]
    with catalog.begin() as session:
        yanked = datasets.yank_version(session, "walk", "0.11.0", "wrong friction")
        assert (yanked.yanked, yanked.yank_reason) == (True, "wrong friction")
        assert datasets.get_version(session, "walk", "latest").version == "0.10.1"
        assert datasets.get_version(session, "walk", "0.11.0").yanked, "its exact name must still work"
    with catalog.begin() as session:
        assert not datasets.unyank_version(session, "walk", "0.11.0").yanked
        assert datasets.get_version(session, "walk", "latest").version == "0.11.0"
        for version in ("0.9.0", "0.10.1", "0.11.0"):
            datasets.yank_version(session, "walk", version, "all bad")
        assert datasets.get_version(session, "walk", "latest").version == "0.12.0-rc.1", (
            "a pre-release when there is nothing else"
        )
        datasets.yank_version(session, "walk", "0.12.0-rc.1", "this one too")
        with pytest.raises(NotFound, match="every version"):
            datasets.get_version(session, "walk", "latest")
        assert datasets.get_dataset(session, "walk").latest is None


def test_versions_are_ordered_as_semantic_versioning_says() -> None:
    ordered = [
        "1.0.0-alpha",
        "1.0.0-alpha.1",
        "1.0.0-alpha.beta",
        "1.0.0-beta",
        "1.0.0-beta.2",
        "1.0.0-beta.11",
        "1.0.0-rc.1",
        "1.0.0",
    ]
    assert sorted(reversed(ordered), key=datasets.version_order) == ordered


def test_an_alias_moves_and_the_log_knows(catalog: Catalog, scored: Clip) -> None:
    lock(catalog, version="1.0.0")
    lock(catalog, version="1.1.0")
    with catalog.begin() as session:
        datasets.set_alias(session, "walk", "production", "1.0.0", actor="ann")
        assert datasets.get_version(session, "walk", "production").version == "1.0.0"
    with catalog.begin() as session:
        datasets.set_alias(session, "walk", "production", "latest", actor="bob")
        assert datasets.get_dataset(session, "walk").aliases == {"production": "1.1.0"}
        events = audit.list_events(session, subject="alias:walk@production")
    assert [(event.actor, event.detail) for event in events] == [
        ("ann", {"from": None, "to": "1.0.0"}),
        ("bob", {"from": "1.0.0", "to": "1.1.0"}),
    ]
    with catalog.begin() as session:
        datasets.drop_alias(session, "walk", "production")
        with pytest.raises(NotFound, match=r"one of 1\.1\.0, 1\.0\.0"):
            datasets.get_version(session, "walk", "production")
        with pytest.raises(NotFound):
            datasets.drop_alias(session, "walk", "production")


def test_an_alias_is_refused_where_it_would_mislead(catalog: Catalog, scored: Clip) -> None:
    lock(catalog)
    with catalog.begin() as session:
        with pytest.raises(Conflict, match="computed"):
            datasets.set_alias(session, "walk", "latest", "1.0.0")
        with pytest.raises(InputRefused):
            datasets.set_alias(session, "walk", "1.0.0", "1.0.0")
        with pytest.raises(NotFound):
            datasets.set_alias(session, "walk", "production", "3.0.0")
        datasets.yank_version(session, "walk", "1.0.0", "bad")
        with pytest.raises(Conflict, match="yanked: bad"):
            datasets.set_alias(session, "walk", "production", "1.0.0")
        with pytest.raises(InputRefused):
            datasets.yank_version(session, "walk", "1.0.0", " ")


def test_aliases_set_at_once_leave_one(catalog: Catalog, scored: Clip) -> None:
    lock(catalog, version="1.0.0")
    lock(catalog, version="1.1.0")

    def move(number: int) -> str:
        with catalog.begin() as session:
            return datasets.set_alias(session, "walk", "production", ("1.0.0", "1.1.0")[number % 2]).version

    found = together(6, move)
    assert set(found) <= {"1.0.0", "1.1.0"}, found
    with catalog.session() as session:
        events = audit.list_events(session, subject="alias:walk@production")
        assert datasets.get_dataset(session, "walk").aliases == {"production": events[-1].detail["to"]}
    assert [event.detail["from"] for event in events[1:]] == [event.detail["to"] for event in events[:-1]]


def test_members_are_the_best_rollout_of_each_clip_by_name(catalog: Catalog) -> None:
    named = {}
    for name, tiers in {"b": [1, 0], "a": [0], "c": [1], "d": [-1], "e": []}.items():
        clip = named[name] = add_clip(catalog, name, tags=["x"] if name in "ab" else ["y"])
        for seed, tier in enumerate(tiers):
            add_rollout(catalog, clip, result(tier), recipe(seed=seed))
    other = add_clip(catalog, "a", robot="other", source_digest=sha("o"))
    add_rollout(catalog, other)

    def chosen(**wanted: Any) -> list[tuple[str, int]]:
        with catalog.session() as session:
            return [
                (item.name, item.tier) for item in selection.select_members(session, Select("wildrobot", **wanted), chunk=1)
            ]

    assert chosen() == [("a", 0), ("b", 0)]
    assert chosen(tiers=(0, 1)) == [("a", 0), ("b", 0), ("c", 1)]
    assert chosen(tiers=(1,)) == [("c", 1)], "a clip is in the tier of its best rollout only"
    assert chosen(tags=("x",), clips=("b",)) == [("b", 0)]
    assert chosen(clips=(named["a"].id, "b")) == [("a", 0), ("b", 0)]
    assert chosen(recipe=recipe(seed=0).digest, tiers=(0, 1)) == [("a", 0), ("b", 1), ("c", 1)]
    assert chosen(mode="teacher_forced") == []
    assert chosen(tags=("x", "y")) == []
    with catalog.session() as session:
        assert selection.missing_clips(session, Select("wildrobot", clips=("a", "zz", named["b"].id))) == ["zz"]
    for bad in ({"tiers": ()}, {"tiers": (2,)}, {"tiers": (0, -1)}, {"mode": "rollout", "recipe": "x"}):
        with pytest.raises(InputRefused):
            chosen(**bad)


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
            of_recipe = recipe(mode, seed=number, friction=0.7 if scaled else 1.0)
            stored = add_rollout(catalog, clip, result(tier, mode, segments=windows), of_recipe)
            keys[stored.id] = (*merit_order(tier, mode, frames, scaled=scaled), -stored.created_at)
        with catalog.session() as session:
            assert [item.id for item in rollouts.for_clip(session, clip.id)] == sorted(keys, key=lambda key: keys[key])


def test_scaled_physics_speaks_last_and_is_locked_only_by_name(catalog: Catalog) -> None:
    clip, alone = add_clip(catalog, "both"), add_clip(catalog, "alone")
    slippery = recipe(friction=0.7, mass=1.0)
    own = add_rollout(catalog, clip, result(1), recipe(friction=1.0))
    forced = add_rollout(catalog, clip, result(1, "teacher_forced"), recipe("teacher_forced"))
    scaled = add_rollout(catalog, clip, result(0), slippery)
    add_rollout(catalog, alone, result(0), slippery)

    def chosen(**wanted: Any) -> list[tuple[str, str]]:
        with catalog.session() as session:
            return [(it.name, it.rollout_id) for it in selection.select_members(session, Select("wildrobot", **wanted))]

    with catalog.session() as session:
        assert [item.id for item in rollouts.for_clip(session, clip.id)] == [own.id, forced.id, scaled.id]
        assert clips.count(session) == {"total": 2, "0": 1, "1": 1, "-1": 0, "unscored": 0}
    assert chosen() == []
    assert chosen(tiers=(0, 1)) == [("both", own.id)]
    assert [name for name, _ in chosen(recipe=slippery.digest)] == ["alone", "both"]
    with catalog.begin() as session:  # The column decides, and not the recipe's JSON, which no selection need read.
        session.execute(update(t.recipes).where(t.recipes.c.digest == slippery.digest).values(scaled=0))
    assert [name for name, _ in chosen()] == ["alone"]


def test_a_dataset_is_of_one_robot(catalog: Catalog) -> None:
    add_rollout(catalog, add_clip(catalog))
    lock(catalog, "walk", "1.0.0")
    with pytest.raises(Conflict, match="is of the robot wildrobot"), catalog.begin() as session:
        locking.begin_version(session, "walk", "2.0.0", Select("other"))


def test_what_fits_and_is_still_being_scored_is_counted(catalog: Catalog) -> None:
    waiting = add_clip(catalog, "waiting", tags=["x"])
    add_clip(catalog, "elsewhere", robot="other")

    def pending(**wanted: Any) -> int:
        with catalog.session() as session:
            return selection.pending_clips(session, Select("wildrobot", **wanted))

    assert (pending(), pending(tags=("x",)), pending(tags=("y",)), pending(clips=(waiting.id,))) == (1, 1, 0, 1)
    with catalog.session() as session:
        (job,) = clips.get_with_rollouts(session, waiting.id)[2]
    JobQueue(catalog).cancel(job.id)
    assert pending() == 0


def test_segments_of_a_rejected_clip_can_be_members(catalog: Catalog) -> None:
    good, fallen = add_clip(catalog, "good"), add_clip(catalog, "fallen")
    add_rollout(catalog, good, result(0, segments=(Segment(0, 100, 0, 1.0),)))
    add_rollout(
        catalog, fallen, result(-1, segments=(Segment(30, 60, 0, 0.8), Segment(0, 28, 0, 0.9), Segment(61, 80, 1, 0.5)))
    )
    with catalog.session() as session:
        whole = [item.ranges for item in selection.select_members(session, Select("wildrobot"))]
        parts = [(item.name, item.ranges) for item in selection.select_members(session, Select("wildrobot", segments=True))]
    assert whole == [((0, 100, 0),)]
    assert parts == [("fallen", ((0, 28, 0), (30, 60, 0))), ("good", ((0, 100, 0),))]


def test_a_window_comes_with_its_own_metrics(catalog: Catalog) -> None:
    good, fallen = add_clip(catalog, "good"), add_clip(catalog, "fallen")
    add_rollout(catalog, good, result(0, slip_rate=0.02))
    measured = {"start": 30, "end": 60, "tier": 0, "quality_metrics": {"slip_rate": 0.03, "height_std": 9.0}}
    windows = (Segment(0, 28, 0, 0.9), Segment(30, 60, 0, 0.8))
    add_rollout(
        catalog,
        fallen,
        dataclasses.replace(result(-1, segments=windows, slip_rate=0.9), result={"gates": [], "segments": [measured]}),
    )
    with catalog.session() as session:
        first, second = selection.select_members(session, Select("wildrobot", segments=True))
    assert second.range_metrics == ({name: 0.5 for name in WEIGHT_METRICS} | {"slip_rate": 0.02},)
    # A window that was stored without metrics has none, and not the clip's.
    assert first.range_metrics == ({}, {name: None for name in WEIGHT_METRICS} | {"slip_rate": 0.03})


def test_a_version_keeps_its_coverage(catalog: Catalog, scored: Clip) -> None:
    version = lock(catalog)
    with catalog.session() as session:
        assert datasets.get_coverage(session, version.id) == {"seconds": 2.0}
        assert datasets.get_coverage(session, "version_none") is None


def test_select_survives_its_json() -> None:
    wanted = Select("r", (0, 1), "rollout", None, ("a",), ("b",), True)
    assert Select.from_dict(wanted.to_dict()) == wanted


def test_every_change_is_in_the_log(catalog: Catalog) -> None:
    with catalog.begin() as session:
        made = clips.submit(session, new_clip(), recipe(), actor="ann")
        clips.add_tags(session, made.clip.id, ["x"], actor="ann")
        clips.delete_clip(session, made.clip.id, actor="ann")
        events = audit.list_events(session)
    assert [event.action for event in events] == ["clip.create", "job.enqueue", "clip.tag", "clip.delete"]
    assert {event.actor for event in events} == {"ann"}
    assert [event.id for event in events] == sorted(event.id for event in events)


# Killing


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
