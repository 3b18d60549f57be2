"""Backups: the catalog of one moment and every blob that it names, in a folder from which both can be restored.

DEST/backup.json                       what the backup is; written last
DEST/catalog-20261129T113800Z-3f9a/    a file of rows for each table (`ampref_service.catalog.dump`), and `blobs.jsonl.gz`
DEST/blobs/sha256/ab/cdef…             the blobs, which the next backup into the same folder does not copy again
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from alembic import command
from sqlalchemy import Connection

from amp_core.digests import digest_of_file
from amp_core.errors import AmprefError, Conflict, DiskFull, InputRefused, IntegrityError, NotFound
from amp_core.files import sync_file, sync_folder, write_file
from amp_core.progress import Progress
from amp_core.strict_json import format_json, read_json
from amp_core.version import __version__
from ampref_service.blobs import BlobStore, LocalBlobStore
from ampref_service.blobs.store import blob_key, disk_errors
from ampref_service.catalog import Catalog, audit, blob_refs, dump, job_rows, schema, thumbnails, webhooks
from ampref_service.catalog.engine import chunked
from ampref_service.catalog.tables import metadata, rollout_thumbnails

T = TypeVar("T")
R = TypeVar("R")

FORMAT = 1
MANIFEST = "backup.json"
_BLOBS = "blobs"
_BLOB_LIST = "blobs.jsonl.gz"
_CATALOG_PREFIX = "catalog-"
_ROWS_FOLDER = re.compile(rf"{_CATALOG_PREFIX}\d{{8}}T\d{{6}}Z-[0-9a-f]{{8}}")
_THREADS = 8  # A small blob costs the wait for the disk, or for S3, and hardly any work.
_MOST_DUMPS = 3
_RESTORED = "the catalog was restored from a backup, and its original may deliver beside it"
_MOST_NAMED = 5  # Digests in an error.


@dataclass(frozen=True)
class Backup:
    """What `backup.json` says.

    Args:
      folder: that of the backup.
      release, schema, database: of the service: its version, the revision of its schema, `sqlite` or `postgresql`.
      started_at, finished_at: epoch seconds.
      catalog: the folder of the rows, below `folder`.
      tables: by name the number of rows, a table that others refer to before those.
      files: by name below `catalog`, the size in bytes and the digest.
      num_blobs, num_bytes: of all blobs.
      absent: the digests that the service's store lacked or had damaged.
      copied: blobs that were not there from an earlier backup; not in `backup.json`.
    """

    folder: Path
    release: str
    schema: str
    database: str
    started_at: float
    finished_at: float
    catalog: str
    tables: Mapping[str, int]
    files: Mapping[str, tuple[int, str]]
    num_blobs: int
    num_bytes: int
    absent: tuple[str, ...] = ()
    copied: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "format": FORMAT,
            "release": self.release,
            "schema": self.schema,
            "database": self.database,
            "started_at": self.started_at,
            "finished_at": self.finished_at,
            "catalog": self.catalog,
            "tables": dict(self.tables),
            "files": {name: {"size": size, "sha256": digest} for name, (size, digest) in self.files.items()},
            "blobs": {"count": self.num_blobs, "bytes": self.num_bytes, "absent": list(self.absent)},
        }

    def iter_blobs(self) -> Iterator[tuple[str, int, Path]]:
        """Digest, size in bytes and path of each blob; the file need not be there."""
        for digest, size in dump.read_lines(self.folder / self.catalog / _BLOB_LIST):
            yield digest, size, self.folder / _BLOBS / blob_key(digest)


def read_backup(folder: Path) -> Backup:
    """What a folder holds; raises `NotFound` where that is no complete backup, `InputRefused` where it cannot be read."""
    path = folder / MANIFEST
    try:
        document = read_json(path.read_bytes())
        if document["format"] != FORMAT:
            raise InputRefused(
                f"the backup has format {document['format']}",
                file=str(path),
                expected=f"format {FORMAT}",
                remedy=f"Use the release that made it: {document['release']}",
            )
        names = ("release", "schema", "database", "started_at", "finished_at", "catalog", "tables")
        return Backup(
            folder,
            **{name: document[name] for name in names},
            files={name: (file["size"], file["sha256"]) for name, file in document["files"].items()},
            num_blobs=document["blobs"]["count"],
            num_bytes=document["blobs"]["bytes"],
            absent=tuple(document["blobs"]["absent"]),
        )
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(
            "no complete backup is there", file=str(path), remedy="Name the folder that `ampref backup` was given"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputRefused(f"this is no backup's {MANIFEST}: {error!r}", file=str(path)) from None


def write_backup(catalog: Catalog, store: BlobStore, folder: Path, progress: Progress | None = None) -> Backup:
    """Back up a catalog and its blobs into a folder; the service may go on meanwhile.

    Blobs that an earlier backup left there are not copied again. A blob that the store lacks or has damaged is left out and
    named in `absent`.

    Raises:
      Conflict: the folder holds something else.
      Unavailable: the database, the store or the folder cannot be used; an earlier backup in the folder stays what it was.
    """
    schema.check(catalog, exact=True)
    with _explain_errors(folder):
        earlier = _prepare_folder(folder)
        target = LocalBlobStore(folder / _BLOBS)
        target.drop_partials(3600.0)
        for attempt in range(1, _MOST_DUMPS + 1):
            backup = _write_rows(catalog, folder)
            backup = _copy_blobs(store, target, backup, progress)
            with catalog.session() as session:
                was_deleted = bool(blob_refs.unreferenced(session, backup.absent))
            if not was_deleted or attempt == _MOST_DUMPS:
                break
            # The service deleted what these rows name: later rows do not name it.
            shutil.rmtree(folder / backup.catalog)
        backup = replace(backup, finished_at=time.time())
        write_file(folder / MANIFEST, (format_json(backup.to_dict(), indent=2) + "\n").encode(), durable=True)
        for path in filter(_is_rows_folder, folder.iterdir()):
            # Of this command's own kind, killed before its end; a younger one may be at work.
            is_stale = time.time() - path.stat().st_mtime > 24 * 3600
            if path.name != backup.catalog and (is_stale or (earlier is not None and path.name == earlier.catalog)):
                shutil.rmtree(path)
    return backup


def _prepare_folder(folder: Path) -> Backup | None:
    """Make the folder, readable by its owner alone; returns the backup that it holds."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    strangers = [path.name for path in folder.iterdir() if path.name not in (MANIFEST, _BLOBS) and not _is_rows_folder(path)]
    if strangers and not (folder / MANIFEST).exists():
        raise Conflict(
            f"the folder holds something that is no backup: {', '.join(sorted(strangers)[:_MOST_NAMED])}",
            file=str(folder),
            expected="a folder that is empty, missing, or of earlier backups",
        )
    try:
        return read_backup(folder)
    except NotFound:
        return None


def _is_rows_folder(path: Path) -> bool:
    return _ROWS_FOLDER.fullmatch(path.name) is not None and path.is_dir()


def _write_rows(catalog: Catalog, folder: Path) -> Backup:
    started_at = time.time()
    name = _CATALOG_PREFIX + time.strftime("%Y%m%dT%H%M%SZ-", time.gmtime(started_at)) + os.urandom(4).hex()
    rows_folder = folder / name
    rows_folder.mkdir(mode=0o700)
    tables: dict[str, int] = {}
    with catalog.session() as session:
        revision = schema.current(session)
        for table in metadata.sorted_tables:
            tables[table.name] = dump.write_table(session, table, rows_folder / _file_name(table.name))
        digests = blob_refs.list_all(session)
    # Sizes are filled in when the blobs have been copied.
    dump.write_lines(rows_folder / _BLOB_LIST, ([digest] for digest in digests))
    assert revision is not None
    return Backup(folder, __version__, revision, catalog.dialect, started_at, started_at, name, tables, {}, len(digests), 0)


def _file_name(table: str) -> str:
    return f"{table}.jsonl.gz"


def _copy_blobs(store: BlobStore, target: LocalBlobStore, backup: Backup, progress: Progress | None) -> Backup:
    """Copy what is not there yet, and list what is."""
    rows_folder = backup.folder / backup.catalog
    digests = [str(digest) for (digest,) in dump.read_lines(rows_folder / _BLOB_LIST)]
    num_copied, absent = 0, []
    sizes: dict[str, int] = {}

    def copy(digest: str) -> tuple[int, bool] | None:
        """The size of a blob and whether it was copied; None where there is none to copy."""
        path = target.root / blob_key(digest)
        try:
            if path.is_file() and path.stat().st_size == store.size(digest):
                return path.stat().st_size, False
            target.put_chunks(store.iter_verified(digest))
            return path.stat().st_size, True
        except (NotFound, IntegrityError):
            if path.is_file() and digest_of_file(path) == digest:
                return path.stat().st_size, False
            return None

    for digest, outcome in _in_threads(copy, digests, "copying blobs", progress):
        if outcome is None:
            absent.append(digest)
        else:
            sizes[digest], is_new = outcome
            num_copied += is_new
    dump.write_lines(rows_folder / _BLOB_LIST, ([digest, sizes[digest]] for digest in digests if digest in sizes))
    files = {}
    for path in sorted(rows_folder.iterdir()):
        path.chmod(0o600)
        sync_file(path)
        files[path.name] = (path.stat().st_size, digest_of_file(path))
    sync_folder(rows_folder)
    sync_folder(backup.folder)
    num_bytes, thumbnail_digests = sum(sizes.values()), _read_thumbnails(backup)
    # A thumbnail is made again where the backup is restored.
    absent = [digest for digest in absent if digest not in thumbnail_digests]
    return replace(backup, files=files, num_blobs=len(sizes), num_bytes=num_bytes, absent=tuple(absent), copied=num_copied)


def _read_thumbnails(backup: Backup) -> set[str]:
    """The digests of the thumbnails in a backup's rows."""
    table = rollout_thumbnails.name
    if table not in backup.tables:
        return set()
    lines = dump.read_lines(backup.folder / backup.catalog / _file_name(table))
    column = [name for name, _ in next(lines)].index(rollout_thumbnails.c.digest.name)
    return {line[column] for line in lines if line[column] is not None}


def verify_backup(backup: Backup, progress: Progress | None = None) -> list[AmprefError]:
    """Read every byte of a backup; returns which blobs are damaged or missing, the latter also when it was made.

    Raises:
      IntegrityError: a file of rows is damaged or missing, so that nothing can be restored.
    """

    def check(blob: tuple[str, int, Path]) -> bool:
        digest, size, path = blob
        return _is_intact(path, size, digest)

    return _find_faults(backup, check, "reading blobs", progress, [])


def _find_faults(
    backup: Backup,
    handle: Callable[[tuple[str, int, Path]], bool],
    text: str,
    progress: Progress | None,
    lost_thumbnails: list[str],
) -> list[AmprefError]:
    """Check the rows, then handle each blob; returns what is wrong with those of which `handle` says False.

    Args:
      lost_thumbnails: takes the digests of thumbnails of which it says so, or that were missing; they are no fault.
    """
    for name, (size, digest) in backup.files.items():
        path = backup.folder / backup.catalog / name
        if not _is_intact(path, size, digest):
            raise IntegrityError(
                "a file of the backup is damaged or missing",
                file=str(path),
                expected=f"{size} bytes with {digest}",
                remedy="Take the file, or the whole backup, from another copy",
            )
    faults: list[AmprefError] = []
    thumbnail_digests = _read_thumbnails(backup)
    for (digest, _, path), is_intact in _in_threads(handle, list(backup.iter_blobs()), text, progress):
        if digest in thumbnail_digests:
            thumbnail_digests.discard(digest)
            lost_thumbnails.extend([] if is_intact else [digest])
        elif not is_intact:
            faults.append(
                IntegrityError(
                    f"the blob {digest} of the backup is damaged or missing",
                    file=str(path),
                    remedy="Back up into the folder again while the service has it, or take the file from another copy",
                )
            )
    lost_thumbnails.extend(sorted(thumbnail_digests))
    for digest in backup.absent:
        faults.append(
            IntegrityError(
                f"the blob {digest} is not in the backup: the service had lost it when the backup was made",
                remedy="An earlier backup may have it",
            )
        )
    return faults


def _is_intact(path: Path, size: int, digest: str) -> bool:
    try:
        return path.stat().st_size == size and digest_of_file(path) == digest
    except OSError:
        return False


def restore_backup(
    backup: Backup,
    database_url: str,
    store: BlobStore,
    *,
    allow_missing: bool = False,
    keep_webhooks: bool = False,
    progress: Progress | None = None,
) -> list[AmprefError]:
    """Put a backup into an empty database and a blob store, and bring the schema to this release's.

    The rows come last, in one transaction: what is interrupted is begun again.

    Args:
      allow_missing: restore what there is, where blobs are damaged or missing; they are returned.
      keep_webhooks: leave them as they are. The original may go on beside the copy, so that otherwise each is quarantined.

    Raises:
      Conflict: the database has rows, or the backup is of a newer release.
      IntegrityError: something of the backup is damaged or missing; no row was written.
    """
    if not schema.is_known(backup.schema):
        raise Conflict(
            f"the backup has schema {backup.schema} of release {backup.release}, which this release does not know",
            file=str(backup.folder / MANIFEST),
            expected=f"at most {schema.head()}",
            remedy="Restore it with that release",
        )
    with schema.exclusive(database_url) as connection:
        _check_empty(connection)

    def put_blob(blob: tuple[str, int, Path]) -> bool:
        digest, size, path = blob
        # What has other bytes is stored under another name, which nothing refers to.
        return path.is_file() and path.stat().st_size == size and store.put_file(path) == digest

    lost_thumbnails: list[str] = []
    faults = _find_faults(backup, put_blob, "restoring blobs", progress, lost_thumbnails)
    if faults and not allow_missing:
        raise IntegrityError(
            f"{len(faults)} of {backup.num_blobs + len(backup.absent)} blobs of the backup are damaged or missing; "
            f"no row was restored: {'; '.join(fault.what for fault in faults[:_MOST_NAMED])}",
            file=str(backup.folder),
            remedy="Take them from another copy (ampref backup --verify names all), or go without them: --allow-missing",
        )
    with schema.exclusive(database_url) as connection:
        _check_empty(connection)
        command.downgrade(schema.config(connection), "base")
        command.upgrade(schema.config(connection), backup.schema)
        paths = [(table, backup.folder / backup.catalog / _file_name(table)) for table in backup.tables]
        counts = dump.load_tables(connection, paths)
        if counts != backup.tables:
            raise IntegrityError(
                f"the backup has rows {counts}, and {MANIFEST} says {dict(backup.tables)}", file=str(backup.folder)
            )
        command.upgrade(schema.config(connection), "head")
        for part in chunked(lost_thumbnails):
            thumbnails.forget(connection, part)
        requeued = job_rows.forget_workers(connection, "its worker is gone: the catalog was restored from a backup")
        paused = 0 if keep_webhooks else webhooks.quarantine_all(connection, _RESTORED)
        facts = {"schema": backup.schema, "taken_at": backup.started_at}
        detail = facts | {"requeued": requeued, "missing": len(faults), "quarantined_webhooks": paused}
        audit.record(connection, audit.OPERATOR, "catalog.restore", "catalog", detail)
    return faults


def _check_empty(connection: Connection) -> None:
    if not dump.is_empty(connection):
        raise Conflict(
            "the database holds a catalog already",
            expected="an empty one",
            remedy="Name another with AMPREF_DATABASE_URL or --data-dir, or move the old one away",
        )


def _in_threads(handle: Callable[[T], R], items: Sequence[T], text: str, progress: Progress | None) -> Iterator[tuple[T, R]]:
    """Each item with what `handle` says of it, several at a time."""
    executor = ThreadPoolExecutor(_THREADS, "blobs")
    count = 0
    try:
        for part in chunked(items):
            for item, outcome in zip(part, executor.map(handle, part), strict=True):
                yield item, outcome
                count += 1
                if progress is not None:
                    progress(count / len(items), f"{text}, {count} of {len(items)}")
    finally:
        executor.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _explain_errors(folder: Path) -> Iterator[None]:
    try:
        with disk_errors(folder):
            yield
    except DiskFull as error:
        raise DiskFull(
            f"no space left in {folder}: {error.what}",
            remedy="Make room there and back up again: what was copied is not copied twice",
        ) from error
