"""The page of a clip in a browser: what is on the screen is what the API says."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from .conftest import Site, wait_until

OpenPage = Callable[..., Page]


def read_arrays(site: Site, rollout: str) -> dict[str, np.ndarray]:
    answer = site.http.get(f"/v1/rollouts/{rollout}/frames")
    with np.load(io.BytesIO(answer.content)) as archive:
        return {name: archive[name] for name in archive.files}


def readout(page: Page, name: str) -> str | None:
    return page.locator(f"[data-readout={name}]").get_attribute("data-value")


def is_ready(page: Page) -> bool:
    return page.locator("[data-replay]").get_attribute("data-state") == "ready"


@pytest.fixture
def fallen(site: Site, open_page: OpenPage) -> tuple[Page, dict[str, Any]]:
    """The page of the clip that falls, at frame 60, and its rollout."""
    rollout = site.clip("walk_long_stride")["rollouts"][0]
    page = open_page(f"/clips/{site.clips['walk_long_stride']}?f=60")
    wait_until(lambda: is_ready(page))
    return page, rollout


def test_the_figures_on_the_screen_are_those_of_the_api(site: Site, fallen: tuple[Page, dict[str, Any]]) -> None:
    page, rollout = fallen
    arrays = read_arrays(site, rollout["id"])
    weight = site.http.get("/v1/robots/wildrobot").json()["mass"] * 9.81
    expect(page.get_by_role("heading", level=1)).to_contain_text("Rejected")
    for frame in (60, 61, 95, 249):
        page.locator("[data-timeline]").focus()
        while int(readout(page, "frame") or 0) < frame:
            page.keyboard.press("ArrowRight" if frame - int(readout(page, "frame") or 0) < 50 else "Shift+ArrowRight")
        assert float(readout(page, "height") or "nan") == pytest.approx(arrays["qpos"][frame, 2], abs=1e-5)
        assert float(readout(page, "load") or "nan") == pytest.approx(arrays["sum_fn_per_frame"][frame] / weight, abs=1e-3)
        assert float(readout(page, "harness") or "nan") == pytest.approx(abs(arrays["stab_force"][frame]), abs=1e-3)
        channels = [name for name, touches in zip(CHANNELS, arrays["foot_contacts"][frame], strict=True) if touches]
        assert [name for name in (readout(page, "contacts") or "").replace(",", " ").split() if name in CHANNELS] == channels


CHANNELS = ("left_toe", "left_heel", "right_toe", "right_heel")


def test_it_plays_and_the_address_has_the_frame(fallen: tuple[Page, dict[str, Any]]) -> None:
    page, _ = fallen
    # Slowly, so that it is not at its end before the second click on a busy machine.
    page.locator("[data-action=speed]").select_option("0.25")
    page.locator("[data-action=play]").click()
    wait_until(lambda: int(readout(page, "frame") or 0) > 65)
    page.locator("[data-action=play]").click()
    page.wait_for_timeout(300)  # the last picture before the click may still be on its way
    frame = int(readout(page, "frame") or 0)
    page.wait_for_timeout(300)
    assert int(readout(page, "frame") or 0) == frame, "it stands still"
    # Asked of the page: `page.url` is what the last event told, and none arrives while the test only waits.
    wait_until(lambda: f"f={frame}" in page.evaluate("location.search"))
    page.keyboard.press("Home")
    wait_until(lambda: readout(page, "frame") == "0")
    page.keyboard.press("End")
    wait_until(lambda: readout(page, "frame") == "249")


def test_the_fall_findings_and_segments_lead_to_their_frames(fallen: tuple[Page, dict[str, Any]]) -> None:
    page, rollout = fallen
    fell_at = rollout["quality_metrics"]["fell_at_frame"]
    page.locator(f"[data-start='{fell_at}']").first.click()
    wait_until(lambda: readout(page, "frame") == str(fell_at))
    page.locator("a[data-segment]").first.click()
    wait_until(lambda: readout(page, "frame") == "0")
    page.locator(".criteria a[data-seek]").first.click()
    wait_until(lambda: readout(page, "frame") not in ("0", None))
    assert "/clips/" in page.url, "the page stayed"


def test_charts_seek_and_show_each_quantity(fallen: tuple[Page, dict[str, Any]]) -> None:
    page, _ = fallen
    charts = page.locator("[data-chart]")
    names = [charts.nth(i).get_attribute("data-chart") for i in range(charts.count())]
    assert len(names) >= 7, names
    over = charts.first.locator(".u-over")
    over.scroll_into_view_if_needed()
    box = over.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] * 0.5, box["y"] + box["height"] / 2)
    wait_until(lambda: abs(int(readout(page, "frame") or 0) - 125) <= 3)


def test_the_robot_is_drawn_and_moves(fallen: tuple[Page, dict[str, Any]]) -> None:
    page, _ = fallen
    canvas = page.locator("[data-replay] canvas").first
    first = canvas.screenshot()
    page.locator("[data-action=ghost]").click()
    page.wait_for_timeout(300)
    without_ghost = canvas.screenshot()
    assert first != without_ghost
    page.keyboard.press("End")
    page.wait_for_timeout(500)
    assert canvas.screenshot() != without_ghost


def test_a_robot_with_meshes_is_drawn(site: Site, open_page: OpenPage) -> None:
    clip = site.submit("side_step", options=["--robot", "meshed"])
    page = open_page(f"/clips/{clip}")
    wait_until(lambda: is_ready(page))
    scene = json.loads(page.locator("#replay-data").inner_text())["scene_url"]
    with np.load(io.BytesIO(site.http.get(scene).content)) as archive:
        assert archive["mesh_face"][-1] > 0
    rollout = site.http.get(f"/v1/clips/{clip}").json()["rollouts"][0]["id"]
    assert float(readout(page, "height") or "nan") == pytest.approx(read_arrays(site, rollout)["qpos"][0, 2], abs=1e-5)


def test_a_robot_without_gl_has_its_charts_and_says_so(site: Site, open_page: OpenPage) -> None:
    page = open_page("/login")
    page.add_init_script(
        "HTMLCanvasElement.prototype.getContext = new Proxy(HTMLCanvasElement.prototype.getContext,"
        "{apply: (f, t, a) => /webgl/.test(a[0]) ? null : Reflect.apply(f, t, a)})"
    )
    page.goto(f"/clips/{site.clips['walk']}")
    expect(page.locator("[data-replay]")).to_contain_text("cannot be drawn")
    wait_until(lambda: page.locator("[data-chart] canvas").count() >= 7)


def test_frames_that_do_not_come_are_a_sentence(site: Site, open_page: OpenPage) -> None:
    page = open_page("/login", expected_fault="503 (Service Unavailable)")
    problem = {"status": 503, "content_type": "application/problem+json", "body": '{"detail": "the disk is away"}'}
    page.route("**/frames?*", lambda route: route.fulfill(**problem))
    page.goto(f"/clips/{site.clips['walk']}")
    expect(page.locator("[data-replay]")).to_contain_text("the disk is away")


def test_rollouts_are_compared_on_one_clock(site: Site, open_page: OpenPage) -> None:
    page = open_page(f"/clips/{site.clips['walk']}")
    page.get_by_role("button", name="Compare side by side").click()
    page.wait_for_url("**/compare?*")
    wait_until(lambda: is_ready(page))
    boxes = page.locator("[data-rollout]")
    assert boxes.count() == 2
    rollouts = {item["id"]: item for item in site.clip("walk")["rollouts"]}
    page.keyboard.press("End")
    page.wait_for_timeout(500)
    for i in range(2):
        rollout = boxes.nth(i).get_attribute("data-rollout")
        height = boxes.nth(i).locator("[data-readout=height]").get_attribute("data-value")
        assert float(height or "nan") == pytest.approx(read_arrays(site, rollout)["qpos"][-1, 2], abs=1e-5)
        assert rollouts[rollout]["bucket"] in (boxes.nth(i).inner_text())
    charts = page.locator("[data-chart]").evaluate_all("charts => charts.map((chart) => chart.dataset.chart)")
    assert charts == ["load", "contacts", "height", "tilt", "joint", "torque", "harness"]


@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_screen(site: Site, open_page: OpenPage, width: int, scheme: str) -> None:
    for address in (
        "/clips",
        f"/clips/{site.clips['walk_long_stride']}",
        f"/compare?clip={site.clips['walk']}",
        "/jobs",
        "/login",
    ):
        page = open_page(address, width=width, scheme=scheme)
        page.wait_for_load_state("networkidle") if "compare" not in address else page.wait_for_timeout(500)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, address
