"""A real browser before a real service with real rollouts. It is Debian's Chromium, driven by Playwright.

A console error, a request to another host, a script's exception and a violation of the content security policy fail the test.
"""

from __future__ import annotations

import importlib.resources
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from amp_core.motions import bundled_motions
from ampref_service.web.assets import load_assets
from bench.bench_pages import BROWSER

AMPREF = str(Path(sys.executable).with_name("ampref"))


def find_chromium() -> str:
    for name in (os.environ.get("AMPREF_TEST_BROWSER", ""), "chromium", "chromium-browser", "google-chrome"):
        if name and (path := shutil.which(name)):
            return path
    pytest.fail("the pages are tested in Chromium, which is not here: apt-get install chromium (or set AMPREF_TEST_BROWSER)")


MESHED = """
      <mesh name="horn" vertex="0 0 0  0.06 0 0  0 0.06 0  0 0 0.12"/>
  </asset>"""


def make_meshed_robot(folder: Path) -> Path:
    """The bundled robot with a mesh on its head, as `meshed`; the path of its `robot.yaml`."""
    source = importlib.resources.files("amp_core") / "robots" / "wildrobot"
    model = (source / "wildrobot.xml").read_text("utf-8")
    look = '<geom class="look" '
    horn = f'{look}type="mesh" mesh="horn" pos="0 0 0.23" material="orange"/>'
    folder.mkdir()
    (folder / "meshed.xml").write_text(model.replace("  </asset>", MESHED, 1).replace(look, f"{horn}{look}", 1), "utf-8")
    described = (source / "robot.yaml").read_text("utf-8")
    path = folder / "robot.yaml"
    path.write_text(described.replace("name: wildrobot", "name: meshed").replace("wildrobot.xml", "meshed.xml"), "utf-8")
    return path


@dataclass
class Site:
    """A running service: a client of its API, and ids by name."""

    http: httpx2.Client
    url: str
    data_dir: Path
    clips: dict[str, str] = field(default_factory=dict)

    def clip(self, name: str) -> dict[str, Any]:
        return dict(self.http.get(f"/v1/clips/{self.clips[name]}").json())

    def submit(self, *names: str, options: Sequence[str] = ()) -> str:
        """Post bundled motions with the command, have them scored in mode rollout, and wait for that; the last clip's id."""
        paths = {path.stem: str(path) for path in bundled_motions()}
        command = [AMPREF, "submit", *(paths[name] for name in names), "--wait", "--quiet", "--mode", "rollout", *options]
        environment = os.environ | {"AMPREF_URL": self.url}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL, timeout=300)
        assert done.returncode == 0, done.stderr
        self.clips |= dict(zip(names, done.stdout.split(), strict=True))
        return self.clips[names[-1]]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """`ampref up` with a clip on its feet, an assisted-at-best one, one that falls, and the walk in a second bucket."""
    if not load_assets().are_built:
        pytest.fail("the pages' scripts are not built: make setup")
    folder = tmp_path_factory.mktemp("site")
    environment = os.environ | {
        "AMPREF_ROBOTS": str(make_meshed_robot(folder / "meshed")),
        "AMPREF_JOB_NICE": "0",
        "AMPREF_LOCK_TESTS": "1A,1B,1C,2,3,4,5,6,7",  # The training is the demo's.
    }
    command = [AMPREF, "up", "--port", "0", "--workers", "1", "--data-dir", str(folder / "data")]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder, env=environment) as process,
    ):
        try:
            assert process.stdout is not None
            url = re.findall(r"http://[\d.:]+", process.stdout.readline())[0]
            with httpx2.Client(base_url=url, timeout=60) as http:
                served = Site(http, url, folder / "data")
                served.submit("walk", "squat", "walk_long_stride", options=["--tag", "first"])
                served.submit("walk", options=["--physics", "friction=0.7"])
                yield served
        finally:
            process.terminate()
            process.wait(30)


# Of a module: while it lasts there is a running event loop, in which tests of other modules could start none.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        instance = playwright.chromium.launch(executable_path=find_chromium(), args=list(BROWSER))
        yield instance
        instance.close()


OpenPage = Callable[..., Page]


@pytest.fixture
def open_page(browser: Browser, site: Site) -> Iterator[OpenPage]:
    """Opens an address of the site in a new context; what must not happen in it is asserted at the end of the test."""
    faults: list[str] = []
    expected_faults: list[str] = []
    contexts = []

    def open_address(
        address: str,
        *,
        width: int = 1440,
        height: int = 900,
        scheme: str = "light",
        expected_fault: str | None = None,
        **options: Any,
    ) -> Page:
        expected_faults.extend([expected_fault] if expected_fault else [])
        context = browser.new_context(
            base_url=site.url, viewport={"width": width, "height": height}, color_scheme=scheme, **options
        )
        contexts.append(context)
        page = context.new_page()
        own_host = urlsplit(site.url).netloc
        page.on("console", lambda message: _check_message(message, faults))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: _check_host(request.url, own_host, faults))
        page.goto(address)
        return page

    yield open_address
    for context in contexts:
        context.close()
    assert not [fault for fault in faults if not any(text in fault for text in expected_faults)]


def _check_message(message: ConsoleMessage, faults: list[str]) -> None:
    # A picture of the page that the test takes is read back from GL, which the driver finds slow.
    if message.type in ("error", "warning") and "GPU stall due to ReadPixels" not in message.text:
        faults.append(message.text)


def _check_host(url: str, own_host: str, faults: list[str]) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("data", "blob") and parts.netloc != own_host:
        faults.append(f"a request to another host: {url}")


def wait_until(condition: Callable[[], bool], *, timeout_sec: float = 20.0) -> None:
    """Wait for what comes by itself."""
    end = time.monotonic() + timeout_sec
    while not condition():
        assert time.monotonic() < end, "it did not come in time"
        time.sleep(0.05)
