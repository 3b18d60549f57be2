"""Draws the screenshots of docs/pages.md: a service with the bundled motions, its pages in headless Chromium.

    python examples/draw_pages.py [--out docs/img]

It needs the pages' scripts (`make setup`) and Debian's Chromium, and takes two minutes, most of them for the lock.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx2
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from amp_core.motions import bundled_motions, reading_options
from bench.bench_pages import BROWSER, serving, wait_for

ROOT = Path(__file__).parents[1]
AMPREF = str(Path(sys.executable).with_name("ampref"))


def run(url: str, *arguments: str) -> str:
    """One `ampref` command against the service; what it prints."""
    done = subprocess.run([AMPREF, *arguments], capture_output=True, text=True, env=os.environ | {"AMPREF_URL": url})
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout


def fill(url: str) -> dict[str, str]:
    """Post the bundled motions, some in other physics, and lock two versions; ids of clips by name."""
    for path in bundled_motions():
        options = [
            word for name, value in reading_options(path).items() for word in (f"--{name.replace('_', '-')}", str(value))
        ]
        run(url, "submit", str(path), "--mode", "rollout", "--tag", "first", "--wait", "--quiet", *options)
    walk, stride = (str(next(p for p in bundled_motions() if p.stem == name)) for name in ("walk", "walk_long_stride"))
    buckets = [word for factor in ("friction=0.7", "friction=1.3", "mass=1.1") for word in ("--physics", factor)]
    run(url, "submit", walk, "--mode", "rollout", *buckets, "--wait", "--quiet")
    run(url, "submit", stride, "--mode", "tracked", "--wait", "--quiet")
    run(url, "dataset", "lock", "walk", "0.1.0", "--tier", "0", "--clip", "walk", "--clip", "side_step", "--quiet")
    run(url, "dataset", "lock", "walk", "0.2.0", "--tier", "0", "--alias", "production", "--quiet")
    items = httpx2.get(f"{url}/v1/clips", params={"limit": 200}).json()["items"]
    return {item["name"]: item["id"] for item in items}


def draw(page: Page, address: str, out: Path, *, ready: str | None = None, height: int = 900) -> None:
    """Open a page and write its picture."""
    page.set_viewport_size({"width": 1440, "height": height})
    page.goto(address)
    if ready:
        wait_for(page, ready)
    page.wait_for_timeout(2500)
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    image.resize((1200, round(1200 * image.height / image.width)), Image.Resampling.LANCZOS).save(out, quality=80, method=6)
    print(f"{out.name}: {out.stat().st_size / 1000:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "img")
    out = parser.parse_args().out
    replay = "document.querySelector('[data-replay]')?.dataset.state === 'ready'"
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as url, sync_playwright() as playwright:
        clips = fill(url)
        rollouts: list[dict[str, Any]] = httpx2.get(f"{url}/v1/clips/{clips['walk_long_stride']}").json()["rollouts"]
        fallen = next(rollout["id"] for rollout in rollouts if rollout["tier"] == -1)
        end = time.monotonic() + 60
        while time.monotonic() < end:  # Thumbnails are made beside everything else.
            items = httpx2.get(f"{url}/v1/clips").json()["items"]
            if all((item["rollout"] or {}).get("thumbnail_url") for item in items):
                break
            time.sleep(1)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(BROWSER))
        for scheme in ("light", "dark"):
            page = browser.new_context(color_scheme=scheme).new_page()
            name = "" if scheme == "light" else "_dark"
            draw(page, f"{url}/clips/{clips['walk_long_stride']}?rollout={fallen}&f=90", out / f"clip{name}.webp", ready=replay)
            if scheme == "dark":
                continue
            draw(page, f"{url}/clips?tier=0&sort=-mean_sum_fn_over_mg", out / "clips.webp")
            draw(page, f"{url}/compare?clip={clips['walk']}&f=200", out / "compare.webp", ready=replay)
            draw(page, f"{url}/datasets/walk/versions/0.2.0", out / "version.webp", height=1400)
            draw(page, f"{url}/jobs", out / "jobs.webp", height=700)
        browser.close()


if __name__ == "__main__":
    main()
