"""Whatever is done to a valid file, reading it gives a `Motion` or a `MotionRefused`, never anything else."""

from __future__ import annotations

import io
import json
import pickle
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amp_core.errors import MotionRefused
from amp_core.formats import Limits, Motion, read_motion

LIMITS = Limits(max_bytes=1 << 20)


def _clip() -> dict[str, Any]:
    rotation = np.tile([0.0, 0.0, 0.0, 1.0], (3, 1))
    return {"fps": 50.0, "root_pos": np.full((3, 3), 0.5), "root_rot": rotation, "dof_pos": np.full((3, 2), 0.25)}


def _seeds() -> list[tuple[str, bytes]]:
    clip = _clip()
    lists = {key: np.asarray(value).tolist() for key, value in clip.items()}
    seeds = [("pkl", pickle.dumps(value, protocol)) for protocol in range(6) for value in (clip, lists)]
    for save in (np.savez, np.savez_compressed):
        out = io.BytesIO()
        save(out, **clip)
        seeds.append(("npz", out.getvalue()))
    seeds.append(("json", json.dumps({**lists, "note": "a\u00fc\\\ud83e\uddbf"}).encode()))
    seeds.append(("csv", b"# a clip\nx,y,z,qx,qy,qz,qw,a,b\n" + b"0,0,0.5,0,0,0,1,0.25,-1e-3\n" * 3))
    return seeds


SEEDS = _seeds()
TOKENS = [op.to_bytes(1, "big") for op in range(256)]
TOKENS += [
    b"\xff\xff\xff\xff",
    b"\x00\x00\x00\x80",
    b"NaN",
    b"1e999",
    b"-",
    b"[[",
    b'"',
    b"\\ud800",
    b",,",
    b"\n",
    b"True",
    b"(",
    b"cos\nsystem\n",
]


def read(data: bytes, kind: str | None) -> None:
    options: dict[str, Any] = {"fps": 50.0, "quat_order": "xyzw"} if kind == "csv" else {}
    try:
        motion = read_motion(data, name="fuzz", format=kind, limits=LIMITS, **options)
    except MotionRefused as error:
        text = str(error)
        assert text.isprintable(), text
        assert len(text) < 1000, text
        return
    assert isinstance(motion, Motion)
    assert motion.num_frames >= 2
    assert np.isfinite(motion.root_pos).all()
    assert np.isfinite(motion.root_rot).all()
    assert np.isfinite(motion.dof_pos).all()


def mutate(data: bytes, rng: random.Random, times: int) -> bytes:
    out = bytearray(data)
    for _ in range(times):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(6):
            case 0:
                out[at : at + 1] = rng.choice(TOKENS)
            case 1:
                out[at:at] = rng.choice(TOKENS)
            case 2:
                del out[at : at + rng.randrange(1, 9)]
            case 3:
                begin = rng.randrange(len(out) + 1)
                out[at:at] = out[begin : begin + rng.randrange(1, 40)]
            case 4:
                other = rng.choice(SEEDS)[1]
                begin = rng.randrange(len(other))
                out[at:at] = other[begin : begin + rng.randrange(1, 60)]
            case _:
                if at < len(out):
                    out[at] ^= 1 << rng.randrange(8)
    return bytes(out)


@pytest.mark.parametrize("seed", range(len(SEEDS)))
def test_seeds_are_valid(seed: int) -> None:
    kind, data = SEEDS[seed]
    options: dict[str, Any] = {"fps": 50.0, "quat_order": "xyzw"} if kind == "csv" else {}
    assert read_motion(data, name="seed", **options).source_format == kind


@settings(max_examples=800, deadline=None, suppress_health_check=list(HealthCheck))
@given(which=st.integers(0, len(SEEDS) - 1), seed=st.integers(0, 2**32), times=st.integers(1, 6), say=st.booleans())
def test_mutations(which: int, seed: int, times: int, say: bool) -> None:
    kind, data = SEEDS[which]
    read(mutate(data, random.Random(seed), times), kind if say else None)


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=200),
    st.sampled_from(["pkl", "npz", "json", "csv", None]),
    st.sampled_from([b"", b"\x80\x04", b"PK\x03\x04", b"{"]),
)
def test_noise(data: bytes, kind: str | None, head: bytes) -> None:
    read(head + data, kind)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.fixed_dictionaries({}, optional=dict.fromkeys(("fps", "root_pos", "root_rot", "dof_pos"), _JSON)), st.integers(0, 5))
def test_values_of_every_kind(values: dict[str, Any], protocol: int) -> None:
    clip = {**_clip(), **values}
    read(pickle.dumps(clip, protocol), "pkl")
    text = json.dumps({key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in clip.items()})
    read(text.encode("utf-8", "surrogatepass"), "json")


@pytest.mark.parametrize("kind", ["pkl", "npz", "json", "csv"])
def test_random_mutations(kind: str) -> None:
    """A fixed stretch of the mutation loop that was run for longer by hand."""
    rng = random.Random(20251225)
    seeds = [data for name, data in SEEDS if name == kind]
    for _ in range(1500):
        read(mutate(rng.choice(seeds), rng, rng.randrange(1, 5)), kind)
