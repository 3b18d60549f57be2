"""A stand-in for `ampref_service.reader_child` whose task does what it is told. Started by path."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO

from amp_core.children import limit_process, tie_to_parent
from ampref_service.reader_child import serve


def misbehave(file: BinaryIO, *, what: str, once: str | None = None, **_: Any) -> Any:
    """Do `what`; where `once` names a file, only until that is there."""
    if once is not None:
        if Path(once).exists():
            return "well"
        Path(once).touch()
    match what:
        case "spin":
            while True:
                pass
        case "sleep":
            return time.sleep(600)
        case "swallow":
            return len(bytes(1 << 30))
        case "raise":
            raise ZeroDivisionError("no fault of the file")
        case "leave":
            os._exit(7)
        case "environment":
            return dict(os.environ)
        case "niceness":
            return os.nice(0)
        case "well":
            return "well"
        case _:
            os.kill(os.getpid(), signal.Signals[what])
    return time.sleep(600)


if __name__ == "__main__":
    descriptor, parent, memory_mb, file_mb = map(int, sys.argv[1:])
    tie_to_parent(parent)
    limit_process(memory_mb=memory_mb, file_mb=file_mb, open_files=64)
    serve(socket.socket(fileno=descriptor), {"misbehave": misbehave})
