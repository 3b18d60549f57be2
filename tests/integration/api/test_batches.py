"""Many clips in one request: each answered by itself, sent again without harm, whatever the archive holds."""

from __future__ import annotations

import io
import json
import tarfile
from typing import Any

import pytest
from sqlalchemy import func, select

from ampref_service.catalog.tables import clips, jobs

from .conftest import Api, motion_bytes

TAR = {"content-type": "application/x-tar"}


def make_tar(
    *members: tuple[str, bytes], format: int = tarfile.PAX_FORMAT, extra: list[tarfile.TarInfo] | None = None
) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for info in extra or []:
            archive.addfile(info)
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def post(api: Api, body: bytes, **params: Any) -> list[dict[str, Any]]:
    answer = api.http.post("/v1/clips:batch", content=body, headers=TAR, params=params)
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def count(api: Api, table: Any) -> int:
    with api.catalog.session() as session:
        return session.execute(select(func.count()).select_from(table)).scalar_one()


def test_every_member_is_answered_by_itself_in_order(api: Api) -> None:
    bad = json.dumps({"fps": 50, "root_pos": "no"}).encode()
    members = [(f"walks/{index:02d}.json", motion_bytes(index)) for index in range(20)]
    *lines, end = post(api, make_tar(*members[:7], ("bad.json", bad), *members[7:]), mode="rollout", tags="bones")
    assert [line["member"] for line in lines] == [
        *(name for name, _ in members[:7]),
        "bad.json",
        *(name for name, _ in members[7:]),
    ]
    assert [line["status"] for line in lines] == [202] * 7 + [422] + [202] * 13
    assert lines[7]["problem"]["type"] == "urn:ampref:error:motion-refused"
    assert lines[7]["problem"]["file"] == "bad.json"
    assert lines[0]["submitted"]["clip"] | {"name": "00", "tags": ["bones"]} == lines[0]["submitted"]["clip"]
    assert end == {"num_members": 21, "num_accepted": 20, "num_known": 0, "num_refused": 1}
    assert (count(api, clips), count(api, jobs)) == (20, 20)
    assert sorted(api.rung) == sorted(line["submitted"]["job"]["id"] for line in lines if line["status"] == 202)


def test_the_same_archive_again_adds_nothing(api: Api) -> None:
    body = make_tar(*((f"{index}.json", motion_bytes(index)) for index in range(3)))
    first, second = post(api, body), post(api, body)
    assert [line["status"] for line in first[:-1]] == [202] * 3
    assert [line["status"] for line in second[:-1]] == [200] * 3
    assert second[-1] == {"num_members": 3, "num_accepted": 0, "num_known": 3, "num_refused": 0}
    assert (count(api, clips), count(api, jobs)) == (3, 3)


def test_the_same_bytes_twice_in_one_archive_are_one_clip(api: Api) -> None:
    *lines, _ = post(api, make_tar(("a.json", motion_bytes()), ("b.json", motion_bytes())))
    assert [line["status"] for line in lines] == [202, 200]
    assert len({line["submitted"]["clip"]["id"] for line in lines}) == 1


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_are_read_as_every_tar_writes_them(api: Api, format: int) -> None:
    long = "ü" + "x" * (90 if format == tarfile.USTAR_FORMAT else 180) + ".json"
    folder = tarfile.TarInfo("folder")
    folder.type = tarfile.DIRTYPE
    *lines, end = post(api, make_tar((long, motion_bytes()), format=format, extra=[folder]))
    assert [line["member"] for line in lines] == [long]
    assert end["num_members"] == 1


def test_what_is_no_ordinary_file_is_refused_by_name(api: Api) -> None:
    link = tarfile.TarInfo("link.json")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    device = tarfile.TarInfo("null")
    device.type = tarfile.CHRTYPE
    *lines, end = post(api, make_tar(("good.json", motion_bytes()), extra=[link, device]))
    assert [(line["member"], line["status"]) for line in lines] == [("link.json", 422), ("null", 422), ("good.json", 202)]
    assert "it is a link" in lines[0]["problem"]["detail"]
    assert end["num_refused"] == 2


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the archive has no end"),
        (b"x" * 1024, "no tar archive"),
        (make_tar(("a.json", motion_bytes()))[:700], "cut off within a.json"),
        (make_tar(("a.json", motion_bytes())).rstrip(b"\0"), "cut off"),
    ],
    ids=["empty", "no tar", "cut within a member", "without an end"],
)
def test_what_is_no_whole_archive_is_refused_and_nothing_stored(api: Api, body: bytes, message: str) -> None:
    answer = api.http.post("/v1/clips:batch", content=body, headers=TAR)
    assert answer.status_code == 400, answer.text
    assert message in answer.json()["detail"]
    assert count(api, clips) == 0


def test_hostile_headers_cost_nothing(api: Api) -> None:
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 100_000
    body = header.tobuf(tarfile.USTAR_FORMAT) + bytes(100_352) + make_tar(("a.json", motion_bytes()))
    answer = api.http.post("/v1/clips:batch", content=body, headers=TAR)
    assert (answer.status_code, "extended header" in answer.json()["detail"]) == (400, True)


def test_too_many_members_are_refused_before_one_is_read(api: Api) -> None:
    most = api.settings.max_batch_clips
    body = make_tar(*((f"{index}.json", b"") for index in range(most + 1)))
    answer = api.http.post("/v1/clips:batch", content=body, headers=TAR)
    assert (answer.status_code, answer.json()["expected"]) == (413, f"at most {most:,}")


def test_other_bodies_and_parameters_are_refused(api: Api) -> None:
    assert api.http.post("/v1/clips:batch", content=b"{}", headers={"content-type": "application/json"}).status_code == 415
    answer = api.http.post("/v1/clips:batch", content=make_tar(), headers=TAR, params={"modes": "rollout"})
    assert (answer.status_code, answer.json()["key"]) == (422, "query.modes")
