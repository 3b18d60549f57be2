"""The API as a process behind a real socket."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil

MIB = 1024 * 1024


class Served:
    """A running server."""

    def __init__(self, process: subprocess.Popen[str], port: int, folder: Path) -> None:
        self.process = process
        self.folder = folder
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def readers(self) -> list[psutil.Process]:
        """The processes that read uploads."""
        children = psutil.Process(self.process.pid).children()
        return [child for child in children if "ampref_service.reader_child" in child.cmdline()]

    def spooled(self) -> set[str]:
        """The open files of uploads, which have no name in their folder."""
        links = set()
        for descriptor in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                links.add(str(descriptor.readlink()))
        return {link for link in links if "/uploads/" in link}

    def memory(self) -> int:
        """bytes, the most that was ever resident of the API's process."""
        return peak_memory(self.process.pid)

    def memory_with_readers(self) -> int:
        """The same, with the peaks of its readers added."""
        return self.memory() + sum(peak_memory(reader.pid) for reader in self.readers())


def peak_memory(pid: int) -> int:
    """bytes, the most that was ever resident of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


@contextlib.contextmanager
def serving(folder: Path, *, stderr: Any = None, **overrides: Any) -> Iterator[Served]:
    command = [sys.executable, str(Path(__file__).with_name("api") / "server.py"), str(folder)]
    command += [f"{name}={value}" for name, value in overrides.items()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            served = Served(process, port, folder)
            for _ in range(600):
                with contextlib.suppress(httpx2.TransportError):
                    if httpx2.get(served.url + "/healthz").status_code == 200:
                        break
                time.sleep(0.05)
            yield served
        finally:
            process.kill()
