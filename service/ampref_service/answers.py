"""Answers that took long to compute, kept for some seconds: a page asks for the same numbers again and again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from typing import Any, TypeVar, cast

T = TypeVar("T")

KEEP_SEC = 5.0
SLOW_SEC = 0.03
"""An answer that took less is computed anew each time."""
_MAX_ENTRIES = 256

read_clock = time.monotonic


class AnswerCache:
    """Keeps slow answers of this process for `KEEP_SEC`. Safe between threads; who asks for the same at once waits for one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[Hashable, tuple[float, Any]] = {}
        self._turns: dict[Hashable, threading.Lock] = {}

    def get(self, key: Hashable, compute: Callable[[], T]) -> T:
        """The answer under a key, which must say everything that it depends on but for the catalog's rows."""
        with self._lock:
            turn = self._turns.setdefault(key, threading.Lock())
        with turn:
            begin = read_clock()
            entry = self._entries.get(key)
            if entry is not None and begin < entry[0]:
                return cast(T, entry[1])
            try:
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
