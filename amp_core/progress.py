"""Progress of long work."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[float, str], None]
"""Called with the share of the work that is done, in [0, 1], and a few words. It may raise to stop the work."""


def scale_progress(progress: Progress | None, begin: float, end: float, prefix: str = "") -> Progress | None:
    """A progress for a part of the work: its shares from 0 to 1 are reported as `begin` to `end`, its texts after `prefix`."""
    if progress is None:
        return None
    return lambda share, text: progress(begin + (end - begin) * share, prefix + text)
