"""One piece of work in a fresh child process that can be stopped at any moment.

MuJoCo is C: inside `mj_step` Python sees no signal, a bad model can crash the interpreter, and a hostile clip may ask for
more memory than there is. So the work runs in `python -m ampref_workers.child JOBDIR`, and whatever happens there is an
`Outcome` here, never an exception:

    Succeeded(result)           the child's own result; its files lie in the job folder
    Refused(error)              the input cannot be used: the facts of an `AmprefError`; trying again would change nothing
    Failed(kind, reason)        timeout | memory | crash | exception: costs an attempt
    NoRoom(reason)              the disk is full: nobody's fault, so it costs none
    Stopped()                   the caller asked for it (cancelled, lease lost, shutting down)

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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal

from amp_core.kernels import pinned
from ampref_workers.child import DISK_FULL

__all__ = ["CHILD", "Failed", "Limits", "NoRoom", "Outcome", "Refused", "Stopped", "Succeeded", "run", "write_request"]

CHILD: tuple[str, ...] = (sys.executable, "-P", "-m", "ampref_workers.child")
"""The command that the job folder is appended to. `-P` keeps the job folder, where it runs, off the import path."""

_ROOT = Path(__file__).resolve().parent.parent
_KEPT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "VIRTUAL_ENV")
_ONE_THREAD = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
_TICK_SEC = 0.1
_GRACE_SEC = 5.0  # for the kernel to take a killed process away
_STDERR_TAIL = 4_000  # bytes kept of what the child wrote there
_LINE_MAX = 64 << 10  # bytes; a longer progress line is dropped rather than collected
_RESULT_MAX = 64 << 20  # bytes of result.json

FailureKind = Literal["timeout", "memory", "crash", "exception"]


@dataclass(frozen=True)
class Limits:
    """What one child may use.

    Args:
      timeout_sec: wall clock from start to exit, interpreter start included.
      memory_mb: MiB of private memory. On Linux files that are only mapped for reading do not count (`RLIMIT_DATA`);
        elsewhere it is the address space (`RLIMIT_AS`), and systems that do not enforce that only have the clock.
      cpu_sec: processor seconds, all threads together; `None` is twice the wall clock and a bit.
      file_mb: MiB of the largest file that it may write.
      open_files: descriptors.
      nice: added to the niceness from the first instruction on, so that the API on the same machine stays quick.
    """

    timeout_sec: float = 120.0
    memory_mb: int = 2048
    cpu_sec: int | None = None
    file_mb: int = 1024
    open_files: int = 256
    nice: int = 10


@dataclass(frozen=True)
class Succeeded:
    """The child ended well. `result` is what it returned."""

    result: dict[str, Any]


@dataclass(frozen=True)
class Refused:
    """The input cannot be used. `error` is `AmprefError.to_dict()`."""

    error: dict[str, Any]


@dataclass(frozen=True)
class Failed:
    """The child did not end well. `reason` is one sentence for people; `stderr` the end of what it wrote there."""

    kind: FailureKind
    reason: str
    stderr: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The failure as JSON-ready facts, of the same shape as an `AmprefError`'s."""
        facts: dict[str, Any] = {"type": f"child-{self.kind}", "title": "The work did not end well", "detail": self.reason}
        return facts | ({"stderr": self.stderr} if self.stderr else {})


@dataclass(frozen=True)
class Stopped:
    """The child was killed because `should_stop` said so."""


@dataclass(frozen=True)
class NoRoom:
    """The child found a disk full. `reason` is one sentence for people, which names the folder."""

    reason: str


Outcome = Succeeded | Refused | Failed | NoRoom | Stopped


def write_request(job_dir: Path, request: dict[str, Any]) -> None:
    """Put `request` where the child reads it."""
    (job_dir / "request.json").write_text(json.dumps(request, allow_nan=False), encoding="utf-8")


def run(
    job_dir: Path,
    limits: Limits,
    *,
    on_progress: Callable[[float, str], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    command: Sequence[str] = CHILD,
) -> Outcome:
    """Run one child over a job folder that holds its `request.json`, and wait for its end.

    Args:
      job_dir: a private folder; the child's working folder, and all that it should write to.
      limits: what it may use.
      on_progress: called in this thread with the fraction done, 0 to 1, and a word on what is being done.
      should_stop: asked about ten times a second; the child is killed once it says yes.
      command: what to start; `JOBDIR` is appended. Tests put a misbehaving child here; no request can.

    No child is left when this returns or raises, and none survives this process.
    """
    job_dir = job_dir.resolve()
    (job_dir / "result.json").unlink(missing_ok=True)
    progress_read, progress_write = os.pipe()
    try:
        (job_dir / "sandbox.json").write_text(
            json.dumps({"parent": os.getpid(), "progress_fd": progress_write, "limits": asdict(limits)}), encoding="utf-8"
        )
        process = subprocess.Popen(
            [*command, str(job_dir)],
            cwd=job_dir,
            env=_environment(job_dir),
            stdin=subprocess.PIPE,  # never written to: its end tells the child that the parent is gone
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(progress_write,),
            # A group, not a session: Linux shares the processor out among sessions first, and niceness counts only within one.
            process_group=0,
        )
        with contextlib.suppress(OSError):  # It may have ended already.
            os.setpriority(os.PRIO_PROCESS, process.pid, os.getpriority(os.PRIO_PROCESS, 0) + limits.nice)
    except BaseException:
        os.close(progress_read)
        raise
    finally:
        os.close(progress_write)
    watch = _Watch(process, os.fdopen(progress_read, "rb", buffering=0), on_progress)
    try:
        ended = watch.until_exit(time.monotonic() + limits.timeout_sec, should_stop)
    finally:
        _kill(process)
        watch.close()
    if ended == "stopped":
        return Stopped()
    if ended == "timeout":
        return Failed("timeout", f"timeout: still running after {limits.timeout_sec:g} s, so it was killed", watch.stderr())
    return _outcome(job_dir, process.returncode, limits, watch.stderr())


class _Watch:
    """Reads a child's two pipes until it exits, so that it can never block on a full one."""

    def __init__(
        self, process: subprocess.Popen[bytes], progress: IO[bytes], on_progress: Callable[[float, str], None] | None
    ) -> None:
        assert process.stderr is not None
        self._process = process
        self._on_progress = on_progress
        self._line = b""
        self._tail = b""
        self._pipes = {progress: self._read_progress, process.stderr: self._read_stderr}
        self._selector = selectors.DefaultSelector()
        for pipe in self._pipes:
            os.set_blocking(pipe.fileno(), False)
            self._selector.register(pipe, selectors.EVENT_READ)

    def until_exit(self, deadline: float, should_stop: Callable[[], bool] | None) -> Literal["exit", "timeout", "stopped"]:
        """Wait for the exit, the deadline (monotonic, s) or `should_stop`, whichever is first."""
        while not _has_exited(self._process):
            if should_stop is not None and should_stop():
                return "stopped"
            left = deadline - time.monotonic()
            if left <= 0:
                return "timeout"
            tick = min(_TICK_SEC, left)
            if self._selector.get_map():
                self._read(tick)
            else:
                time.sleep(min(tick, 0.005))  # Both pipes are at their end, as they are when it is exiting.
        self._read(0)
        return "exit"

    def _read(self, timeout: float) -> None:
        for key, _ in self._selector.select(timeout):
            pipe: Any = key.fileobj
            try:
                data = os.read(key.fd, 1 << 16)
            except BlockingIOError:  # pragma: no cover - a spurious wake-up
                continue
            if data:
                self._pipes[pipe](data)
            else:
                self._selector.unregister(pipe)

    def _read_progress(self, data: bytes) -> None:
        *lines, self._line = (self._line + data).split(b"\n")
        if len(self._line) > _LINE_MAX:
            self._line = b""
        for line in lines[-1:]:  # only the newest is of interest
            try:
                fraction, message = json.loads(line)
                fraction, message = min(1.0, max(0.0, float(fraction))), str(message)[:200]
            except (ValueError, TypeError):
                continue  # A child that is being killed may leave half a line.
            if self._on_progress is not None:
                self._on_progress(fraction, message)

    def _read_stderr(self, data: bytes) -> None:
        self._tail = (self._tail + data)[-_STDERR_TAIL:]

    def stderr(self) -> str:
        return self._tail.decode("utf-8", "replace").strip()

    def close(self) -> None:
        # What it said in its last moment is the most telling.
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


def _has_exited(process: subprocess.Popen[bytes]) -> bool:
    """Whether it ended, without collecting it where that can be told apart: until then its number stays its own."""
    if process.returncode is None and hasattr(os, "waitid"):
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    return process.poll() is not None


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the child and whatever it started, and wait until it is gone."""
    if process.returncode is None:  # Not collected yet, so that the group's number cannot belong to anybody else.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE_SEC)


def _environment(job_dir: Path) -> dict[str, str]:
    """The child's environment: a short list of harmless names, so that no database URL, token or proxy setting gets in."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return (
        kept
        | dict.fromkeys(_ONE_THREAD, "1")
        | pinned()
        | {
            "HOME": str(job_dir),
            "TMPDIR": str(job_dir),
            "PYTHONPATH": str(_ROOT),
            "PYTHONHASHSEED": "0",
            "PYTHONUTF8": "1",
            "PYTHONNOUSERSITE": "1",
        }
    )


def _outcome(job_dir: Path, returncode: int, limits: Limits, stderr: str) -> Outcome:
    """What a child that ended by itself left behind."""
    if returncode < 0:
        return _killed(-returncode, limits, stderr)
    # The job's own folder, all that a child writes to, is a passing thing; the one above it is what the operator knows.
    no_room = NoRoom(f"no space left for jobs in {job_dir.parent}")
    if returncode == DISK_FULL:
        return no_room
    result = _read_result(job_dir) if returncode == 0 else None
    if result is None:
        return Failed("crash", f"crash: the child exited with status {returncode} and no result{_last_line(stderr)}", stderr)
    match result.get("outcome"):
        case "succeeded":
            return Succeeded(result["result"])
        case "refused":
            return Refused(result["error"])
        case "memory":
            return Failed("memory", f"memory: it needed more than its {limits.memory_mb} MiB", stderr)
        case "disk":
            return no_room
        case _:
            return Failed("exception", f"exception: {result.get('reason', 'not told')}", stderr)


def _killed(number: int, limits: Limits, stderr: str) -> Failed:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    if number == signal.SIGXCPU:
        return Failed("timeout", "timeout: it used up its processor time", stderr)
    if number == signal.SIGKILL:
        return Failed("crash", "crash: the child was killed by SIGKILL; a machine that is short of memory does this", stderr)
    if "bad_alloc" in stderr or "ould not allocate memory" in stderr:
        return Failed("memory", f"memory: it needed more than its {limits.memory_mb} MiB and died of {name}", stderr)
    return Failed("crash", f"crash: the child died of {name}{_last_line(stderr)}", stderr)


def _read_result(job_dir: Path) -> dict[str, Any] | None:
    path = job_dir / "result.json"
    try:
        if path.stat().st_size > _RESULT_MAX:
            return None
        result = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) else None


def _last_line(stderr: str) -> str:
    lines = stderr.splitlines()
    return f" ({lines[-1].strip()[:300]})" if lines else ""
