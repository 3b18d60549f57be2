"""From a curriculum query to arrays on another node: verified, cached, pinned."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from amp_core.cli import main as cli
from amp_core.client import ClipSet, DatasetWarning, Retry, load_clips
from amp_core.errors import FeatureCodeMismatch, InputRefused, IntegrityError, NotFound, Unavailable

CODE = "sha256:" + "0" * 64
QUICK = Retry(attempts=3, timeout=10, wait_initial=0.01, wait_max=0.02)

Change = Callable[[httpx2.Request, bytes], bytes | Exception]


class Network:
    """The way to the service: lists the requests, and may change the bodies of its answers or break them off."""

    def __init__(self, http: Any) -> None:
        self.http = http
        self.calls: list[str] = []
        self.change: Change | None = None

    @property
    def transport(self) -> httpx2.MockTransport:
        def handle(request: httpx2.Request) -> httpx2.Response:
            path = request.url.raw_path.decode()
            self.calls.append(f"{request.method} {path.split('?')[0]}")
            headers = {key: value for key, value in request.headers.items() if key in ("content-type", "accept")}
            answer = self.http.request(request.method, path, content=request.read(), headers=headers)
            body = answer.content
            if self.change is not None and answer.status_code == 200:
                changed = self.change(request, body)
                if isinstance(changed, Exception):
                    raise changed
                body = changed
            media_type = {"content-type": answer.headers["content-type"]}
            return httpx2.Response(answer.status_code, headers=media_type, stream=httpx2.ByteStream(body))

        return httpx2.MockTransport(handle)


@pytest.fixture
def network(api: Any) -> Network:
    return Network(api.http)


@pytest.fixture
def load(network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ClipSet]:
    monkeypatch.setattr("amp_core.client.clips.feature_code_hash", lambda: CODE)

    def call(**options: Any) -> ClipSet:
        defaults = {"url": "http://service", "cache_dir": tmp_path / "cache", "retry": QUICK, "transport": network.transport}
        return load_clips(**(defaults | options))

    return call


@pytest.fixture
def catalog(api: Any) -> Any:
    """Three Tier 1 clips, of which two have one name, one of Tier 0, and one that is not scored yet."""
    api.scored(1, "squat", tier=1, tags="flat", slip_rate=0.02)
    api.scored(2, "squat", tier=1, slip_rate=0.15)
    api.scored(3, "kick", tier=1, tags="flat", slip_rate=0.05)
    api.scored(4, "walk", tier=0)
    api.post(5, name="later")
    return api


# The endpoint


def test_exports_come_in_one_archive_in_the_order_of_their_digests(catalog: Any) -> None:
    items = catalog.http.get("/v1/clips?tier=1&sort=slip_rate").json()["items"]
    digests = [item["rollout"]["arrays_digest"] for item in items]
    answer = catalog.http.post("/v1/arrays", json={"digests": [*digests, digests[0]]})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-tar"
    assert int(answer.headers["content-length"]) == len(answer.content)
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        assert archive.getnames() == [f"{digest.removeprefix('sha256:')}.npz" for digest in digests]
        for digest, member in zip(digests, archive, strict=True):
            file = archive.extractfile(member)
            assert file is not None
            assert "sha256:" + hashlib.sha256(file.read()).hexdigest() == digest


def test_nothing_is_sent_where_one_is_missing_or_damaged(catalog: Any) -> None:
    [item] = catalog.http.get("/v1/clips?name=kick").json()["items"]
    digest, unknown = item["rollout"]["arrays_digest"], "sha256:" + "f" * 64
    answer = catalog.http.post("/v1/arrays", json={"digests": [digest, unknown]})
    assert answer.status_code == 404
    assert answer.json()["what"] == f"1 of 2 exports are not here: {unknown}"
    path = catalog.blobs.local_path(digest)
    path.chmod(0o600)
    path.write_bytes(b"short")
    answer = catalog.http.post("/v1/arrays", json={"digests": [digest]})
    assert answer.status_code == 500
    assert "damaged" in answer.json()["detail"]
    for wrong in ([], ["sha256:0"], [unknown] * 201):
        assert catalog.http.post("/v1/arrays", json={"digests": wrong}).status_code == 422
    # A blob that no rollout names is not sent: the uploaded motion itself.
    assert catalog.http.post("/v1/arrays", json={"digests": [item["source_digest"]]}).status_code == 404


# The client


def test_one_call_leads_from_a_query_to_verified_arrays(catalog: Any, load: Any, network: Network) -> None:
    clips = load(tier=1, robot="wildrobot", max_slip_rate=0.1, tags=["flat"], sort="slip_rate")
    assert network.calls == ["GET /v1/clips", "POST /v1/arrays"]
    assert [(clip.name, clip.tier, clip.frames, clip.tags) for clip in clips] == [
        ("squat", 1, 50, ("flat",)),
        ("kick", 1, 50, ("flat",)),
    ]
    assert clips.downloaded_bytes == sum(clip.arrays_size for clip in clips)
    for clip in clips:
        assert "sha256:" + hashlib.sha256(clip.path.read_bytes()).hexdigest() == clip.arrays_digest
        assert isinstance(clip.features, np.memmap)
        assert clip.features.shape == (50, 27)
        assert set(clip.arrays) == {"features", "id"}
        assert clip.quality_metrics["mean_sum_fn_over_mg"] == 0.98
    assert clips.gate_profiles == ["amp-0.12"]
    assert list(clips.robots) == ["wildrobot"]
    assert repr(clips) == "<ClipSet of 2 clips, 100 frames, robot wildrobot>"


def test_a_profile_is_a_filter_everywhere(api: Any, load: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Tier 0 by amp-0.11 is listed as such when somebody asks for it, and never instead of today's verdict."""
    api.scored(1, name="ice", tier=1)
    api.scored(1, name="ice", tier=0, profile="amp-0.11")
    api.scored(2, name="run", tier=1)
    api.scored(2, name="run", tier=0, profile="amp-0.12-dynamic")

    def listed(**query: Any) -> list[tuple[str, int, str]]:
        items = api.http.get("/v1/clips", params={"sort": "created_at"} | query).json()["items"]
        return [(item["name"], item["rollout"]["tier"], item["rollout"]["gate_profile"]) for item in items]

    assert listed() == [("ice", 1, "amp-0.12"), ("run", 0, "amp-0.12-dynamic")]
    assert listed(tier=0) == [("run", 0, "amp-0.12-dynamic")]
    assert listed(gate_profile="amp-0.12") == [("ice", 1, "amp-0.12"), ("run", 1, "amp-0.12")]
    assert listed(gate_profile="amp-0.11", tier=0, mode="rollout") == [("ice", 0, "amp-0.11")]
    assert api.http.get("/v1/clips?gate_profile=amp-9").status_code == 422
    assert [(clip.name, clip.gate_profile) for clip in load(tier=0)] == [("run", "amp-0.12-dynamic")]
    assert not load(tier=0, name="ice")
    old = load(tier=0, gate_profile="amp-0.11")
    assert ([clip.name for clip in old], old.query) == (["ice"], {"tier": 0, "gate_profile": "amp-0.11"})
    with pytest.warns(DatasetWarning, match=r"different gate profiles: amp-0.12, amp-0.12-dynamic; gate_profile takes one"):
        load()


def test_arrays_of_a_cache_are_verified_and_not_sent_again(catalog: Any, load: Any, network: Network) -> None:
    first = load(tier=1)
    network.calls.clear()
    second = load(tier=1)
    assert network.calls == ["GET /v1/clips"]
    assert second.downloaded_bytes == 0
    assert list(second) == list(first)
    path = first[1].path
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    third = load(tier=1)
    assert third.downloaded_bytes == first[1].arrays_size, "the damaged one alone"


def test_a_limit_counts_scored_clips_over_pages(catalog: Any, load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amp_core.client.clips._PAGE", 2)
    assert [clip.name for clip in load(sort="-created_at")] == ["walk", "kick", "squat", "squat"]
    assert [clip.name for clip in load(sort="-created_at", limit=3)] == ["walk", "kick", "squat"]
    with pytest.raises(InputRefused, match="limit"):
        load(limit=0)


def test_what_is_no_filter_is_refused(catalog: Any, load: Any) -> None:
    with pytest.raises(InputRefused, match="max_slip_rate"):
        load(max_slip=0.1)
    with pytest.raises(TypeError, match="'tiers'"):
        load(tiers=1)


def test_a_broken_connection_costs_what_was_not_complete(catalog: Any, load: Any, network: Network) -> None:
    asked: list[int] = []

    def cut(request: httpx2.Request, body: bytes) -> bytes:
        if request.method == "GET":
            return body
        asked.append(len(json.loads(request.read())["digests"]))
        return body[: len(body) // 2] if len(asked) == 1 else body

    network.change = cut
    assert len(load(tier=1)) == 3
    assert asked == [3, 2]


def test_other_bytes_than_promised_are_refused_and_not_kept(catalog: Any, load: Any, network: Network, tmp_path: Path) -> None:
    def flip(request: httpx2.Request, body: bytes) -> bytes:
        return body if request.method == "GET" else body[:1000] + bytes([body[1000] ^ 1]) + body[1001:]

    network.change = flip
    with pytest.raises(IntegrityError, match="other bytes"):
        load(tier=1)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and "blobs" in path.parts]
    assert not list((tmp_path / "cache" / "partial").iterdir())
    network.change = lambda request, body: body if request.method == "GET" else b"<html>" + bytes(600)
    with pytest.raises(Unavailable, match="something else than an archive"):
        load(tier=1)


def test_features_of_other_code_are_refused_before_they_are_downloaded(
    catalog: Any, load: Any, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amp_core.client.clips.feature_code_hash", lambda: "sha256:" + "9" * 64)
    with pytest.raises(FeatureCodeMismatch, match="3 of 3 clips"):
        load(tier=1)
    assert network.calls == ["GET /v1/clips"]


# Without a network


def test_a_query_is_remembered_for_when_no_service_answers(catalog: Any, load: Any, network: Network) -> None:
    with pytest.raises(NotFound, match="never asked"):
        load(tier=1, offline=True)
    online = load(tier=1)
    with pytest.warns(DatasetWarning, match="what this query listed last"):
        assert list(load(tier=1, offline=True)) == list(online)
    network.change = lambda request, body: httpx2.ConnectError("no route")
    with pytest.warns(DatasetWarning, match="what this query listed last"):
        assert list(load(tier=1)) == list(online)
    with pytest.raises(Unavailable):
        load(tier=0)


# Pinned


def test_a_pinned_list_is_the_same_bytes_on_another_node_after_the_catalog_has_grown(
    catalog: Any, load: Any, network: Network, tmp_path: Path
) -> None:
    clips = load(tier=1, sort="slip_rate")
    file = clips.pin(tmp_path / "pins" / "curriculum.json")
    catalog.http.delete(f"/v1/clips/{catalog.http.get('/v1/clips?name=later').json()['items'][0]['id']}")
    catalog.scored(6, "newer", tier=1, slip_rate=0.0)
    assert len(load(tier=1)) == 4
    network.calls.clear()
    again = load(pinned=file, cache_dir=tmp_path / "another node")
    assert network.calls == ["POST /v1/arrays"]
    assert (again.digest, again.query, list(again)) == (clips.digest, {"tier": 1, "sort": "slip_rate"}, list(clips))
    assert [clip.path.read_bytes() for clip in again] == [clip.path.read_bytes() for clip in clips]
    assert again.pin(tmp_path / "again.json").read_bytes() == file.read_bytes()
    assert list(load(pinned=file, offline=True)) == list(clips), "a cache that has the arrays needs no service"
    with pytest.raises(NotFound, match=r"squat\.npz"):
        load(pinned=file, offline=True, cache_dir=tmp_path / "empty")
    with pytest.raises(InputRefused, match="without tier"):
        load(pinned=file, tier=1)


def test_pinned_arrays_that_the_service_has_no_longer_are_named(catalog: Any, load: Any, tmp_path: Path) -> None:
    clips = load(tier=1)
    file = clips.pin(tmp_path / "pin.json")
    kick = next(clip for clip in clips if clip.name == "kick")
    assert catalog.http.delete(f"/v1/clips/{kick.id}").status_code == 204
    assert list(load(pinned=file)) == list(clips)
    with pytest.raises(NotFound, match=r"no longer the arrays of kick\.npz; .*deleted"):
        load(pinned=file, cache_dir=tmp_path / "empty")


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (lambda text: text.replace('"squat"', '"sqaut"'), IntegrityError, "was changed"),
        (lambda text: text.replace('"tier": 1', '"tier": 0'), IntegrityError, "was changed"),
        (lambda text: text[: len(text) // 2], InputRefused, "not JSON"),
        (lambda text: "{}", InputRefused, "no pinned list"),
        (lambda text: "[]", InputRefused, "no pinned list"),
    ],
)
def test_a_list_that_was_changed_is_refused(
    change: Callable[[str], str], kind: type[Exception], words: str, catalog: Any, load: Any, tmp_path: Path
) -> None:
    file = load(tier=1).pin(tmp_path / "pin.json")
    file.write_text(change(file.read_text()))
    with pytest.raises(kind, match=words):
        load(pinned=file)


def test_a_list_that_is_not_there(load: Any, tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="cannot be read"):
        load(pinned=tmp_path / "nothing.json")


# The command


def test_the_command_fetches_pins_and_loads_a_list(
    catalog: Any,
    load: Any,
    network: Network,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("amp_core.cli.clips.load_clips", lambda **options: load(**options | {"url": "http://service"}))
    folder, pin = tmp_path / "out", tmp_path / "pin.json"
    cache = ["--cache-dir", str(tmp_path / "cli")]
    assert cli.run(["clips", "--tier", "1", "--fetch", str(folder), "--pin", str(pin), "--json", *cache]) == 0
    document = json.loads(capsys.readouterr().out)
    clips = load(tier=1)
    assert document["digest"] == clips.digest
    assert [Path(clip["file"]).read_bytes() for clip in document["clips"]] == [clip.path.read_bytes() for clip in clips]
    names = {path.name for path in folder.iterdir()}
    squats = {f"squat-{clip.arrays_digest[7:19]}.npz" for clip in clips if clip.name == "squat"}
    assert names == {"kick.npz", *squats}
    assert cli.run(["clips", "--from", str(pin), "--fetch", str(tmp_path / "copy"), *cache]) == 0
    assert "3 clips; the cache had everything, verified" in capsys.readouterr().out
    assert cli.run(["clips", "--from", str(pin), "--tier", "1", *cache]) == 2
    capsys.readouterr()
    pin.write_text(pin.read_text().replace('"kick"', '"kock"'))
    assert cli.run(["clips", "--from", str(pin), *cache]) == 1
    assert "the pinned list was changed" in capsys.readouterr().err
    assert cli.run(["clips", "--fetch", str(folder), "--tier", "-1", *cache]) == 0
    assert "no scored clip matches" in capsys.readouterr().out
