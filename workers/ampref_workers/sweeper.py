"""What runs beside the jobs, once in a while: taking jobs from silent workers, and collecting blobs that no row names."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Protocol, Self

import structlog

from ampref_service.jobs import Swept

__all__ = ["Collector", "Sweeper"]

log = structlog.get_logger("ampref_workers.sweeper")


class Sweeps(Protocol):
    """What can be swept: a `Runner`."""

    def sweep(self) -> Swept: ...


class Collects(Protocol):
    """What can collect garbage: a `Runner`."""

    def collect(self, should_stop: Callable[[], bool]) -> Sequence[str]: ...


class _Periodic:
    """A thread that does something every `every_sec`, until the block that it guards ends. It outlives every error."""

    name = "periodic"

    def __init__(self, every_sec: float, *, first_after_sec: float = 0.0) -> None:
        self._every_sec = every_sec
        self._first_after_sec = first_after_sec
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._loop, name=self.name, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def _do(self) -> None:
        raise NotImplementedError

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _loop(self) -> None:
        pause = self._first_after_sec
        while not self._over.wait(pause):
            try:
                self._do()
            except Exception as error:
                log.warning(f"{self.name}_failed", error=str(error))
            pause = self._every_sec


class Sweeper(_Periodic):
    """Sweeps the job table at once and then every `every_sec`."""

    name = "sweeper"

    def __init__(self, runner: Sweeps, ring: Callable[[Sequence[str]], object], *, every_sec: float) -> None:
        super().__init__(every_sec)
        self._runner = runner
        self._ring = ring

    def _do(self) -> None:
        wake = self._runner.sweep().wake
        if wake:
            self._ring(wake)


class Collector(_Periodic):
    """Collects garbage blobs every `every_sec`; a thread of its own, as listing a large store may outlast a lease."""

    name = "collector"

    def __init__(self, runner: Collects, *, every_sec: float, first_after_sec: float | None = None) -> None:
        # Not at once: many services start together, and none of them should begin with reading a whole store.
        super().__init__(every_sec, first_after_sec=min(every_sec, 60.0) if first_after_sec is None else first_after_sec)
        self._runner = runner

    def _do(self) -> None:
        self._runner.collect(self._over.is_set)
