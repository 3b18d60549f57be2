"""Stored bytes that rot: never promised, told with whose they are, and healed by the same bytes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import select

from amp_core.digests import digest_of
from ampref_service.blobs import LocalBlobStore
from ampref_service.catalog import audit, damage
from ampref_service.catalog.tables import blob_damage

HEADERS: tuple[dict[str, str], ...] = ({}, {"range": "bytes=0-9"}, {"range": "bytes=-1"})


def flip_bit(path: Path, offset: int = -1) -> None:
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def remove(path: Path) -> None:
    path.unlink()


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def cut(path: Path) -> None:
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.chmod(0o600)
    path.write_bytes(b"")


HARMS = [(harm, False) for harm in (flip_bit, cut, empty, remove, make_folder)] + [(flip_bit, True), (remove, True)]


def ask(api: Any, url: str) -> list[httpx2.Response]:
    """The answers to every way to ask for a file."""
    return [api.http.get(url, headers=headers) for headers in HEADERS] + [api.http.head(url)]


def check_refused(api: Any, url: str, digest: str, owner: str) -> None:
    for answer in ask(api, url):
        assert answer.status_code == 500
        assert not answer.headers.keys() & {"etag", "repr-digest"}
        assert answer.headers["cache-control"] == "no-store"
        if answer.content:
            problem = answer.json()
            assert problem["type"] == "urn:ampref:error:integrity"
            assert (problem["key"], owner in problem["what"]) == (digest, True), problem["what"]
            assert "ampref fsck --repair --from BACKUP" in problem["remedy"]
            assert ("send the clip's file again" in problem["remedy"]) == owner.startswith("clip")


def check_served(api: Any, url: str, digest: str) -> None:
    whole, first, last, head = ask(api, url)
    assert [answer.status_code for answer in (whole, first, last, head)] == [200, 206, 206, 200]
    assert digest_of(whole.content) == digest
    assert (first.content, last.content) == (whole.content[:10], whole.content[-1:])
    assert head.headers["content-length"] == str(len(whole.content))
    assert all("immutable" in answer.headers["cache-control"] for answer in (whole, first, last, head))


def events(api: Any, digest: str) -> list[str]:
    with api.catalog.session() as session:
        return [event.action for event in audit.list_events(session, subject=f"blob:{digest}")]


@pytest.mark.parametrize(("harm", "is_known"), HARMS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_a_clip_whose_file_rots_is_refused_until_it_is_posted_again(
    api: Any, harm: Callable[[Path], None], is_known: bool
) -> None:
    clip = api.post(1).json()["clip"]
    url, digest = f"/v1/clips/{clip['id']}/file", clip["source_digest"]
    if is_known:
        check_served(api, url, digest)
    harm(api.blobs.local_path(digest))
    check_refused(api, url, digest, f"clip {clip['id']} (walk)")
    with api.catalog.session() as session:
        assert [entry.digest for entry in damage.list_open(session)] == [digest]
    assert api.http.get(f"/v1/clips/{clip['id']}").status_code == 200
    assert api.http.get("/readyz").status_code == 200

    assert api.post(1).json()["clip"]["id"] == clip["id"]
    check_served(api, url, digest)
    with api.catalog.session() as session:
        assert damage.count_open(session) == 0
        assert session.execute(select(blob_damage.c.healed_at)).scalar_one() is not None
    # What cannot even be moved away is reported once more when it is replaced.
    assert list(dict.fromkeys(events(api, digest))) == ["blob.damage", "blob.heal"]


@pytest.mark.parametrize("header", HEADERS)
def test_rot_after_a_file_was_verified_is_seen_before_its_digest_is_promised(api: Any, header: dict[str, str]) -> None:
    """Rot on a disk changes no time of a file."""
    clip = api.post(1).json()["clip"]
    url, path = f"/v1/clips/{clip['id']}/file", api.blobs.local_path(clip["source_digest"])
    assert api.http.head(url).status_code == 200
    status = path.stat()
    flip_bit(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    answer = api.http.get(url, headers=header)
    assert (answer.status_code, answer.json()["type"]) == (500, "urn:ampref:error:integrity")
    assert answer.json()["file"], "the file has a name"
    check_refused(api, url, clip["source_digest"], clip["id"])


def test_rot_that_nobody_has_read_is_healed_by_a_put_as_well(api: Any) -> None:
    clip = api.post(1).json()["clip"]
    flip_bit(api.blobs.local_path(clip["source_digest"]))
    api.post(1)
    check_served(api, f"/v1/clips/{clip['id']}/file", clip["source_digest"])
    assert events(api, clip["source_digest"]) == ["blob.damage", "blob.heal"]
    assert len(list((api.blobs.root / "damaged").iterdir())) == 1, "the damaged bytes are kept for the operator"


def test_a_version_file_names_its_version_and_is_healed_by_the_same_bytes(api: Any) -> None:
    api.scored(1)
    version = api.lock()
    for file in version.files:
        url = f"/v1/datasets/walk/versions/0.1.0/files/{file.name}"
        data = api.http.get(url).content
        flip_bit(api.blobs.local_path(file.digest))
        check_refused(api, url, file.digest, f"walk==0.1.0 {file.name}")
        api.blobs.put_bytes(data)
        check_served(api, url, file.digest)


def test_a_damaged_verification_is_refused_in_both_forms(api: Any) -> None:
    api.scored(1)
    api.lock()
    url = "/v1/datasets/walk/versions/0.1.0/verification"
    digest = "sha256:" + api.http.get(url).headers["etag"].strip('"')
    flip_bit(api.blobs.local_path(digest))
    answers = [api.http.get(url, params={"format": form}) for form in ("html", "json")]
    assert [answer.json()["type"] for answer in answers] == ["urn:ampref:error:integrity"] * 2


def test_an_archive_of_arrays_is_refused_whole(api: Any) -> None:
    digests = []
    for number in range(3):
        rollout = api.http.get(f"/v1/rollouts/{api.post(number) and api.finish()}").json()
        digests.append(rollout["arrays_digest"])
    assert api.http.post("/v1/arrays", json={"digests": digests}).status_code == 200
    flip_bit(api.blobs.local_path(digests[2]))
    answer = api.http.post("/v1/arrays", json={"digests": digests})
    assert (answer.status_code, answer.json()["key"]) == (500, digests[2])


def test_two_services_on_one_store_see_each_others_damage_and_healing(api: Any, settings: Any) -> None:
    clip = api.post(1).json()["clip"]
    other = LocalBlobStore(api.blobs.root)
    digest = clip["source_digest"]
    other.verify_once(digest)
    check_served(api, f"/v1/clips/{clip['id']}/file", digest)
    flip_bit(other.local_path(digest) or Path())
    check_refused(api, f"/v1/clips/{clip['id']}/file", digest, "clip ")
    assert not other.exists(digest)
    api.post(1)
    assert other.read_bytes(digest)
