"""The pages in headless Chromium with GL in software: pictures a second, the time to the first one; pages of 150,000 clips.

    python -m bench.bench_pages [--only replay|clips] [--clips N] [--robot ROBOT.yaml --motion CLIP [--fps N --quat-order O]]

*replay*: a clip is scored by a real service, and its rows are put one behind the other to ten minutes at 50 Hz, 30,000 frames,
in the place of its own. Measured is the page of that clip with ghost, forces and charts at 1,440 × 900: from the navigation to
the first picture of the robot (median of 7 new contexts, after one that fills the service's caches), and pictures a second over
10 s of playing (frames of the browser in which GL drew). The baseline of the first is the first paint of `/login`, which has no
replay. Without `--robot` it is the bundled robot and its walk.

*clips*: the Clips page, its facets and a histogram with 150,000 clips, beside `GET /v1/clips` with as many: medians of 20.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from sqlalchemy import select, update

from amp_core.motions import bundled_motions
from amp_core.npz import write_npz
from ampref_service.blobs import LocalBlobStore
from ampref_service.catalog import Catalog, schema
from ampref_service.catalog.tables import rollouts
from ampref_service.settings import Settings
from bench.bench_curriculum import fill
from bench.servers import read_first_document

FRAMES = 30_000
FRAMES_PER_SEC = 30.0
FIRST_VIEW_MS = 300.0
CLIPS_MS = 150.0
BROWSER = (
    *("--no-sandbox", "--disable-gpu", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-quic"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"),
)
"""GL in software, as on a machine without a graphics card; nothing that would look for hosts of the browser's maker."""

COUNT_PICTURES = """
(() => {
  let drew = false;
  window.pictures = 0;
  window.firstPicture = null;
  for (const name of ["drawElements", "drawArrays", "drawElementsInstanced", "drawArraysInstanced"]) {
    const draw = WebGL2RenderingContext.prototype[name];
    WebGL2RenderingContext.prototype[name] = function (...args) {
      drew = true;
      window.firstPicture ??= performance.now();
      return draw.apply(this, args);
    };
  }
  const request = window.requestAnimationFrame.bind(window);
  window.requestAnimationFrame = (callback) => request((now) => {
    callback(now);
    if (drew) { window.pictures += 1; drew = false; }
  });
})();
"""


@contextlib.contextmanager
def serving(folder: Path, **environment: str) -> Iterator[str]:
    """`ampref up` with its data in a folder; its address."""
    command = [str(Path(sys.executable).with_name("ampref")), "up", "--json", "--port", "0", "--workers", "1"]
    with subprocess.Popen(
        [*command, "--data-dir", str(folder)], stdout=subprocess.PIPE, text=True, env=os.environ | environment
    ) as process:
        try:
            yield str(read_first_document(process)["url"])
        finally:
            process.terminate()


def lengthen(folder: Path, rollout_id: str) -> int:
    """Put a rollout's rows one behind the other to `FRAMES`; bytes of the arrays."""
    store = LocalBlobStore(folder / "blobs")
    with contextlib.closing(Catalog.open(Settings(data_dir=folder).database_url)) as catalog, catalog.begin() as session:
        row = session.execute(select(rollouts).where(rollouts.c.id == rollout_id)).mappings().one()
        with np.load(io.BytesIO(store.read_bytes(row["arrays_digest"]))) as archive:
            arrays = {name: archive[name] for name in archive.files}
        count = len(arrays["qpos"])
        order = np.concatenate([np.arange(count), np.arange(count)[::-1]])
        rows = np.resize(order, FRAMES)  # To and fro, so that the robot does not jump.
        long = {name: array[rows] if array.shape[:1] == (count,) else array for name, array in arrays.items()}
        buffer = io.BytesIO()
        write_npz(buffer, long)
        data = buffer.getvalue()
        seconds = FRAMES * row["duration_sec"] / count
        result = dict(row["result"]) | {"simulated_frames": FRAMES, "duration_sec": seconds, "segments": []}
        values = {"arrays_digest": store.put_bytes(data), "arrays_size": len(data), "frames": FRAMES, "duration_sec": seconds}
        session.execute(update(rollouts).where(rollouts.c.id == rollout_id).values(values | {"result": result}))
    return len(data)


def wait_for(page: Any, expression: str) -> Any:
    """The value of an expression once it is one; the page's security policy keeps Playwright's own polling out."""
    end = time.monotonic() + 60
    while not (value := page.evaluate(expression)):
        if time.monotonic() > end:
            raise TimeoutError(expression)
        time.sleep(0.02)
    return value


def measure_replay(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Time to the first picture, and pictures a second."""
    from playwright.sync_api import sync_playwright

    motion = arguments.motion or next(path for path in bundled_motions() if path.stem == "walk")
    environment = {"AMPREF_ROBOTS": str(arguments.robot.resolve())} if arguments.robot else {}
    with serving(folder, **environment) as url, httpx2.Client(base_url=url, timeout=120) as http:
        robots = [robot["name"] for robot in http.get("/v1/robots").json()["items"]]
        robot = next((name for name in robots if arguments.robot and name != "wildrobot"), "wildrobot")
        form = {"robot": robot, "mode": "rollout"}
        form |= {"fps": str(arguments.fps)} if arguments.fps else {}
        form |= {"quat_order": arguments.quat_order} if arguments.quat_order else {}
        answer = http.post("/v1/clips", files={"file": (motion.name, motion.read_bytes())}, data=form).json()
        clip, job = answer["clip"]["id"], answer["job"]["id"]
        while http.get(f"/v1/jobs/{job}").json()["state"] in ("queued", "running"):
            time.sleep(0.2)
        rollout = http.get(f"/v1/clips/{clip}").json()["rollouts"][0]
        joints = len(http.get(f"/v1/robots/{robot}").json()["joints"])
        size = lengthen(folder, rollout["id"])
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(BROWSER))
            times: dict[str, list[float]] = {"first": [], "login": []}
            for _ in range(8):
                context = browser.new_context(viewport={"width": 1440, "height": 900})
                page = context.new_page()
                page.add_init_script(COUNT_PICTURES)
                page.goto(f"{url}/clips/{clip}")
                times["first"].append(wait_for(page, "window.firstPicture"))
                context.close()
                context = browser.new_context(viewport={"width": 1440, "height": 900})
                page = context.new_page()
                page.goto(f"{url}/login")
                paint = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
                times["login"].append(wait_for(page, paint))
                context.close()
            page = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
            page.add_init_script(COUNT_PICTURES)
            page.goto(f"{url}/clips/{clip}")
            wait_for(page, "document.querySelector('[data-replay]').dataset.state === 'ready'")
            page.wait_for_timeout(1500)
            page.locator("[data-action=play]").click()
            page.wait_for_timeout(2000)
            first_count, start = page.evaluate("window.pictures"), time.monotonic()
            page.wait_for_timeout(10_000)
            rate = (page.evaluate("window.pictures") - first_count) / (time.monotonic() - start)
            last_frame = page.locator("[data-readout=frame]").first.get_attribute("data-value")
            browser.close()
    return {
        "robot": robot,
        "joints": joints,
        "frames": FRAMES,
        "arrays_mb": round(size / 1e6, 1),
        "first_picture_ms": round(statistics.median(times["first"][1:]), 1),
        "first_picture_cold_ms": round(times["first"][0], 1),
        "login_first_paint_ms": round(statistics.median(times["login"][1:]), 1),
        "pictures_per_sec": round(rate, 1),
        "frame_after_12_s": None if last_frame is None else int(last_frame),
    }


def measure_clips(count: int, folder: Path) -> dict[str, Any]:
    """Times of the Clips page and its parts with many clips."""
    url = Settings(data_dir=folder).database_url
    folder.mkdir(exist_ok=True)
    schema.upgrade(url)
    with contextlib.closing(Catalog.open(url)) as catalog:
        fill(catalog, count)
    addresses = {
        "api": "/v1/clips?limit=25",
        "page": "/clips",
        "page_of_rejected": "/clips?tier=-1&sort=-slip_rate",
        "facets": "/clips/facets",
        "histogram": "/clips/histogram?metric=slip_rate",
    }
    medians = {}
    with serving(folder) as base_url, httpx2.Client(base_url=base_url, timeout=120) as http:
        for name, address in addresses.items():
            times = []
            for _ in range(21):
                start = time.perf_counter()
                answer = http.get(address)
                assert answer.status_code == 200, (address, answer.text[:500])
                times.append(1e3 * (time.perf_counter() - start))
            medians[name] = {"first_ms": round(times[0], 1), "median_ms": round(statistics.median(times[1:]), 1)}
    return medians


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--robot", type=Path)
    parser.add_argument("--motion", type=Path)
    parser.add_argument("--fps", type=float)
    parser.add_argument("--quat-order", metavar="O")
    parser.add_argument("--clips", type=int, default=150_000)
    parser.add_argument("--only", choices=("replay", "clips"))
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    passed = True
    with tempfile.TemporaryDirectory() as folder:
        if arguments.only != "clips":
            results["replay"] = replay = measure_replay(arguments, Path(folder) / "replay")
            passed &= replay["pictures_per_sec"] >= FRAMES_PER_SEC and replay["first_picture_ms"] <= FIRST_VIEW_MS
        if arguments.only != "replay":
            results["clips"] = pages = measure_clips(arguments.clips, Path(folder) / "clips")
            passed &= all(times["median_ms"] <= CLIPS_MS for times in pages.values())
    print(json.dumps(results | {"passed": bool(passed)}, indent=2))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
