"""Where the command begins: Ctrl-C is answered from the first moment on, while the rest is still being imported."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130


def _leave(signum: int, frame: FrameType | None) -> NoReturn:
    os._exit(INTERRUPTED)


def main() -> NoReturn:
    """The console script."""
    # A shell that starts us in the background ignores Ctrl-C for us, and that stays.
    watched = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if watched:
        # Nothing is open yet, so that leaving at once harms nothing. An exception would come out in the middle of some import,
        # as a traceback, or as another exception of a library that was being loaded.
        signal.signal(signal.SIGINT, _leave)
    from amp_core.kernels import pinned

    os.environ.update(pinned())  # Before anything loads numpy.
    from amp_core.cli.main import main as run

    if watched:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()
