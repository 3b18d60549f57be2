"""`ampref submit FOLDER`: batches, and a journal from which a run that was broken off goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from amp_core.cli.output import Output
from amp_core.cli.reading import ReadOptions
from amp_core.cli.text import counted
from amp_core.client import ApiClient
from amp_core.client.bulk import BatchFile
from amp_core.commands import quote_path
from amp_core.errors import AmprefError, Busy, DiskFull, InputRefused, NotFound, QuotaExceeded, Unavailable
from amp_core.formats import EXTENSIONS
from amp_core.strict_json import json_digest

__all__ = ["JOURNAL", "Journal", "find_motions", "note_rest", "submit_batches"]

JOURNAL = ".ampref-submit.jsonl"
"""The journal of a folder, in that folder."""

_BATCH_CLIPS = 200
_BATCH_BYTES = 32 << 20
_MOST_REFUSALS = 10  # Printed in full; the others are counted.
_MOST_KNOWN_REFUSALS = 3  # The same of an earlier run.
_PASSING = frozenset(kind.slug for kind in (QuotaExceeded, Unavailable, Busy, DiskFull))
"""Refusals that are about the moment and not about the file; an earlier release kept them."""


def find_motions(paths: Sequence[Path]) -> list[Path]:
    """The files among some files and folders: of a folder, the motion files in it and below, in order.

    Raises:
      InputRefused: a folder holds none, or cannot be read.
    """
    files: list[Path] = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        motions = sorted(_iterate_motions(path))
        if not motions:
            raise InputRefused(
                "there is no motion file in it", file=str(path), expected=f"files that end with {', '.join(EXTENSIONS)}"
            )
        files += motions
    return files


def _iterate_motions(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise InputRefused(
            f"cannot be read: {error.strerror or error}", file=str(error.filename), remedy=f"Check: ls -ld {quote_path(folder)}"
        ) from error

    for parent, _, names in os.walk(folder, onerror=refuse):
        for name in names:
            path = Path(parent, name)
            if path.suffix.lower() in EXTENSIONS and not name.startswith(".") and path.is_file():
                yield path


class Journal:
    """What a service has answered for each file, one JSON line a file, written when the answer came.

    A file counts as sent while its size and time of change are as they were, to the same service under the same terms.

    Args:
      path: the journal; made where there is none.
      terms: everything else that decides what is made of a file.

    Raises:
      InputRefused: it cannot be read or written, or is another file.
    """

    def __init__(self, path: Path, terms: Mapping[str, Any]) -> None:
        self._path = path
        self._terms = json_digest(dict(terms))[len("sha256:") :][:16]
        self._entries: dict[tuple[str, str], dict[str, Any]] = {}
        try:
            if path.exists():
                self._read()
            self._file = path.open("ab")
        except OSError as error:
            raise InputRefused(
                f"the journal cannot be kept: {error.strerror or error}",
                file=str(path),
                remedy="Name another place for it with --journal FILE",
            ) from error

    def _read(self) -> None:
        data = self._path.read_bytes()
        lines = data[: data.rfind(b"\n") + 1]
        if len(lines) < len(data):
            os.truncate(self._path, len(lines))  # A line that was being written when the power went.
        for number, line in enumerate(lines.splitlines(), 1):
            try:
                entry = json.loads(line)  # Not `read_json`: a file's name may be no Unicode, which strict JSON refuses.
                if entry.get("refused", {}).get("type") in _PASSING:
                    continue
                if entry.get("job"):
                    entry["job"] = {"id": entry["job"]["id"]}  # An earlier release kept its state, which does not last.
                self._entries[entry["terms"], entry["file"]] = entry
            except (ValueError, KeyError, TypeError, AttributeError):
                raise InputRefused(
                    f"line {number} is none of a journal",
                    file=str(self._path),
                    remedy="Name another place for the journal with --journal FILE, or remove this one to begin anew",
                ) from None

    def find(self, path: Path, status: os.stat_result) -> dict[str, Any] | None:
        """The entry of a file that has not changed since, None where there is none."""
        entry = self._entries.get((self._terms, os.path.abspath(path)))
        is_same = entry is not None and (entry["size"], entry["mtime_ns"]) == (status.st_size, status.st_mtime_ns)
        return entry if is_same else None

    def add(self, path: Path, status: os.stat_result, answer: Mapping[str, Any] | AmprefError) -> dict[str, Any]:
        """Keep an answer; what the entry holds of it."""
        entry: dict[str, Any] = {
            "terms": self._terms,
            "file": os.path.abspath(path),
            "size": status.st_size,
            "mtime_ns": status.st_mtime_ns,
        }
        if isinstance(answer, AmprefError):
            entry["refused"] = answer.to_dict()
        else:
            clip, job, rollout = (answer[key] for key in ("clip", "job", "rollout"))
            entry["clip"] = {"id": clip["id"], "name": clip["name"]}
            entry["job"] = job and {"id": job["id"]}  # Its state will be another when the entry is read.
            entry["rollout"] = rollout and {"id": rollout["id"]}
        self._file.write(json.dumps(entry, ensure_ascii=True).encode() + b"\n")
        self._file.flush()
        return entry

    def close(self) -> None:
        """Close it; one that holds nothing is removed."""
        self._file.close()
        with suppress(OSError):
            if not self._path.stat().st_size:
                self._path.unlink()


def submit_batches(
    out: Output,
    api: ApiClient,
    files: Sequence[Path],
    options: ReadOptions,
    journal: Journal,
    *,
    retry_refused: bool,
    **terms: Any,
) -> list[dict[str, Any]]:
    """Send the files that the journal does not have; `{file, clip, job, rollout}` of every file that the service has."""
    entries: dict[Path, dict[str, Any]] = {}
    statuses: dict[Path, os.stat_result] = {}
    n_sent = n_busy = 0
    for path in files:
        with out.refusing(path):
            try:
                statuses[path] = path.stat()
            except OSError as error:
                raise InputRefused(f"the file cannot be read ({error.strerror or error})", file=str(path)) from error
            entry = journal.find(path, statuses[path])
            if entry is not None and not ("refused" in entry and retry_refused):
                entries[path] = entry
    missing = [path for path in statuses if path not in entries]
    if entries:
        out.note(f"{len(entries):,} of {len(files):,} files are in the journal; {len(missing):,} to send")
    n_refused = _refuse_known(out, entries)

    def count() -> tuple[int, int]:
        return sum("clip" in entry for entry in entries.values()), len(statuses) - len(entries)

    with note_rest(out, count), out.progress("uploading", total=len(missing)) as progress:

        def report(path: Path, answer: dict[str, Any] | AmprefError) -> None:
            nonlocal n_sent, n_refused, n_busy
            n_sent += 1
            progress.update(n_sent, description=f"{n_sent:,} of {len(missing):,} files")
            is_passing = isinstance(answer, AmprefError) and answer.slug in _PASSING
            if not is_passing:
                entries[path] = journal.add(path, statuses[path], answer)
            if isinstance(answer, AmprefError):
                n_busy += is_passing
                n_refused += not is_passing
                if n_refused + n_busy <= _MOST_REFUSALS:
                    out.refuse(answer)
                else:
                    out.refusals.append(answer)

        for batch, batch_options in _pack(missing, statuses, options):
            try:
                api.submit_batch(batch, report, **terms, **batch_options)
            except NotFound as error:
                if "clips:batch" not in error.what:
                    raise
                # A service of a release that had no batches.
                for file in batch:
                    try:
                        report(file.path, api.submit_clip(file.path, **terms, **batch_options))
                    except InputRefused as refusal:
                        report(file.path, refusal)
    if n_refused > _MOST_REFUSALS:
        out.warn(f'{n_refused:,} files were refused; all reasons are in the journal, under "refused"')
    if n_busy:
        out.warn(f"the service could not take {counted(n_busy, 'file')} at the moment; the same command goes on")
    return [
        {"file": str(path), **{key: entries[path][key] for key in ("clip", "job", "rollout")}}
        for path in files
        if "clip" in entries.get(path, {})
    ]


@contextmanager
def note_rest(out: Output, count: Callable[[], tuple[int, int]]) -> Iterator[None]:
    """When a quota or Ctrl-C ends the block, say how far it came and that the same command goes on.

    Args:
      count: returns how many files the service has and how many are still to be sent.

    Raises:
      QuotaExceeded: the block raised it.
    """
    try:
        yield
    except QuotaExceeded as error:
        n_accepted, n_left = count()
        raise QuotaExceeded(
            f"{error.what}; {counted(n_accepted, 'file')} accepted, {n_left:,} not sent",
            expected=error.expected,
            remedy=f"{error.remedy or 'Wait'}; then the same command goes on",
        ) from error
    except KeyboardInterrupt:
        n_accepted, n_left = count()
        out.note(f"{counted(n_accepted, 'file')} accepted, {n_left:,} not sent; the same command goes on")
        raise


def _refuse_known(out: Output, entries: Mapping[Path, Mapping[str, Any]]) -> int:
    """Print the first files that were refused in an earlier run, and count them, so that this one fails as well."""
    refusals = {path: entry["refused"] for path, entry in entries.items() if "refused" in entry}
    for path, facts in list(refusals.items())[:_MOST_KNOWN_REFUSALS]:
        places = {name: facts.get(name) for name in ("key", "frame", "expected", "remedy")}
        out.refuse(InputRefused(str(facts.get("what") or facts.get("detail")), file=str(path), **places))
    if refusals:
        first = f", the first {_MOST_KNOWN_REFUSALS} are named above" if len(refusals) > _MOST_KNOWN_REFUSALS else ""
        files, have, them = ("file was", "has", "it") if len(refusals) == 1 else ("files were", "have", "them")
        out.refuse(
            InputRefused(
                f"{len(refusals):,} {files} refused before and {have} not changed since{first}",
                remedy=f"Mend {them}, then the same command sends {them}; to send {them} without a change: --retry-refused",
            )
        )
    return len(refusals)


def _pack(
    files: Sequence[Path], statuses: Mapping[Path, os.stat_result], options: ReadOptions
) -> Iterator[tuple[list[BatchFile], dict[str, Any]]]:
    """Files as batches, each of files that are read the same way."""
    batch: list[BatchFile] = []
    batch_options: dict[str, Any] = {}
    room = 0
    for path in files:
        size = statuses[path].st_size
        if batch and (options(path) != batch_options or len(batch) == _BATCH_CLIPS or room + size > _BATCH_BYTES):
            yield batch, batch_options
            batch, room = [], 0
        batch.append(BatchFile(path, size))
        batch_options = options(path)
        room += size
    if batch:
        yield batch, batch_options
