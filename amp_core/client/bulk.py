"""Many files in one request: a tar archive out, a line for each file back, each told of as soon as it is stored."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from amp_core.client import answers
from amp_core.client.answers import AnswerFault, check_answer
from amp_core.client.http import Connection, Retry, RetryableError, iter_body, problem_error
from amp_core.errors import AmprefError, InputRefused, QuotaExceeded, Unavailable
from amp_core.strict_json import read_json

__all__ = ["BatchFile", "post_batch"]

_PATH = "v1/clips:batch"
_TIMEOUT_SEC = 600.0  # Of one request: reading a batch takes the service seconds, beside other work minutes.
_MAX_LINE_BYTES = 1 << 20
_CHUNK = 1 << 20
_BLOCK = tarfile.BLOCKSIZE

Report = Callable[[Path, dict[str, Any] | AmprefError], None]
"""Called with a file and its `{clip, job, rollout, known}`, or with why it was refused."""


@dataclass(frozen=True)
class BatchFile:
    """A file as it was when it was looked at."""

    path: Path
    size: int


def post_batch(connection: Connection, files: Sequence[BatchFile], params: Mapping[str, Any], report: Report) -> None:
    """Send files in one archive; those that were told of are not sent again when the connection breaks.

    Raises:
      NotFound: the service has no such call (an older release), or not the robot.
      QuotaExceeded: the key has used up what it may; of these files nothing was told.
      Unavailable: it cannot be reached.
    """
    remaining = dict(enumerate(files))
    failures: dict[int, AmprefError] = {}
    excesses: list[QuotaExceeded] = []

    def receive(line: Any) -> None:
        index = int(line["member"].partition("/")[0])
        path, status = remaining[index].path, line["status"]
        if status in (200, 202):
            report(path, {**line["submitted"], "known": status == 200})
        else:
            error = problem_error(line["problem"] or {}, status, f"the service answered {status}")
            if isinstance(error, QuotaExceeded):
                excesses.append(error)
                return
            error.file = str(path)
            if status >= 500:  # Its fault or its disk's, not the file's.
                failures[index] = error
                return
            report(path, error)
        del remaining[index]

    def send(retry: Retry) -> None:
        failures.clear()
        headers = {
            "content-type": "application/x-tar",
            "accept": "application/x-ndjson, application/problem+json",
            "accept-encoding": "identity",
        }
        chunks, size = _format_archive(remaining)
        options: dict[str, Any] = {
            "params": dict(params),
            "content": chunks,
            "headers": headers | {"content-length": str(size)},
        }
        with connection.stream("POST", _PATH, retry=retry, is_transfer=True, **options) as response:
            for line in _iterate_lines(connection, iter_body(response)):
                try:
                    check_answer(answers.BatchLine, line)
                    if "member" not in line:
                        break
                    receive(line)
                except (AnswerFault, ValueError, KeyError, TypeError) as error:
                    raise connection.refuse_answer(_PATH, f"answered something that is not ampref's: {error}") from error
        if excesses:
            raise excesses[0]
        if remaining:
            missing = Unavailable(f"the service answered for {len(files) - len(remaining)} of {len(files)} files")
            raise RetryableError(next(iter(failures.values()), missing))

    retry = replace(connection.retry, timeout=max(connection.retry.timeout, _TIMEOUT_SEC))
    while remaining:
        count = len(remaining)
        try:
            connection.retry_call(send, retry)
        except _FileChanged as change:
            report(remaining.pop(change.index).path, change.error)
        except Unavailable:
            if len(remaining) < count:
                continue  # As with a download, patience begins anew whenever something has moved.
            if len(failures) < len(remaining):
                raise
            for index, error in failures.items():
                report(remaining.pop(index).path, error)


class _FileChanged(Exception):
    """A file is not what it was when its archive was begun."""

    def __init__(self, index: int, error: InputRefused) -> None:
        super().__init__(error.what)
        self.index = index
        self.error = error


def _format_archive(files: Mapping[int, BatchFile]) -> tuple[Iterator[bytes], int]:
    """An archive in pieces, and how long it is. Its members are called `INDEX/FILE`; the service names clips by the file."""
    headers = {}
    for index, file in files.items():
        info = tarfile.TarInfo(f"{index}/{file.path.name}")
        info.size = file.size
        headers[index] = info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
    size = sum(len(headers[index]) + file.size + -file.size % _BLOCK for index, file in files.items())

    def read() -> Iterator[bytes]:
        for index, file in files.items():
            yield headers[index]
            try:
                yield from _read_file(file)
            except InputRefused as error:
                raise _FileChanged(index, error) from error
            yield bytes(-file.size % _BLOCK)
        yield bytes(2 * _BLOCK)

    return read(), size + 2 * _BLOCK


def _read_file(file: BatchFile) -> Iterator[bytes]:
    """Exactly the bytes that the archive has promised."""
    change = InputRefused("the file changed while it was sent", file=str(file.path), remedy="Send it once more")
    try:
        with file.path.open("rb") as source:
            if os.fstat(source.fileno()).st_size != file.size:
                raise change
            left = file.size
            while left:
                chunk = source.read(min(_CHUNK, left))
                if not chunk:
                    raise change
                left -= len(chunk)
                yield chunk
    except OSError as error:
        raise InputRefused(f"the file cannot be read ({error.strerror or error})", file=str(file.path)) from error


def _iterate_lines(connection: Connection, chunks: Iterator[bytes]) -> Iterator[Any]:
    """The JSON values of an answer that has one a line."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > _MAX_LINE_BYTES:
            raise connection.refuse_answer(_PATH, "answered a line that does not end")
        for line in lines:
            try:
                yield read_json(line)
            except ValueError as error:
                raise connection.refuse_answer(_PATH, "answered something that is not JSON") from error
