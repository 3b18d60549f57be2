"""The Clips and Jobs pages in a browser: filters, live results, a selection that becomes a version."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable

from playwright.sync_api import Page, expect

from .conftest import Site, wait_until

OpenPage = Callable[..., Page]


def names(page: Page) -> list[str]:
    return page.locator("#results .clip-name").all_inner_texts()


def test_facets_and_histograms_filter(site: Site, open_page: OpenPage) -> None:
    page = open_page("/clips?robot=wildrobot")
    assert set(names(page)) == {"walk", "squat", "walk_long_stride"}
    page.locator("#facets").get_by_role("link", name="Rejected").click()
    page.wait_for_url("**tier=-1*")
    assert names(page) == ["walk_long_stride"]
    page.goto("/clips?robot=wildrobot")
    histogram = page.locator("details[data-range=mean_sum_fn_over_mg]")
    bars = histogram.locator("rect[data-low]")
    wait_until(lambda: bars.count() > 2)
    histogram.scroll_into_view_if_needed()
    last = bars.last.bounding_box()
    assert last is not None
    page.mouse.click(last["x"] + last["width"] / 2, last["y"] + last["height"] / 2)
    low = histogram.locator("input[name^=min_]")
    wait_until(lambda: low.input_value() != "")
    threshold = float(low.input_value())
    page.get_by_role("button", name="Apply").first.click()
    page.wait_for_url("**min_mean_sum_fn_over_mg=*")
    items = site.http.get("/v1/clips", params={"robot": "wildrobot", "min_mean_sum_fn_over_mg": threshold}).json()["items"]
    assert 0 < len(items) < 3
    assert set(names(page)) == {item["name"] for item in items}


def test_a_clip_that_is_posted_appears_and_gets_its_tier(site: Site, open_page: OpenPage) -> None:
    page = open_page("/clips?name=march")
    assert names(page) == []
    page.goto("/clips?sort=-created_at")
    site.submit("march_in_place")
    expect(page.locator("#results")).to_contain_text("march_in_place", timeout=30_000)
    row = page.locator("#results tr", has_text="march_in_place")
    expect(row).to_contain_text("Tier 0", timeout=30_000)


def test_chosen_clips_become_a_version(site: Site, open_page: OpenPage) -> None:
    page = open_page("/clips?sort=-created_at")
    page.get_by_label("Select walk", exact=True).check()
    page.get_by_label("Select squat", exact=True).check()
    expect(page.locator("[data-selection-count]")).to_contain_text("2 clips")
    page.get_by_role("button", name="Lock these").click()
    page.wait_for_url("**/lock?*")
    expect(page.get_by_role("heading", level=2).first).to_contain_text("2 clips of wildrobot")
    page.get_by_label("Dataset").fill("browsed")
    page.get_by_label("Version").fill("0.1.0")
    page.get_by_role("button", name="Lock", exact=True).click()
    page.wait_for_url("**/jobs#*")
    expect(page.locator("#results")).to_contain_text("browsed==0.1.0")
    job = site.http.get("/v1/jobs", params={"kind": "lock"}).json()["items"][0]
    row = page.locator("tr", has_text="browsed==0.1.0")
    row.get_by_role("button", name="Cancel").click()
    wait_until(lambda: site.http.get(f"/v1/jobs/{job['id']}").json()["state"] in ("cancelled", "succeeded", "failed"))


def test_a_quarantined_job_says_why_and_is_tried_again(site: Site, open_page: OpenPage) -> None:
    done = site.http.post(f"/v1/clips/{site.clips['squat']}/rollouts", json={"mode": "rollout", "seed": 5}).json()["job"]
    wait_until(lambda: site.http.get(f"/v1/jobs/{done['id']}").json()["state"] == "succeeded")
    with contextlib.closing(sqlite3.connect(site.data_dir / "catalog.sqlite3", timeout=20)) as database, database:
        fault = json.dumps({"what": "the robot exploded", "detail": "the robot exploded", "remedy": "look at its joints"})
        database.execute("UPDATE jobs SET state = 'quarantined', result = NULL, error = ? WHERE id = ?", (fault, done["id"]))
    page = open_page("/jobs")
    page.get_by_role("navigation", name="States").get_by_role("link", name="quarantined").click()
    row = page.locator("#results tr", has_text="squat")
    expect(row).to_contain_text("the robot exploded")
    expect(row).to_contain_text("what to do: look at its joints")
    row.get_by_role("button", name="Retry").click()
    page.wait_for_url("**/jobs#job_*")
    again = page.url.partition("#")[2]
    expect(page.locator(f"#{again}")).to_contain_text("succeeded", timeout=30_000)
    assert site.http.get(f"/v1/jobs/{done['id']}").json()["state"] == "quarantined", "what happened stays"


def test_lines_are_copied_and_the_theme_is_kept(site: Site, open_page: OpenPage) -> None:
    page = open_page("/clips?tier=0", permissions=["clipboard-read", "clipboard-write"])
    page.locator("[data-copy='#line-shell']").click()
    wait_until(lambda: page.evaluate("navigator.clipboard.readText()") == f"ampref clips --tier 0 --url {site.url}")
    toggle = page.locator("[data-theme-toggle]")
    toggle.click()
    toggle.click()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.goto("/jobs")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_the_keyboard_reaches_everything(site: Site, open_page: OpenPage) -> None:
    page = open_page("/clips")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    assert page.evaluate(FIND_UNNAMED) == []


FIND_UNNAMED = """
[...document.querySelectorAll('a, button, input:not([type=hidden]), select')]
  .filter(e => !e.closest('[aria-hidden=true]'))
  .filter(e => !(e.textContent.trim() || e.getAttribute('aria-label') || e.title || e.labels?.length))
  .map(e => e.outerHTML.slice(0, 120))
"""
"""What a screen reader would call by no name."""
