"""Threads that work beside the main one."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator

__all__ = ["running_thread", "signal_at_end_of_input"]


@contextlib.contextmanager
def running_thread(work: Callable[[threading.Event], None], name: str) -> Iterator[None]:
    """Do `work` in a thread while the block runs. At its end the event is set, and the thread is waited for."""
    end = threading.Event()
    thread = threading.Thread(target=work, args=(end,), name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def signal_at_end_of_input(number: int) -> None:
    """Send a signal to this process once its parent, which holds the other end of standard input, is gone for any reason."""

    def wait_for_end() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                pass
        os.kill(os.getpid(), number)

    threading.Thread(target=wait_for_end, name="parent", daemon=True).start()
