"""Threads that work beside the main one."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

__all__ = ["running_thread"]


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
