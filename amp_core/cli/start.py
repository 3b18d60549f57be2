"""Where the command starts: Ctrl-C is answered at once, while the rest is still being imported."""

from __future__ import annotations

import os
import signal
from typing import NoReturn

from amp_core.cli.exit_codes import INTERRUPTED


def main() -> NoReturn:
    """The console script."""
    # A shell that starts the command in the background has it ignore Ctrl-C, and that stays.
    is_handled = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_handled:
        # Nothing is open yet, so that exiting at once harms nothing. An exception would come out in the middle of an import, as
        # a traceback, or as another exception of the library that was being loaded.
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    from amp_core.kernels import kernel_variables  # noqa: PLC0415 - Ctrl-C first, then the kernels, then numpy

    os.environ.update(kernel_variables())  # Before anything loads numpy.
    from amp_core.cli.main import main as run  # noqa: PLC0415 - Ctrl-C first, then the kernels, then numpy

    if is_handled:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()
