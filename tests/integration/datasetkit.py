"""A locked version and a real HTTP server that serves it, faults on demand included: for the client's tests.

It speaks as much of the API as the client relies on (docs/architecture.md), over the standard library alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from amp_core.dataset import Bundle, Member, RobotFacts, lock_bundle
from amp_core.features import FeatureLayout

JOINTS = ("left_knee", "right_knee")
LAYOUT = FeatureLayout.for_robot(JOINTS, ("left_foot", "right_foot"))


def make_bundle(
    folder: Path, *, clips: int = 3, frames: int = 50, version: str = "0.11.0", seed: int = 0, shard_bytes: int | None = None
) -> Bundle:
    """A version of `walk` from made-up rows; two segments a clip."""
    folder.mkdir(parents=True, exist_ok=True)

    def rows(index: int) -> np.ndarray:
        made = np.random.default_rng([seed, index]).normal(size=(frames, LAYOUT.dim)).astype(np.float32)
        made[:, LAYOUT.block("foot_contacts").slice] = made[:, LAYOUT.block("foot_contacts").slice] > 0
        made[:, LAYOUT.block("root_height").slice] = 0.45
        return made

    members = [
        Member(
            name=f"clip{index}",
            digest="sha256:" + hashlib.sha256(b"%d" % index).hexdigest(),
            tier=0,
            mode="rollout",
            recipe_digest="sha256:" + "1" * 64,
            ranges=((0, frames // 2), (frames // 2 + 1, frames)),
            quality_metrics={"mean_sum_fn_over_mg": 0.9},
            load=lambda index=index: rows(index),
        )
        for index in range(clips)
    ]
    robot = RobotFacts("stick", "sha256:" + "0" * 64, JOINTS, 0.02, LAYOUT)
    facts = {"name": "walk", "version": version, "robot": robot, "mujoco_version": "4.0.1", "gate_profile": "amp-0.11"}
    return lock_bundle(members, folder, shard_bytes=shard_bytes, **facts)


@dataclass
class Site:
    """What the server serves, and what it has seen. Change it while it runs.

    Args:
      before: called with every request's handler; True means that it has answered.
      break_after: file requests left to break off, with the number of body bytes before the break.
    """

    versions: dict[str, Bundle] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    yanked: dict[str, str] = field(default_factory=dict)
    ready: dict[str, bool] = field(default_factory=dict)
    groups: list[dict[str, Any]] = field(default_factory=list)
    contents: dict[str, bytes] = field(default_factory=dict)
    before: Callable[[BaseHTTPRequestHandler], bool] | None = None
    break_after: list[int] = field(default_factory=list)
    ranges: bool = True
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    url: str = ""
    download_origin: str | None = None

    def add(self, bundle: Bundle, version: str = "0.11.0") -> None:
        self.versions[version] = bundle
        self.aliases["latest"] = version
        for file in bundle.files:
            self.contents[f"{version}/{file.name}"] = file.path.read_bytes()

    @property
    def file_requests(self) -> list[tuple[str, str | None]]:
        """File name and Range of every file request so far."""
        return [(path.rpartition("/")[2], given) for _, path, given in self.requests if "/files/" in path]


@contextlib.contextmanager
def serving(site: Site) -> Iterator[Site]:
    """The site on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            site.requests.append((self.command, self.path, self.headers.get("Range")))
            if site.before is not None and site.before(self):
                return
            parts = self.path.split("?")[0].strip("/").split("/")
            match parts:
                case ["v1", "datasets", "walk"]:
                    aliases = {alias: version for alias, version in site.aliases.items() if alias != "latest"}
                    send_json(self, {"name": "walk", "latest": site.aliases.get("latest"), "aliases": aliases})
                case ["v1", "datasets", "walk", "versions", version] if version in site.versions:
                    bundle = site.versions[version]
                    send_json(
                        self,
                        {
                            "dataset": "walk",
                            "version": version,
                            "manifest_sha256": bundle.manifest.sha256,
                            "yanked": version in site.yanked,
                            "yank_reason": site.yanked.get(version),
                            "readiness": {"ready": site.ready.get(version, True), "groups": site.groups},
                            "files": [
                                {"name": file.name, "sha256": file.sha256, "size": len(site.contents[f"{version}/{file.name}"])}
                                for file in bundle.files
                            ],
                            "download_origin": site.download_origin,
                        },
                    )
                case ["v1", "datasets", "walk", "versions", version, "files", file] if f"{version}/{file}" in site.contents:
                    self._file(site.contents[f"{version}/{file}"])
                case _:
                    send_problem(self, 404, "not-found", "there is no such thing", remedy="Look at the list.")

        def do_POST(self) -> None:
            site.requests.append((self.command, self.path, self.headers.get("Range")))
            self.rfile.read(int(self.headers.get("Content-Length", "0")))
            if site.before is None or not site.before(self):
                send_problem(self, 405, "method-not-allowed", "there is nothing to post to")

        def _file(self, data: bytes) -> None:
            etag = f'"{hashlib.sha256(data).hexdigest()}"'
            given, start = self.headers.get("Range"), 0
            if given and site.ranges and self.headers.get("If-Range", etag) == etag:
                start = int(given.removeprefix("bytes=").partition("-")[0])
            self.send_response(206 if start else 200)
            self.send_header("ETag", etag)
            self.send_header("Content-Length", str(len(data) - start))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            body = data[start:]
            if site.break_after and len(body) > 100_000:
                self.wfile.write(body[: site.break_after.pop(0)])
                self.close_connection = True
                return
            with contextlib.suppress(ConnectionError):
                self.wfile.write(body)

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        # Sixteen clients knock at once in one of the tests.
        request_queue_size = 64

        def handle_error(self, *_: Any) -> None:
            pass  # A client that leaves early is part of these tests.

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def send_json(handler: BaseHTTPRequestHandler, value: Any, status: int = 200, **headers: str) -> None:
    body = json.dumps(value).encode()
    handler.send_response(status)
    for name, text in ({"Content-Type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}).items():
        handler.send_header(name, text)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def send_problem(handler: BaseHTTPRequestHandler, status: int, slug: str, what: str, **facts: Any) -> None:
    headers = {"Content_Type": "application/problem+json"}
    send_json(handler, {"type": f"urn:ampref:error:{slug}", "title": slug, "what": what, **facts}, status, **headers)


def redirect(handler: BaseHTTPRequestHandler, target: str, status: int = 307) -> bool:
    """Send the caller to another address."""
    handler.send_response(status)
    handler.send_header("Location", target)
    handler.send_header("Content-Length", "0")
    handler.end_headers()
    return True
