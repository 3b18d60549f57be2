"""Answers as a service gives them, with every key that the client reads: for tests whose service is a function."""

from __future__ import annotations

from typing import Any

JOB: dict[str, Any] = {
    "id": "job_1",
    "kind": "lock",
    "state": "succeeded",
    "progress": 1.0,
    "eta_sec": None,
    "attempts": 1,
    "max_attempts": 3,
    "message": None,
    "error": None,
    "result": {},
}
CLIP: dict[str, Any] = {
    "id": "clip_0",
    "name": "walk",
    "robot": "r",
    "source_digest": "sha256:" + "d" * 64,
    "source_format": "pkl",
    "read_options": {},
    "frames_in": 267,
    "fps_in": 50.0,
    "duration_sec": 7.98,
    "tags": [],
    "created_at": "2026-01-01T00:00:00Z",
    "parent": None,
    "parent_digest": None,
    "augmentation": None,
    "lineage": "sha256:" + "d" * 64,
}
SUMMARY: dict[str, Any] = {
    "id": "rollout_0",
    "recipe_digest": "sha256:" + "e" * 64,
    "mode": "rollout",
    "tier": 0,
    "tier_reason": "every gate holds",
    "frames": 400,
    "gate_profile": "amp-0.12",
    "bucket": "canonical",
    "quality_metrics": {"mean_sum_fn_over_mg": 0.98, "fell_at_frame": None},
}
ROLLOUT: dict[str, Any] = SUMMARY | {
    "clip_name": "walk",
    "arrays_digest": "sha256:" + "a" * 64,
    "duration_sec": 8.0,
    "segments": [],
    "diagnosis": None,
    "contact_warnings": [],
    "ingest": {"notes": []},
    "recipe": {},
    "provenance": {"attempt": None},
}
SUBMISSION: dict[str, Any] = {"clip": CLIP, "job": JOB | {"kind": "rollout", "state": "queued"}, "rollout": None}
VERSION: dict[str, Any] = {
    "dataset": "walk",
    "version": "1.0.0",
    "robot": "wildrobot",
    "num_clips": 2,
    "num_frames": 700,
    "locked_at": "2026-01-01T00:00:00Z",
    "yanked": False,
    "yank_reason": None,
    "dataset_hash": "sha256:1",
    "manifest_sha256": "sha256:2",
    "aliases": ["latest"],
    "readiness": None,
    "files": [],
    "manifest_url": "/v1/manifest",
}
HISTOGRAM: dict[str, Any] = {"unit": "m/s", "bin": 0.1, "from": -0.2, "seconds": [1.0, 0.0, 8.0]}
COVERAGE: dict[str, Any] = {
    "tiers": [{"tier": 0, "seconds": 189.0, "sources": 7}],
    "sources": [{"name": "clip0", "seconds": 30.0}],
    **dict.fromkeys(("forward_speed", "lateral_speed", "turning_rate"), HISTOGRAM),
    "stance": {"single_share": 0.41, "double_share": 0.57, "flight_share": 0.02, "steps_per_second": 1.93},
    "feature_space": {
        **{"effective_dimensions": 5.13, "varying_dimensions": 25},
        **{"poses": {"effective": 312.4}, "velocities": {"effective": 96.0}},
    },
}
READINESS: dict[str, Any] = {
    "ready": False,
    "checks": [{"name": "digests", "passed": True}],
    "groups": [
        {
            "name": "Data",
            "status": "WAIVED",
            "criteria": [{"name": "Loads", "status": "WAIVED", "evidence": "0.4", "test": "6", "waiver": "known"}],
        }
    ],
    "waivers": [{"test": "6", "reason": "known"}],
    "duplicates": [{"name": "walk2", "of": {"name": "walk"}}],
}
MANIFEST: dict[str, Any] = {
    "gates": {"clips_by_tier": {"0": 2}, "frames_by_tier": {"0": 600, "-1": 100}},
    "clips": [{"recipe_digest": "sha256:a"}, {"recipe_digest": "sha256:b"}],
    "weighting": {"least": 0.7, "greatest": 1.125, "effective_share": 0.98},
}
