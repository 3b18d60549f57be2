"""Answers that took long to compute, kept for some seconds: a page asks for the same numbers again and again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from typing import Any, TypeVar, cast

from amp_core.errors import Busy

T = TypeVar("T")

KEEP_SEC = 5.0
SLOW_SEC = 0.03
"""An answer that took less is computed anew each time."""
_MAX_ENTRIES = 256
_AT_ONCE = 3
_WAITING = 16
"""Answers that are computed at a time, and that may wait for that: each holds one of the threads that serve everything."""

read_clock = time.monotonic


class AnswerCache:
    """Keeps slow answers of this process for `KEEP_SEC`. Safe between threads; who asks for the same at once waits for one.

    Few are computed at a time and few may wait, also for clients that have left: the catalog has other readers.
    """

    def __init__(self) -> None:
        self._places = threading.BoundedSemaphore(_AT_ONCE + _WAITING)
        self._computing = threading.BoundedSemaphore(_AT_ONCE)
        self._lock = threading.Lock()
        self._entries: dict[Hashable, tuple[float, Any]] = {}
        self._turns: dict[Hashable, threading.Lock] = {}

    def get(self, key: Hashable, compute: Callable[[], T]) -> T:
        """The answer under a key, which must say everything that it depends on but for the catalog's rows.

        Raises:
          Busy: too many wait for one.
        """
        if not self._places.acquire(blocking=False):
            raise Busy("too many counts of the catalog are being made", remedy="Try again in a moment")
        try:
            return self._get(key, compute)
        finally:
            self._places.release()

    def _get(self, key: Hashable, compute: Callable[[], T]) -> T:
        with self._lock:
            turn = self._turns.setdefault(key, threading.Lock())
        with turn:
            begin = read_clock()
            entry = self._entries.get(key)
            if entry is not None and begin < entry[0]:
                return cast(T, entry[1])
            try:
                with self._computing:
                    answer = compute()
            finally:
                with self._lock:
                    self._turns.pop(key, None)
            end = read_clock()
            if end - begin >= SLOW_SEC:
                with self._lock:
                    if len(self._entries) >= _MAX_ENTRIES:
                        self._entries = {name: entry for name, entry in self._entries.items() if entry[0] > end}
                    if len(self._entries) < _MAX_ENTRIES:
                        self._entries[key] = (end + KEEP_SEC, answer)
            return answer
