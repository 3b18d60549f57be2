"""The page: well-formed, self-contained, escaped, and with everything that was found."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

from verificationkit import failed, report, verification

from amp_core.verify import PASS, SKIP, Row
from amp_core.verify.checklist import document
from amp_core.verify.html import page
from amp_core.verify.report import check

_VOID = {"meta", "br", "path", "!doctype"}


class _Tree(HTMLParser):
    """Checks that every element is closed, and collects text and drawings."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.paths: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.paths.append(str(dict(attrs).get("d")))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def drawn(**figures: Any) -> _Tree:
    return _Tree(page(document(verification(report("smoke", figures=figures)))))


def test_the_page_tells_what_was_found() -> None:
    tree = _Tree(page(document(verification(failed("6", "std.knee"), report("3", SKIP, "JAX is not installed")))))
    for said in (
        "wildrobot",
        "6 distribution sanity",
        "std.knee is wrong in clip walk: mend it",
        "JAX is not installed",
        "not ready for training: 1 of 10 tests failed",
        "Feature parity",
        "mae.root_lin_vel",
        "< 0.0001",
    ):
        assert said in tree.text, said


def test_tiers_have_names_and_what_nothing_is_asked_of_is_no_pass() -> None:
    found = verification(report("5", rows=(Row("agreement.left_toe", 0.97, PASS), check("rate", 0.5, "<=", 0.9))))
    found.subject["clips"][0]["tier"] = -1
    text = _Tree(page(document(found))).text
    assert "Rejected" in text
    assert "told agreement.left_toe" in text
    assert "told rate" not in text


def test_nothing_comes_from_a_network_and_nothing_runs() -> None:
    text = page(document(verification(report("smoke", figures={"loss": [1.0, 2.0, 3.0]}))))
    assert not re.search(r"https?:|<script|<link|url\(|@import", text)
    assert all(not name.startswith("on") for _, attributes in _Tree(text).tags for name in attributes)


def test_everything_that_is_not_ours_is_escaped() -> None:
    evil = "<script>alert('x')</script>&\"'"
    row = check(evil, 2.0, "<=", 1.0, unit="<b>", where=evil, note=evil)
    test = report("6", "FAIL", evil, (row,), figures={evil: {evil: [1, 2, 3], "note": evil}})
    text = page(document(verification(test, dataset=evil, version=evil), [{"test": "6", "reason": evil}], {"manifest": evil}))
    assert "<script" not in text
    assert "<b>" not in text
    assert _Tree(text).text.count(evil) >= 6


def test_figures_are_drawn_by_their_shape() -> None:
    assert len(drawn(loss=[3.0, 2.0, 1.0]).paths) == 1
    assert len(drawn(losses={"d": [3.0, 2.0, 1.0], "policy": [1.0, 2.0, 3.0]}).paths) == 2
    pair = drawn(arm={"low": -1.0, "high": 2.0, "reference_share": [0.2] * 5, "policy_share": [0.1] * 5, "overlap": 0.5})
    assert len(pair.paths) == 2
    assert "overlap 0.5" in pair.text
    nested = drawn(clips=[{"clip": "walk", "tier": 0, "load": [1.0] * 30}, {"clip": "squat", "load": [1.0] * 30}])
    assert len(nested.paths) == 2
    assert "walk" in nested.text
    table = drawn(dimensions=[{"name": "knee", "mae": 1e-7}, {"name": "hip", "mae": None}])
    assert "knee" in table.text
    assert "1e-07" in table.text


def test_lines_of_very_different_sizes_are_not_drawn_together() -> None:
    tree = drawn(walk={"load": [1.0, 0.9, 1.1], "harness": [0.01, 0.02, 0.01]})
    assert sum(tag == "svg" for tag, _ in tree.tags) == 2


def test_gaps_and_numbers_that_are_none_break_the_line_and_nothing_else() -> None:
    (path,) = drawn(loss=[1.0, None, float("nan"), 2.0, 3.0]).paths
    assert path.count("M") == 2
    assert "nan" not in path
    assert drawn(loss=[None, None, None]).paths == []


def test_a_long_line_is_thinned_and_keeps_its_peaks() -> None:
    values = [0.0] * 100_000
    values[54_321] = 7.0
    tree = drawn(load=values)
    assert len(tree.paths[0]) < 10_000
    assert "7" in tree.text
    assert len({point.rpartition(" ")[2] for point in re.split("[ML]", tree.paths[0])[1:]}) == 2


def test_an_immense_report_stays_a_page() -> None:
    rows = (*tuple(check(f"row{i}", 0.0, "<=", 1.0) for i in range(5000)), check("worst", 9.0, "<=", 1.0))
    figures = {f"clip{i}": {"load": [float(j % 7) for j in range(500)]} for i in range(500)}
    text = page(document(verification(report("6", "FAIL", "", rows, figures=figures), clips=2_000)))
    assert len(text) < 3_000_000
    tree = _Tree(text)
    assert "worst" in tree.text
    assert "and 4601 more rows" in tree.text
    assert "More figures are in the JSON report" in tree.text


def test_what_came_through_json_makes_the_same_page() -> None:
    made = document(verification(failed("6")), [{"test": "6", "reason": "tiny"}])
    assert page(json.loads(json.dumps(made))) == page(made)
    assert "waived: tiny" in page(made)


def test_several_verifications_are_on_one_page() -> None:
    first, second = (verification(dataset="walk", version=version) for version in ("0.1.0", "0.2.0"))
    text = _Tree(page(document(first), document(second, locked={"manifest": "dataset_manifest_v0.2.0.json"}))).text
    assert "walk==0.1.0" in text
    assert "walk==0.2.0" in text
    assert "nothing is locked yet" in text
    assert "dataset_manifest_v0.2.0.json" in text
