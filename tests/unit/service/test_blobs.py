from __future__ import annotations

import errno
import hashlib
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import obstore
import pytest

from amp_core.digests import digest_of, digest_of_file
from amp_core.errors import DiskFull, InputRefused, IntegrityError, NotFound, Unavailable
from ampref_service.blobs import BlobStore, DamageLog, LocalBlobStore, ObjectBlobStore, open_blobs
from ampref_service.blobs.store import CHUNK, blob_key

Make = Callable[[], BlobStore]
UNKNOWN = "sha256:" + "0" * 64


@pytest.fixture(params=["file", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    if request.param == "s3":
        return open_blobs(request.getfixturevalue("s3_url"))
    return open_blobs("memory://" if request.param == "memory" else (tmp_path / "blobs").as_uri())


@pytest.fixture
def local(tmp_path: Path) -> LocalBlobStore:
    return LocalBlobStore(tmp_path / "blobs")


def files(store: LocalBlobStore) -> list[Path]:
    return sorted(path for path in store.root.rglob("*") if path.is_file())


def test_bytes_come_back_under_their_own_digest(store: BlobStore) -> None:
    data = os.urandom(3 * CHUNK + 17)
    digest = store.put_bytes(data)
    assert digest == "sha256:" + hashlib.sha256(data).hexdigest() == digest_of(data)
    assert store.exists(digest)
    assert store.size(digest) == len(data)
    assert store.read_bytes(digest) == data
    with store.open(digest) as file:
        file.seek(5)
        assert file.read(7) == data[5:12]


def test_a_file_is_stored_as_the_bytes_it_holds(store: BlobStore, tmp_path: Path) -> None:
    path = tmp_path / "motion.pkl"
    path.write_bytes(os.urandom(2 * CHUNK + 1))
    digest = store.put_file(path)
    assert digest == digest_of_file(path)
    store.fetch(digest, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == path.read_bytes()


def test_nothing_is_a_blob_too(store: BlobStore) -> None:
    assert store.read_bytes(store.put_bytes(b"")) == b""


@pytest.mark.parametrize(
    ("start", "end"), [(0, None), (0, 0), (1, 2), (10, 2 * CHUNK + 5), (2 * CHUNK, 99 * CHUNK), (99 * CHUNK, None)]
)
def test_a_range_is_what_slicing_gives(store: BlobStore, start: int, end: int | None) -> None:
    data = os.urandom(2 * CHUNK + 100)
    digest = store.put_bytes(data)
    assert b"".join(store.iter_range(digest, start, end)) == data[start:end]


@pytest.mark.parametrize("ask", ["size", "open", "read_bytes", "local_path"])
def test_what_is_not_there_is_not_found_before_anything_is_sent(store: BlobStore, ask: str) -> None:
    with pytest.raises(NotFound, match="no blob"):
        getattr(store, ask)(UNKNOWN)
    with pytest.raises(NotFound, match="no blob"):
        store.iter_range(UNKNOWN)
    assert not store.exists(UNKNOWN)
    assert store.delete(UNKNOWN) is False


@pytest.mark.parametrize(
    "digest", ["", "sha256:", "sha256:../../etc/passwd", "sha256:" + "A" * 64, "md5:" + "0" * 64, UNKNOWN + "\n"]
)
def test_only_a_digest_is_a_name(store: BlobStore, digest: str) -> None:
    with pytest.raises(InputRefused, match="is not a blob digest"):
        store.exists(digest)


def test_delete_and_list(store: BlobStore) -> None:
    first, second = store.put_bytes(b"1"), store.put_bytes(b"2")
    assert {digest for digest, _ in store.iter_digests()} == {first, second}
    assert store.delete(first) is True
    assert [digest for digest, _ in store.iter_digests()] == [second]
    store.check()


class Diary(DamageLog):
    """What a store reports."""

    def __init__(self) -> None:
        self.events: list[tuple[str, ...]] = []

    def add(self, digest: str, fault: str, place: str | None) -> str:
        self.events.append(("add", digest, fault, place or ""))
        return "clip walk"

    def heal(self, digest: str) -> None:
        self.events.append(("heal", digest))


@pytest.fixture
def diary(store: BlobStore) -> Diary:
    store.damage_log = diary = Diary()
    return diary


def overwrite(store: BlobStore, digest: str, data: bytes) -> None:
    """Put other bytes in the place of a blob, as a broken disk does."""
    if isinstance(store, ObjectBlobStore):
        obstore.put(store._store, blob_key(digest), data)
        return
    path = store.local_path(digest)
    assert path is not None
    path.chmod(0o600)
    path.write_bytes(data)


TRUTH = bytes(range(256)) * 12_000  # Three windows.
DAMAGES = {
    "one bit": TRUTH[:1_500_000] + bytes([TRUTH[1_500_000] ^ 1]) + TRUTH[1_500_001:],
    "shorter": TRUTH[:-1],
    "longer": TRUTH + b"x",
    "empty": b"",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("read", ["read_bytes", "verify", "verify_once", "fetch"])
def test_a_damaged_blob_is_refused_set_aside_and_reported(
    store: BlobStore, diary: Diary, damage: str, read: str, tmp_path: Path
) -> None:
    digest = store.put_bytes(TRUTH)
    overwrite(store, digest, DAMAGES[damage])
    diary.events.clear()
    with pytest.raises(IntegrityError, match=r"damaged: the blob has other bytes.*it belongs to clip walk") as refused:
        store.fetch(digest, tmp_path / "copy") if read == "fetch" else getattr(store, read)(digest)
    assert not (tmp_path / "copy").exists()
    assert not store.exists(digest)
    ((_, reported_digest, _, place),) = diary.events
    assert (reported_digest, refused.value.key) == (digest, digest)
    assert place.startswith(f"damaged/{digest.removeprefix('sha256:')}-")
    assert read_key(store, place) == DAMAGES[damage]


def read_key(store: BlobStore, key: str) -> bytes:
    if isinstance(store, LocalBlobStore):
        return (store.root / key).read_bytes()
    assert isinstance(store, ObjectBlobStore)
    return bytes(obstore.get(store._store, key).bytes())


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("put", ["bytes", "file"])
def test_the_right_bytes_put_again_replace_damaged_ones(
    store: BlobStore, diary: Diary, damage: str, put: str, tmp_path: Path
) -> None:
    digest = store.put_bytes(TRUTH)
    overwrite(store, digest, DAMAGES[damage])
    diary.events.clear()
    if put == "file":
        (tmp_path / "walk").write_bytes(TRUTH)
        assert store.put_file(tmp_path / "walk") == digest
    else:
        assert store.put_bytes(TRUTH) == digest
    assert store.read_bytes(digest) == TRUTH
    assert [event[0] for event in diary.events] == ["add", "heal"]
    assert read_key(store, diary.events[0][3]) == DAMAGES[damage]


def test_a_folder_in_the_place_of_a_blob_is_replaced_too(local: LocalBlobStore) -> None:
    digest = local.put_bytes(TRUTH)
    path = local.local_path(digest)
    assert path is not None
    path.unlink()
    path.mkdir()
    with pytest.raises(IntegrityError, match="cannot be read"):
        local.verify(digest)
    local.put_bytes(TRUTH)
    assert local.read_bytes(digest) == TRUTH


def test_a_blob_is_read_once_until_it_is_written_anew(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = store.put_bytes(TRUTH)
    assert store.find_verified(digest) is None
    first = store.verify_once(digest)
    monkeypatch.setattr(store, "iter_range", None)
    assert store.verify_once(digest) is first
    monkeypatch.undo()
    overwrite(store, digest, DAMAGES["one bit"])
    assert store.find_verified(digest) is None
    with pytest.raises(IntegrityError):
        store.verify_once(digest)


@pytest.mark.parametrize(("start", "end"), [(0, len(TRUTH)), (1_600_000, len(TRUTH)), (0, 1_499_999), (1_500_000, 1_500_001)])
def test_a_window_that_rots_after_it_was_verified_is_not_sent(store: BlobStore, start: int, end: int) -> None:
    digest = store.put_bytes(TRUTH)
    blob = store.verify_once(digest)
    assert b"".join(store.iter_windows(blob, start, end)) == TRUTH[start:end]
    overwrite(store, digest, DAMAGES["one bit"])
    received, windows = bytearray(), store.iter_windows(blob, start, end)
    with pytest.raises(IntegrityError, match="damaged"):
        received.extend(itertools.chain.from_iterable(windows))
    assert TRUTH[start:end].startswith(received), "no wrong byte was yielded"
    assert not store.exists(digest)


def test_rot_that_leaves_no_trace_is_found_by_the_next_check(local: LocalBlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = local.put_bytes(TRUTH)
    blob = local.verify_once(digest)
    assert b"".join(local.iter_windows(blob, 0, len(TRUTH))) == TRUTH
    path = local.local_path(digest)
    assert path is not None
    status = path.stat()
    path.chmod(0o600)
    with open(path, "r+b") as file:
        file.seek(1_500_000)
        file.write(bytes([TRUTH[1_500_000] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert local.find_verified(digest) is blob, "neither size nor time tell"
    monkeypatch.setattr("ampref_service.blobs.store.TRUST_SEC", 0.0)
    with pytest.raises(IntegrityError, match="damaged"):
        list(local.iter_windows(blob, 0, len(TRUTH)))


def test_what_was_replaced_meanwhile_is_not_set_aside(store: BlobStore) -> None:
    digest = store.put_bytes(TRUTH)
    overwrite(store, digest, DAMAGES["one bit"])
    stale = store.stat(digest).identity
    store.put_bytes(TRUTH)
    assert store.set_aside(digest, stale) is None
    assert store.read_bytes(digest) == TRUTH


def test_a_folder_for_blobs_that_cannot_be_written_fails_the_check(local: LocalBlobStore) -> None:
    local.check()
    assert files(local) == []
    # Root may write anywhere, so that only what is no folder stops every user.
    (local.root / "sha256").rmdir()
    (local.root / "sha256").write_text("")
    with pytest.raises(Unavailable, match="sha256 cannot be written"):
        local.check()
    assert local.root.joinpath("sha256").is_file()


def test_what_is_there_is_never_written_again(local: LocalBlobStore) -> None:
    digest = local.put_bytes(b"once")
    path = local.local_path(digest)
    assert path is not None
    os.utime(path, (1, 1))
    status = path.stat()
    assert local.put_bytes(b"once") == digest
    assert path.stat().st_ino == status.st_ino
    assert path.stat().st_mtime > time.time() - 60, "a blob that is put again must be young for the garbage collection"
    assert files(local) == [path]
    assert path.stat().st_mode & 0o222 == 0


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_a_clear_error_and_leaves_nothing(
    local: LocalBlobStore, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def full(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull, match=f"no space left for blobs in {local.root}"):
        local.put_bytes(b"x" * 100)
    assert files(local) == []


def test_a_write_that_the_kernel_refuses_half_way_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys\nfrom pathlib import Path\nfrom ampref_service.blobs import LocalBlobStore\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nstore = LocalBlobStore(Path(sys.argv[1]))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))\nstore.put_bytes(bytes(5_000_000))"
    )
    process = subprocess.run([sys.executable, "-c", code, str(tmp_path / "blobs")], capture_output=True, text=True, check=False)
    assert process.returncode == 1
    assert "DiskFull: no space left for blobs" in process.stderr
    assert files(LocalBlobStore(tmp_path / "blobs")) == []


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="cannot be written"):
        LocalBlobStore(tmp_path / "file" / "blobs")


def test_a_killed_put_leaves_no_blob_and_its_part_is_cleaned_up(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom ampref_service.blobs import LocalBlobStore\n"
        "store = LocalBlobStore(Path(sys.argv[1]))\n"
        "def chunks():\n    yield b'x' * 100000\n    print('half', flush=True)\n    time.sleep(60)\n"
        "store.put_chunks(chunks())"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "blobs")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
    store = LocalBlobStore(tmp_path / "blobs")
    assert list(store.iter_digests()) == []
    assert [path.parent.name for path in files(store)] == ["tmp"]
    assert store.drop_partials(3600) == 0
    assert store.drop_partials(-1) == 1
    assert files(store) == []


def test_many_put_the_same_bytes_at_once(local: LocalBlobStore) -> None:
    data = os.urandom(CHUNK)
    digests: list[str] = []
    threads = [threading.Thread(target=lambda: digests.append(local.put_bytes(data))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert digests == [digest_of(data)] * 8
    assert len(files(local)) == 1
    local.verify(digests[0])


def put_blobs(root: str, seed: int) -> None:
    store = LocalBlobStore(Path(root))
    for number in range(20):
        store.put_bytes(bytes([number]) * 1000 + bytes([seed]) * (number % 2))


def test_many_processes_put_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=put_blobs, args=(str(tmp_path / "blobs"), seed)) for seed in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    store = LocalBlobStore(tmp_path / "blobs")
    digests = [digest for digest, _ in store.iter_digests()]
    assert len(digests) == 10 + 2 * 10
    for digest in digests:
        store.verify(digest)


def test_a_large_file_takes_constant_memory(store: BlobStore, tmp_path: Path) -> None:
    if not isinstance(store, LocalBlobStore):
        store = LocalBlobStore(tmp_path / "local")
    path = tmp_path / "large"
    with open(path, "wb") as file:
        file.truncate(64 * CHUNK)
    tracemalloc.start()
    try:
        digest = store.put_file(path)
        for _ in store.iter_range(digest):
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * CHUNK


@pytest.mark.parametrize("url", ["ftp://x", "file://host/x", "relative", "s3://"])
def test_a_bad_url_says_what_a_good_one_is(url: str) -> None:
    with pytest.raises(InputRefused, match="file:///"):
        open_blobs(url)


def age(store: LocalBlobStore, digest: str) -> None:
    path = store.local_path(digest)
    assert path is not None
    os.utime(path, (1.0, 1.0))


def test_only_an_old_blob_is_deleted_by_age(store: BlobStore) -> None:
    digest = store.put_bytes(b"young")
    assert not store.delete_older(digest, 3600.0)
    assert store.exists(digest)
    assert store.delete_older(digest, 0.0)
    assert not store.exists(digest)
    assert not store.delete_older(digest, 0.0)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_blob_that_is_put_again_while_it_is_deleted_stays(
    local: LocalBlobStore, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    digest = local.put_bytes(b"wanted again")
    age(local, digest)
    rename, calls = os.rename, []

    def meanwhile(source: str | Path, target: str | Path) -> None:
        calls.append(target)
        if moment == "before" and len(calls) == 1:
            assert local.put_bytes(b"wanted again") == digest
        rename(source, target)
        if moment == "after" and len(calls) == 1:
            assert local.put_bytes(b"wanted again") == digest

    monkeypatch.setattr(os, "rename", meanwhile)
    local.delete_older(digest, 3600.0)
    assert calls
    assert local.read_bytes(digest) == b"wanted again"
    assert [path.name for path in (local.root / "tmp").iterdir()] == []


def test_a_blob_whose_deletion_was_cut_off_comes_back(local: LocalBlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = local.put_bytes(b"half deleted")
    age(local, digest)

    def killed(self: Path, missing_ok: bool = False) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            local.delete_older(digest, 3600.0)
    assert not local.exists(digest)
    local.drop_partials(60.0)
    assert local.read_bytes(digest) == b"half deleted"
