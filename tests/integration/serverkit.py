"""The API as a process behind a real socket."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
from catalogkit import make_catalog
from sqlalchemy import update

from ampref_service.blobs import LocalBlobStore
from ampref_service.catalog import Catalog
from ampref_service.catalog.tables import clips
from ampref_service.settings import Settings

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
    make_catalog(f"sqlite:///{folder / 'catalog.sqlite3'}")
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


def plant_file(served: Served, data: bytes | bytearray) -> tuple[str, Path]:
    """Have a server serve these bytes as the file of a clip: the path of its URL, and where they lie."""
    frames = range(51)
    motion = {"fps": 50.0, "root_pos": [[0, 0, 0.45] for _ in frames], "root_rot": [[0, 0, 0, 1] for _ in frames]}
    motion |= {"dof_pos": [[0.01 * i] * 8 for i in frames]}
    clip = httpx2.post(served.url + "/v1/clips", files={"file": ("walk.json", json.dumps(motion).encode())}).json()["clip"]
    store = LocalBlobStore(served.folder / "blobs")
    digest = store.put_bytes(data)
    with contextlib.closing(Catalog.open(Settings(data_dir=served.folder).database_url)) as catalog, catalog.begin() as session:
        session.execute(update(clips).values(blob_digest=digest, size=len(data)))
    path = store.local_path(digest)
    assert path is not None
    return f"/v1/clips/{clip['id']}/file", path
