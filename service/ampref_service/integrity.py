"""Reading all that is stored: `ampref fsck`, when the operator asks, and the scrub, beside the workers.

The catalog says which blobs there have to be; the store says which there are. The rate of reading is bounded, because the same
disk serves the training nodes.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import structlog

from amp_core.digests import digest_of_file
from amp_core.errors import IntegrityError, NotFound, Unavailable
from amp_core.progress import Progress
from ampref_service.blobs import BlobStore
from ampref_service.catalog import Catalog, blob_refs, clips, damage
from ampref_service.catalog.records import JobTerms

log = structlog.get_logger("ampref_service.integrity")

_MISSING = "is not there"
_WAITING_PER_THREAD = 4  # Blobs that wait for each thread.
_SCRUB_BATCH = 200
_SCRUB_LEASE_SEC = 120.0
_SCRUB_SAVE_SEC = 20.0


class Pace:
    """A bound of the bytes that several threads read in a second.

    Args:
      mb_per_sec: 0 is none.
      end: ends every wait.
    """

    def __init__(self, mb_per_sec: float, end: threading.Event) -> None:
        self._rate = mb_per_sec * 1e6
        self._end = end
        self._lock = threading.Lock()
        self._due = 0.0

    def take(self, count: int) -> None:
        """Wait until so many bytes more may have been read.

        Raises:
          InterruptedError: the end came.
        """
        if self._rate:
            with self._lock:
                self._due = max(self._due, time.monotonic()) + count / self._rate
                delay = self._due - time.monotonic()
            self._end.wait(max(0.0, delay))
        if self._end.is_set():
            raise InterruptedError


@dataclass(frozen=True)
class Finding:
    """A blob that is not as the catalog promises.

    Args:
      fault: what is wrong with it.
      owners: the versions, clips and rollouts that it belongs to.
      outcome: what became of it: `found`, `restored`, `queued` (its rollout is scored again by this job; a worker makes a
        thumbnail again) or `lost`.
      remedy: what to do, where something is left to do.
    """

    digest: str
    fault: str
    owners: tuple[str, ...]
    outcome: str = "found"
    job: str | None = None
    remedy: str | None = None


@dataclass
class Inspection:
    """What a look at every blob has shown.

    Args:
      blobs, bytes: that were read.
      findings: damaged and missing blobs that the catalog names.
      unreferenced: blobs that no row names; garbage collection deletes them when they are old enough.
      damaged_unreferenced: those of them that are damaged.
      leftovers: names of files in the store that are no blobs, those that were set aside among them.
      healed: blobs that were known to be damaged and are not.
    """

    blobs: int = 0
    bytes: int = 0
    findings: list[Finding] = field(default_factory=list)
    unreferenced: list[str] = field(default_factory=list)
    damaged_unreferenced: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    healed: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is left to do."""
        return all(finding.outcome == "restored" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON-ready values."""
        return vars(self) | {"ok": self.ok, "findings": [vars(finding) for finding in self.findings]}


def inspect_blobs(
    catalog: Catalog,
    store: BlobStore,
    *,
    mb_per_sec: float = 0.0,
    threads: int = 4,
    progress: Progress | None = None,
) -> Inspection:
    """Read every blob that the catalog names, and every other one; changes nothing. Safe beside a running service."""
    with catalog.session() as session:
        references = set(blob_refs.list_all(session))
    stored_digests = {digest for digest, _ in store.iter_digests()}
    result, end = Inspection(leftovers=sorted(store.iter_leftovers())), threading.Event()
    pace = Pace(mb_per_sec, end)

    def read(digest: str) -> tuple[str, int]:
        size = 0

        def count(number: int) -> None:
            nonlocal size
            size += number
            pace.take(number)

        try:
            return store.find_fault(digest, count), size
        except NotFound:
            return _MISSING, size

    faults: dict[str, str] = {}
    digests = sorted(references | stored_digests)
    for number, (digest, (fault, size)) in enumerate(_in_threads(read, digests, threads, end), 1):
        result.blobs += fault != _MISSING
        result.bytes += size
        if fault:
            faults[digest] = fault
        if progress is not None:
            progress(number / len(digests), f"reading blobs, {result.bytes / 1e6:,.0f} MB")
    # Rows may have come and gone meanwhile: what counts is what the catalog names now.
    with catalog.session() as session:
        orphans = blob_refs.unreferenced_of_many(session, sorted(stored_digests | set(faults)))
        for digest in sorted(faults.keys() - orphans):
            result.findings.append(Finding(digest, faults[digest], tuple(blob_refs.list_owners(session, digest))))
    result.unreferenced = sorted(digest for digest in orphans if faults.get(digest) != _MISSING)
    result.damaged_unreferenced = sorted(digest for digest in result.unreferenced if digest in faults)
    return result


def repair_blobs(
    catalog: Catalog,
    store: BlobStore,
    inspection: Inspection,
    *,
    source: BlobStore | None = None,
    terms: JobTerms,
    actor: str,
    scratch: Path,
) -> Inspection:
    """Set damaged blobs aside and bring their bytes back.

    Args:
      source: another store that may have the bytes; it is only read.
      terms: of the jobs that score rollouts again.
      scratch: a folder for copies on their way.
    """
    for digest in (finding.digest for finding in inspection.findings):
        _report(store, digest)
    for digest in inspection.damaged_unreferenced:
        _report(store, digest)
    findings = []
    for finding in inspection.findings:
        if all(owner.startswith(blob_refs.THUMBNAIL) for owner in finding.owners):
            findings.append(replace(finding, outcome="queued", remedy="a worker makes the thumbnail again"))
        elif source is None:
            findings.append(finding)
        elif fault := _copy_blob(source, store, finding.digest, scratch):
            findings.append(replace(finding, fault=f"{finding.fault}; at the source it {fault}"))
        else:
            findings.append(replace(finding, outcome="restored"))
    lost_digests = {finding.digest for finding in findings if finding.outcome == "found"}
    findings = [
        _queue_repeat(catalog, finding, lost_digests, terms, actor) if finding.digest in lost_digests else finding
        for finding in findings
    ]
    return replace(inspection, findings=findings, healed=review_damage(catalog, store))


def _report(store: BlobStore, digest: str) -> None:
    """Have the store set a blob aside and report it, if it still is damaged."""
    try:
        store.verify(digest)
    except NotFound:
        store.refuse(digest, None, _MISSING)
    except IntegrityError:
        pass


def _copy_blob(source: BlobStore, store: BlobStore, digest: str, scratch: Path) -> str:
    """Bring a blob's bytes from another store; what is wrong with them there, empty where they are here now."""
    try:
        if fault := source.find_fault(digest):
            return fault
    except NotFound:
        return _MISSING
    except Unavailable as error:
        return f"cannot be read ({error.what})"
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        path = Path(folder) / "blob"
        with open(path, "wb") as out:
            out.writelines(source.iter_range(digest))
        return "" if digest_of_file(path) == digest and store.put_file(path) == digest else "changed while it was read"


def _queue_repeat(catalog: Catalog, finding: Finding, lost_digests: set[str], terms: JobTerms, actor: str) -> Finding:
    """Have a rollout whose arrays are lost scored again: the same clip and recipe give the same bytes."""
    backup = "put the file back from a backup: ampref fsck --repair --from URL"
    with catalog.begin() as session:
        for clip_id, recipe_digest, clip_blob in blob_refs.list_rollouts(session, finding.digest):
            if clip_blob in lost_digests:
                continue
            job = clips.score_again(session, clip_id, recipe_digest, terms=terms, actor=actor)
            remedy = f"a worker scores it again and puts the same bytes back: ampref job {job.id} --wait"
            return replace(finding, outcome="queued", job=job.id, remedy=remedy)
        is_upload = any(owner.startswith("clip ") for owner in finding.owners)
    return replace(finding, outcome="lost", remedy=("post the same file again, or " if is_upload else "") + backup)


def review_damage(catalog: Catalog, store: BlobStore) -> list[str]:
    """Close the damage of blobs that are whole again, or that no row names any more; their digests."""
    with catalog.session() as session:
        digests = [entry.digest for entry in damage.list_open(session)]
        orphans = blob_refs.unreferenced(session, digests)
    whole_digests = []
    for digest in digests:
        with contextlib.suppress(NotFound):
            if digest in orphans or not store.find_fault(digest):
                store.damage_log.heal(digest)
                whole_digests.append(digest)
    return whole_digests


def scrub(
    catalog: Catalog, store: BlobStore, *, mb_per_sec: float, round_days: float, end: threading.Event
) -> damage.Scrub | None:
    """Go on with the round through all blobs that the catalog names, until its end or `end`; None where another one does.

    The blobs are read in the order of their digests, so that the next one is always one of those that were verified the longest
    time ago. A damaged one is set aside and reported. What is done is saved, and any process goes on from there.
    """
    review_damage(catalog, store)
    with catalog.begin() as session:
        claim = damage.claim_scrub(session, lease_sec=_SCRUB_LEASE_SEC, round_sec=round_days * 86_400)
    if claim is None:
        return None
    state = claim
    pace, saved_at = Pace(mb_per_sec, end), time.monotonic()

    def save(lease_sec: float = _SCRUB_LEASE_SEC) -> None:
        nonlocal saved_at
        saved_at = time.monotonic()
        with catalog.begin() as session:
            damage.save_scrub(session, state, lease_sec=lease_sec)

    def count(number: int) -> None:
        nonlocal state
        state = replace(state, bytes=state.bytes + number)
        if time.monotonic() - saved_at >= _SCRUB_SAVE_SEC:
            save()
        pace.take(number)

    try:
        while True:
            with catalog.session() as session:
                digests = blob_refs.list_after(session, state.cursor, _SCRUB_BATCH)
            for digest in digests:
                is_damaged = _scrub_blob(catalog, store, digest, count)
                state = replace(state, cursor=digest, blobs=state.blobs + 1, damaged=state.damaged + is_damaged)
            if not digests:
                break
            save()
    except InterruptedError:
        save(lease_sec=0.0)  # Another process may go on at once.
        return state
    with catalog.begin() as session:
        damage.finish_scrub(session, state)
    log.info("scrub_finished", blobs=state.blobs, bytes=state.bytes, damaged=state.damaged)
    return state


def _scrub_blob(catalog: Catalog, store: BlobStore, digest: str, count: Callable[[int], None]) -> bool:
    """Whether a blob that a row names is damaged or missing; that was reported."""
    try:
        if not store.find_fault(digest, count):
            return False
        store.verify(digest)  # Once more, and now it is set aside.
    except NotFound:
        with catalog.session() as session:
            if digest in blob_refs.unreferenced(session, [digest]):
                return False
        store.refuse(digest, None, _MISSING)
    except IntegrityError:
        pass
    else:
        return False
    return True


def _in_threads(
    work: Callable[[str], tuple[str, int]], digests: list[str], threads: int, end: threading.Event
) -> Iterator[tuple[str, tuple[str, int]]]:
    """Every digest with what `work` returned for it, in no order; an error or Ctrl-C ends the others."""
    waiting: dict[Future[tuple[str, int]], str] = {}
    with ThreadPoolExecutor(threads, "fsck") as pool:
        try:
            rest = iter(digests)
            while True:
                for digest in rest:
                    waiting[pool.submit(work, digest)] = digest
                    if len(waiting) >= _WAITING_PER_THREAD * threads:
                        break
                if not waiting:
                    return
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    yield waiting.pop(future), future.result()
        except BaseException:
            end.set()
            pool.shutdown(cancel_futures=True)
            raise
