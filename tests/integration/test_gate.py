"""The readiness tests as a gate before every lock: what stops it, what does not, and what is kept."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from workerkit import CHILD, Bench, alive, settings_for, wait_until

from amp_core.readiness import TEST_IDS
from amp_core.recipe import Recipe
from ampref_service.catalog import audit, datasets, locking, members, selection
from ampref_service.catalog.records import Job, Select, Version
from ampref_service.catalog.tables import rollouts
from ampref_service.jobs import JobQueue
from ampref_workers.runner import Runner


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(settings_for(tmp_path, lock_tests="all"))
    yield made
    made.close()


def runner(bench: Bench) -> Runner:
    return Runner(bench.settings, bench.catalog, bench.blobs, command=CHILD)


def lock(bench: Bench, *clips: str, version: str = "1.0.0", waivers: Sequence[dict[str, str]] = (), again: bool = False) -> Job:
    """The lock job of made-up clips, whose names say what the tests find, when it has ended."""
    for name in () if again else clips:
        bench.submit_score(name)
        assert runner(bench).run_once() == "succeeded"
    with bench.catalog.begin() as session:
        _, job = locking.begin_version(session, "walk", version, Select(robot="wildrobot"), waivers=waivers)
    runner(bench).run_once()
    return bench.job(job.id)


def locked(bench: Bench, version: str = "1.0.0") -> Version:
    with bench.catalog.session() as session:
        return datasets.get_version(session, "walk", version)


def manifest(bench: Bench, version: str = "1.0.0") -> Any:
    digest = locked(bench, version).manifest_digest
    assert digest is not None
    with bench.blobs.open(digest) as file:
        return json.load(file)


def report(bench: Bench) -> Any:
    """The stored report of a version."""
    with bench.catalog.session() as session:
        kept = datasets.get_verification(session, datasets.get_version(session, "walk", "1.0.0").id)
    assert kept is not None
    bench.blobs.verify(kept.digest)
    with bench.blobs.open(kept.digest) as file:
        return json.load(file)


def criteria(readiness: Any) -> dict[str, Any]:
    return {one["name"]: one for group in readiness["groups"] for one in group["criteria"]}


def test_clips_with_identical_features_count_once(bench: Bench) -> None:
    """The made-up rows of two names of one length are the same."""
    assert lock(bench, "passes", "passer").state == "succeeded"
    version, document = locked(bench), manifest(bench)
    assert version.readiness is not None
    (entry,) = version.readiness["duplicates"]
    assert (entry["name"], entry["of"]["name"]) == ("passes", "passer")
    assert document["duplicates"] == [entry]
    assert (version.num_clips, version.num_frames) == (1, 60)
    with bench.catalog.session() as session:
        rows = members.list_members(session, version.id)
    assert [row.name for row in rows] == [clip["name"] for clip in document["clips"]] == ["passer"]


def test_what_passes_is_locked_with_its_checklist_and_its_report(bench: Bench) -> None:
    assert lock(bench, "passes").state == "succeeded"
    version = locked(bench)
    readiness = version.readiness
    assert readiness is not None
    assert [(test["id"], test["status"]) for test in readiness["tests"]] == [(test, "PASS") for test in TEST_IDS]
    assert all(check["passed"] for check in readiness["checks"])
    assert readiness["waivers"] == []
    found = criteria(readiness)
    assert found["Dataset version manifest"]["evidence"] == f"dataset_manifest_v1.0.0.json {version.manifest_digest}"
    assert found["Feature code hash locked"]["evidence"] == version.feature_code_hash
    assert readiness["ready"] is True
    # The figures are in the report, and neither among the three files nor in the manifest, whose bytes no figure may change.
    assert report(bench)["tests"][0]["figures"] == {"loss": [3.0, 2.0, 1.0]}
    assert len(version.files) == 3
    assert manifest(bench)["verification"]["tests"][0] == {"id": "1A", "name": "1A feature assembly", "status": "PASS"}
    assert manifest(bench)["waivers"] == []


def test_a_failure_stops_the_lock_and_says_how_to_go_on(bench: Bench) -> None:
    job = lock(bench, "fails-6", "fails-smoke", "passes")
    assert (job.state, job.attempts) == ("failed", 1)
    assert job.error is not None
    assert job.error["type"] == "conflict"
    for said in (
        "walk==1.0.0 was not locked, because 2 tests of 10 failed",
        "6 distribution sanity: distribution sanity is wrong in clip fails-6: mend it",
        '--waive 6="REASON" --waive smoke="REASON"',
    ):
        assert said in job.error["detail"]
    assert [test["id"] for test in job.error["tests"]] == ["6", "smoke"]
    with bench.catalog.session() as session, pytest.raises(Exception, match="no dataset"):
        datasets.get_dataset(session, "walk")
    assert list((bench.settings.data_dir / "work").glob("*")) == []


def test_a_waiver_of_every_failure_lets_it_through_and_is_kept(bench: Bench) -> None:
    waivers = [{"test": "smoke", "reason": "a tiny set"}, {"test": "6", "reason": "two clips only"}]
    half = lock(bench, "fails-6", "fails-smoke", waivers=waivers[:1])
    assert half.error is not None
    assert "1 test of 10 failed: 6 distribution sanity" in half.error["detail"]
    assert lock(bench, "fails-6", waivers=waivers, again=True).state == "succeeded"
    kept = [waivers[1], waivers[0]]  # In the order of the tests.
    assert manifest(bench)["waivers"] == kept
    assert {one["id"]: one["status"] for one in manifest(bench)["verification"]["tests"]}["6"] == "FAIL"
    readiness = locked(bench).readiness
    assert readiness is not None
    assert readiness["waivers"] == kept
    found = criteria(readiness)["Distribution sanity"]
    assert (found["status"], found["waiver"]) == ("WAIVED", "two clips only")
    assert report(bench)["waivers"] == kept
    with bench.catalog.session() as session:
        begun = [event for event in audit.list_events(session) if event.action == "version.begin"]
    assert begun[-1].detail["waivers"] == kept


def test_the_same_clips_and_waivers_lock_to_the_same_manifest(bench: Bench) -> None:
    waivers = [{"test": "6", "reason": "x"}]
    lock(bench, "fails-6", waivers=waivers)
    lock(bench, "fails-6", version="1.0.1", waivers=waivers, again=True)
    first, second = manifest(bench), manifest(bench, "1.0.1")
    differing = {key for key in first if first[key] != second[key]}
    assert differing == {"version", "files"}
    assert first["files"]["features"]["sha256"] == second["files"]["features"]["sha256"]


def test_a_test_that_could_not_run_stops_nothing_and_stays_open(bench: Bench) -> None:
    assert lock(bench, "skips-3").state == "succeeded"
    readiness = locked(bench).readiness
    assert readiness is not None
    found = criteria(readiness)["Quaternion robustness verified"]
    assert found["status"] == "SKIP"
    assert "JAX is not installed" in found["evidence"]
    assert readiness["ready"] is False


def test_what_the_operator_turned_off_is_open_and_says_so(tmp_path: Path) -> None:
    bench = Bench(settings_for(tmp_path, lock_tests="1A,7"))
    assert lock(bench, "fails-6").state == "succeeded"
    readiness = locked(bench).readiness
    assert readiness is not None
    assert readiness["ready"] is False
    by_id = {test["id"]: test for test in readiness["tests"]}
    assert [test for test, one in by_id.items() if one["status"] != "SKIP"] == ["1A", "7"]
    assert "AMPREF_LOCK_TESTS" in by_id["6"]["reason"]
    bench.close()


def test_a_cancelled_lock_ends_its_tests(bench: Bench) -> None:
    bench.submit_score("hangs")
    assert runner(bench).run_once() == "succeeded"
    with bench.catalog.begin() as session:
        _, job = locking.begin_version(session, "walk", "1.0.0", Select(robot="wildrobot"))
    ends: list[str] = []
    thread = threading.Thread(target=lambda: ends.append(runner(bench).run_once()))
    thread.start()
    wait_until(lambda: (bench.job(job.id).message or "").startswith("test 6"), "the tests run")
    assert 0.0 < bench.job(job.id).progress < 0.9
    JobQueue(bench.catalog).cancel(job.id)
    thread.join(30)
    assert ends == ["cancelled"]
    assert alive(bench.settings.data_dir) == []
    # The name is free again.
    with bench.catalog.begin() as session:
        locking.begin_version(session, "walk", "1.0.0", Select(robot="wildrobot"))


def test_rotten_arrays_are_refused_before_any_test(bench: Bench) -> None:
    bench.submit_motion("walk", Recipe.for_mode("rollout"), 30)
    assert runner(bench).run_once() == "succeeded"
    with bench.catalog.begin() as session:
        (member,) = selection.select_members(session, Select(robot="wildrobot", tiers=(0, 1)))
        _, job = locking.begin_version(session, "walk", "1.0.0", Select(robot="wildrobot", tiers=(0, 1)))
    path = bench.blobs.local_path(member.arrays_digest)
    assert path is not None
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert runner(bench).run_once() == "failed"
    error = bench.job(job.id).error
    assert error is not None
    assert error["type"] == "integrity"


def test_the_real_tests_run_on_what_is_stored(tmp_path: Path) -> None:
    bench = Bench(settings_for(tmp_path, lock_tests="1A,1C,3,7", job_memory_mb=2048, job_timeout_sec=120.0))
    bench.submit_motion("walk", Recipe.for_mode("rollout"), 60)
    assert runner(bench).run_once() == "succeeded"
    with bench.catalog.begin() as session:
        wanted = Select(robot="wildrobot", tiers=(0, 1))
        _, job = locking.begin_version(session, "walk", "1.0.0", wanted)
    assert runner(bench).run_once() == "succeeded", bench.job(job.id).error
    readiness = locked(bench).readiness
    assert readiness is not None
    ran = {test["id"]: test["status"] for test in readiness["tests"] if test["status"] != "SKIP"}
    assert ran.keys() == {"1A", "1C", "3", "7"}
    assert ran["1A"] == ran["1C"] == ran["3"] == "PASS"
    found = report(bench)
    assert found["subject"]["dataset"] == "walk"
    # The clip was generated again from the bytes that were uploaded, and came out the same.
    rows = {row["name"]: row for row in found["tests"][2]["rows"]}
    assert rows["generated.differing"]["status"] == "PASS"
    assert rows["generated.differing"]["value"] == 0
    bench.close()


def test_a_metric_that_was_changed_in_the_catalog_is_not_locked(tmp_path: Path) -> None:
    """It passes every gate and stood in the manifest before a lock measured it again."""
    bench = Bench(settings_for(tmp_path, lock_tests="none", job_memory_mb=2048, job_timeout_sec=120.0))
    bench.submit_motion("walk", Recipe.for_mode("rollout"), 60)
    assert runner(bench).run_once() == "succeeded"
    with bench.catalog.begin() as session:
        session.execute(update(rollouts).values(slip_rate=rollouts.c.slip_rate / 2 + 0.001))
        _, job = locking.begin_version(session, "walk", "1.0.0", Select(robot="wildrobot", tiers=(0, 1)))
    assert runner(bench).run_once() == "failed"
    error = bench.job(job.id).error
    assert error is not None
    assert (error["type"], error["key"]) == ("integrity", "metrics")
    assert "clip 'walk' has other metrics than its arrays give (slip_rate" in error["detail"]
    bench.close()
