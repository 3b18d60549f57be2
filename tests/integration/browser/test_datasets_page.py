"""The pages of datasets in a browser: a version's statistics come by themselves, links lead to frames, forms change it."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from .conftest import AMPREF, Site

OpenPage = Callable[..., Page]

VERSION = "/datasets/shown/versions/0.1.0"


@pytest.fixture(scope="module")
def shown(site: Site) -> str:
    """A version of the walk and of the passing windows of the clip that falls, whose failed tests are waived."""
    reasons = [option for test in ("1C", "6", "7", "smoke") for option in ("--waive", f"{test}=two clips, for this test")]
    command = [AMPREF, "dataset", "lock", "shown", "0.1.0", "--segments", "--tag", "first", "--wait", *reasons]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=os.environ | {"AMPREF_URL": site.url},
        stdin=subprocess.DEVNULL,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return VERSION


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (390, "dark")])
def test_a_version_shows_its_parts(site: Site, open_page: OpenPage, shown: str, width: int, scheme: str) -> None:
    page = open_page(shown, width=width, scheme=scheme)
    expect(page.get_by_role("heading", name="Balance", exact=True)).to_be_visible(timeout=30_000)
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    facts = site.http.get("/v1/datasets/shown/versions/0.1.0/statistics").json()
    assert page.locator(".feature").count() == len(facts["features"]) == 27
    first = facts["balance"]["sources"][0]
    row = page.locator("table.shares tr", has_text=first["name"]).first
    expect(row).to_contain_text(f"{100 * first['share']:.1f} %")
    readiness = site.http.get("/v1/datasets/shown/versions/0.1.0").json()["readiness"]
    criteria = [criterion["name"] for group in readiness["groups"] for criterion in group["criteria"]]
    assert page.locator(".checklist li strong").all_inner_texts() == criteria


def test_a_member_leads_to_its_frames(open_page: OpenPage, shown: str) -> None:
    page = open_page(shown)
    page.locator("#members").get_by_role("link", name="walk", exact=True).first.click()
    page.wait_for_url(re.compile(r"/clips/clip_\w+\?rollout=\w+&f=\d+"))
    expect(page.get_by_role("heading", level=1)).to_contain_text("walk")


def test_without_scripts_the_statistics_are_a_page(open_page: OpenPage, shown: str) -> None:
    page = open_page(f"{shown}/statistics", java_script_enabled=False)
    expect(page.get_by_role("heading", name="Statistics of each feature")).to_be_visible()


def test_a_version_is_yanked_and_named_with_the_keyboard(site: Site, open_page: OpenPage, shown: str) -> None:
    page = open_page(shown)
    alias = page.locator("#manage").get_by_label("Alias")
    alias.focus()
    page.keyboard.type("chosen")
    page.keyboard.press("Enter")
    expect(page.locator(".clip-head .tag", has_text="chosen")).to_be_visible()
    assert site.http.get("/v1/datasets/shown").json()["aliases"] == {"chosen": "0.1.0"}
    page.locator("#manage").get_by_label("Reason, for those who use it").fill("for this test")
    page.locator("#manage").get_by_role("button", name="Yank").click()
    page.get_by_role("dialog").get_by_role("button").last.click()
    expect(page.locator(".notice")).to_contain_text("for this test")
    page.get_by_role("button", name="Take the yank back").click()
    expect(page.locator(".badge", has_text="yanked")).to_have_count(0)
