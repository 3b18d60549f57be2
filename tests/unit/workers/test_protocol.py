"""Every message comes back from JSON as it was."""

from __future__ import annotations

from typing import Any

import pytest

from amp_core.formats import Limits
from ampref_workers.protocol import (
    Failed,
    HostFault,
    LockedFile,
    LockReport,
    LockRequest,
    Member,
    MemberSource,
    Message,
    NoRoom,
    Reading,
    Refused,
    RobotReference,
    RolloutReport,
    RolloutRequest,
    Sandbox,
    SandboxLimits,
    TestFailure,
    VerifyReport,
    VerifyRequest,
    decode,
)

ROBOT = RobotReference("wildrobot", "sha256:r", ("/robots/a.yaml",))
LIMITS = Limits(max_fps=50.0)
SOURCE = MemberSource("/blobs/s", Reading("csv", 50.0, "xyzw", LIMITS), {"mode": "rollout"}, 2)
DIGESTS: dict[str, Any] = {
    key: f"sha256:{key}" for key in ("source_digest", "arrays_digest", "robot_digest", "recipe_digest", "feature_code_hash")
}
MEMBER = Member(
    name="walk",
    path="/blobs/a",
    **DIGESTS,
    mujoco_version="4.0.1",
    generator_version="0.11.0",
    gate_profile="amp-0.11",
    mode="rollout",
    tier=0,
    metrics={"height_mean": 0.45, "fell_at_frame": None},
    ranges=((0, 30, 0), (40, 60, 1)),
    range_metrics=({"height_mean": 0.4}, {}),
    physics={"mass": 1.1},
    source=SOURCE,
)


@pytest.mark.parametrize(
    "message",
    [
        Sandbox(1, 2, SandboxLimits(cpu_sec=7)),
        RolloutRequest("walk", "sha256:s", ROBOT, Reading("npz", None, None, LIMITS), {"mode": "auto"}, 2),
        RolloutReport(({"tier": 0}, {"tier": 1}), 1, {"cause": "none"}),
        VerifyRequest("walk", "1.0.0", ROBOT, ("6", "7"), 2),
        MEMBER,
        VerifyReport((TestFailure("6", "6 Load", "too heavy"),)),
        LockRequest("walk", "1.0.0", ROBOT, {"tiers": [0]}, True, ({"test": "6", "reason": "x"},), "r.json"),
        LockReport(
            (LockedFile("m.json", 3, "sha256:m"),), "m.json", LockedFile("r.json", 4, "sha256:v"), "sha256:d", "sha256:f",
            1, 50, {"ready": True}, {"seconds": 1.0},
        ),
        Refused({"type": "motion-refused"}),
        Failed("memory", "why", "x"),
        NoRoom("in /work"),
        HostFault("no descriptors", "x"),
    ],
)  # fmt: skip
def test_a_message_comes_back_as_it_was(message: Message) -> None:
    assert decode(message.encode(), NoRoom, type(message)) == message


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"reason": "x"}', NoRoom("x").encode(), b'{"message": "Refused"}'])
def test_what_is_no_such_message_is_refused(data: bytes) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        decode(data, Refused)
