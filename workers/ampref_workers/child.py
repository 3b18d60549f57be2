"""The child of `ampref_workers.sandbox`: reads one request, does it, leaves one result.

    python -P -m ampref_workers.child JOBDIR

`JOBDIR/sandbox.json` (limits, parent, progress pipe) and `JOBDIR/request.json` (the work) are read; `JOBDIR/result.json` is
written last and by a rename, so that a result is whole or not there. Nothing here knows a database, a broker or a blob store.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import json
import os
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

__all__ = ["DISK_FULL", "HANDLERS", "Handler", "Report", "main", "serve"]

Report = Callable[[float, str], None]
"""Called with the fraction done (0 to 1) and a word on what is being done."""

Handler = Callable[[Path, dict[str, Any], Report], dict[str, Any]]
"""Does one request in a job folder and returns its JSON-ready result."""

DISK_FULL = 73
"""The exit status of a child that had no room to write even its result (`EX_CANTCREAT`)."""

_PR_SET_PDEATHSIG = 1
_REPORT_SEC = 0.1
_MEMORY_RESERVE = 64 << 20  # bytes that are let go of once memory ran out, so that this can still be told


def main(argv: list[str] | None = None) -> int:
    return serve(sys.argv[1:] if argv is None else argv, HANDLERS)


def serve(argv: list[str], handlers: Mapping[str, Handler]) -> int:
    """Do the request in the folder `argv[0]` with the handler of its kind."""
    job_dir = Path(argv[0])
    sandbox = json.loads((job_dir / "sandbox.json").read_bytes())
    _die_with(sandbox["parent"])
    more_memory = _limit(sandbox["limits"])
    faulthandler.enable()  # A segfault then leaves the Python stack on stderr.
    os.dup2(2, 1)
    report = _reporter(sandbox["progress_fd"])
    try:
        request = json.loads((job_dir / "request.json").read_bytes())
        outcome = {"outcome": "succeeded", "result": handlers[request["kind"]](job_dir, request, report)}
        text = json.dumps(outcome, allow_nan=False)
    except MemoryError:
        more_memory()
        text = json.dumps({"outcome": "memory"})
    except DiskFull:
        text = json.dumps({"outcome": "disk"})
    except (PhysicsFailed, Unavailable) as error:
        # Not the input's fault for certain: it costs an attempt and may go well the next time.
        text = json.dumps({"outcome": "exception", "reason": str(error)})
    except AmprefError as error:
        text = json.dumps({"outcome": "refused", "error": error.to_dict()})
    except Exception as error:
        more_memory()
        traceback.print_exc()
        text = json.dumps(_told(error))
    try:
        write_file(job_dir / "result.json", text.encode())
    except OSError as error:
        if not _no_room(error):
            raise
        os._exit(DISK_FULL)
    # Nothing is left to do, and tearing down an interpreter with C libraries in it is where crashes would no longer matter.
    sys.stderr.flush()
    os._exit(0)


def _told(error: Exception) -> dict[str, Any]:
    if "allocate memory" in str(error).lower():  # MuJoCo's own words, from its C allocator
        return {"outcome": "memory"}
    if _no_room(error):
        return {"outcome": "disk"}
    frames = traceback.extract_tb(error.__traceback__)
    where = f" (in {frames[-1].name}, {Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return {"outcome": "exception", "reason": f"{type(error).__name__}: {error}"[:1000] + where}


def _no_room(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _die_with(parent: int) -> None:
    """Make sure that this process does not outlive its parent, even when that is killed with SIGKILL.

    Linux sends a signal when the thread that started us ends. Where that call is missing, the end of standard input, whose
    other end only the parent holds, tells the same to a thread; both are set up, as either is cheap.
    """
    if sys.platform == "linux":
        import ctypes

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


def _limit(limits: dict[str, Any]) -> Callable[[], None]:
    """Apply `sandbox.Limits` to this process; the result is a call that lets it have the little memory held back."""
    import resource

    cpu = limits["cpu_sec"] or int(2 * limits["timeout_sec"]) + 5
    _lower(resource.RLIMIT_CORE, 0)
    # Reaching the lower of the two is SIGXCPU, which names the cause; reaching the upper is SIGKILL.
    _lower(resource.RLIMIT_CPU, int(cpu), int(cpu) + 5)
    _lower(resource.RLIMIT_FSIZE, int(limits["file_mb"]) << 20)
    _lower(resource.RLIMIT_NOFILE, int(limits["open_files"]))
    kind = resource.RLIMIT_DATA if sys.platform == "linux" else resource.RLIMIT_AS
    memory = int(limits["memory_mb"]) << 20
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(kind, (memory, memory + _MEMORY_RESERVE))

    def more_memory() -> None:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(kind, (memory + _MEMORY_RESERVE, memory + _MEMORY_RESERVE))

    return more_memory


def _lower(kind: int, soft: int, hard: int | None = None) -> None:
    import resource

    hard = soft if hard is None else hard
    allowed = resource.getrlimit(kind)[1]
    if allowed != resource.RLIM_INFINITY:
        soft, hard = min(soft, allowed), min(hard, allowed)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(kind, (soft, hard))


def _reporter(descriptor: int) -> Report:
    """Progress as JSON lines on a pipe, at most ten a second, the last always."""
    told = [0.0]

    def report(fraction: float, message: str = "") -> None:
        now = time.monotonic()
        if now - told[0] < _REPORT_SEC and fraction < 1:
            return
        told[0] = now
        with contextlib.suppress(OSError):
            os.write(descriptor, json.dumps([float(fraction), message]).encode() + b"\n")

    return report


def _rollout(job_dir: Path, request: dict[str, Any], report: Report) -> dict[str, Any]:
    from ampref_workers import scoring  # Imported here, under the limits, as it brings the physics with it.

    return scoring.handle(job_dir, request, report)


def _lock(job_dir: Path, request: dict[str, Any], report: Report) -> dict[str, Any]:
    from ampref_workers import locking

    return locking.handle(job_dir, request, report)


def _verify(job_dir: Path, request: dict[str, Any], report: Report) -> dict[str, Any]:
    from ampref_workers import verifying

    return verifying.handle(job_dir, request, report)


HANDLERS: dict[str, Handler] = {"rollout": _rollout, "verify": _verify, "lock": _lock}

if __name__ == "__main__":
    sys.exit(main())
