"""Locked versions, their aliases and yanks, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from catalogkit import Clock, add_clip, add_rollout, lock, opened, publish, recipe, result, rows, sha, together
from sqlalchemy import exc, text

from amp_core.errors import Conflict, InputRefused, NotFound
from ampref_service.catalog import Catalog, audit, clips, datasets, locking, pulls, selection
from ampref_service.catalog import tables as t
from ampref_service.catalog.members import list_members
from ampref_service.catalog.records import Clip, JobTerms, Puller, Select, Version
from ampref_service.diff import compare_versions
from ampref_service.jobs import JobQueue

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


@pytest.fixture
def catalog(database_url: str) -> Iterator[Catalog]:
    with opened(database_url) as found:
        yield found


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
        _, job = locking.begin_version(session, "walk", "1.0.0", Select("wildrobot"), terms=JobTerms(1))
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


def test_a_version_keeps_its_coverage(catalog: Catalog, scored: Clip) -> None:
    version = lock(catalog)
    with catalog.session() as session:
        assert datasets.get_coverage(session, version.id) == {"seconds": 2.0}
        assert datasets.get_coverage(session, "version_none") is None


# What differs, who pulled


def test_the_difference_counts_what_is_the_same_and_reads_the_rest(catalog: Catalog) -> None:
    kept, gone, changed, fresh = (add_clip(catalog, name) for name in ("kept", "gone", "changed", "fresh"))
    for clip in (kept, gone, changed):
        add_rollout(catalog, clip)
    old = lock(catalog, version="1.0.0")
    better = add_rollout(catalog, changed, result(0, mean_sum_fn_over_mg=0.99), recipe(seed=7))
    add_rollout(catalog, fresh)
    new = lock(catalog, version="1.1.0", wanted=Select("wildrobot", clips=("kept", "changed", "fresh")))
    with catalog.session() as session:
        diff = compare_versions(session, old, new)
        reverse = compare_versions(session, new, old)
        same = compare_versions(session, new, new)
    assert ([share.name for share in diff.added], [share.name for share in diff.removed]) == (["fresh"], ["gone"])
    assert [(before.name, after.rollout_id) for before, after in diff.changed] == [("changed", better.id)]
    assert (diff.unchanged, reverse.unchanged, same.unchanged) == (1, 1, 3)
    assert [share.name for share in reverse.added] == ["gone"]
    assert (same.added, same.removed, same.changed) == ([], [], [])


def test_pulls_are_added_up_by_who_began_them(database_url: str) -> None:
    clock = Clock()
    with opened(database_url, clock) as catalog:
        add_rollout(catalog, add_clip(catalog))
        version = lock(catalog)
        node, other = (Puller(version.id, f"key:{name}", "ampref/0.14.0") for name in ("node", "other"))

        def add(counts: dict[Puller, int]) -> None:
            with catalog.begin() as session:
                pulls.add_pulls(session, counts)

        first = clock.at
        add({node: 2})
        clock.at += 10
        add({node: 1, other: 1})
        clock.at += 10
        results = together(8, lambda _: add({node: 1, other: 1}))
        assert results == [None] * 8
        with catalog.session() as session:
            listed = pulls.list_pulls(session, version.id)
        assert [(row.caller, row.pulls, row.first_at - first, row.last_at - first) for row in listed] == [
            ("key:node", 11, 0, 20),
            ("key:other", 9, 10, 20),
        ]
