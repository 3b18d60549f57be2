"""Reading what users upload: in a few child processes with limits, never in the process of the API.

A motion file is untrusted and may cost much memory and time to read. So a reader (`ampref_service.reader_child`) does it, under
limits on memory, processor time and files, at a low priority and without secrets. A file that crashes or exhausts its reader is
refused, the reader replaced, and nobody else notices.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, BinaryIO

import structlog

from amp_core import errors
from amp_core.children import SocketChild
from amp_core.errors import AmprefError, MotionRefused, TooLarge, Unavailable
from amp_core.formats import Limits
from amp_core.robot import Robot
from amp_core.strict_json import format_json
from ampref_service.settings import MIB, Settings
from ampref_service.spool import Spool

__all__ = ["READER", "ReaderPool"]

log = structlog.get_logger("ampref_service.readers")

READER: tuple[str, ...] = (sys.executable, "-P", "-m", "ampref_service.reader_child")
"""The command that the arguments of a reader are appended to."""

_NICE = 5  # After the API, before the children of jobs, so that an upload is quick while all processors simulate.
_MAX_RESIDENT_MB = 192  # A reader that still has more than this after a file is replaced: what it was given does not come back.
_START_SEC = 60.0


class ReaderPool:
    """`AMPREF_UPLOAD_READERS` readers, each driven by a thread of its own, in which it is started and watched.

    Args:
      command: what to start; tests put a misbehaving reader here.
      wall_factor: how many times its processor time a file may take by the clock, on a machine that has other work.
    """

    def __init__(self, settings: Settings, spool: Spool, *, command: Sequence[str] = READER, wall_factor: float = 4.0) -> None:
        self._settings = settings
        self._spool = spool
        self._command = command
        self._wall_factor = wall_factor
        self._local = threading.local()
        self._lock = threading.Lock()
        self._readers: set[_Reader] = set()
        self._is_closed = False
        self._executor = ThreadPoolExecutor(settings.upload_readers, thread_name_prefix="reader")
        for _ in range(settings.upload_readers):  # So that the first upload need not wait for a start.
            self._executor.submit(self._get_reader)

    @property
    def pids(self) -> list[int]:
        """The readers' process ids."""
        with self._lock:
            return sorted(reader.pid for reader in self._readers)

    def read(self, task: str, robot: Robot, limits: Limits, files: Sequence[BinaryIO], **request: Any) -> Future[Any]:
        """Have a reader do a task of `ampref_service.reader_child`; the result once one is free.

        Args:
          robot: the clip is for.
          files: read, or written, by the task; they may be closed once this has returned.
          request: the task's other arguments; `name` is what errors call the file.

        The future raises:
          MotionRefused: the file cannot be used.
          TooLarge: reading it takes more memory or time than the operator allows.
          Unavailable: no reader could be started, or the machine did not get to it.
        """
        message = {
            "task": task,
            # One file is read, or one for each that is written.
            "cpu_sec": self._settings.reader_timeout_sec * max(1, len(files) - 1),
            "robot": {"name": robot.name, "digest": robot.digest, "paths": list(map(str, self._settings.robots))},
            "limits": asdict(limits),
            **request,
        }
        with self._spool.disk_errors():
            descriptors = [os.dup(file.fileno()) for file in files]
        future = self._executor.submit(self._read, message, descriptors)
        # Also where it is cancelled, which it can be until a reader has begun.
        future.add_done_callback(lambda _: _close_all(descriptors))
        return future

    def close(self) -> None:
        """End the readers; whatever is still being read fails."""
        with self._lock:
            self._is_closed = True
            for reader in self._readers:
                reader.kill()
        self._executor.shutdown(cancel_futures=True)
        for reader in list(self._readers):
            self._discard(reader)

    def _read(self, message: Mapping[str, Any], descriptors: Sequence[int]) -> Any:
        for _ in range(2):
            reader = self._get_reader()
            try:
                answer = reader.ask(message, descriptors, self._wall_factor * message["cpu_sec"])
            except _ReaderEnded as end:
                self._discard(reader)
                if self._is_closed:
                    break
                log.warning("reader_ended", reason=end.reason, file=message["name"])
                if end.error is not None:
                    raise end.error from None
                continue  # Somebody else killed it, which says nothing of the file: the next reader may do it.
            if answer["resident_mb"] > _MAX_RESIDENT_MB or "memory" in answer:
                self._discard(reader)
            return self._take(answer, message["name"])
        raise Unavailable("reading the upload was broken off: its reader was killed", remedy="Send it again")

    def _take(self, answer: Mapping[str, Any], name: str) -> Any:
        """The result of an answer, or its error."""
        if "result" in answer:
            return answer["result"]
        if "refused" in answer:
            facts = dict(answer["refused"])
            kind: type[AmprefError] = getattr(errors, facts.pop("class"))
            raise kind(**facts)
        if "memory" in answer:
            raise TooLarge(
                "reading it takes more memory than an upload may use",
                file=name,
                expected=f"a file that can be read in {self._settings.reader_memory_mb:,} MiB",
                remedy="Cut the motion into shorter clips, or save only fps, root_pos, root_rot and dof_pos",
            )
        if "os_error" in answer:
            with self._spool.disk_errors():
                raise OSError(answer["os_error"], os.strerror(answer["os_error"]))
        raise RuntimeError(f"a reader failed on {name}:\n{answer['traceback']}")

    def _get_reader(self) -> _Reader:
        """The reader of this thread, which is started where there is none."""
        reader: _Reader | None = getattr(self._local, "reader", None)
        if reader is None or not reader.is_alive:
            if reader is not None:
                self._discard(reader)
            settings = self._settings
            limits = (settings.reader_memory_mb, -(-settings.max_upload_bytes // MIB) + 1)
            try:
                reader = _Reader(self._command, self._spool, *limits)
            except OSError as error:
                raise _start_error(error.strerror or str(error)) from error
            with self._lock:
                self._readers.add(reader)
                if self._is_closed:
                    reader.kill()
            self._local.reader = reader
            if not reader.wait_until_ready():
                self._discard(reader)
                raise _start_error("it did not come up; what it wrote is in the service's log")
        return reader

    def _discard(self, reader: _Reader) -> None:
        reader.close()
        with self._lock:
            self._readers.discard(reader)
        self._local.reader = None


def _start_error(reason: str) -> Unavailable:
    log.error("reader_not_started", reason=reason)
    remedy = "Send it again; if it repeats, the machine has too little memory or too many processes"
    return Unavailable(f"no reader of uploads can be started: {reason}", remedy=remedy)


def _close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


class _ReaderEnded(Exception):
    """A reader ended before its answer; `error` is what that says of the file, None where it says nothing."""

    def __init__(self, reason: str, error: AmprefError | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.error = error


class _Reader(SocketChild):
    """One child process."""

    def __init__(self, command: Sequence[str], spool: Spool, memory_mb: int, file_mb: int) -> None:
        super().__init__(command, spool.folder, (memory_mb, file_mb), files=(__file__,), nice=_NICE)
        self._answers = self.socket.makefile("rb")

    def wait_until_ready(self) -> bool:
        """Whether it has come up."""
        with self.watch(_START_SEC), contextlib.suppress(OSError):
            return self._answers.readline() == b"ready\n"
        return False

    def ask(self, message: Mapping[str, Any], descriptors: Sequence[int], timeout_sec: float) -> dict[str, Any]:
        """The answer to a request; raises `_ReaderEnded`."""
        line = format_json(message, ensure_ascii=True).encode() + b"\n"
        answer = b""
        with self.watch(timeout_sec), contextlib.suppress(OSError):  # It has ended; how, its status says.
            size = socket.send_fds(self.socket, [line], descriptors)
            self.socket.sendall(line[size:])
            answer = self._answers.readline()
        if answer.endswith(b"\n"):
            return dict(json.loads(answer))
        self.kill()
        raise self._describe_end(message["name"], message["cpu_sec"], timeout_sec)

    def _describe_end(self, name: str, cpu_sec: float, timeout_sec: float) -> _ReaderEnded:
        status = self.wait()
        if self.is_late:
            remedy = "Send it again when the machine has less to do, or ask the operator to raise AMPREF_READER_TIMEOUT_SEC"
            late = Unavailable(f"the upload was not read within {timeout_sec:g} s", file=name, remedy=remedy)
            return _ReaderEnded("it was not done in time", late)
        if status == -signal.SIGPROF:
            slow = TooLarge(
                f"reading it takes more than {cpu_sec:g} s of processor time",
                file=name,
                expected="a file that can be read in that time",
                remedy="Cut the motion into shorter clips, or ask the operator to raise AMPREF_READER_TIMEOUT_SEC",
            )
            return _ReaderEnded("it used up its processor time", slow)
        if status == -signal.SIGKILL:
            return _ReaderEnded("it was killed by SIGKILL; a machine that is short of memory does this")
        ending = signal.Signals(-status).name if status < 0 else f"status {status}"
        crash = MotionRefused(
            f"the program that reads it ended with {ending}",
            file=name,
            expected="a motion file that can be read",
            remedy="Export it again, in another format if that repeats, and report it: no file should do this",
        )
        return _ReaderEnded(f"it ended with {ending}", crash)

    def close(self) -> None:
        self.kill()  # So that nobody still waits for an answer.
        self._answers.close()
        super().close()
