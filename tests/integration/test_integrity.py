"""`ampref fsck` and the scrub: what has rotted or is gone is found, named, set aside and brought back."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import obstore
import pytest
from catalogkit import add_clip, add_rollout, result
from sqlalchemy import select
from workerkit import CHILD, Bench, environment, settings_for

from amp_core.cli import main as cli
from amp_core.recipe import Recipe
from ampref_service.api.telemetry import Telemetry
from ampref_service.blobs import LocalBlobStore, ObjectBlobStore
from ampref_service.blobs.store import blob_key
from ampref_service.catalog import audit, damage, tables
from ampref_service.integrity import Pace, inspect_blobs, scrub
from ampref_service.jobs import JobQueue
from ampref_workers.runner import Runner

DAY = 86_400.0


@pytest.fixture(params=["file", "s3"])
def bench(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    store = {"blob_url": request.getfixturevalue("s3_url")} if request.param == "s3" else {}
    with make_bench(tmp_path, monkeypatch, **store) as bench:
        yield bench


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    with make_bench(tmp_path, monkeypatch) as bench:
        yield bench


@contextlib.contextmanager
def make_bench(folder: Path, monkeypatch: pytest.MonkeyPatch, **overrides: Any) -> Iterator[Bench]:
    """A service whose settings the command reads as well."""
    settings = settings_for(folder, **overrides)
    for name, value in environment(settings).items():
        if name.startswith("AMPREF_"):
            monkeypatch.setenv(name, value)
    with contextlib.closing(Bench(settings)) as bench:
        yield bench


def fill(bench: Bench, count: int = 3) -> dict[str, tuple[str, str]]:
    """Scored clips: by name the digests of the upload and of the arrays."""
    digests = {}
    for name in (f"clip{number}" for number in range(count)):
        upload, arrays = (bench.blobs.put_bytes(f"{kind} of {name}".encode() * 1000) for kind in ("the file", "the arrays"))
        clip = add_clip(bench.catalog, name, blob_digest=upload, source_digest=upload)
        add_rollout(bench.catalog, clip, replace(result(), arrays_digest=arrays))
        digests[name] = (upload, arrays)
    return digests


def overwrite(bench: Bench, digest: str, change: Callable[[bytes], bytes]) -> None:
    data = change(bench.blobs.read_bytes(digest))
    if isinstance(bench.blobs, ObjectBlobStore):
        obstore.put(bench.blobs._store, blob_key(digest), data)
        return
    path = bench.blobs.local_path(digest)
    assert path is not None
    path.chmod(0o600)
    path.write_bytes(data)


def flip_bit(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def fsck(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, Any]:
    capsys.readouterr()
    code = cli.run(["fsck", "--json", *options])
    return code, json.loads(capsys.readouterr().out)


def test_fsck_names_what_is_wrong_and_repair_takes_it_from_a_backup(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digests = fill(bench)
    stray = bench.blobs.put_bytes(b"of an upload that was never committed")
    code, report = fsck(capsys)
    assert (code, report["ok"], report["findings"], report["unreferenced"]) == (0, True, [], [stray])
    assert (report["blobs"], report["leftovers"]) == (7, [])
    assert cli.run(["backup", "-q", str(tmp_path / "backup")]) == 0

    harms = {digests["clip0"][0]: flip_bit, digests["clip1"][1]: lambda data: b"", digests["clip2"][1]: None}
    for digest, change in harms.items():
        overwrite(bench, digest, change) if change else bench.blobs.delete(digest)
    code, report = fsck(capsys)
    assert (code, report["ok"]) == (1, False)
    findings = {finding["digest"]: finding for finding in report["findings"]}
    assert findings.keys() == harms.keys()
    assert "other bytes" in findings[digests["clip0"][0]]["fault"]
    assert "not there" in findings[digests["clip2"][1]]["fault"]
    assert [
        "(clip0)" in findings[digests["clip0"][0]]["owners"][0],
        "rollout" in findings[digests["clip1"][1]]["owners"][0],
    ] == [
        True,
        True,
    ]
    assert bench.blobs.exists(digests["clip0"][0]), "without --repair nothing is touched"
    with bench.catalog.session() as session:
        assert damage.count_open(session) == 0

    code = cli.run(["fsck", "--json", "--repair", "--from", str(tmp_path / "backup")])
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert ("blob_damaged" in err, "debug" in err) == (True, False)
    assert (code, {finding["outcome"] for finding in report["findings"]}) == (0, {"restored"})
    for pair in digests.values():
        for digest in pair:
            bench.blobs.verify(digest)
    code, report = fsck(capsys)
    assert (code, report["findings"]) == (0, [])
    assert [name.split("-")[0] for name in report["leftovers"]] == sorted(
        f"damaged/{digest.removeprefix('sha256:')}" for digest, change in harms.items() if change
    )
    assert cli.run(["fsck"]) == 0
    assert "other files            2" in capsys.readouterr().out
    with bench.catalog.session() as session:
        assert damage.count_open(session) == 0
        assert [event.action for event in audit.list_events(session, subject=f"blob:{digests['clip2'][1]}")] == [
            "blob.damage",
            "blob.heal",
        ]


def test_a_source_is_only_read_and_one_blob_of_it_that_cannot_be_read_keeps_no_other_back(
    local: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (upload, arrays) = fill(local, 1)["clip0"]
    backup = tmp_path / "backup"
    assert cli.run(["backup", "-q", str(backup)]) == 0
    local.blobs.delete(upload)
    local.blobs.delete(arrays)
    for typo in (tmp_path / "typo" / "nope", local.settings.data_dir):
        assert cli.run(["fsck", "--repair", "--from", str(typo)]) == 1
        assert f"no stored files are in {typo}" in capsys.readouterr().err
    assert not (tmp_path / "typo").exists()

    shutil.rmtree(backup / "blobs" / "tmp", ignore_errors=True)
    copy = backup / "blobs" / blob_key(arrays)
    copy.unlink()
    copy.mkdir()
    code, report = fsck(capsys, "--repair", "--from", str(backup))
    findings = {finding["digest"]: finding for finding in report["findings"]}
    assert (code, findings[upload]["outcome"]) == (1, "restored")
    assert "at the source it cannot be read (Is a directory)" in findings[arrays]["fault"]
    assert not (backup / "blobs" / "tmp").exists()


def test_arrays_without_a_backup_are_scored_again_to_the_same_bytes(local: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    local.submit_motion("walk", Recipe.for_mode("rollout"), 30)
    runner = Runner(local.settings, local.catalog, local.blobs)
    assert runner.run_once() == "succeeded"
    with local.catalog.session() as session:
        row = session.execute(tables.rollouts.select()).one()
    overwrite(local, row.arrays_digest, flip_bit)
    code, report = fsck(capsys, "--repair")
    (finding,) = report["findings"]
    assert (code, finding["outcome"]) == (1, "queued")
    assert f"ampref job {finding['job']} --wait" in finding["remedy"]
    assert runner.run_once() == "succeeded"
    local.blobs.verify(row.arrays_digest)
    assert [rollout.id for rollout in local.rollouts(row.clip_id)] == [row.id]
    assert fsck(capsys)[0] == 0


def test_arrays_that_come_out_otherwise_are_not_taken_for_the_same(local: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    local.submit_score("clip0")
    runner = Runner(local.settings, local.catalog, local.blobs, command=CHILD)
    assert runner.run_once() == "succeeded"
    with local.catalog.session() as session:
        upload = session.execute(select(tables.clips.c.blob_digest)).scalar_one()
    # As another release has made them: the catalog names other bytes than these.
    other = local.blobs.put_bytes(b"the arrays of another release")
    with local.catalog.begin() as session:
        session.execute(tables.rollouts.update().values(arrays_digest=other))
    local.blobs.delete(other)
    code, report = fsck(capsys, "--repair")
    job = report["findings"][0]["job"]
    assert runner.run_once() == "failed"
    error = local.job(job).error
    assert error is not None
    assert (code, error["type"], error["key"]) == (1, "conflict", other)

    # Without its clip nothing can be scored.
    local.blobs.delete(upload)
    code, report = fsck(capsys, "--repair")
    assert {finding["outcome"] for finding in report["findings"]} == {"lost"}
    assert any("post the same file again" in finding["remedy"] for finding in report["findings"])


def test_ctrl_c_ends_fsck_at_once(local: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(local, 2)
    take = Pace.take

    def take_and_interrupt(pace: Pace, count: int) -> None:
        # A signal that comes just before the main thread waits would wake nobody.
        time.sleep(0.2)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        take(pace, count)

    monkeypatch.setattr(Pace, "take", take_and_interrupt)
    # A shell's background jobs begin with SIGINT ignored.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            # At this rate one file takes hours.
            inspect_blobs(local.catalog, local.blobs, mb_per_sec=1e-6, threads=1)
    finally:
        signal.signal(signal.SIGINT, previous)


def test_a_pace_bounds_what_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    end = threading.Event()
    waits: list[float] = []
    monkeypatch.setattr(end, "wait", waits.append)
    pace = Pace(1.0, end)
    for _ in range(3):
        pace.take(1_000_000)
    assert waits == pytest.approx([1.0, 2.0, 3.0], abs=0.5)


def run_scrub(bench: Bench, end: threading.Event | None = None, **options: Any) -> damage.Scrub | None:
    return scrub(bench.catalog, bench.blobs, end=end or threading.Event(), **{"mb_per_sec": 0.0, "round_days": 7.0} | options)


def test_the_scrub_finds_rot_that_nobody_reads(bench: Bench) -> None:
    digests = fill(bench)
    rotten, missing = digests["clip0"][1], digests["clip1"][0]
    overwrite(bench, rotten, flip_bit)
    bench.blobs.delete(missing)
    assert metrics(bench)["ampref_damaged_blobs"] == 0.0
    assert "ampref_scrub_age_seconds" not in metrics(bench)
    state = run_scrub(bench)
    assert state is not None
    assert (state.blobs, state.damaged) == (6, 2)
    assert not bench.blobs.exists(rotten), "it was set aside"
    assert metrics(bench)["ampref_damaged_blobs"] == 2.0
    assert 0 <= metrics(bench)["ampref_scrub_age_seconds"] < 600
    # The next round is due in a week; then a look at what is known comes first.
    bench.blobs.put_bytes(b"do score")
    assert run_scrub(bench) is None
    with bench.catalog.session() as session:
        assert {entry.digest for entry in damage.list_open(session)} == {rotten, missing}


def metrics(bench: Bench) -> dict[str, float]:
    """The metrics without labels."""
    telemetry = Telemetry()
    telemetry.watch(cast(Any, SimpleNamespace(catalog=bench.catalog, queue=JobQueue(bench.catalog))))
    lines = telemetry.render().decode().splitlines()
    pairs = (line.split() for line in lines if line.startswith("ampref_") and "{" not in line)
    return {name: float(value) for name, value in pairs}


def test_damage_that_was_mended_by_hand_is_closed_by_the_scrub(local: Bench) -> None:
    digests = fill(local, 1)
    arrays = digests["clip0"][1]
    path = local.blobs.local_path(arrays)
    assert path is not None
    shutil.copy(path, path.with_suffix(".copy"))
    overwrite(local, arrays, flip_bit)
    run_scrub(local)
    shutil.move(path.with_suffix(".copy"), path)
    run_scrub(local)
    with local.catalog.session() as session:
        assert damage.count_open(session) == 0


def test_one_scrubs_at_a_time_and_the_next_goes_on(local: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = sorted(digest for pair in fill(local).values() for digest in pair)
    end, read = threading.Event(), []
    find_fault = LocalBlobStore.find_fault

    def stop_after_two(store: LocalBlobStore, digest: str, *arguments: Any) -> str:
        assert run_scrub(local) is None, "another one has the round"
        read.append(digest)
        if len(read) == 3:
            end.set()
        return find_fault(store, digest, *arguments)

    monkeypatch.setattr(LocalBlobStore, "find_fault", stop_after_two)
    state = run_scrub(local, end)
    monkeypatch.undo()
    assert state is not None
    assert (state.cursor, read) == (digests[1], digests[:3])
    state = run_scrub(local)
    assert state is not None
    assert (state.cursor, state.blobs) == (digests[-1], 6)


def test_the_scrub_of_a_killed_process_goes_on_after_its_lease_and_after_a_clock_that_went_back(local: Bench) -> None:
    fill(local, 1)
    clock = [time.time()]
    local.catalog._clock = lambda: clock[0]
    with local.catalog.begin() as session:
        assert damage.claim_scrub(session, lease_sec=120.0, round_sec=7 * DAY) is not None
    assert run_scrub(local) is None
    clock[0] += 121.0
    assert run_scrub(local) is not None
    clock[0] += 6 * DAY
    assert run_scrub(local) is None
    clock[0] += 2 * DAY
    assert run_scrub(local) is not None
    clock[0] -= 30 * DAY
    assert run_scrub(local) is not None
