"""The pages of datasets in a browser: a version that was really locked, and what it says of itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from .conftest import Site, wait_until

OpenPage = Callable[..., Page]


@pytest.fixture(scope="module")
def version(site: Site) -> dict[str, Any]:
    """`browse==0.1.0`, locked with all tests; a failed one is waived, since so few clips are no training set."""
    waivers = [{"test": test, "reason": "one clip is no training set"} for test in ("2", "4", "6", "smoke")]
    select = {"robot": "wildrobot", "clips": [site.clips["walk"]]}
    answer = site.http.post("/v1/datasets/browse/versions", json={"version": "0.1.0", "select": select, "waivers": waivers})
    assert answer.status_code == 202, answer.text
    job = answer.json()["job"]["id"]
    while site.http.get(f"/v1/jobs/{job}").json()["state"] in ("queued", "running"):
        time.sleep(0.3)
    answer = site.http.get("/v1/datasets/browse/versions/0.1.0")
    assert answer.status_code == 200, site.http.get(f"/v1/jobs/{job}").text
    return dict(answer.json())


def test_a_version_says_what_the_api_says(site: Site, open_page: OpenPage, version: dict[str, Any]) -> None:
    page = open_page("/datasets")
    page.get_by_role("link", name="browse", exact=True).click()
    page.wait_for_url("**/datasets/browse")
    page.get_by_role("link", name="0.1.0").first.click()
    page.wait_for_url("**/versions/0.1.0")
    text = page.locator("main").inner_text()
    assert version["dataset_hash"] in text
    assert version["manifest_sha256"] in text
    assert f"{version['num_frames']:,}".replace(",", "\u202f") in text
    for group in version["readiness"]["groups"]:
        assert group["name"] in text
        for criterion in group["criteria"]:
            assert criterion["name"] in text
    statistics = site.http.get("/v1/datasets/browse/versions/0.1.0/statistics").json()
    # They come after the rest of the page.
    wait_until(lambda: page.locator("main svg").count() >= len(statistics["features"]))
    page.locator("main a[href*='/clips/clip_']").first.click()
    page.wait_for_url("**/clips/clip_*")
    expect(page.get_by_role("heading", level=1)).to_contain_text("walk")


@pytest.mark.parametrize("width", [1440, 390])
def test_nothing_is_wider_than_the_screen(site: Site, open_page: OpenPage, version: dict[str, Any], width: int) -> None:
    for address in ("/datasets", "/datasets/browse", "/datasets/browse/versions/0.1.0", f"/lock?clip={site.clips['walk']}"):
        page = open_page(address, width=width)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, address
