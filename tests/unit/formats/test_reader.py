"""Reading whole clips: round trips, and one clear refusal for each way to be wrong."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amp_core.errors import MotionRefused, TooLarge
from amp_core.formats import Limits, Motion, check_proportion, clean_name, label_file, name_clip, read_motion

KEYS = ("root_pos", "root_rot", "dof_pos")
REAL = Path(__file__).parents[4] / "shared/data/motions"


def same(motion: Motion, clip: dict[str, Any]) -> None:
    assert motion.fps == float(clip["fps"])
    for key in KEYS:
        np.testing.assert_array_equal(getattr(motion, key), np.asarray(clip[key], dtype=np.float64))


def refused(
    data: bytes | Path, *needles: str, key: str | None = None, frame: int | None = None, **options: Any
) -> MotionRefused:
    with pytest.raises(MotionRefused) as caught:
        read_motion(data, **{"name": "walk", **options})
    error = caught.value
    text = str(error)
    assert all(needle in text for needle in needles), text
    if key is not None:
        assert error.key == key, text
    if frame is not None:
        assert error.frame == frame, text
    assert error.file, text
    assert error.expected, text
    assert error.remedy, text
    assert len(text) < 800
    assert text.isprintable(), text
    return error


# --- What is read -----------------------------------------------------------------------------------------------------


def test_npz_round_trip(clip: dict[str, Any], as_npz: Callable[..., bytes]) -> None:
    data = as_npz(clip, link_body_list=np.array(["a", "b"]), extra=np.array([None, {}], dtype=object))
    motion = read_motion(data, name="walk")
    same(motion, clip)
    assert motion.source_format == "npz"
    assert motion.source_digest == "sha256:" + hashlib.sha256(data).hexdigest()
    assert motion.name == "walk"
    assert motion.duration_sec == pytest.approx(11 / 50)


@pytest.mark.parametrize("change", [np.asfortranarray, lambda a: a.astype(">f8"), lambda a: a.astype("f8")[::1]])
def test_npz_layouts(clip: dict[str, Any], as_npz: Callable[..., bytes], change: Callable[[Any], Any]) -> None:
    same(read_motion(as_npz({"fps": 50, **{k: change(clip[k]) for k in KEYS}}), name="walk"), clip)


def test_npz_compressed_float32_and_integers(clip: dict[str, Any]) -> None:
    out = io.BytesIO()
    small = {k: clip[k].astype(np.float32) for k in KEYS}
    np.savez_compressed(out, fps=np.array([50]), **small)
    same(read_motion(out.getvalue(), name="walk"), {"fps": 50, **small})


def test_npz_written_as_a_stream(clip: dict[str, Any]) -> None:
    """Members with a data descriptor, as zip writers make that cannot seek."""

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def seek(self, *_: Any) -> int:
            raise OSError("pipe")

    out = Pipe()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, value in clip.items():
            member = io.BytesIO()
            np.save(member, value)
            archive.writestr(f"{key}.npy", member.getvalue())
    same(read_motion(out.getvalue(), name="walk"), clip)


def _patch_header(data: bytes, place: int, value: bytes) -> bytes:
    """Change the header in front of `root_pos.npy`, of which only the table of contents at the end is left as it was."""
    begin = data.index(b"root_pos.npy") - 30 + place
    return data[:begin] + value + data[begin + len(value) :]


def _hide_member(data: bytes) -> bytes:
    """A second `root_pos.npy` within another member, to which the table of contents leads."""
    inner = data[data.index(b"PK\x03\x04") : data.index(b"PK\x01\x02")]
    out = io.BytesIO(data)
    with zipfile.ZipFile(out, "a") as archive:
        archive.writestr("note.npy", inner)
    whole = out.getvalue()
    hidden = whole.rindex(b"root_pos.npy", 0, whole.index(b"PK\x01\x02")) - 30
    entry = whole.index(b"root_pos.npy", whole.index(b"PK\x01\x02")) - 46
    return whole[: entry + 42] + struct.pack("<I", hidden) + whole[entry + 46 :]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: _patch_header(data, 30, b"dof_posx.npy"), "calls the member 'root_pos.npy'"),
        (lambda data: _patch_header(data, 6, b"\x01\x00"), "differs from"),
        (lambda data: _patch_header(data, 6, b"\x08\x00"), "differs from"),
        (lambda data: _patch_header(data, 8, b"\x08\x00"), "differs from"),
        (lambda data: _patch_header(data, 14, bytes(4)), "differs from"),
        (lambda data: _patch_header(data, 18, b"\x01\x00\x00\x00"), "differs from"),
        (lambda data: _patch_header(data, 22, b"\x01\x00\x00\x00"), "differs from"),
        (_hide_member, "lie over each other"),
        (lambda data: data[: data.index(b"PK\x05\x06")] + bytes(22) + data[data.index(b"PK\x05\x06") :], "not where its end"),
    ],
)
def test_an_archive_that_two_readers_would_read_differently(
    clip: dict[str, Any], change: Callable[[bytes], bytes], says: str
) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for key, value in clip.items():
            member = io.BytesIO()
            np.save(member, value)
            archive.writestr(f"{key}.npy", member.getvalue())
    same(read_motion(out.getvalue(), name="walk"), clip)
    refused(change(out.getvalue()), says, "np.savez")


def test_json_round_trip(clip: dict[str, Any], as_json: Callable[..., bytes]) -> None:
    data = as_json(clip, note="grüße", nested=np.zeros((2, 2)))
    motion = read_motion(data, name="walk")
    same(motion, clip)
    assert motion.source_format == "json"
    same(read_motion(b"\xef\xbb\xbf \n" + data, name="walk"), clip)
    same(read_motion(data.replace(b'"note"', '"grüße🦿"'.encode()), name="walk"), clip)
    same(read_motion(data.replace(b'"note"', b'"\\ud83e\\uddbf\\\\ud800"'), name="walk"), clip)


def test_csv_round_trip(clip: dict[str, Any], as_csv: Callable[..., bytes]) -> None:
    data = as_csv(clip)
    for text in (
        data,
        b"# exported\n" + data,
        b"x,y,z,qx,qy,qz,qw,a,b,c,d,e,f,g,h\r\n" + data.replace(b"\n", b"\r\n"),
        data[:-1],
    ):
        motion = read_motion(text, name="walk", fps=50, quat_order="xyzw")
        same(motion, clip)
        assert motion.source_format == "csv"


@pytest.mark.parametrize("writer", ["as_npz", "as_json", "as_csv"])
def test_wxyz_is_converted(clip: dict[str, Any], writer: str, request: pytest.FixtureRequest) -> None:
    other = {**clip, "root_rot": clip["root_rot"][:, [3, 0, 1, 2]]}
    fps = 50.0 if writer == "as_csv" else None
    same(read_motion(request.getfixturevalue(writer)(other), name="walk", fps=fps, quat_order="wxyz"), clip)


def test_fps_from_the_caller(clip: dict[str, Any], as_npz: Callable[..., bytes]) -> None:
    without = {k: clip[k] for k in KEYS}
    same(read_motion(as_npz(without), name="walk", fps=50), clip)
    same(read_motion(as_npz(clip), name="walk", fps=50), clip)
    refused(as_npz(without), "missing", "pass it: --fps 50", key="fps")
    refused(as_npz(clip), "the file says 50", "the caller 30", key="fps", fps=30)


def test_paths(tmp_path: Path, clip: dict[str, Any], as_npz: Callable[..., bytes]) -> None:
    for name in ("walk.npz", "walk.NPZ", "walk", "walk.motion"):
        (tmp_path / name).write_bytes(as_npz(clip))
        same(read_motion(tmp_path / name, name="walk"), clip)
    motion = read_motion(str(tmp_path / "walk.npz"))
    same(motion, clip)
    assert motion.name == "walk"
    with pytest.raises(TypeError, match="pass name="):
        read_motion(as_npz(clip))


def test_a_motion_is_frozen(clip: dict[str, Any], as_npz: Callable[..., bytes]) -> None:
    motion = read_motion(as_npz(clip), name="walk")
    with pytest.raises(ValueError, match="read-only"):
        motion.dof_pos[0, 0] = 1.0
    mine = clip["dof_pos"]
    built = Motion("walk", 50, clip["root_pos"], clip["root_rot"], mine, "sha256:0", "npz")
    before = built.dof_pos[0, 0]
    mine[0, 0] = 7.0
    assert built.dof_pos[0, 0] == before


# --- What is refused: the file ----------------------------------------------------------------------------------------


def test_empty_and_foreign_files(tmp_path: Path) -> None:
    refused(b"", "empty")
    refused(b" \n\t ", "empty")
    refused(b"\x93NUMPY\x01\x00v\x00", "single .npy")
    refused(b"\x1f\x8b\x08abcdefgh", "gzip")
    refused(b"\x78\x9cabcdefgh", "joblib")
    refused(b"version https://git-lfs.github.com/spec/v1\n", "Git LFS")
    refused(b"\x89PNG\r\n\x1a\n\x00\x00", "begins with 89 50 4e 47")
    refused(b"hello world", "plain text")
    refused(b"Dear all,\n\nhere, at last, are the clips. 3, 4, and more\n", "plain text")
    refused('{"fps": 50}'.encode("utf-16"), "UTF-16")
    refused(tmp_path / "none.pkl", "cannot be opened", "No such file")
    refused(tmp_path, "cannot be opened" if os.name == "nt" else "not a regular file")
    refused(Path("a\0b"), "not a usable path")
    os.mkfifo(tmp_path / "pipe.pkl")
    refused(tmp_path / "pipe.pkl", "not a regular file")


def test_a_text_with_commas_is_no_csv(tmp_path: Path, clip: dict[str, Any], as_csv: Callable[..., bytes]) -> None:
    path = tmp_path / "walk.pkl"
    path.write_text("Hello, this is no motion,\nnot at all.\n1, 2 and 3 are in it\n")
    assert "csv" not in refused(path, "its content is plain text").what
    header = b"# made by hand\n" + b",".join(b"c%d" % i for i in range(15)) + b"\n"
    for data in (as_csv(clip), header + as_csv(clip), b"\xef\xbb\xbf" + as_csv(clip).replace(b"\n", b"\r\n")):
        path.write_bytes(data)
        refused(path, "declared pkl", "content is csv")


def test_a_missing_key_is_refused_with_those_that_the_file_has(clip: dict[str, Any], as_npz: Callable[..., bytes]) -> None:
    content = {"rate": 50.0, "root_pos": clip["root_pos"]} | {f"extra{number}": np.zeros(1) for number in range(20)}
    error = refused(as_npz(content), "'fps' is missing; the file has 'rate', 'root_pos', 'extra0'", " and 10 more", key="fps")
    assert "extra12" not in error.what
    refused(json.dumps({"fps": 50, "poses": []}).encode(), "'root_pos' is missing; the file has 'fps', 'poses'", key="root_pos")
    with pytest.raises(MotionRefused, match=r"fps is -3; expected a positive .* for example --fps 50"):
        read_motion(as_npz(clip), name="walk", fps=-3)


def test_content_other_than_its_name(tmp_path: Path, clip: dict[str, Any], as_npz: Callable[..., bytes]) -> None:
    path = tmp_path / "walk.pkl"
    path.write_bytes(as_npz(clip))
    refused(path, "declared pkl", "content is npz", "Rename")
    same(read_motion(path, name="walk", format="npz"), clip)
    refused(as_npz(clip), "declared json", format="json")
    with pytest.raises(MotionRefused, match="no format 'xml'"):
        read_motion(as_npz(clip), name="walk", format="xml")
    with pytest.raises(MotionRefused, match="no quaternion order"):
        read_motion(as_npz(clip), name="walk", quat_order="zyxw")
    for fps in (0, -1.0, float("nan"), float("inf"), True):
        with pytest.raises(MotionRefused, match="fps is"):
            read_motion(as_npz(clip), name="walk", fps=fps)


def test_oversize(tmp_path: Path, clip: dict[str, Any], as_npz: Callable[..., bytes]) -> None:
    data = as_npz(clip)
    limits = Limits(max_bytes=len(data) - 1)
    refused(data, f"{len(data)} bytes", f"at most {len(data) - 1}", limits=limits)
    (tmp_path / "a.npz").write_bytes(data)
    refused(tmp_path / "a.npz", f"at most {len(data) - 1}", limits=limits)


def test_truncation_anywhere_is_a_refusal(clip: dict[str, Any], request: pytest.FixtureRequest) -> None:
    for writer in ("as_npz", "as_json"):
        data = request.getfixturevalue(writer)(clip)
        for end in (*range(1, 60, 7), *range(60, len(data), 97), len(data) - 1):
            refused(data[:end])
    for protocol in range(6):
        data = pickle.dumps(clip, protocol)
        for end in (*range(1, 60, 7), *range(60, len(data), 97), len(data) - 1):
            refused(data[:end], format="pkl")


# --- What is refused: the values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("writer", ["as_npz", "as_json"])
def test_missing_keys_and_wrong_values(clip: dict[str, Any], writer: str, request: pytest.FixtureRequest) -> None:
    write = request.getfixturevalue(writer)

    def change(**more: Any) -> bytes:
        return write({k: v for k, v in {**clip, **more}.items() if v is not None})

    for key in KEYS:
        refused(change(**{key: None}), "missing", key=key)
        refused(change(**{key: np.zeros(12)}), key=key)
        refused(change(**{key: np.zeros((12, 2, 2))}), key=key)
        refused(change(**{key: clip[key][:-1]}), "root_pos has", key=key)
        refused(change(**{key: np.zeros((0, 3))}), key=key)
        refused(change(**{key: np.full(clip[key].shape, "a")}), key=key)
    refused(change(root_pos=clip["root_pos"][:, :2]), "(N, 3)", key="root_pos")
    refused(change(root_rot=clip["root_pos"]), "(N, 4)", key="root_rot")
    refused(change(**{k: clip[k][:1] for k in KEYS}), "1 frame", "at least 2", key="root_pos")
    refused(change(dof_pos=np.zeros((12, 129))), "129 columns", key="dof_pos")
    for fps in (0, -30, 1e9, 0.02):
        refused(change(fps=fps), "fps is", key="fps")
    refused(change(fps="fast"), key="fps")
    refused(change(fps=np.array([50, 50])), key="fps")
    refused(change(fps=True), key="fps")


def test_not_finite(clip: dict[str, Any], as_npz: Callable[..., bytes], as_csv: Callable[..., bytes]) -> None:
    for key in KEYS:
        for bad in (np.nan, np.inf, -np.inf):
            values = clip[key].copy()
            values[7, 1] = bad
            values[9, 0] = np.nan
            refused(as_npz({**clip, key: values}), "column 1", key=key, frame=7)
            refused(as_csv({**clip, key: values}), "line 8", frame=7, fps=50, quat_order="xyzw")
    refused(as_npz({**clip, "fps": np.nan}), "fps is nan", key="fps")
    refused(as_csv(clip).replace(b"0.47", b"1e999", 1), "is inf", key="root_pos", frame=0, fps=50, quat_order="xyzw")


def test_quaternions_far_off_unit_norm(clip: dict[str, Any], as_npz: Callable[..., bytes]) -> None:
    values = clip["root_rot"].copy()
    values[5] *= 1.2
    refused(as_npz({**clip, "root_rot": values}), "norm is 1.2", "1 of 12", key="root_rot", frame=5)
    refused(as_npz({**clip, "root_rot": np.zeros((12, 4))}), "norm is 0", key="root_rot", frame=0)
    refused(as_npz({**clip, "root_rot": np.full((12, 4), 1e200)}), "norm is", key="root_rot", frame=0)
    for norm in (1.005, 0.983, 0.9, 1.1):
        rotation = clip["root_rot"] * norm
        for values in (rotation, rotation.astype(np.float32)):
            read_motion(as_npz({**clip, "root_rot": values}), name="walk")
    for norm in (0.85, 1.15):
        refused(as_npz({**clip, "root_rot": clip["root_rot"] * norm}), "12 of 12 are off", key="root_rot", frame=0)


def test_a_padded_tail(clip: dict[str, Any], as_npz: Callable[..., bytes]) -> None:
    padded = {key: np.vstack([clip[key], np.zeros((5, clip[key].shape[1]))]) for key in KEYS}
    data = as_npz({**padded, "fps": 50.0})
    refused(data, "from frame 12 to the end", "5 of 17", "padded", "ampref cut CLIP --frames 0:12", key="root_rot", frame=12)
    same(read_motion(data, name="walk", frames=(0, 12)), clip)
    values = clip["root_rot"].copy()
    values[:4] = 0.0
    refused(as_npz({**clip, "root_rot": values}), "up to frame 3 ", "padded", "--frames 4:12", frame=0)
    values[10:] = 0.0
    refused(as_npz({**clip, "root_rot": values}), "up to frame 3 and from frame 10 to the end", "padded", "4:10", frame=0)


def test_zero_quaternions_in_the_midst_are_no_padding(clip: dict[str, Any], as_npz: Callable[..., bytes]) -> None:
    values = clip["root_rot"].copy()
    values[[3, 7]] = 0.0
    data = as_npz({**clip, "root_rot": values})
    error = refused(data, "zero in 2 of 12 frames (3, 7)", "from their neighbours", "has 4 frames: ampref cut", "8:12", frame=3)
    assert "padded" not in str(error)
    values[1::2] = 0.0
    refused(as_npz({**clip, "root_rot": values}), "no two frames in succession are left", frame=1)


def test_frames_are_counted_in_the_file_also_in_a_part(clip: dict[str, Any], as_npz: Callable[..., bytes]) -> None:
    for key, value in (("dof_pos", np.nan), ("root_rot", 0.0), ("root_rot", 7.0), ("root_pos", 1e6)):
        spoiled = clip[key].copy()
        spoiled[6] = value
        error = refused(as_npz({**clip, key: spoiled}), key=key, frame=6, frames=(4, 12))
        if value in (0.0, 7.0) or key == "root_pos":
            continue
        assert "--frames 7:12" in str(error)
    spoiled = clip["root_rot"].copy()
    spoiled[6] = 0.0
    refused(as_npz({**clip, "root_rot": spoiled}), "(6)", "--frames 7:12", frame=6, frames=(4, 12))


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("-walk.npz", "./-walk.npz"),
        ("a walk's.npz", "'a walk'\"'\"'s.npz'"),
        ("walk\n'.npz", "$'walk\\x0a\\'.npz'"),
        ("walk\u202e.npz", "$'walk\\xe2\\x80\\xae.npz'"),
    ],
)
def test_remedies_have_the_path_as_a_shell_takes_it(
    clip: dict[str, Any], as_npz: Callable[..., bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, path: str
) -> None:
    monkeypatch.chdir(tmp_path)
    spoiled = clip["dof_pos"].copy()
    spoiled[9:] = np.nan
    Path(name).write_bytes(as_npz({**clip, "dof_pos": spoiled}))
    error = refused(Path(name), f"ampref cut {path} --frames 0:9")
    assert error.remedy is not None
    arguments = error.remedy.partition("ampref cut ")[2].removesuffix(" --frames 0:9")
    shown = subprocess.run(["bash", "-c", f"ls {arguments}"], capture_output=True, text=True, check=True)
    assert shown.stdout.removesuffix("\n").removeprefix("./") == name


def test_a_part_of_a_file(clip: dict[str, Any], as_npz: Callable[..., bytes], as_csv: Callable[..., bytes]) -> None:
    for values, part in (((0, 2), "2:12"), ((9, 12), "0:9"), ((4, 5), "5:12")):
        broken = clip["dof_pos"].copy()
        broken[slice(*values), 3] = np.nan
        data = as_npz({**clip, "dof_pos": broken})
        refused(data, "nan", f"ampref cut CLIP --frames {part}", key="dof_pos", frame=values[0])
        start, end = map(int, part.split(":"))
        motion = read_motion(data, name="walk", frames=(start, end))
        same(motion, {"fps": 50.0, **{key: clip[key][start:end] for key in KEYS}})
        assert motion.source_digest == "sha256:" + hashlib.sha256(data).hexdigest()
    broken = {key: clip[key].copy() for key in KEYS}
    broken["root_pos"][9:], broken["dof_pos"][7:] = np.nan, np.inf
    refused(as_npz({"fps": 50.0, **broken}), "--frames 0:7", key="root_pos", frame=9)
    part_of_csv = read_motion(as_csv(clip), name="walk", fps=50.0, quat_order="xyzw", frames=(3, None))
    same(part_of_csv, {"fps": 50.0, **{key: clip[key][3:] for key in KEYS}})
    for frames in ((0, 13), (12, None), (5, 5), (7, 3), (-1, None)):
        refused(as_npz(clip), "there are no frames", "0:12", key="frames", frames=frames)
    refused(as_npz(clip), "1 frame", frames=(3, 4))


def test_limits_on_time_and_place(clip: dict[str, Any], as_npz: Callable[..., bytes]) -> None:
    refused(as_npz({**clip, "fps": 1.0}), "lasts 11.0 s", limits=Limits(max_duration_sec=10))
    refused(as_npz({**clip, "fps": 1001}), "between 1 and 1000", key="fps")
    far = clip["root_pos"].copy()
    far[3, 0] = 2e4
    refused(as_npz({**clip, "root_pos": far}), "metres", key="root_pos", frame=3)
    refused(as_npz(clip), "at most 50", limits=Limits(max_values=50))


# --- What is refused: npz ---------------------------------------------------------------------------------------------


def test_npz_object_arrays_are_never_unpickled(clip: dict[str, Any], as_npz: Callable[..., bytes]) -> None:
    refused(as_npz({**clip, "dof_pos": np.array([None] * 12, dtype=object)}), "object array", key="dof_pos")


def test_npz_header_lies(clip: dict[str, Any], as_npz: Callable[..., bytes]) -> None:
    def forge(old: bytes, new: bytes) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(as_npz(clip))) as source, zipfile.ZipFile(out, "w") as target:
            for name in source.namelist():
                raw = source.read(name)
                target.writestr(name, raw.replace(old, new) if name == "dof_pos.npy" else raw)
        return out.getvalue()

    same(read_motion(forge(b"", b""), name="walk"), clip)
    refused(forge(b"(12, 8)", b"(13, 8)"), "declares shape (13, 8)", key="dof_pos")
    refused(forge(b"(12, 8)", b"(-1, 8)"), "plain array", key="dof_pos")
    refused(forge(b"(12, 8)", b"(99999999999, 8)"), "frames", key="dof_pos")
    refused(forge(b"'<f8'", b"'|V8'"), "'|V8'", key="dof_pos")
    refused(forge(b"'<f8'", b"'<c16'"), "'<c16'", key="dof_pos")
    refused(forge(b"False", b"Falsy"), "plain array", key="dof_pos")
    refused(forge(b"False", b"exit()"), "plain array", key="dof_pos")
    refused(forge(b"NUMPY\x01", b"NUMPY\x09"), "version 9", key="dof_pos")
    refused(forge(b"NUMPY\x01\x00v\x00", b"NUMPY\x01\x00\xff\xff"), "header", key="dof_pos")
    refused(forge(b"\x93NUMPY", b"\x94NUMPY"), "not an npy", key="dof_pos")


def test_npz_damage(clip: dict[str, Any], as_npz: Callable[..., bytes]) -> None:
    data = as_npz(clip)
    at = data.index(clip["dof_pos"].tobytes()) + 8
    refused(data[:at] + b"\x55" + data[at + 1 :], "checksum", key="dof_pos")
    refused(data + b"x", "does not fit")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("fps.npy", b"abc")
    refused(out.getvalue(), "zip method 12", key="fps")
    out = io.BytesIO()
    member = io.BytesIO()
    np.save(member, 50.0)
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("fps.npy", member.getvalue())
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("fps.npy", member.getvalue())
    refused(out.getvalue(), "twice", key="fps")
    local, central = data.rindex(b"PK\x03\x04"), data.rindex(b"PK\x01\x02")
    encrypted = data[: local + 6] + b"\1\0" + data[local + 8 : central + 8] + b"\1\0" + data[central + 10 :]
    refused(encrypted, "encrypted", key="dof_pos")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("word/document.xml", "<a/>")
    refused(out.getvalue(), "'fps' is missing")


# --- What is refused: JSON and CSV ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "needle"),
    [
        (b'"fps": 50.0', b'"fps": NaN', "NaN"),
        (b'"fps": 50.0', b'"fps": -Infinity', "Infinity"),
        (b'"fps": 50.0', b'"fps": 1e400', "too large"),
        (b'"fps": 50.0', b'"fps": 1' + b"0" * 350, "too large"),
        (b'"fps": 50.0', b'"fps": ' + b"9" * 5000, "5000 characters"),
        (b'"fps": 50.0', b'"fps": "50"', "the text '50'"),
        (b'"fps": 50.0', b'"fps": true', "true/false"),
        (b'"fps": 50.0', b'"fps": null', "None"),
        (b'"fps": 50.0', b'"fps": {}', "dictionary"),
        (b'"fps": 50.0', b'"fps": 50.0, "fps": 50.0', "appears twice"),
        (b'"fps": 50.0', b'"fps": 50.0, "n": {"a": 1, "a": 1}', "appears twice"),
        (b'"fps": 50.0', b'"fps": 50.0, "n": "\\ud800"', "surrogate"),
        (b'"fps": 50.0', b'"fps": 50.0, "n": "\\ud800\\ud800\\udc00"', "surrogate"),
        (b'"fps": 50.0', b'"fps": 50.0, "\\udc00": 1', "surrogate"),
        (b'"fps": 50.0', b'"fps": 50.0, "n": "\xff"', "not UTF-8"),
        (b'"fps": 50.0', b'"fps": 50.0, "n": "\xed\xa0\x80"', "not UTF-8"),
        (b'"fps": 50.0', b'"fps": 50.0, "n": ' + b"[" * 5000 + b"]" * 5000, "nested"),
        (b'"fps": 50.0', b'"fps": 50.0,', "not valid"),
        (b'"fps": 50.0', b'"fps": 50.0, "n": "a', "not closed"),
        (b'"fps": 50.0', b'"fps": 50.0, "n": \x00', "zero bytes"),
        (b"0.47]", b"true]", "true/false"),
        (b"0.47]", b'"0.47"]', "the text"),
        (b"0.47]", b"0.47, 1]", "shape is (12, 4)"),
        (b"0.47]", b"[0.47]]", "a list of 1"),
        (b"0.47]", b"1e999]", "too large"),
    ],
)
def test_json_is_strict(clip: dict[str, Any], as_json: Callable[..., bytes], old: bytes, new: bytes, needle: str) -> None:
    data = as_json(clip)
    assert old in data
    refused(data.replace(old, new, 1), needle)


@pytest.mark.parametrize("number", [b"NaN", b"-Infinity", b"1e400", b"9" * 5000])
def test_what_is_no_finite_number_is_told_with_its_place(
    clip: dict[str, Any], as_json: Callable[..., bytes], number: bytes
) -> None:
    data = as_json(clip)
    rows = data.split(b'"root_pos": [', 1)
    changed = rows[0] + b'"root_pos": [' + rows[1].replace(b"0.47]", b"0.4]", 1).replace(b"0.47]", number + b"]", 1)
    found = refused(changed, "column 2", key="root_pos", frame=1)
    assert "allow_nan=False" in str(found)
    refused(data.replace(b'"fps": 50.0', b'"fps": ' + number), key="fps")
    refused(data.replace(b'"fps": 50.0', b'"fps": 50.0, "speeds": [0.5, ' + number + b"]"), key="speeds", frame=1)
    refused(data.replace(b'"fps": 50.0', b'"fps": 50.0, "n": {"a": ' + number + b"}"), "number")


def test_json_other_shapes(clip: dict[str, Any], as_json: Callable[..., bytes]) -> None:
    refused(b"[1, 2]", "object at its top")
    data = as_json(clip)
    refused(data + b"{}", "not valid")
    refused(data.replace(b"0.47], [", b"0.47], 3, [", 1), "the row is a number", key="root_pos", frame=1)
    deep = refused(data.replace(b"0.47], [", b"0.47, 1], [", 2), key="root_pos")
    assert "4" in str(deep)


@pytest.mark.parametrize(
    ("row", "needle"),
    [
        (b"0,0,0.47,0,0,0,1,a\n", "column 8 is 'a'"),
        (b"0,0,0.47,0,0,0,1,\n", "column 8 is ''"),
        (b"0,0,0.47,0,0,0,1,nan\n", "column 8 is 'nan'"),
        (b"0,0,0.47,0,0,0,1,1_000\n", "column 8 is '1_000'"),
        (b"0,0,0.47,0,0,0,1,0x10\n", "column 8 is '0x10'"),
        (b"0,0,0.47,0,0,0,1,--1\n", "column 8 is '--1'"),
        (b"0,0,0.47,0,0,0,1\n", "7 columns"),
        (b"0,0,0.47,0,0,0,1,0,0\n", "9 columns"),
        (b"0;0;0.47;0;0;0;1;0\n", "separated by ';'"),
        (b"0,0,0.47,0,0,0,1,\xc3\xa9\n", "column 8 is '\\xc3\\xa9'"),
    ],
)
def test_csv_rows(row: bytes, needle: str) -> None:
    good = b"0,0,0.47,0,0,0,1,0.5\n"
    refused(good * 3 + row + good, "line 4", needle, frame=3, fps=50, quat_order="xyzw", format="csv")


def test_csv_needs_to_be_told(clip: dict[str, Any], as_csv: Callable[..., bytes]) -> None:
    refused(as_csv(clip), "fps and quat_order", "Pass both")
    refused(as_csv(clip), "its quat_order", fps=50)
    refused(as_csv(clip), "its fps", quat_order="xyzw")
    header = b"x,y,z,qw,qx,qy,qz,a,b,c,d,e,f,g,h\n"
    refused(header + as_csv(clip), "in the order wxyz", fps=50, quat_order="xyzw", key="root_rot")
    refused(header, "no rows", fps=50, quat_order="wxyz", format="csv")
    refused(b"0,0,0.47,0,0,0,1\n" * 3, "at least one joint", fps=50, quat_order="xyzw")


# --- Names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("walk", "walk 01", "spaziergang-ü", "歩く", "a" * 200, "w.a.l.k", "walk@2=x", "-walk"),
        *("راه\u200cرفتن", "क्\u200dष", "न्\u200cन", "walk👩\u200d🦰", "🏳\ufe0f\u200d🌈", "👩🏽\u200d💻", "👨\u200d👩\u200d👧"),
    ],
)
def test_good_names(name: str) -> None:
    assert clean_name(name) == name


def test_names_are_normalized() -> None:
    assert clean_name("u\u0308ber") == "\u00fcber"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a" * 201,
        "ü" * 101,
        "a/b",
        "a\\b",
        "..",
        ".",
        ".hidden",
        " a",
        "a\n",
        "a\0b",
        "a\x1b[0m",
        "\u202egpj",
        "a\u2028b",
        "a\u2029b",
        "wa\u200dlk",
        "wa\u200clk",
        "\u200dwalk",
        "walk👩\u200d",
        "راه\u200c",
        "راه\u200c\u200cرفتن",
        "راه\u200dرفتن",
        "👩\u200c🦰",
        "a\ud800",
        "x" * 10**6,
    ],
)
def test_bad_names(name: str) -> None:
    with pytest.raises(MotionRefused) as caught:
        clean_name(name)
    assert caught.value.key == "name"
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()
    with pytest.raises(MotionRefused):
        read_motion(b"", name=name)


@pytest.mark.parametrize(
    ("filename", "name"),
    [
        ("walk.pkl", "walk"),
        ("walk .pkl", "walk"),
        (" walk.PKL", "walk"),
        ("-walk.pkl", "-walk"),
        ("a.b.json", "a.b"),
        ("walk.v2", "walk.v2"),
        (".json", "json"),
        ("..", "clip"),
        ("   .pkl", "pkl"),
        ("C:\\motions\\walk.csv", "walk"),
        ("../../etc/passwd.npz", "passwd"),
        ("new\u202eline.json", "newline"),
        ("wa\u200dlk.json", "walk"),
        ("راه\u200cرفتن.pkl", "راه\u200cرفتن"),
        ("walk👩\u200d🦰.pkl", "walk👩\u200d🦰"),
        ("a👩\u200d\u202e.pkl", "a👩"),
        ("u\u0308ber.pkl", "über"),
        ("x" * 300 + ".json", "x" * 120),
        ("步" * 100 + ".json", "步" * 40),
    ],
)
def test_the_name_that_a_file_gives(filename: str, name: str) -> None:
    assert name_clip(filename) == name
    assert clean_name(name) == name
    assert label_file(label_file(filename)) == label_file(filename)


# --- The environment --------------------------------------------------------------------------------------------------


def test_reading_needs_neither_mujoco_nor_pickle(tmp_path: Path, clip: dict[str, Any]) -> None:
    """A training node has no MuJoCo; and nothing that is read may bring the unpickler along."""
    (tmp_path / "walk.pkl").write_bytes(pickle.dumps(clip))
    script = (
        "import sys\n"
        "sys.modules['mujoco'] = None\n"
        "import numpy, pickle, _pickle\n"
        "def never(*a, **k): raise SystemExit('unpickled')\n"
        "pickle.load = pickle.loads = pickle.Unpickler = pickle._Unpickler = _pickle.loads = _pickle.load = never\n"
        "_pickle.Unpickler = never\n"
        "import amp_core.motion\n"
        "from pathlib import Path\n"
        "from amp_core.formats import read_motion\n"
        f"print(read_motion(Path({str(tmp_path / 'walk.pkl')!r}), name='walk').num_frames)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "12\n", "")


@pytest.mark.skipif(not REAL.is_dir(), reason="the real clips are not beside this checkout (../shared/data/motions)")
def test_real_clips() -> None:
    paths = sorted(REAL.glob("*.pkl"))
    assert paths
    for path in paths:
        motion = read_motion(path, name=path.stem)
        assert motion.dof_pos.shape == (motion.num_frames, 8)
        assert 33 < motion.fps < 34


# --- Files out of proportion ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("writer", ["as_npz", "as_json", "as_pickle"])
def test_ignored_keys_are_kept_in_proportion(clip: dict[str, Any], writer: str, request: pytest.FixtureRequest) -> None:
    """What links and bodies of ordinary retargeters take is well below the bound; 3 MB beside a second is not."""
    write = pickle.dumps if writer == "as_pickle" else request.getfixturevalue(writer)
    frames = len(clip["dof_pos"])
    links = {"body_pos_w": np.zeros((frames, 30, 3)), "body_quat_w": np.zeros((frames, 30, 4)), "note": np.zeros(9)}
    ordinary = write({**clip, **links, "link_velocities": np.zeros((frames, 30, 6))})
    check_proportion(ordinary, read_motion(ordinary, name="walk"))
    junk = np.random.default_rng(0).normal(size=(200, 2000))
    excessive = write({**clip, "junk": junk, "ballast": junk[:20]})
    with pytest.raises(TooLarge, match=r"largest are 'junk' \([\d,]{9,} bytes\), 'ballast' \([\d,]{7,} bytes\)") as caught:
        check_proportion(excessive, read_motion(excessive, name="walk"))
    assert "at most 1,048,576 bytes" in str(caught.value)
    assert caught.value.file == "walk"
