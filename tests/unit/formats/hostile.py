"""Files that want to cost: each is built here, at up to 64 MiB, and read under a memory limit.

Run as a script in a process of its own: `python hostile.py CASE...` prints one JSON line a case with the peak of resident
memory in MiB and the refusal.
"""

from __future__ import annotations

import io
import json
import pickle
import resource
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from amp_core.errors import MotionRefused
from amp_core.formats import read_motion

SIZE = 64 * 1024 * 1024
PROTO = b"\x80\x04"


def _fill(head: bytes, unit: bytes, tail: bytes = b"") -> bytes:
    return head + unit * ((SIZE - len(head) - len(tail)) // len(unit)) + tail


def _text4(text: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text


def _clip() -> dict[str, object]:
    rotation = np.tile([0.0, 0.0, 0.0, 1.0], (50, 1))
    return {"fps": 50.0, "root_pos": np.zeros((50, 3)), "root_rot": rotation, "dof_pos": np.zeros((50, 8))}


def _npz(header: bytes, body: bytes, method: int = zipfile.ZIP_STORED) -> bytes:
    raw = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.writestr("fps.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(FPS)) + FPS + struct.pack("<d", 50.0))
        archive.writestr("root_pos.npy", raw)
    return out.getvalue()


FPS = b"{'descr': '<f8', 'fortran_order': False, 'shape': (), }\n"

CASES: dict[str, Callable[[], bytes]] = {
    # pickle
    "pkl_long_binput": lambda: PROTO + b"]r\xff\xff\xff\xff.",
    "pkl_put_huge": lambda: b"]p" + b"9" * 200 + b"\n.",
    "pkl_nested_tuple_key": lambda: PROTO + b"}" + b")" + b"2\x86" * 40 + b"K\x01s.",
    "pkl_doubling": lambda: PROTO + b"]q\x00" + b"".join(b"h%c\x86q%c" % (i, i + 1) for i in range(99)) + b".",
    "pkl_doubling_lists": lambda: PROTO + b"}X\x08\x00\x00\x00root_pos]" + b"(" + b"2" * 3 + b"ess.",
    "pkl_empty_lists": lambda: _fill(PROTO, b"]"),
    "pkl_memoized": lambda: _fill(PROTO + b"]", b"\x94"),
    "pkl_deep": lambda: _fill(PROTO + b"]", b"\x85"),
    "pkl_pop_push": lambda: _fill(PROTO, b"N0"),
    "pkl_marks": lambda: _fill(PROTO, b"("),
    "pkl_floats": lambda: _fill(PROTO + b"](", b"G\x3f\xf0\x00\x00\x00\x00\x00\x00", b"e."),
    "pkl_big_int": lambda: PROTO + b"\x8b" + struct.pack("<i", SIZE - 64) + b"\x7f" * (SIZE - 64) + b".",
    "pkl_digits": lambda: _fill(b"(dp0\nI", b"9", b"\n."),
    "pkl_line_without_end": lambda: _fill(b"(dp0\nV", b"a", b"."),
    "pkl_wide_text": lambda: PROTO + _text4(b"\xf0\x9f\xa6\xbf" + b"a" * (SIZE - 64)) + b".",
    "pkl_many_wide_texts": lambda: _fill(PROTO, _text4(b"\xf0\x9f\xa6\xbf" + b"a" * (1 << 20)), b"."),
    "pkl_one_big_binary": lambda: PROTO + b"}U\x01xB" + struct.pack("<I", SIZE - 64) + b"\x00" * (SIZE - 64) + b"s.",
    "pkl_claims_bytes": lambda: PROTO + b"\x8e" + struct.pack("<Q", 1 << 62) + b"abc.",
    # A remembered text of 20 MiB, encoded again and again.
    "pkl_encode_again": lambda: (
        PROTO + b"c_codecs\nencode\nq\x01" + _text4(b"a" * (20 << 20)) + b"q\x02U\x06latin1q\x030"
        b"0" + b"h\x01h\x02h\x03\x86R" * 100_000 + b"."
    ),
    # One row shared by as many frames as the opcodes allow, and far more values than the file has.
    "pkl_shared_row": lambda: (
        PROTO
        + b"}U\x03fpsG@I\x00\x00\x00\x00\x00\x00sU\x08root_pos]("
        + b"G?\xf0\x00\x00\x00\x00\x00\x00" * 120
        + b"eq\x01"
        + b"0]("
        + b"h\x01" * 110_000
        + b"es"
        b"U\x08root_rot]sU\x07dof_pos]s."
    ),
    "pkl_int8": lambda: _int8_pickle(),
    # Joint names: one long text, the same long text again and again, and more of them than a robot has.
    "pkl_long_name": lambda: pickle.dumps({**_clip(), "joint_names": "a," * (11 << 20)}),
    "pkl_shared_name": lambda: pickle.dumps({**_clip(), "joint_names": ["ä" * (11 << 20)] * 256}),
    "pkl_many_names": lambda: pickle.dumps({**_clip(), "joint_names": ["a"] * 500_000}),
    "pkl_shared_clips": lambda: pickle.dumps(
        dict.fromkeys(map(str, range(150_000)), {"fps": 1} | {str(i): i for i in range(50_000)})
    ),
    "pkl_opaque_objects": lambda: _fill(PROTO + b"cmine\nThing\n(", b"cmine\nThing\n)R", b"u."),
    "npz_names": lambda: _npz_of({**_clip(), "joint_names": np.array(["a" * 1000] * 15_000)}),
    "npz_bodies": lambda: _npz_of(_bodies()),
    "pkl_most_that_is_allowed": lambda: PROTO + b"](" + b"}\x94" * 390_000 + b"e.",
    "pkl_widest_text_encoded": lambda: PROTO + b"c_codecs\nencode\n" + _text4("🦿".encode() + b"a" * (23 << 20)) + b"\x85R.",
    # npz
    "npz_claims_terabytes": lambda: _npz(FPS.replace(b"()", b"(100000000000, 3)"), b"\0" * 64),
    "npz_bomb": lambda: _npz(FPS.replace(b"()", b"(100000, 79)"), b"\0" * (100_000 * 79 * 8), zipfile.ZIP_DEFLATED),
    "npz_bomb_declared_small": lambda: _lying_bomb(),
    "npz_lzma": lambda: _npz(FPS.replace(b"()", b"(4, 3)"), b"\0" * 96, zipfile.ZIP_LZMA),
    "npz_many_members": lambda: _many_members(),
    "npz_stored_full": lambda: _npz(FPS.replace(b"()", b"(300000, 8)"), b"\0" * (300_000 * 64)),
    "npz_int8": lambda: _npz(FPS.replace(b"()", b"(120000, 66)").replace(b"<f8", b"|i1"), b"\0" * (120_000 * 66)),
    # json
    "json_empty_lists": lambda: _fill(b"[", b"[],", b"[]]"),
    "json_deep": lambda: b'{"fps": ' + b"[" * 200_000,
    "json_deepest": lambda: _fill(b"", b'{"a":'),
    "json_numbers": lambda: _fill(b'{"dof_pos":[', b"1,", b"1]}"),
    "json_floats": lambda: _fill(b'{"dof_pos":[', b"0.12345678901234567890123,", b"1]}"),
    "json_most_that_is_allowed": lambda: (
        b'{"dof_pos":[' + b"[0.1234567890123456,0.1234567890123,0.12345678901,0.1,0.1,0.1,0.1,0.1]," * 290_000 + b"[1]]}"
    ),
    "json_strings": lambda: _fill(b"[", b'"",', b'""]'),
    "json_one_string": lambda: _fill(b'{"a":"', b"a", b'"}'),
    "json_wide_string": lambda: _fill('{"a":"🦿'.encode(), b"a", b'"}'),
    "json_escapes": lambda: _fill(b'{"a":"', b"\\\\", b'"}'),
    "json_unclosed_escapes": lambda: b'{"a":"' + b'\\"' * 49_000 + b"a" * (32 << 20),
    "json_digits": lambda: _fill(b'{"fps":', b"9", b"}"),
    "json_long_float": lambda: _fill(b'{"fps":0.', b"9", b"}"),
    # csv
    "csv_one_line": lambda: _fill(b"", b"1,"),
    "csv_blank": lambda: _fill(b"1,2\n", b"\n"),
    "csv_short_rows": lambda: _fill(b"", b"0,0,0,0,0,0,1,0\n"),
    "csv_quoted": lambda: _fill(b"", b'"0","0","0","0","0","0","1","0"\n'),
    "csv_semicolons": lambda: _fill(b"", b"0,1;0,2;0;0;0;0;1;0\n"),
    "csv_header": lambda: _fill(b"", b"a;"),
    "csv_comments": lambda: _fill(b"#", b" a,b,c,d,e,f,g,h\n#", b"\n"),
    "csv_wide_rows": lambda: _fill(b"", b"0,0,0,0,0,0,1" + b",0" * 120 + b"\n"),
    "zeros": lambda: bytes(SIZE),
    "spaces": lambda: b" " * SIZE,
}


def _npz_of(fields: dict[str, object]) -> bytes:
    out = io.BytesIO()
    np.savez(out, **fields)
    return out.getvalue()


def _bodies() -> dict[str, object]:
    """Far more bodies than frames, in the smallest of numbers."""
    arrays = {"body_positions": np.zeros((50, 150_000, 3), np.int8), "body_rotations": np.zeros((50, 150_000, 4), np.int8)}
    return {"fps": 50.0, "body_names": np.array(["root"]), "dof_positions": np.zeros((50, 8)), **arrays}


def _int8_pickle() -> bytes:
    clip = _clip()
    clip["dof_pos"] = np.zeros((500_000, 120), dtype=np.int8)
    return pickle.dumps(clip, protocol=5)


def _lying_bomb() -> bytes:
    """A member that says it is small, in both tables, and is not."""
    whole = bytearray(_npz(FPS.replace(b"()", b"(8000000, 3)"), b"\0" * (8_000_000 * 24), zipfile.ZIP_DEFLATED))
    size = struct.pack("<I", 10 + len(FPS.replace(b"()", b"(8000000, 3)")) + 8_000_000 * 24)
    return bytes(whole.replace(size, struct.pack("<I", 400)))


def _many_members() -> bytes:
    entry = b"PK\x01\x02" + bytes(24) + struct.pack("<H", 1) + bytes(16) + b"a"
    table = entry * ((SIZE - 100) // len(entry))
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65535, 65535, len(table), 4, 0)
    return b"PK\x03\x04" + table + end


def _peak() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def main(names: list[str]) -> None:
    # A reader that fails here should fail alone, not take the machine along.
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
    for name in names:
        data = CASES[name]()
        assert len(data) <= SIZE, (name, len(data))
        with open("/proc/self/clear_refs", "w") as reset:
            reset.write("5")
        said = "read"
        try:
            csv = {"fps": 50.0, "quat_order": "xyzw"} if name.startswith("csv") else {}
            read_motion(data, name=name, **csv)
        except MotionRefused as refused:
            said = str(refused)
        print(json.dumps({"case": name, "bytes": len(data), "peak_mib": _peak(), "said": said}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or list(CASES))
