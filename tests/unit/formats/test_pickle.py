"""Pickles: what ordinary clips look like under every protocol, and everything else by name."""

from __future__ import annotations

import collections
import datetime
import io
import os
import pickle
import struct
import subprocess
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pytest

from amp_core.errors import MotionRefused
from amp_core.formats import read_motion

KEYS = ("root_pos", "root_rot", "dof_pos")
PROTOCOLS = range(6)


def same(data: bytes, clip: dict[str, Any]) -> None:
    motion = read_motion(data, name="walk")
    assert motion.source_format == "pkl"
    assert motion.fps == clip["fps"]
    for key in KEYS:
        np.testing.assert_array_equal(getattr(motion, key), np.asarray(clip[key], dtype=np.float64))


def refused(data: bytes, *needles: str) -> str:
    with pytest.raises(MotionRefused) as caught:
        read_motion(data, name="walk", format="pkl")
    text = str(caught.value)
    assert all(needle in text for needle in needles), text
    assert caught.value.remedy
    assert text.isprintable()
    assert len(text) < 800
    return text


LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "plain": lambda a: a,
    "fortran": np.asfortranarray,
    "sliced": lambda a: np.repeat(a, 2, axis=1)[:, ::2],
    "float32": lambda a: a.astype(np.float32),
    "float16": lambda a: a.astype(np.float16),
    "big-endian": lambda a: a.astype(">f8"),
    "int64": lambda a: np.rint(a).astype(np.int64),
    "int8": lambda a: np.rint(a).astype(np.int8),
    "lists": lambda a: a.tolist(),
    "tuples": lambda a: tuple(map(tuple, a.tolist())),
    "rows": list,
    "scalars": lambda a: [list(row) for row in a],
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_round_trip(clip: dict[str, Any], protocol: int, layout: str) -> None:
    clip["root_rot"] = np.tile([0.0, 0.0, 1.0, 0.0], (12, 1)) if "int" in layout else clip["root_rot"]
    changed = {"fps": clip["fps"], **{key: LAYOUTS[layout](clip[key]) for key in KEYS}}
    same(pickle.dumps(changed, protocol), changed)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("fps", [np.float64(50), np.float32(50), np.int64(50), np.array(50.0), np.array([50.0]), 50])
def test_fps_of_any_kind(clip: dict[str, Any], protocol: int, fps: Any) -> None:
    same(pickle.dumps({**clip, "fps": fps}, protocol), clip)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_other_keys_do_not_matter(clip: dict[str, Any], protocol: int) -> None:
    extra = {
        "local_body_pos": np.array([None, {"a": 1}], dtype=object),
        "link_body_list": ["pelvis", "foot"],
        "nothing": None,
        "empty": np.zeros(0),
        "names": np.array(["a", "bc"]),
        "deep": {"a": [{"b": (1, 2.5, "c", b"d", bytearray(b"e"), True)}], ("t", 1): {1, 2}, 3: frozenset({4})},
        "text": np.str_("x"),
        "flags": np.array([True, False]),
        "complex": np.array([1j]),
        "permuted": np.zeros((2, 3, 4)).transpose(2, 0, 1),
        "record": np.zeros(2, dtype=[("a", "f8"), ("b", "i4")]),
        "day": np.array(["2025-12-25"], dtype="datetime64[D]"),
        "huge": 10**60,
        "nan": float("nan"),
        "ordered": collections.OrderedDict(a=1),
        b"bytes": 1,
        5: 6,
        ("a", "b"): 7,
    }
    extra["again"] = extra["deep"]
    same(pickle.dumps({**extra, **clip}, protocol), clip)


def test_a_whole_ordered_dict(clip: dict[str, Any]) -> None:
    same(pickle.dumps(collections.OrderedDict(clip)), clip)
    same(pickle.dumps(collections.defaultdict(list, clip)), clip)


# --- Pickles of other numpys, written opcode by opcode ----------------------------------------------------------------


def _int(value: int) -> bytes:
    return b"K" + bytes([value]) if value < 256 else b"J" + struct.pack("<i", value)


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def _array(array: np.ndarray[Any, Any], module: str, raw: bytes, version: int = 1) -> bytes:
    shape = b"".join(map(_int, array.shape))
    return (
        f"c{module}\n_reconstruct\ncnumpy\nndarray\n".encode()
        + (_int(0) + b"\x85" + b"U\x01b" + b"\x87R")
        + (b"(" + (_int(version) if version else b"") + b"(" + shape + b"t")
        + b"cnumpy\ndtype\n"
        + (b"U\x02f8" + _int(0) + _int(1) + b"\x87R")
        + (b"(" + _int(3) + b"U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff" + _int(0) + b"tb")
        + b"\x89"
        + raw
        + b"tb"
    )


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray", "numpy.core._multiarray_umath"])
@pytest.mark.parametrize("how", ["bytes", "python2", "codecs", "version0"])
def test_forged_numpy_1_pickles(clip: dict[str, Any], module: str, how: str) -> None:
    """BINSTRING data as Python 2 wrote it, `_codecs.encode` as Python 3 does for protocol 2, and the oldest state tuple."""
    parts = [b"\x80\x02}("]
    parts += [_text("fps"), b"G" + struct.pack(">d", 50.0)]
    for key in KEYS:
        data = clip[key].tobytes()
        if how == "python2":
            raw = b"T" + struct.pack("<I", len(data)) + data
        elif how == "codecs":
            raw = b"c_codecs\nencode\n" + _text(data.decode("latin-1")) + _text("latin1") + b"\x86R"
        else:
            raw = b"B" + struct.pack("<I", len(data)) + data
        parts += [_text(key), _array(clip[key], module, raw, version=0 if how == "version0" else 1)]
    same(b"".join([*parts, b"u."]), clip)


def test_numpy_1_protocol_0_text(clip: dict[str, Any]) -> None:
    """The same names as numpy 1 writes them, in a text pickle."""
    data = pickle.dumps(clip, 0).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert b"cnumpy.core.multiarray\n_reconstruct\n" in data
    same(data, clip)


# --- Pickles that call ------------------------------------------------------------------------------------------------


class Calls:
    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_calls_are_refused_by_name(clip: dict[str, Any], protocol: int, tmp_path: Any) -> None:
    target = tmp_path / "made"
    for value, name in (
        (Calls(os.system, f"touch {target}"), "os.system"),
        (Calls(eval, f"open({str(target)!r}, 'w')"), "eval"),
        (Calls(np.load, str(target)), "load"),
        (Calls(getattr, "a", "upper"), "getattr"),
        (os.getcwd, "getcwd"),
        (Calls(io.open, str(target), "w"), "open"),
        (Calls(subprocess.run, "true"), ".run"),
    ):
        refused(pickle.dumps({**clip, "extra": value}, protocol), "calls", name)
        refused(pickle.dumps({**clip, "root_pos": value}, protocol), "calls", name)
    refused(pickle.dumps(Calls(os.system, f"touch {target}"), protocol), "calls", "os.system")
    assert not target.exists()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_objects_of_any_class_do_no_harm_where_they_are_not_needed(clip: dict[str, Any], protocol: int) -> None:
    values = (
        (PurePosixPath("/data/walk.npz"), "pathlib"),
        (np.random.default_rng(0), "numpy.random"),
        (np.ma.zeros(3), "numpy.ma"),
        (np.zeros((2, 2)).view(np.recarray), "recarray"),
        (datetime.date(2025, 1, 1), "datetime.date"),
        (3j, "complex"),
        (Fraction(1, 3), "Fraction"),
        (Decimal("0.1"), "Decimal"),
        (Record([1, 2]), "Record"),
        (SimpleSlots(), "SimpleSlots"),
        (collections.Counter("aab"), "Counter"),
        (np.float64, "float64"),
    )
    for value, name in values:
        same(pickle.dumps({"source": value, "more": [value, {"a": (value,)}], value_key(value): 1, **clip}, protocol), clip)
        for key in (*KEYS, "fps", "joint_names"):
            text = refused(pickle.dumps({**clip, key: value}, protocol), key)
            assert "Counter" in name or name in text
        refused(pickle.dumps(value, protocol), "holds")
    nested = {**clip, "root_pos": [PurePosixPath("a")] * 12}
    refused(pickle.dumps(nested, protocol), "pathlib", "root_pos")


def value_key(value: Any) -> Any:
    return value if isinstance(value, PurePosixPath | Fraction) else "key"


class Record(list[int]):
    """A list with a state of its own."""

    def __init__(self, items: list[int]) -> None:
        super().__init__(items)
        self.extra = {"a": np.zeros(2)}


class SimpleSlots:
    __slots__ = ("a",)

    def __init__(self) -> None:
        self.a = 1

    def __getstate__(self) -> Any:
        return None, {"a": 1}

    def __setstate__(self, state: Any) -> None:
        self.a = 1


@pytest.mark.parametrize(
    ("body", "needle"),
    [
        (b"cos\nsystem\n(S'x'\ntR.", "os.system"),
        (b"(S'x'\nios\nsystem\n.", "os.system"),
        (b"(cos\nsystem\nS'x'\no.", "os.system"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x01x\x85R.", "os.system"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93)\x81.", "os.system"),
        (b"\x80\x04cnumpy\nndarray\n)\x81.", "NEWOBJ"),
        (b"\x80\x04(cnumpy\nndarray\no.", "OBJ"),
        (b"\x80\x04(o.", "OBJ"),
        (b"\x80\x04cmine\nThing\n\x81.", "empty stack"),
        (b"\x80\x04cmine\nThing\nNR.", "mine.Thing"),
        (b"\x80\x04(K\x01imine\nThing\n.", "mine.Thing"),
        (b"\x80\x04(cmine\nThing\nK\x01o.", "mine.Thing"),
        (b"\x80\x04cnumpy\nndarray\n)R.", "ndarray"),
        (b"\x80\x04cnumpy\ndtype\nK\x08\x85R.", "dtype"),
        (b"\x80\x04cnumpy\ndtype\n\x8c\x02f8\x85R}b.", "state"),
        (b"\x80\x04}}b.", "sets the state of a dictionary"),
        (b"\x80\x04N)R.", "calls None"),
        (b"\x80\x04\x82\x01.", "extension registry"),
        (b"\x80\x04Pabc\n.", "outside the file"),
        (b"\x80\x04NQ.", "outside the file"),
        (b"\x80\x05\x97.", "out-of-band"),
        (b"\x80\x06N.", "protocol 6"),
        (b"\x80\x04cjoblib.numpy_pickle\nNumpyArrayWrapper\n)\x81.", "joblib"),
        (b"\x80\x04ctorch._utils\n_rebuild_tensor_v2\n)R.", "torch"),
        (b"\x80\x04\x8c\x02\x1b[\x8c\x02\x1b[\x93.", "calls"),
        (b"\x80\x04c" + b"a" * 5000 + b"\nb\n.", "calls"),
        (b"\x80\x04K\x01K\x02\x93.", "names something"),
    ],
)
def test_forged_calls(body: bytes, needle: str) -> None:
    refused(body, needle)


@pytest.mark.parametrize(
    ("body", "needle"),
    [
        (b"\x80\x04", "cut off"),
        (b"\x80\x04}", "cut off"),
        (b"\x80\x04.", "one value"),
        (b"\x80\x04NN.", "one value"),
        (b"\x80\x04(.", "one value"),
        (b"\x80\x04N.", "holds None"),
        (b"\x80\x04].", "a list"),
        (b"\x80\x04}.trailing", "8 bytes follow"),
        (b"\x80\x04\xff.", "no pickle opcode"),
        (b"\x80\x04h\x05.", "never stored"),
        (b"\x80\x04a.", "empty stack"),
        (b"\x80\x04t.", "did not open"),
        (b"\x80\x04(0a.", "empty stack"),
        (b"\x80\x04}(K\x01u.", "sets items"),
        (b"\x80\x04NNNs.", "sets items of None"),
        (b"\x80\x04NNa.", "appends to None"),
        (b"\x80\x04N(K\x01\x90.", "no set"),
        (b"\x80\x04\x8c\x05ab.", "claims 5 bytes"),
        (b"\x80\x04X\xff\xff\xff\x7fab.", "claims"),
        (b"\x80\x04T\xff\xff\xff\xffab.", "damaged"),
        (b"\x80\x04\x8c\x01\xff.", "damaged"),
        (b"\x80\x04Inope\n.", "damaged"),
        (b"\x80\x04S'\\z'\n.", ""),
        (b"\x80\x04F" + b"1" * 400 + b"\n.", "digits"),
        (b"\x80\x04\x8a\xff" + b"\x7f" * 255 + b".", "a number"),
        (b"\x80\x04\x8b\xff\xff\xff\xff.", "damaged"),
    ],
)
def test_damage(body: bytes, needle: str) -> None:
    refused(body, needle)


def test_arrays_that_lie(clip: dict[str, Any]) -> None:
    module = "numpy.core.multiarray"

    def forged(array: Any, raw: bytes, change: tuple[bytes, bytes] = (b"", b"")) -> bytes:
        body = _array(array, module, b"B" + struct.pack("<I", len(raw)) + raw)
        assert change[0] in body
        others = b"".join(
            _text(key) + _array(clip[key], module, b"B" + struct.pack("<I", clip[key].nbytes) + clip[key].tobytes())
            for key in KEYS[:2]
        )
        fps = _text("fps") + b"G" + struct.pack(">d", 50.0)
        return b"\x80\x02}(" + fps + others + _text("dof_pos") + body.replace(*change) + b"u."

    dof = clip["dof_pos"]
    same(forged(dof, dof.tobytes()), clip)
    refused(forged(dof, dof.tobytes()[:-1]), "declares shape (12, 8)", "768 bytes", "767")
    refused(forged(dof, dof.tobytes(), (b"K\x0cK\x08t", b"K\x0dK\x08t")), "declares shape (13, 8)")
    refused(forged(dof, dof.tobytes(), (b"K\x0cK\x08t", b"J\xff\xff\xff\xffK\x08t")), "shape is damaged")
    refused(forged(dof, dof.tobytes(), (b"K\x0cK\x08t", b"\x88K\x08t")), "shape is damaged")
    refused(forged(dof, dof.tobytes(), (b"U\x02f8", b"U\x02O8")), "object array")
    refused(forged(dof, dof.tobytes(), (b"U\x02f8", b"U\x03V16")), "V16")
    refused(forged(dof, dof.tobytes(), (b"U\x02f8", b"U\x02f1")), "f1")
    refused(forged(dof, dof.tobytes(), (b"U\x01<NNN", b"U\x01<NK\x01N")), "type")
    refused(forged(dof, dof.tobytes(), (b"U\x01<NNN", b"U\x01?NNN")), "byte order")


def test_duplicate_keys_and_unfinished_arrays(clip: dict[str, Any]) -> None:
    refused(b"\x80\x02}(U\x03fpsK\x32U\x03fpsK\x1eu.", "twice")
    start = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    refused(b"\x80\x02}(U\x03fpsK\x32U\x08root_pos" + start + b"U\x08root_rotNU\x07dof_posNu.", "root_pos")


def test_lists_that_contain_themselves(clip: dict[str, Any]) -> None:
    for make in (lambda x: x.append(x), lambda x: x.extend([x] * 12)):
        loop: list[Any] = []
        make(loop)
        for key in KEYS:
            refused(pickle.dumps({**clip, key: loop}), key)
    clip["self"] = clip
    same(pickle.dumps(clip), clip)


def test_out_of_band_buffers_are_refused(clip: dict[str, Any]) -> None:
    buffers: list[Any] = []
    data = pickle.dumps(clip, protocol=5, buffer_callback=buffers.append)
    refused(data, "outside the file")


def test_two_pickles_in_one_file(clip: dict[str, Any]) -> None:
    out = io.BytesIO()
    pickle.dump(clip, out)
    pickle.dump(clip, out)
    refused(out.getvalue(), "bytes follow its end")
