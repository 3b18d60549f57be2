"""A stand-in for `ampref_workers.child` whose handlers do what the uploaded bytes say. Started by path."""

from __future__ import annotations

import json
import os
import pkgutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import amp_core
import ampref_workers
from amp_core.errors import DiskFull, MotionRefused, PhysicsFailed
from amp_core.files import partial_path
from amp_core.progress import Progress
from ampref_workers.child import HANDLERS, serve
from ampref_workers.members import open_members
from ampref_workers.protocol import (
    RESULT,
    SANDBOX,
    SOURCE,
    TESTS_OFF,
    VERIFICATION,
    LockRequest,
    Message,
    ProbeRequest,
    RolloutReport,
    RolloutRequest,
    TestFailure,
    ThumbnailRequest,
    VerifyReport,
    VerifyRequest,
    export_name,
)


@dataclass(frozen=True)
class Behaviour(Message):
    """A request that only this child knows."""

    do: str
    name: str = "march.pkl"


@dataclass(frozen=True)
class Answer(Message):
    """Its report."""

    value: dict[str, Any]


def misbehave(job_dir: Path, request: Behaviour | RolloutRequest, report: Progress) -> Message:
    if isinstance(request, Behaviour):
        what, _, detail = request.do.partition(" ")
    else:
        what, _, detail = (job_dir / SOURCE).read_text().removeprefix("do ").strip().partition(" ")
    report(0.25, f"doing {what}")
    match what:
        case "answer":
            place = {"session": os.getsid(0), "group": os.getpgrp(), "pid": os.getpid(), "nice": os.nice(0)}
            place["oom_score_adj"] = int(Path("/proc/self/oom_score_adj").read_text())
            packages = [str(package.__file__) for package in (amp_core, ampref_workers)]
            return Answer({"answer": detail, "environ": dict(os.environ), "cwd": os.getcwd(), "packages": packages, **place})
        case "hang":
            while True:  # As mj_step does, it looks at no signal.
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
                time.sleep(60)
        case "spin":
            while True:
                pass
        case "eat":
            hoard = []
            while True:
                hoard.append(bytearray(16 << 20))
        case "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "abort":
            os.abort()
        case "exit":
            os._exit(int(detail))
        case "refuse":
            raise MotionRefused("the root teleports", file=request.name, key="root_pos", frame=17, expected="< 10 m/s")
        case "explode":
            raise PhysicsFailed("the state is not finite", frame=3)
        case "raise":
            raise ValueError(detail)
        case "unserializable":
            return Answer({"value": float("nan")})
        case "chatter":
            print("x" * 2_000_000, file=sys.stderr)
            for step in range(2_000):
                report(1.0, f"step {step} " + "y" * 100)
            return Answer({})
        case "shout":
            line = json.dumps([0.5, "y" * 400_000])
            descriptor = json.loads((job_dir / SANDBOX).read_bytes())["progress_fd"]
            with open(descriptor, "w", closefd=False) as progress:
                print(line, file=progress)
            time.sleep(0.2)
            report(1.0, "whispered")
            return Answer({})
        case "pad":
            (job_dir / RESULT).write_bytes(Answer({}).encode().ljust(int(detail)))
            os._exit(0)
        case "write":
            (job_dir / "huge").write_bytes(b"\0" * (8 << 20))
        case "fill":
            with open("/dev/full", "w") as full:
                full.write("x")
        case "fill-lock":
            raise DiskFull("the version cannot be written", file=str(job_dir))
        case "fill-result":
            os.urandom = bytes  # So that the partial file's name is known.
            partial_path(job_dir / RESULT).symlink_to("/dev/full")
            return Answer({})
        case "spawn":
            grandchild = subprocess.Popen([sys.executable, "-c", f"import time; {str(job_dir)!r}; time.sleep(600)"])
            (job_dir / "grandchild").write_text(str(grandchild.pid))
            time.sleep(600)
        case "sleep":
            time.sleep(float(detail))
            return Answer({"slept": float(detail)})
        case "score":
            assert isinstance(request, RolloutRequest)
            return score(job_dir, json.loads(detail), request, report)
        case "half":
            (job_dir / RESULT).write_text('{"message": "Ans')
            os._exit(0)
    raise AssertionError(f"unknown behaviour {what!r}")


def score(job_dir: Path, facts: dict[str, Any], request: RolloutRequest, report: Progress) -> RolloutReport:
    """A score as the real handler returns one, of the metrics and with as many random frames as the upload asks for."""
    import numpy as np

    from amp_core.features import feature_code_hash
    from amp_core.npz import write_npz
    from amp_core.recipe import Recipe

    steps = 20
    for step in range(steps):
        time.sleep(facts["sleep"] / steps)
        report(step / steps, "simulating")
    rows = np.random.default_rng(len(facts["name"])).standard_normal((facts["frames"], facts["dim"]), dtype=np.float32)
    write_npz(job_dir / export_name(0), {"features": rows, "qpos": np.zeros((facts["frames"], 15))})
    recipe = dict(request.recipe)
    document = {
        "name": facts["name"],
        "source_digest": request.source_digest,
        "frames": facts["frames"],
        "simulated_frames": facts["frames"],
        "duration_sec": facts["frames"] * 0.02,
        "mode": "rollout",
        "tier": facts["tier"],
        "tier_reason": facts["tier_reason"],
        "gates": [],
        "quality_metrics": facts["metrics"],
        "segments": [{"start": 0, "end": min(30, facts["frames"]), "tier": 0, "score": 0.5}],
        "ingest": {},
        "provenance": {
            "gate_profile": facts["gate_profile"],
            "feature_code_hash": feature_code_hash(),
            "mujoco_version": "4.0.1",
            "recipe": recipe,
            "recipe_digest": Recipe.from_dict(recipe).digest,
        },
        "wall_sec": 0.0,
    }
    return RolloutReport((document,), 0, None)


def rollout(job_dir: Path, request: RolloutRequest, report: Progress) -> Message:
    """The real handler for real motions, and the behaviour that the bytes name for the rest."""
    if not (job_dir / SOURCE).read_bytes().startswith(b"do "):
        return real(job_dir, request, report)
    return misbehave(job_dir, request, report)


def real(job_dir: Path, request: Message, report: Progress) -> Any:
    return pkgutil.resolve_name(HANDLERS[type(request)])(job_dir, request, report)


def verify(job_dir: Path, request: VerifyRequest, report: Progress) -> VerifyReport:
    """What the members' names ask for: `fails-6` fails test 6, `skips-3` cannot run it; `hangs` does that. A clip that was read
    from a motion gets the real tests."""
    names = [member.name for member in open_members(job_dir)]
    if not any(name.partition("-")[0] in ("fails", "skips", "hangs", "passes") for name in names):
        return real(job_dir, request, report)
    from amp_core.readiness import TEST_TITLES, skip_report

    report(0.5, "test 6: half")
    if "hangs" in names:
        time.sleep(600)
    tests = []
    for test, title in TEST_TITLES.items():
        one = skip_report(test, TESTS_OFF)
        if test in request.only:
            one |= {"status": "PASS", "reason": "", "figures": {"loss": [3.0, 2.0, 1.0]}}
            for name in names:
                if name == f"fails-{test}":
                    one |= {"status": "FAIL", "reason": f"{title} is wrong in clip {name}: mend it"}
                elif name == f"skips-{test}":
                    one |= {"status": "SKIP", "reason": "JAX is not installed"}
        tests.append(one)
    subject = {"robot": request.robot.name, "clips": [{"name": name, "tier": 0} for name in names]}
    (job_dir / VERIFICATION).write_text(json.dumps({"status": "PASS", "subject": subject, "tests": tests}))
    failed = (TestFailure(one["id"], one["name"], one["reason"]) for one in tests if one["status"] == "FAIL")
    return VerifyReport(tuple(failed))


def lock(job_dir: Path, request: LockRequest, report: Progress) -> Any:
    """The real handler; made-up scores have no arrays that their metrics could be measured from, and small versions shards."""
    import amp_core.dataset.lock
    from amp_core import admission
    from amp_core.verify.stored import StoredArrays

    amp_core.dataset.lock.SHARD_BYTES = 1 << 20

    measure = admission.find_changed_metrics

    def find_changed_metrics(member: Any, robot: Any) -> str:
        return measure(member, robot) if "ctrl" in StoredArrays(member.path) else ""

    admission.find_changed_metrics = find_changed_metrics
    return real(job_dir, request, report)


def draw(job_dir: Path, request: ThumbnailRequest, report: Progress) -> Any:
    """The real handler, but for a GL that ends the process at an export that says so."""
    from amp_core.render import pictures
    from ampref_workers import drawing

    def read(path: Path, robot: Any) -> Any:
        data = path.read_bytes()
        if b"crash the GL" in data:
            os.kill(os.getpid(), signal.SIGSEGV)
        if b"hang the GL" in data:
            time.sleep(600)
        return data

    def paint(take: bytes, platform: Any) -> bytes:
        assert platform() == "pretended"
        return b"thumbnail of " + take[:64]

    if request.platform == "pretended":
        drawing.read_export, drawing.draw_thumbnail = read, paint  # type: ignore[assignment]
    assert pictures
    return drawing.handle(job_dir, request, report)


if __name__ == "__main__":
    handlers = {Behaviour: "__main__:misbehave", RolloutRequest: "__main__:rollout", VerifyRequest: "__main__:verify"}
    handlers |= {LockRequest: "__main__:lock", ThumbnailRequest: "__main__:draw", ProbeRequest: HANDLERS[ProbeRequest]}
    serve(Path(sys.argv[1]), handlers)
