"""`ampref submit FOLDER`: batches, and a journal from which a run that was broken off goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from amp_core.cli.output import Output
from amp_core.cli.reading import ReadOptions
from amp_core.client import ApiClient
from amp_core.client.bulk import BatchFile
from amp_core.commands import quote_path
from amp_core.errors import AmprefError, InputRefused, NotFound
from amp_core.formats import EXTENSIONS
from amp_core.strict_json import json_digest

__all__ = ["JOURNAL", "Journal", "find_motions", "submit_batches"]

JOURNAL = ".ampref-submit.jsonl"
"""The journal of a folder, in that folder."""

_BATCH_CLIPS = 200
_BATCH_BYTES = 32 << 20
_MOST_REFUSALS = 10  # Printed in full; the others are counted.


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
                self._entries[entry["terms"], entry["file"]] = entry
            except (ValueError, KeyError, TypeError):
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
            entry["job"] = job and {"id": job["id"], "state": job["state"]}
            entry["rollout"] = rollout and {"id": rollout["id"]}
        self._file.write(json.dumps(entry, ensure_ascii=True).encode() + b"\n")
        self._file.flush()
        return entry

    def close(self) -> None:
        self._file.close()


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
    n_sent = 0
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
        out.note(f"{len(entries):,} of {len(files):,} files are in the journal; {len(missing):,} are sent")
    n_refused = _refuse_known(out, entries)

    with out.progress("uploading", total=len(missing)) as progress:

        def report(path: Path, answer: dict[str, Any] | AmprefError) -> None:
            nonlocal n_sent, n_refused
            entries[path] = journal.add(path, statuses[path], answer)
            n_sent += 1
            progress.update(n_sent, description=f"{n_sent:,} of {len(missing):,} files")
            if isinstance(answer, AmprefError):
                n_refused += 1
                if n_refused <= _MOST_REFUSALS:
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
    return [
        {"file": str(path), **{key: entries[path][key] for key in ("clip", "job", "rollout")}}
        for path in files
        if "clip" in entries.get(path, {})
    ]


def _refuse_known(out: Output, entries: Mapping[Path, Mapping[str, Any]]) -> int:
    """Count the files that were refused in an earlier run, so that this one fails as well."""
    count = sum("refused" in entry for entry in entries.values())
    if count:
        files = "file was" if count == 1 else "files were"
        out.refuse(
            InputRefused(
                f"{count:,} {files} refused before", remedy="Mend and send them again, or send them again: --retry-refused"
            )
        )
    return count


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
