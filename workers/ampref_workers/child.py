"""The child of `ampref_workers.sandbox`: reads one request, does the work, leaves one result.

    python -P -m ampref_workers.child JOBDIR

`JOBDIR/sandbox.json` and `JOBDIR/request.json` are read; `JOBDIR/result.json` is written last and by a rename, so that a result
is complete or missing. The child uses no database, broker or blob store.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import pkgutil
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path

from amp_core.children import limit_process, tie_to_parent
from amp_core.errors import AmprefError, DiskFull, EngineRefused, PhysicsFailed, RobotRefused, Unavailable
from amp_core.files import NO_ROOM, write_file
from amp_core.progress import Progress
from ampref_workers.protocol import (
    DISK_FULL,
    REQUEST,
    RESULT,
    SANDBOX,
    START_LINE,
    Failed,
    HostFault,
    LockRequest,
    Message,
    NoRoom,
    ProbeRequest,
    Refused,
    RolloutRequest,
    Sandbox,
    SandboxLimits,
    ThumbnailRequest,
    VerifyRequest,
    decode,
    no_room,
)

__all__ = ["HANDLERS", "main", "serve"]

HANDLERS: Mapping[type[Message], str] = {
    ProbeRequest: "ampref_workers.scoring:probe",
    RolloutRequest: "ampref_workers.scoring:handle",
    VerifyRequest: "ampref_workers.verifying:handle",
    LockRequest: "ampref_workers.locking:handle",
    ThumbnailRequest: "ampref_workers.drawing:handle",
}
"""What does each request and returns its report, `handle(job_dir, request, progress)`: imported under the limits, as it brings
the physics."""

_PROGRESS_SEC = 0.1


def main() -> None:
    serve(Path(sys.argv[1]), HANDLERS)


def serve(job_dir: Path, handlers: Mapping[type[Message], str]) -> None:
    """Do the request in `job_dir` with its handler (`module:function`), and exit."""
    sandbox = decode((job_dir / SANDBOX).read_bytes(), Sandbox)
    limits = sandbox.limits
    tie_to_parent(sandbox.parent)
    release_memory = limit_process(
        memory_mb=limits.memory_mb,
        file_mb=limits.file_mb,
        open_files=limits.open_files,
        cpu_sec=limits.cpu_sec or int(2 * limits.timeout_sec) + 5,
    )
    faulthandler.enable()  # A segfault then leaves the Python stack on stderr.
    os.dup2(2, 1)
    try:
        request = decode((job_dir / REQUEST).read_bytes(), *handlers)
        handle = pkgutil.resolve_name(handlers[type(request)])
        with contextlib.suppress(OSError):
            os.write(sandbox.progress_fd, START_LINE + b"\n")
        data = handle(job_dir, request, _progress_to(sandbox.progress_fd)).encode()
    except Exception as error:
        release_memory()
        if not isinstance(error, AmprefError | MemoryError):
            traceback.print_exception(error)
        data = _describe_failure(error, job_dir, limits).encode()
    try:
        write_file(job_dir / RESULT, data)
    except OSError as error:
        if not _is_full(error):
            raise
        os._exit(DISK_FULL)
    # Nothing is left to do, and tearing down an interpreter with C libraries in it is where crashes would no longer matter.
    sys.stderr.flush()
    os._exit(0)


def _describe_failure(error: Exception, job_dir: Path, limits: SandboxLimits) -> Refused | Failed | NoRoom | HostFault:
    # The second is MuJoCo's C allocator.
    if isinstance(error, MemoryError) or (not isinstance(error, AmprefError) and "allocate memory" in str(error).lower()):
        return Failed("memory", f"memory: it needed more than its {limits.memory_mb} MiB")
    if isinstance(error, DiskFull) or _is_full(error):
        return no_room(job_dir)
    if isinstance(error, RobotRefused | EngineRefused):
        # Of what is installed here: the catalog has only clips whose robot there was.
        return HostFault(str(error))
    if isinstance(error, PhysicsFailed | Unavailable):
        # Not for certain the input's fault: it costs an attempt and may go well the next time.
        return Failed("exception", f"exception: {error}")
    if isinstance(error, AmprefError):
        return Refused(error.to_dict())
    frames = traceback.extract_tb(error.__traceback__)
    place = f" (in {frames[-1].name}, {Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return Failed("exception", "exception: " + f"{type(error).__name__}: {error}"[:1000] + place)


def _is_full(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in NO_ROOM


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


if __name__ == "__main__":
    main()
