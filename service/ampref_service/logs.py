"""Logging: structlog over the standard library, so that uvicorn's, Celery's and our own lines have one form."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import structlog

_HANDLER = "ampref"
_SECONDS_BETWEEN = 1.0


class RepeatingLog:
    """Logs what comes by the hundred, such as errors while something is away: one line a second of each kind, and how many it
    stands for.

    Args:
      log: where to.
    """

    def __init__(self, log: Any) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._kinds: dict[tuple[str, str], tuple[float, int]] = {}  # When a kind was logged last; how many came since.

    def error(self, event: str, kind: str, **facts: Any) -> None:
        """Log an error, or count it for the next line of its kind, which then has `repeats`."""
        self._write(self._log.error, event, kind, facts)

    def warning(self, event: str, kind: str, **facts: Any) -> None:
        """The same as a warning."""
        self._write(self._log.warning, event, kind, facts)

    def _write(self, write: Callable[..., Any], event: str, kind: str, facts: Mapping[str, Any]) -> None:
        now = time.monotonic()
        with self._lock:
            logged_at, repeats = self._kinds.get((event, kind), (-_SECONDS_BETWEEN, 0))
            is_due = now - logged_at >= _SECONDS_BETWEEN
            self._kinds[event, kind] = (now, 0) if is_due else (logged_at, repeats + 1)
        if is_due:
            write(event, **facts, **({"repeats": repeats} if repeats else {}))


def configure(level: str = "info", *, json: bool = False) -> None:
    """Send every log line of this process to stderr, as text for people or one JSON object a line.

    Calling it again replaces what an earlier call set up.
    """
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    render: list[Any]
    if json:
        render = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(sort_keys=True)]
    else:
        render = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)]
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render]
        )
    )
    root = logging.getLogger()
    handler.name = _HANDLER
    for previous in [previous for previous in root.handlers if previous.name == _HANDLER]:
        root.removeHandler(previous)
    root.addHandler(handler)
    root.setLevel(level.upper())
    for noisy in ("alembic", "sqlalchemy.engine"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))
