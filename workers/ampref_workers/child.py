"""The child of `ampref_workers.sandbox`: reads one request, does the work, leaves one result.

    python -P -m ampref_workers.child JOBDIR

`JOBDIR/sandbox.json` and `JOBDIR/request.json` are read; `JOBDIR/result.json` is written last and by a rename, so that a result
is complete or missing. The child uses no database, broker or blob store.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import faulthandler
import json
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from amp_core.errors import AmprefError, DiskFull, PhysicsFailed, Unavailable
from amp_core.files import write_file
from amp_core.strict_json import read_json
from ampref_workers.protocol import (
    DISK_FULL,
    REQUEST,
    RESULT,
    SANDBOX,
    Ending,
    Failed,
    LockRequest,
    Progress,
    Refused,
    RolloutRequest,
    Sandbox,
    SandboxLimits,
    Succeeded,
    VerifyRequest,
    encode_ending,
    no_room,
)

__all__ = ["HANDLERS", "Handler", "main", "serve"]

Handler = Callable[[Path, Mapping[str, Any], Progress], dict[str, Any]]
"""Does one request in a job folder and returns its report, both as JSON has them."""

_PR_SET_PDEATHSIG = 1
_PROGRESS_SEC = 0.1
_MEMORY_RESERVE = 64 << 20  # Bytes that are released once memory ran out, so that this can still be reported.


def main() -> None:
    serve(Path(sys.argv[1]), HANDLERS)


def serve(job_dir: Path, handlers: Mapping[str, Handler]) -> None:
    """Do the request in `job_dir` with the handler of its kind, and exit."""
    sandbox = Sandbox.from_dict(read_json((job_dir / SANDBOX).read_bytes()))
    _die_with(sandbox.parent)
    release_memory = _apply_limits(sandbox.limits)
    faulthandler.enable()  # A segfault then leaves the Python stack on stderr.
    os.dup2(2, 1)
    try:
        request = read_json((job_dir / REQUEST).read_bytes())
        handler = handlers[request.pop("kind")]
        data = encode_ending(Succeeded(handler(job_dir, request, _progress_to(sandbox.progress_fd))))
    except Exception as error:
        release_memory()
        if not isinstance(error, AmprefError | MemoryError):
            traceback.print_exception(error)
        data = encode_ending(_describe_failure(error, job_dir, sandbox.limits))
    try:
        write_file(job_dir / RESULT, data)
    except OSError as error:
        if not _is_full(error):
            raise
        os._exit(DISK_FULL)
    # Nothing is left to do, and tearing down an interpreter with C libraries in it is where crashes would no longer matter.
    sys.stderr.flush()
    os._exit(0)


def _describe_failure(error: Exception, job_dir: Path, limits: SandboxLimits) -> Ending:
    # The second is MuJoCo's C allocator.
    if isinstance(error, MemoryError) or (not isinstance(error, AmprefError) and "allocate memory" in str(error).lower()):
        return Failed("memory", f"memory: it needed more than its {limits.memory_mb} MiB")
    if isinstance(error, DiskFull) or _is_full(error):
        return no_room(job_dir)
    if isinstance(error, PhysicsFailed | Unavailable):
        # Not for certain the input's fault: it costs an attempt and may go well the next time.
        return Failed("exception", f"exception: {error}")
    if isinstance(error, AmprefError):
        return Refused(error.to_dict())
    frames = traceback.extract_tb(error.__traceback__)
    place = f" (in {frames[-1].name}, {Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return Failed("exception", "exception: " + f"{type(error).__name__}: {error}"[:1000] + place)


def _is_full(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _die_with(parent: int) -> None:
    """Make sure that this process does not outlive its parent, even when that is killed with SIGKILL.

    Linux sends a signal when the thread that started this process ends. Where that call is missing, a thread waits for the end
    of standard input, whose other end only the parent holds. Both are set up, as either is cheap.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # It died before the call above.
        os._exit(1)

    def wait_for_end() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 1):
                pass
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait_for_end, name="parent", daemon=True).start()


def _apply_limits(limits: SandboxLimits) -> Callable[[], None]:
    """Limit this process; the result is a call that releases the memory held in reserve."""
    cpu = limits.cpu_sec or int(2 * limits.timeout_sec) + 5
    _lower(resource.RLIMIT_CORE, 0, 0)
    # Reaching the lower of the two is SIGXCPU, which names the cause; reaching the upper is SIGKILL.
    _lower(resource.RLIMIT_CPU, cpu, cpu + 5)
    _lower(resource.RLIMIT_FSIZE, limits.file_mb << 20, limits.file_mb << 20)
    _lower(resource.RLIMIT_NOFILE, limits.open_files, limits.open_files)
    kind = resource.RLIMIT_DATA if sys.platform == "linux" else resource.RLIMIT_AS
    memory = limits.memory_mb << 20

    def limit_memory(reserve: int) -> None:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(kind, (memory + reserve, memory + _MEMORY_RESERVE))

    limit_memory(0)
    return lambda: limit_memory(_MEMORY_RESERVE)


def _lower(kind: int, soft: int, hard: int) -> None:
    hard_limit = resource.getrlimit(kind)[1]
    if hard_limit != resource.RLIM_INFINITY:
        soft, hard = min(soft, hard_limit), min(hard, hard_limit)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(kind, (soft, hard))


def _progress_to(descriptor: int) -> Progress:
    """Progress as JSON lines on a pipe, at most ten a second, the last always."""
    last = 0.0

    def report(fraction: float, message: str = "") -> None:
        nonlocal last
        if time.monotonic() - last < _PROGRESS_SEC and fraction < 1:
            return
        last = time.monotonic()
        with contextlib.suppress(OSError):
            os.write(descriptor, json.dumps([float(fraction), message]).encode() + b"\n")

    return report


# The handlers are imported under the limits, as they bring the physics.


def _rollout(job_dir: Path, request: Mapping[str, Any], report: Progress) -> dict[str, Any]:
    from ampref_workers import scoring  # noqa: PLC0415 - under the memory limit

    return scoring.handle(job_dir, RolloutRequest.from_dict(request), report).to_dict()


def _verify(job_dir: Path, request: Mapping[str, Any], report: Progress) -> dict[str, Any]:
    from ampref_workers import verifying  # noqa: PLC0415 - under the memory limit

    return verifying.handle(job_dir, VerifyRequest.from_dict(request), report).to_dict()


def _lock(job_dir: Path, request: Mapping[str, Any], report: Progress) -> dict[str, Any]:
    from ampref_workers import locking  # noqa: PLC0415 - under the memory limit

    return locking.handle(job_dir, LockRequest.from_dict(request), report).to_dict()


HANDLERS: Mapping[str, Handler] = {"rollout": _rollout, "verify": _verify, "lock": _lock}

if __name__ == "__main__":
    main()
