"""One piece of work in a fresh child process that can be stopped at any moment.

MuJoCo is C: inside `mj_step` Python sees no signal, a bad model can crash the interpreter, and a hostile clip may ask for
more memory than there is. So the work runs in `python -m ampref_workers.child JOBDIR`, and whatever happens there is a
message or a `NoReport` here, never an exception.

The child gets a process group of its own (so that a Ctrl-C for the worker does not reach it, and one signal ends it with all it
started), limits on time, memory, file size and open files, a low claim on the processor, one thread for every numeric
library, an environment without secrets, and a tie to its parent: it dies when the parent does, however that happens.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Literal, cast

import ampref_service
from amp_core.children import child_environment
from amp_core.progress import Progress
from ampref_workers.protocol import (
    DISK_FULL,
    REQUEST,
    RESULT,
    SANDBOX,
    START_LINE,
    Failed,
    HostFault,
    M,
    Message,
    NoReport,
    NoRoom,
    Refused,
    Sandbox,
    SandboxLimits,
    Stopped,
    decode,
    no_room,
)

__all__ = ["CHILD", "run"]

CHILD: tuple[str, ...] = (sys.executable, "-P", "-m", "ampref_workers.child")
"""The command that the job folder is appended to. `-P` keeps the job folder, where it runs, off the import path."""

_TICK_SEC = 0.1
_OOM_SCORE = "800"
_START_SEC = 120.0  # For the interpreter and its imports: they say nothing of the work.
_GRACE_SEC = 5.0  # For the kernel to take a killed process away.
_STDERR_TAIL = 4_000  # Bytes of the end of what the child wrote there.
_LINE_MAX = 64 << 10  # Bytes; a longer progress line is dropped rather than collected.
_RESULT_MAX = 64 << 20  # Bytes of the result.


def run(
    job_dir: Path,
    request: Message,
    report: type[M],
    limits: SandboxLimits,
    *,
    on_progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
    command: Sequence[str] = CHILD,
) -> M | NoReport:
    """Have one child do a request in a job folder, and wait for its end.

    Args:
      job_dir: a private folder; the child's working folder, and all that it should write to.
      request: the work.
      report: the kind of message that its handler returns.
      limits: what it may use.
      on_progress: called in this thread.
      should_stop: asked about ten times a second; the child is killed once it is true.
      command: what to start; `JOBDIR` is appended. Tests put a misbehaving child here; no request can.

    No child is left when this returns or raises, and none survives this process.
    """
    job_dir = job_dir.resolve()
    (job_dir / RESULT).unlink(missing_ok=True)
    progress_read, progress_write = os.pipe()
    try:
        (job_dir / REQUEST).write_bytes(request.encode())
        (job_dir / SANDBOX).write_bytes(Sandbox(os.getpid(), progress_write, limits).encode())
        process = subprocess.Popen(
            [*command, str(job_dir)],
            cwd=job_dir,
            env=child_environment(job_dir, ampref_service.__file__, __file__),
            stdin=subprocess.PIPE,  # Never written to: its end tells the child that the parent died.
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(progress_write,),
            # A group, not a session: Linux shares the processor out among sessions first, and niceness counts only within one.
            process_group=0,
        )
        with contextlib.suppress(OSError):  # It may have ended already.
            os.setpriority(os.PRIO_PROCESS, process.pid, os.getpriority(os.PRIO_PROCESS, 0) + limits.nice)
        with contextlib.suppress(OSError):  # Not Linux.
            # A kernel that is short of memory ends the child, and not the worker with everything that it does.
            Path(f"/proc/{process.pid}/oom_score_adj").write_text(_OOM_SCORE)
    except BaseException:
        os.close(progress_read)
        raise
    finally:
        os.close(progress_write)
    pipes = _Pipes(process, os.fdopen(progress_read, "rb", buffering=0), on_progress)
    try:
        end = pipes.read_until_exit(limits.timeout_sec, should_stop)
    finally:
        _kill(process)
        pipes.close()
    if end == "stopped":
        return Stopped()
    if end == "timeout" and not pipes.has_started:
        return HostFault(f"a child did not begin its work within {_START_SEC:g} s", pipes.stderr)
    if end == "timeout":
        return Failed("timeout", f"timeout: still running after {limits.timeout_sec:g} s, so it was killed", pipes.stderr)
    outcome = _read_outcome(job_dir, process.returncode, report, limits, pipes.stderr)
    if pipes.has_started or isinstance(outcome, NoRoom):
        return outcome
    reason = outcome.reason if isinstance(outcome, Failed | HostFault) else getattr(outcome, "error", {}).get("detail")
    return HostFault(f"a child could not begin its work: {reason}", pipes.stderr)


class _Pipes:
    """A child's progress and standard error, read until it exits, so that it can never block on a full pipe."""

    def __init__(self, process: subprocess.Popen[bytes], progress: IO[bytes], on_progress: Progress | None) -> None:
        assert process.stderr is not None
        self._process = process
        self._on_progress = on_progress
        self._line = b""
        self._tail = b""
        self.has_started = False
        self._pipes = (progress, process.stderr)
        self._selector = selectors.DefaultSelector()
        for pipe in self._pipes:
            os.set_blocking(pipe.fileno(), False)
            self._selector.register(pipe, selectors.EVENT_READ)

    @property
    def stderr(self) -> str:
        """The end of what the child wrote there."""
        return self._tail.decode("utf-8", "replace").strip()

    def read_until_exit(
        self, timeout_sec: float, should_stop: Callable[[], bool] | None
    ) -> Literal["exit", "timeout", "stopped"]:
        """Wait for the exit, the end of the time or `should_stop`; the time counts from where the child works."""
        deadline, has_started = time.monotonic() + _START_SEC, False
        while not _has_exited(self._process):
            if self.has_started and not has_started:
                deadline, has_started = time.monotonic() + timeout_sec, True
            if should_stop is not None and should_stop():
                return "stopped"
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return "timeout"
            tick = min(_TICK_SEC, remaining)
            if self._selector.get_map():
                self._read(tick)
            else:
                time.sleep(min(tick, 0.005))  # Both pipes are at their end, as they are when it is exiting.
        self._read(0)
        return "exit"

    def close(self) -> None:
        """Read what is left, which is the most telling, and close the pipes."""
        with contextlib.suppress(OSError, ValueError):
            for _ in range(64):
                if not self._selector.get_map() or not self._selector.select(0):
                    break
                self._read(0)
        self._selector.close()
        for pipe in (*self._pipes, self._process.stdin):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _read(self, timeout: float) -> None:
        for key, _ in self._selector.select(timeout):
            try:
                data = os.read(key.fd, 1 << 16)
            except BlockingIOError:  # pragma: no cover - a spurious wake-up
                continue
            if not data:
                self._selector.unregister(key.fileobj)
            elif key.fileobj is self._process.stderr:
                self._tail = (self._tail + data)[-_STDERR_TAIL:]
            else:
                self._read_progress(data)

    def _read_progress(self, data: bytes) -> None:
        *lines, self._line = (self._line + data).split(b"\n")
        if len(self._line) > _LINE_MAX:
            self._line = b""
        if START_LINE in lines:
            self.has_started = True
            lines.remove(START_LINE)
        if not lines or self._on_progress is None:
            return
        try:
            fraction, message = json.loads(lines[-1])  # Only the newest is of interest.
            fraction, message = min(1.0, max(0.0, float(fraction))), str(message)[:200]
        except (ValueError, TypeError):
            return  # A child that is being killed may leave half a line.
        self._on_progress(fraction, message)


def _has_exited(process: subprocess.Popen[bytes]) -> bool:
    """Whether it ended. Where the system can, it is not collected by that: until then its number stays its own."""
    if process.returncode is None and hasattr(os, "waitid"):
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    return process.poll() is not None


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the child and whatever it started, and wait for its end."""
    if process.returncode is None:  # Not collected yet, so that the group's number cannot belong to another process.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE_SEC)


def _read_outcome(
    job_dir: Path, returncode: int, report: type[M], limits: SandboxLimits, stderr: str
) -> M | Refused | Failed | NoRoom | HostFault:
    """The outcome of a child that ended by itself."""
    if returncode < 0:
        return _describe_signal(-returncode, limits, stderr)
    if returncode == DISK_FULL:
        return no_room(job_dir)
    path = job_dir / RESULT
    try:
        if returncode == 0 and path.stat().st_size <= _RESULT_MAX:
            ending = decode(path.read_bytes(), report, Refused, Failed, NoRoom, HostFault)
            return (
                replace(ending, stderr=stderr) if isinstance(ending, Failed) else cast(M | Refused | NoRoom | HostFault, ending)
            )
    except (OSError, ValueError, KeyError, TypeError):
        pass  # It left no result, or half of one.
    return Failed("crash", f"crash: the child exited with status {returncode} and no result{_last_line(stderr)}", stderr)


def _describe_signal(number: int, limits: SandboxLimits, stderr: str) -> Failed:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    if number == signal.SIGXCPU:
        return Failed("timeout", "timeout: it used up its processor time", stderr)
    if number == signal.SIGKILL:
        return Failed("killed", "crash: the child was killed by SIGKILL; a machine that is short of memory does this", stderr)
    if "bad_alloc" in stderr or "ould not allocate memory" in stderr:
        return Failed("memory", f"memory: it needed more than its {limits.memory_mb} MiB and died of {name}", stderr)
    return Failed("crash", f"crash: the child died of {name}{_last_line(stderr)}", stderr)


def _last_line(stderr: str) -> str:
    lines = stderr.splitlines()
    return f" ({lines[-1].strip()[:300]})" if lines else ""
