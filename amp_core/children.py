"""What every child process has: an environment without secrets, limits on what it uses, and a tie to its parent.

The parent starts it with `child_environment`; the child's first calls are `tie_to_parent` and `limit_process`. Imports nothing
that a child would have to wait for.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from amp_core.kernels import kernel_variables

__all__ = ["SocketChild", "child_environment", "limit_process", "signal_at_end_of_input", "tie_to_parent"]

_HOST_ENV = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "VIRTUAL_ENV")
_THREAD_COUNTS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
_PR_SET_PDEATHSIG = 1
_GRACE_SEC = 5.0  # For the kernel to take a killed process away.
_MEMORY_RESERVE = 64 << 20  # Bytes that are released once memory ran out, so that this can still be reported.


def child_environment(folder: Path, *files: str) -> dict[str, str]:
    """The environment of a child: a short list of harmless names, so that no database URL, token or proxy setting gets in.

    Args:
      folder: what it takes for its home and for temporary files.
      files: modules (`__file__`) of other packages than this one that it must import from where this process did.
    """
    import_path = dict.fromkeys(str(Path(file).resolve().parents[1]) for file in (__file__, *files))
    return {
        **{name: os.environ[name] for name in _HOST_ENV if name in os.environ},
        **dict.fromkeys(_THREAD_COUNTS, "1"),
        **kernel_variables(),
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "PYTHONPATH": os.pathsep.join(import_path),
        "PYTHONHASHSEED": "0",
        "PYTHONUTF8": "1",
        "PYTHONNOUSERSITE": "1",
    }


class SocketChild:
    """A child process that answers on a socket and is killed where it takes too long.

    Args:
      command: what to start; the descriptor of the child's end of the socket, this process's id and `arguments` are appended.
      folder: its working folder, its home, and where its temporary files go.
      files: as in `child_environment`.
      nice: how much lower than this process its claim on the processor is.
      stderr: where its standard error goes; this process's own by default.

    Raises:
      OSError: it cannot be started.

    Attributes:
      socket: this process's end.
      is_late: whether `watch` has killed it.
    """

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        arguments: Sequence[object] = (),
        *,
        files: Sequence[str] = (),
        nice: int = 0,
        stderr: IO[bytes] | None = None,
    ) -> None:
        self.is_late = False
        self.socket, child_end = socket.socketpair()
        try:
            with child_end:
                self._process = subprocess.Popen(
                    [*command, *map(str, (child_end.fileno(), os.getpid(), *arguments))],
                    cwd=folder,
                    env=child_environment(folder, *files),
                    stdin=subprocess.PIPE,  # Never written to: its end tells the child that the parent died.
                    stdout=subprocess.DEVNULL,
                    stderr=stderr,
                    pass_fds=(child_end.fileno(),),
                    process_group=0,
                )
        except BaseException:
            self.socket.close()
            raise
        with contextlib.suppress(OSError):  # It may have ended already.
            os.setpriority(os.PRIO_PROCESS, self.pid, os.getpriority(os.PRIO_PROCESS, 0) + nice)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    @contextlib.contextmanager
    def watch(self, timeout_sec: float) -> Iterator[None]:
        """Kill it unless the block ends in time."""

        def end() -> None:
            self.is_late = True
            self.kill()

        watchdog = threading.Timer(timeout_sec, end)
        watchdog.daemon = True
        watchdog.start()
        try:
            yield
        finally:
            watchdog.cancel()

    def wait(self) -> int:
        """How it ended, once it was killed or has left: its exit status, or minus the number of a signal."""
        return self._process.wait(_GRACE_SEC)

    def kill(self) -> None:
        """End it and whatever it started."""
        if self._process.returncode is None:  # Not collected yet, so that the number cannot be another process's.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """End it and release what it held here."""
        self.kill()
        self.socket.close()
        assert self._process.stdin is not None
        self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE_SEC)


def tie_to_parent(parent: int) -> None:
    """Make sure that this process does not outlive its parent, even when that is killed with SIGKILL.

    Linux sends a signal when the thread that started this process ends. Where that call is missing, a thread waits for the end
    of standard input, whose other end only the parent holds. Both are set up, as either is cheap.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # It died before the call above.
        os._exit(1)
    signal_at_end_of_input(signal.SIGKILL)


def signal_at_end_of_input(number: int) -> None:
    """Send a signal to this process once its parent, which holds the other end of standard input, is gone for any reason."""

    def wait_for_end() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                pass
        os.kill(os.getpid(), number)

    threading.Thread(target=wait_for_end, name="parent", daemon=True).start()


def limit_process(*, memory_mb: int, file_mb: int, open_files: int, cpu_sec: int | None = None) -> Callable[[], None]:
    """Limit this process; the result is a call that releases the memory held in reserve.

    Args:
      memory_mb: MiB of private memory. On Linux files that are only mapped for reading do not count (`RLIMIT_DATA`);
        elsewhere it is the address space (`RLIMIT_AS`), which some systems do not enforce.
      file_mb: MiB of the largest file that it may write.
      open_files: descriptors.
      cpu_sec: processor seconds, all threads together; None for no limit.
    """
    _lower(resource.RLIMIT_CORE, 0, 0)
    if cpu_sec is not None:
        # Reaching the lower of the two is SIGXCPU, which names the cause; reaching the upper is SIGKILL.
        _lower(resource.RLIMIT_CPU, cpu_sec, cpu_sec + 5)
    _lower(resource.RLIMIT_FSIZE, file_mb << 20, file_mb << 20)
    _lower(resource.RLIMIT_NOFILE, open_files, open_files)
    kind = resource.RLIMIT_DATA if sys.platform == "linux" else resource.RLIMIT_AS
    memory = memory_mb << 20

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
