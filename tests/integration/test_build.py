"""Versions from a folder of exports: the files of a service's lock, without a service."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from catalogkit import add_clip, add_rollout, opened
from workerkit import CHILD, Bench, settings_for

from amp_core.cli.build import Selection, read_exports, select_candidates
from amp_core.cli.main import run
from amp_core.cli.output import Output
from amp_core.client.readiness import Readiness
from amp_core.formats import read_motion
from amp_core.motions import bundled_motions, reading_options
from amp_core.npz import write_npz
from amp_core.quality import FrameSeries, measure
from amp_core.recipe import PhysicsScale, Recipe
from amp_core.reference import META
from amp_core.robot import Robot
from amp_core.scoring import score
from amp_core.tiers import GATE_PROFILES
from amp_core.verify import Context, TestReport, suite, verify
from amp_core.verify.environment import random_policy_rollout
from amp_core.verify.report import Findings
from ampref_service.catalog import datasets, locking, selection
from ampref_service.catalog.records import Select
from ampref_workers.rollout_job import new_rollout
from ampref_workers.runner import Runner

WAIVERS = [{"test": test, "reason": "too few frames"} for test in ("6", "smoke")]
WAIVE = [word for waiver in WAIVERS for word in ("--waive", f"{waiver['test']}={waiver['reason']}")]


@pytest.fixture(autouse=True)
def quick_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """A micro-training that fails at once and a short random rollout for test 6: the failure of both is waived here."""

    def short_rollout(*args: Any, **more: Any) -> Any:
        return random_policy_rollout(*args, **more | {"frames": 2000})

    def fail_training(context: Context) -> TestReport:
        findings = Findings("smoke")
        if all(clip.tier != 0 for clip in context.subject.clips):
            return findings.skip("there is no Tier 0 clip")
        findings.check("auc", 0.5, ">", 0.55, reason="nothing was trained")
        return findings.report("nothing")

    *others, training = suite.TESTS
    assert training.id == "smoke"
    monkeypatch.setattr(suite, "TESTS", (*others, replace(training, run=fail_training)))
    monkeypatch.setattr("amp_core.cli.build.verify", partial(verify, random_policy_rollout=short_rollout))


def export(folder: Path, *stems: str, **changes: Any) -> None:
    folder.mkdir(exist_ok=True)
    paths = [path for path in bundled_motions() if path.stem in stems]
    motions = [read_motion(path, name=path.stem, **reading_options(path)) for path in paths]
    for result in score(motions, Robot.load("wildrobot"), replace(Recipe.for_mode("rollout"), **changes)):
        result.export(folder / f"{result.name}.npz")


def test_the_selection_has_the_services_names() -> None:
    assert Selection("wildrobot", (0,)).to_dict() == Select(robot="wildrobot").to_dict()
    profile = {"segments": True, "gate_profile": "amp-0.12"}
    assert Selection("w", (0, 1), True, "amp-0.12").to_dict() == Select(robot="w", tiers=(0, 1), **profile).to_dict()


def test_a_build_has_the_bytes_of_a_services_lock(tmp_path: Path) -> None:
    bench = Bench(settings_for(tmp_path, lock_tests="1A,3,7", job_memory_mb=2048, job_timeout_sec=300.0))
    runner = Runner(bench.settings, bench.catalog, bench.blobs, command=CHILD)
    folder, out = tmp_path / "exports", tmp_path / "out"
    folder.mkdir()
    for stem in ("walk", "walk_backward"):
        job = bench.submit_motion(stem, Recipe.for_mode("rollout"), 150)
        assert runner.run_once() == "succeeded"
        (rollout,) = bench.rollouts(job.clip_id)
        assert rollout.arrays_digest is not None
        with bench.blobs.open(rollout.arrays_digest) as file:
            (folder / f"{stem}.npz").write_bytes(file.read())
    with bench.catalog.begin() as session:
        _, job = locking.begin_version(session, "walk", "1.0.0", Select(robot="wildrobot"))
    assert runner.run_once() == "succeeded", bench.job(job.id).error
    assert run(["dataset", "build", str(folder), "--out", str(out), "--name", "walk", *WAIVE, "--quiet"]) == 0
    with bench.catalog.session() as session:
        version = datasets.get_version(session, "walk", "1.0.0")
    for file in version.files:
        with bench.blobs.open(file.digest) as stored:
            expected, built = stored.read(), (out / file.name).read_bytes()
        if not file.name.startswith("dataset_manifest"):
            assert built == expected, file.name
            continue
        # The operator of this service has turned some of the tests off.
        documents = [json.loads(data) for data in (expected, built)]
        assert [document["verification"].pop("tests") is None for document in documents] == [False, False]
        assert documents[1].pop("waivers") == WAIVERS
        assert documents[0].pop("waivers") == []
        assert documents[0] == documents[1]
    bench.close()


def test_a_build_takes_what_a_lock_takes(tmp_path: Path, sqlite_url: str) -> None:
    """Of the same rollouts in several modes, physics and profiles, for each profile, and without one."""
    robot = Robot.load("wildrobot")
    paths = [path for path in bundled_motions() if path.stem in ("walk", "squat", "walk_long_stride")]
    motions = [read_motion(path, name=path.stem, **reading_options(path)) for path in paths]
    recipes = [replace(Recipe.for_mode("rollout"), gate_profile=profile) for profile in GATE_PROFILES]
    recipes += [Recipe.for_mode("teacher_forced"), replace(recipes[0], physics=PhysicsScale(friction=1.2))]
    out, kinds = Output(quiet=True), itertools.product((None, *GATE_PROFILES), ((0,), (1,), (0, 1)), (False, True))
    with opened(sqlite_url) as catalog:
        clips = {motion.name: add_clip(catalog, motion.name, source_digest=motion.source_digest) for motion in motions}
        for number, recipe in enumerate(recipes):
            for result in score(motions, robot, recipe):
                result.export(tmp_path / f"{result.name}-{number}.npz")
                new = new_rollout(result.to_dict(), f"sha256:{number}", 1)
                assert new.recipe is not None
                add_rollout(catalog, clips[result.name], new, new.recipe)
        exports = list(read_exports(tmp_path, robot, out))
        assert len(exports) == 15
        counts = set()
        for profile, tiers, segments in kinds:
            with catalog.session() as session:
                select = Select(robot="wildrobot", tiers=tiers, segments=segments, gate_profile=profile)
                rollouts = list(selection.select_members(session, select))
            chosen = Selection("wildrobot", tiers, segments, profile)
            candidates = [pair[0] for pair in select_candidates(exports, chosen, out)] if rollouts else []
            assert [(it.name, it.recipe_digest, it.tier, it.gate_profile, it.ranges) for it in candidates] == [
                (it.name, it.recipe_digest, it.tier, it.gate_profile, it.ranges) for it in rollouts
            ], select
            assert {it.gate_profile for it in rollouts} <= {profile or "amp-0.12"}
            counts.add(len(rollouts))
        assert counts >= {1, 2, 3}


def test_tier_1_is_left_out_unless_it_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "walks", tmp_path / "out"
    export(folder, "walk", "squat")
    motion = next(path for path in bundled_motions() if path.stem == "walk")
    assert run(["dataset", "build", str(folder), "--out", str(out), *WAIVE, "--motions", str(motion.parent)]) == 0
    text = capsys.readouterr()
    assert "walks==1.0.0: 1 clip, 400 frames" in text.out
    assert "checks of every clip: 5 of 5 checks passed" in text.out
    assert "ready for training: yes" in text.out
    assert "not at hand" not in text.err
    assert sorted(path.name for path in out.iterdir()) == [
        "dataset_manifest_v1.0.0.json", "features_v1.0.0.npz", "normalization_stats_v1.0.0.json", "verification_v1.0.0.json",
    ]  # fmt: skip
    assert run(["dataset", "build", str(folder), "--out", str(out), "--tier", "1", "--version", "2.0.0"]) == 0
    assert "ready for training: no" in capsys.readouterr().out


def test_a_falsified_export_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "walks"
    export(folder, "walk")
    arrays = dict(np.load(folder / "walk.npz"))
    meta = json.loads(arrays[META].tobytes())
    meta["quality_metrics"]["slip_rate"] = 0.0
    arrays[META] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    write_npz(folder / "walk.npz", arrays)
    assert run(["dataset", "build", str(folder), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "clip 'walk' has other metrics than its arrays give (slip_rate 0.0" in error
    # A build has no selection of clips: the remedy is in its folder, and it helps.
    assert "what to do: Score the clip again (ampref score MOTION --export DIR), or take its file out of DIR" in error
    assert "select." not in error
    export(folder, "walk")
    assert run(["dataset", "build", str(folder), "--out", str(tmp_path / "out"), *WAIVE]) == 0


def test_clips_of_an_older_profile_are_asked_by_this_releases_gates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A root that travels twice as far as the legs step is Tier 0 by amp-0.11, and no version is made of it."""
    folder = tmp_path / "old"
    folder.mkdir()
    path = next(path for path in bundled_motions() if path.stem == "walk")
    walk = read_motion(path, name="walk", **reading_options(path))
    twice = replace(walk, root_pos=walk.root_pos * [2.0, 1.0, 1.0])
    (result,) = score([twice], Robot.load("wildrobot"), replace(Recipe.for_mode("rollout"), gate_profile="amp-0.11"))
    assert result.tier == 0
    result.export(folder / "walk.npz")
    build = ["dataset", "build", str(folder), "--out", str(tmp_path / "out"), *WAIVE]
    assert run(build) == 1
    error = capsys.readouterr().err
    assert f"note: {folder / 'walk.npz'} was judged by amp-0.11, not amp-0.12, and was passed over" in error
    assert "error: the folder holds no export that is Tier 0 by amp-0.12\n" in error
    assert "Take those of another profile: --profile amp-0.11; or write some: ampref score MOTION... --export DIR" in error
    assert run([*build, "--profile", "amp-0.11"]) == 1
    error = capsys.readouterr().err
    assert "old==1.0.0 was not written, because 1 of 10 tests failed: 7 harness contribution" in error
    assert "clip walk, frames 0 … 400 is taken as Tier 0, but by amp-0.12" in error
    assert "clip_foot_slide" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"joint_names": ["b", "a"]}, "meta.joint_names is b, a, but left_hip_pitch, left_hip_roll, "),
        ({"generation_mode": "tracked"}, "meta.generation_mode is tracked, but rollout by the recipe"),
        ({"num_frames": 3}, "meta.num_frames is 3, but 400 by the arrays"),
    ],
)
def test_an_export_with_a_false_fact_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], facts: dict[str, Any], words: str
) -> None:
    folder = tmp_path / "walks"
    export(folder, "walk")
    change_meta(folder / "walk.npz", **facts)
    assert run(["dataset", "build", str(folder), "--out", str(tmp_path / "out"), *WAIVE]) == 1
    error = capsys.readouterr().err
    assert f"{folder / 'walk.npz'}, key 'meta': {words}" in error
    assert "Score the clip again" in error


def test_an_export_whose_arrays_contradict_each_other_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "walks"
    export(folder, "walk")
    arrays = dict(np.load(folder / "walk.npz"))
    arrays["sum_fn_last_substep"] = arrays["sum_fn_last_substep"][:-1]
    write_npz(folder / "walk.npz", arrays)
    build = ["dataset", "build", str(folder), "--out", str(tmp_path / "out"), *WAIVE]
    assert run(build) == 1
    assert "sum_fn_last_substep is float64 of shape (399,), but of shape (400,) by robot wildrobot" in capsys.readouterr().err
    export(folder, "walk")
    arrays = dict(np.load(folder / "walk.npz"))
    arrays["stab_force_per_frame"][100] += 0.05
    write_npz(folder / "walk.npz", arrays)
    assert run(build) == 1
    assert "key 'stab_force_per_frame', frame 100: stab_force_per_frame at frame 100 is" in capsys.readouterr().err


def test_an_export_of_another_model_of_the_robot_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "walks"
    export(folder, "walk")
    provenance = json.loads(np.load(folder / "walk.npz")[META].tobytes())["provenance"]
    change_meta(folder / "walk.npz", provenance=provenance | {"robot_digest": "sha256:" + "0" * 64})
    assert run(["dataset", "build", str(folder), "--out", str(tmp_path / "out"), *WAIVE]) == 1
    assert f"meta.provenance.robot_digest is sha256:{'0' * 64}, but sha256:" in capsys.readouterr().err


def change_meta(path: Path, **facts: Any) -> None:
    """Other facts in the `meta` of an export."""
    arrays = dict(np.load(path))
    arrays[META] = np.frombuffer(json.dumps(json.loads(arrays[META].tobytes()) | facts).encode(), np.uint8)
    write_npz(path, arrays)


def test_a_forged_source_is_never_ready_for_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every number in the export agrees with every other; that it is this clip's motion can be told from the motion alone."""
    folder, out = tmp_path / "forged", tmp_path / "out"
    export(folder, "walk")
    path = next(path for path in bundled_motions() if path.stem == "squat")
    squat = read_motion(path, **reading_options(path))
    provenance = json.loads(np.load(folder / "walk.npz")[META].tobytes())["provenance"]
    facts = {"provenance": provenance | {"name": "squat", "source_digest": squat.source_digest}, "source_file": "squat.json"}
    change_meta(folder / "walk.npz", **facts)
    build = ["dataset", "build", str(folder), *WAIVE, "--out"]
    assert run([*build, str(out), "--json", str(tmp_path / "out.json")]) == 0
    text = capsys.readouterr()
    assert "the motions of 1 clips are not at hand (squat)" in text.err
    assert "--motions names their folder" in text.err
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["ready"] is False
    (line,) = (entry for group in document["groups"] for entry in group["criteria"] if entry["test"] == "1C")
    assert line["status"] == "SKIP"
    assert "test 1C is open: the motions of 1 of 1 clips are not at hand (squat)" in line["evidence"]
    readiness = Readiness.from_manifest(json.loads((out / "dataset_manifest_v1.0.0.json").read_text()))
    assert (readiness.ready, readiness.reasons) == (
        False, ("1C generator determinism: was not run, or not on every clip",),
    )  # fmt: skip
    assert run([*build, str(tmp_path / "never"), "--motions", str(path)]) == 1
    assert "1C generator determinism: clip squat: features" in capsys.readouterr().err


def test_a_forged_reference_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The robot's own poses in the place of the clip's give other controls, whatever the metrics say."""
    folder = tmp_path / "forged"
    export(folder, "walk")
    arrays, robot = dict(np.load(folder / "walk.npz")), Robot.load("wildrobot")
    arrays |= {f"reference_{name}": arrays[name] for name in ("root_pos", "root_rot", "dof_pos")}
    arrays["reference_dof_pos_raw"] = arrays["dof_pos"]
    write_npz(folder / "walk.npz", arrays)
    metrics = measure(FrameSeries.from_export(arrays, Recipe.for_mode("rollout"), robot))
    change_meta(folder / "walk.npz", quality_metrics=json.loads(arrays[META].tobytes())["quality_metrics"] | metrics)
    assert run(["dataset", "build", str(folder), "--out", str(tmp_path / "out"), *WAIVE]) == 1
    error = capsys.readouterr().err
    assert "by the clip's first frame; and" in error
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["dataset", "build", str(tmp_path), "--out", str(tmp_path / "out"), "--name", "a"]) == 1
    assert "holds no export" in capsys.readouterr().err
