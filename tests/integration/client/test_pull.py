"""A pulled version is the locked one, or it is refused; aliases and yanked versions."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clientkit import files_in, partials, same_files
from datasetkit import LAYOUT, Site, make_bundle, send_problem

from amp_core.client import DatasetWarning, Readiness
from amp_core.errors import FeatureCodeMismatch, FileGone, IntegrityError, NotFound, NotReady, Unavailable
from amp_core.strict_json import canonical_json

# The main line


def test_a_pulled_version_is_the_locked_one_bit_for_bit(site: Site, small: Any, get: Any, tmp_path: Path) -> None:
    site.add(small)
    pulled = get(manifest_sha256=small.manifest.sha256)
    assert same_files(pulled, small)
    assert [path.name for path in pulled.files] == [file.name for file in small.files]
    assert pulled.downloaded_bytes == sum(file.size for file in small.files)
    assert partials(tmp_path) == []


def test_the_second_pull_downloads_nothing(site: Site, small: Any, get: Any) -> None:
    site.add(small)
    get()
    before = len(site.file_requests)
    assert get().downloaded_bytes == 0
    assert len(site.file_requests) == before


def test_a_loaded_version_is_mapped_and_verified(site: Site, small: Any, load: Any) -> None:
    site.add(small)
    data = load(manifest_sha256=small.manifest.sha256)
    assert isinstance(data.features, np.memmap)
    assert not data.features.flags.writeable
    assert data.features.shape == (small.num_frames, LAYOUT.dim)
    assert np.array_equal(data.features, np.load(small.features.path)["features"])
    assert data.layout == LAYOUT.to_dict()


def test_progress_reaches_the_end(site: Site, large: Any, get: Any) -> None:
    site.add(large)
    seen: list[tuple[int, int]] = []
    get(progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (large.features.size, large.features.size)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len(seen) > 3


def test_the_lines_to_paste_load_these_bytes(site: Site, small: Any, get: Any, tmp_path: Path) -> None:
    site.add(small)
    text = get().training_config()
    code = text[text.index("from amp_core") :]
    environment = {**os.environ, "AMPREF_URL": site.url, "AMPREF_CACHE": str(tmp_path / "cache")}
    script = code + "print(data.features.shape)"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str((small.num_frames, LAYOUT.dim)), done.stderr
    reference = json.loads(re.search(r"reference_data: (.*)", text)[1])  # type: ignore[index]
    assert np.load(reference)["features"].shape == (small.num_frames, LAYOUT.dim)


def test_copies_for_a_folder_have_their_own_names(site: Site, small: Any, get: Any, tmp_path: Path) -> None:
    site.add(small)
    pulled = get(to=tmp_path / "data" / "amp")
    assert sorted(os.listdir(tmp_path / "data" / "amp")) == sorted(file.name for file in small.files)
    assert same_files(pulled, small)
    assert not any(path.is_symlink() for path in pulled.files)


def test_names_for_files_come_from_the_version_and_never_from_the_service(
    site: Site, small: Any, get: Any, tmp_path: Path
) -> None:
    manifest = json.loads(small.manifest.path.read_bytes())
    for file in manifest["files"].values():
        file["name"] = "../../../../evil"
    forge(site, small, manifest)
    get()
    get(to=tmp_path / "out")
    assert not list(tmp_path.rglob("evil*"))


def forge(site: Site, bundle: Any, manifest: dict[str, Any]) -> None:
    """Serve a manifest of another content, with a digest that fits it."""
    import dataclasses
    import hashlib

    site.add(bundle)
    data = canonical_json(manifest)
    record = dataclasses.replace(bundle.manifest, sha256="sha256:" + hashlib.sha256(data).hexdigest())
    site.versions["0.11.0"] = dataclasses.replace(bundle, manifest=record)
    site.contents[f"0.11.0/{bundle.manifest.name}"] = data


# What differs is refused


def test_another_manifest_than_the_pinned_one_is_refused(site: Site, small: Any, get: Any, tmp_path: Path) -> None:
    site.add(small)
    with pytest.raises(IntegrityError, match="expected sha256:00"):
        get(manifest_sha256="sha256:" + "0" * 64)
    assert not (tmp_path / "cache" / "blobs").exists()


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("fault", ["flip", "short", "long"])
def test_other_bytes_than_promised_are_refused_and_not_kept(
    which: int, fault: str, site: Site, small: Any, get: Any, tmp_path: Path
) -> None:
    site.add(small)
    name = f"0.11.0/{small.files[which].name}"
    data = bytearray(site.contents[name])
    if fault == "flip":
        data[len(data) // 2] ^= 1
    site.contents[name] = bytes(data[:-1] if fault == "short" else data + b"x" if fault == "long" else data)
    with pytest.raises((IntegrityError, Unavailable), match=re.escape(small.files[which].name)):
        get()
    digests = {path.name for path in files_in(tmp_path / "cache" / "blobs")}
    assert small.files[which].sha256.removeprefix("sha256:") not in digests


def test_a_dataset_hash_that_the_rows_do_not_have_is_refused(site: Site, small: Any, load: Any) -> None:
    """The files are what the manifest says they are, and the manifest lies about the rows."""
    import dataclasses
    import hashlib

    manifest = json.loads(small.manifest.path.read_bytes())
    stats = json.loads(small.normalization_stats.path.read_bytes())
    manifest["dataset_hash"] = stats["dataset_hash"] = "sha256:" + "0" * 64
    data = canonical_json(stats)
    manifest["files"]["normalization_stats"] |= {"sha256": "sha256:" + hashlib.sha256(data).hexdigest(), "size": len(data)}
    forge(site, dataclasses.replace(small), manifest)
    site.contents[f"0.11.0/{small.normalization_stats.name}"] = data
    with pytest.raises(IntegrityError, match="dataset_hash"):
        load()


def test_other_feature_code_is_refused_before_the_rows_are_downloaded(site: Site, small: Any, get: Any) -> None:
    manifest = json.loads(small.manifest.path.read_bytes())
    manifest["feature_code_hash"] = "sha256:" + "9" * 64
    forge(site, small, manifest)
    with pytest.raises(FeatureCodeMismatch, match=r"sha256:9999.*Install the release.*generator version \d"):
        get()
    assert [name for name, _ in site.file_requests] == [small.manifest.name]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": "other/9"}, "follows 'other/9'"),
        ({"name": "run"}, "manifest is of run==0.11.0"),
        ({"version": "9.9.9"}, "manifest is of walk==9.9.9"),
        ({"files": {}}, "does not describe its files"),
        ({"files": {"features": {"size": -1}}}, "does not describe its files"),
        ({"num_frames": "many"}, "num_frames"),
    ],
)
def test_a_manifest_of_something_else_is_refused(change: dict[str, Any], words: str, site: Site, small: Any, get: Any) -> None:
    forge(site, small, json.loads(small.manifest.path.read_bytes()) | change)
    with pytest.raises(IntegrityError, match=words):
        get()


def test_a_locked_version_that_changed_at_the_service_is_refused(site: Site, small: Any, get: Any, tmp_path: Path) -> None:
    site.add(small)
    get()
    other = make_bundle(tmp_path / "other", seed=7)
    site.add(other)
    with pytest.raises(IntegrityError, match="not what it was"):
        get()
    assert same_files(get(manifest_sha256=other.manifest.sha256), other)


def test_what_is_not_there(site: Site, small: Any, get: Any) -> None:
    site.add(small)
    with pytest.raises(NotFound, match="Look at the list"):
        get("walk==9.9.9")
    with pytest.raises(NotFound, match="no such thing"):
        get("run==0.11.0")
    with pytest.raises(NotFound, match="'production'; expected one of latest"):
        get("walk@production")


def test_an_address_where_something_else_listens(site: Site, get: Any) -> None:
    def page(handler: BaseHTTPRequestHandler) -> bool:
        body = b"<html>"
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)
        return True

    site.before = page
    with pytest.raises(Unavailable, match=r"not JSON.*Check the address"):
        get()


# Aliases, yanked versions


def test_aliases_mean_what_the_service_says(site: Site, small: Any, get: Any, tmp_path: Path) -> None:
    newer = make_bundle(tmp_path / "newer", version="0.12.0", seed=3)
    site.add(small)
    site.add(newer, "0.12.0")
    site.aliases["production"] = "0.11.0"
    assert get("walk").version == "0.12.0"
    assert get("walk@latest").version == "0.12.0"
    assert get("walk@production").version == "0.11.0"


def test_a_yanked_version_is_pulled_with_a_warning_online_and_offline(site: Site, small: Any, get: Any) -> None:
    site.add(small)
    site.yanked["0.11.0"] = "left foot was mirrored"
    for offline in (False, True):
        with pytest.warns(DatasetWarning, match=r"walk==0\.11\.0 was yanked: left foot was mirrored"):
            assert same_files(get(offline=offline), small)


def test_a_version_that_is_not_ready_is_pulled_with_a_warning_online_and_offline(site: Site, small: Any, get: Any) -> None:
    site.add(small)
    site.ready["0.11.0"] = False
    for offline in (False, True):
        with pytest.warns(DatasetWarning, match=r"walk==0\.11\.0 is not ready for training\. 'ampref dataset show walk"):
            assert same_files(get(offline=offline), small)


OPEN = {"name": "Micro-train smoke test", "status": "SKIP", "evidence": "test smoke was not run: no JAX"}
FAILED = {"name": "Distribution sanity", "status": "FAIL", "evidence": "walk leans"}
GROUPS = [{"name": "Determinism & sanity", "status": "FAIL", "criteria": [OPEN, FAILED, OPEN | {"status": "PASS"}]}]
REASONS = ("Micro-train smoke test: open, test smoke was not run: no JAX", "Distribution sanity: failed, walk leans")


def test_a_version_that_is_not_ready_is_loaded_only_by_those_who_ask_for_it(site: Site, small: Any, load: Any) -> None:
    site.add(small)
    site.ready["0.11.0"], site.groups = False, GROUPS
    with pytest.raises(NotReady, match=r"Distribution sanity: failed, walk leans.*allow_not_ready=True"):
        load()
    assert [name for name, _ in site.file_requests] == [small.manifest.name], "its rows are not downloaded"
    for offline in (False, True):  # Offline, the cache remembers the reasons.
        with pytest.warns(DatasetWarning, match="not ready for training: Micro-train smoke test: open"):
            data = load(offline=offline, allow_not_ready=True)
        assert (data.readiness.ready, data.readiness.reasons) == (False, REASONS)
        with pytest.raises(NotReady, match="Distribution sanity: failed"):
            load(offline=offline)


def test_a_version_that_is_ready_or_has_no_checklist_is_loaded(site: Site, small: Any, load: Any, tmp_path: Path) -> None:
    site.add(small)
    data = load()
    assert (data.readiness.ready, data.readiness.reasons) == (True, ())
    pinned = load(offline=True, manifest_sha256=small.manifest.sha256)
    assert pinned.readiness.ready
    for ref in (tmp_path / "cache" / "refs").rglob("*.json"):
        ref.unlink()
    assert load(offline=True, manifest_sha256=small.manifest.sha256).readiness.ready is None


def test_a_manifest_tells_which_tests_were_not_run_where_nobody_else_does() -> None:
    tests = [{"id": "7", "name": "7 tiers", "status": "FAIL"}, {"id": "smoke", "name": "smoke test", "status": "SKIP"}]
    clips = [{"name": "squat", "tier": 1, "segments": [{"tier": 1}]}, {"name": "walk", "tier": -1, "segments": [{"tier": 0}]}]
    manifest = {"verification": {"tests": tests}, "clips": clips, "waivers": []}
    assert Readiness.from_manifest(manifest).reasons == (
        "7 tiers: failed",
        "smoke test: was not run, or not on every clip",
        "Tier 0 clips identified: not Tier 0 are squat",
    )
    waived = Readiness.from_manifest(manifest | {"waivers": [{"test": "7", "reason": "a curriculum"}]})
    assert (waived.ready, waived.reasons) == (False, ("smoke test: was not run, or not on every clip",))
    assert waived.waivers == ("7: a curriculum",)
    assert Readiness.from_manifest(manifest | {"verification": None}).ready is None


def test_the_lines_to_paste_say_that_a_version_is_not_ready(site: Site, small: Any, get: Any) -> None:
    site.add(small)
    assert "not ready" not in get().training_config()
    site.ready["0.11.0"] = False
    with pytest.warns(DatasetWarning):
        text = get().training_config()
    assert text.startswith("# walk==0.11.0 is not ready for training\n")
    assert "allow_not_ready=True," in text


def test_an_archived_version_is_used_from_the_cache_alone(site: Site, get: Any, small: Any, tmp_path: Path) -> None:
    def refuse_features(handler: Any) -> bool:
        is_gone = handler.path.endswith(".npz")
        if is_gone:
            send_problem(handler, 410, "gone", "walk==0.11.0 was archived on 2026-11-29 by alice: replaced")
        return is_gone

    site.add(small)
    first = get()
    site.before = refuse_features
    assert get().files == first.files
    with pytest.raises(FileGone, match="archived on 2026-11-29 by alice: replaced"):
        get(cache_dir=tmp_path / "another")
