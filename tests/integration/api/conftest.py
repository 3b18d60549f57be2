"""An API over a real SQLite catalog and local blobs, without workers: tests play the worker by the job table."""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import io
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from catalogkit import make_catalog
from fastapi import FastAPI
from starlette.testclient import TestClient

from amp_core.dataset import Bundle
from amp_core.metrics import METRICS
from amp_core.recipe import Recipe
from amp_core.verify.checklist import document
from ampref_service.app import create_app
from ampref_service.blobs import BlobStore
from ampref_service.catalog import Catalog, datasets, locking, recipes, selection
from ampref_service.catalog.records import NewRollout, RecipeRow, Segment, Select, Version, VersionFile, VersionMember
from ampref_service.jobs import Claim, JobQueue
from ampref_service.readers import ReaderPool
from ampref_service.recipes import recipe_row
from ampref_service.settings import Settings
from ampref_service.spool import Spool

GOOD = {
    "mean_sum_fn_over_mg": 0.98,
    "p90_stab_force_over_mg": 0.05,
    "unloaded_frame_rate": 0.02,
    "slip_rate": 0.1,
    "height_std": 0.012,
}


def motion_bytes(seed: int = 0, frames: int = 51, rate: float = 50.0, **changes: Any) -> bytes:
    """A small clip for the bundled robot as JSON: standing, with a joint that moves a little; each seed gives other bytes."""
    t = np.arange(frames) / rate
    dof = np.zeros((frames, 8))
    dof[:, 2] = 0.2 + 0.05 * np.sin(2 * np.pi * t + seed)
    clip: dict[str, Any] = {
        "fps": rate,
        "root_pos": [[0.0, 0.0, 0.45]] * frames,
        "root_rot": [[0.0, 0.0, 0.0, 1.0]] * frames,
        "dof_pos": dof.round(6).tolist(),
        "note": seed,
    }
    return json.dumps(clip | changes).encode()


INGEST = {
    **{"fps_in": 50.0, "fps_out": 50.0, "frames_in": 50, "frames_out": 50, "ground_shift_m": 0.002, "joints_clipped": []},
    **{"quaternions_renormalized": 0, "quaternions_flipped": 0, "max_norm_error": 0.0, "notes": [], "findings": []},
}
"""What the pages read of the account of a clip that conditioning left as it was."""


@dataclass
class Api:
    """The application and what a worker would do behind it."""

    http: TestClient
    app: FastAPI
    settings: Settings
    rung: list[str] = field(default_factory=list)

    @property
    def catalog(self) -> Catalog:
        return self.app.state.services.catalog

    @property
    def blobs(self) -> BlobStore:
        return self.app.state.services.blobs

    @property
    def queue(self) -> JobQueue:
        return JobQueue(self.catalog)

    def post(self, number: int = 0, /, *, data: bytes | None = None, **fields: Any) -> Any:
        """POST a clip; the answer."""
        file = ("walk.json", data if data is not None else motion_bytes(number))
        return self.http.post("/v1/clips", files={"file": file}, data=fields)

    def claim(self) -> Claim:
        claim = self.queue.claim("a test")
        assert claim is not None
        return claim

    def finish(
        self,
        claim: Claim | None = None,
        *,
        tier: int = 0,
        mode: str = "rollout",
        failure: dict[str, Any] | None = None,
        diagnosis: dict[str, Any] | None = None,
        arrays: bytes | None = None,
        **metrics: Any,
    ) -> str:
        """Score the oldest job's clip, with `arrays` as its export; the rollout's id."""
        buffer = io.BytesIO()
        claim = claim or self.claim()
        recipe = self._recipe(claim, mode)
        np.savez(buffer, features=np.full((50, 27), len(claim.job.id), np.float32), id=np.array(claim.job.id))
        arrays = arrays or buffer.getvalue()
        metric_values: dict[str, float | int | None] = {metric.name: 0.0 for metric in METRICS}
        new = NewRollout(
            mode=mode,
            tier=tier,
            tier_reason="all gates passed" if tier == 0 else "mean_sum_fn_over_mg is 0.4, needs >= 0.6",
            gate_profile=recipe.recipe["gate_profile"],
            metrics=metric_values | GOOD | {"fell_at_frame": None} | metrics,
            frames=50,
            duration_sec=1.0,
            arrays_digest=self.blobs.put_bytes(arrays),
            arrays_size=len(arrays),
            feature_code_hash="sha256:" + "0" * 64,
            mujoco_version="4.0.1",
            result={
                "gates": [{"name": "slip_rate", "value": 0.1, "threshold": 0.2, "op": "<=", "passed": True, "tier": 0}],
                "segments": [{"start": 0, "end": 50, "tier": tier, "score": 0.9, "quality_metrics": {}}],
                "failure": failure,
                "diagnosis": diagnosis,
                "ingest": INGEST,
                "provenance": {
                    **{
                        "robot": "wildrobot",
                        "robot_digest": "sha256:" + "3" * 64,
                        "robot_mass_kg": 3.4,
                        "recipe": recipe.recipe,
                    },
                    **{"mujoco_version": "4.0.1", "generator_version": "0.12.0", "feature_code_hash": "sha256:" + "0" * 64},
                },
                **{
                    "mode": mode,
                    "tier": tier,
                    "simulated_frames": 50,
                    "duration_sec": 1.0,
                    "contact_warnings": [],
                    "attempts": [],
                },
                "quality_metrics": metric_values | GOOD | {"fell_at_frame": None} | metrics,
            },
            segments=[Segment(0, 50, tier, 0.9)],
            recipe=recipe,
        )
        return str((self.queue.complete_rollout(claim, new).result or {})["rollout_id"])

    def _recipe(self, claim: Claim, mode: str) -> RecipeRow:
        """What a rollout in a mode is kept under: the job's recipe or, where that is of mode auto, its stage."""
        assert claim.job.recipe_digest is not None
        with self.catalog.session() as session:
            recipe = Recipe.from_dict(recipes.get(session, claim.job.recipe_digest).recipe)
        return recipe_row(recipe.stage(mode) if recipe.mode == "auto" else recipe)

    def scored(
        self, number: int = 0, name: str = "walk", tier: int = 0, tags: str = "", profile: str | None = None, **metrics: Any
    ) -> str:
        """POST a clip and score it; the clip's id."""
        recipe = {} if profile is None else {"recipe": json.dumps({"gate_profile": profile})}
        answer = self.post(number, name=name, tags=tags, **recipe)
        assert answer.status_code == 202, answer.text
        self.finish(tier=tier, **metrics)
        return str(answer.json()["clip"]["id"])

    def lock(self, name: str = "walk", version: str = "0.1.0", **select: Any) -> Version:
        """POST a version and play the worker that locks it."""
        answer = self.http.post(f"/v1/datasets/{name}/versions", json={"version": version, "select": select})
        assert answer.status_code == 202, answer.text
        return self.publish(self.claim())

    def publish(self, claim: Claim, bundle: Bundle | None = None, ranges: tuple[tuple[int, int], ...] = ()) -> Version:
        """Play the worker of a lock job: three files whose bytes tell which version they are of.

        Args:
          bundle: real files instead, whose clips each have these ranges.
        """
        payload = claim.job.payload
        name, number = payload["dataset"], payload["version"]
        files = []
        for path in [] if bundle is None else [file.path for file in bundle.files]:
            media = "application/json" if path.suffix == ".json" else "application/octet-stream"
            files.append(VersionFile(path.name, self.blobs.put_file(path), path.stat().st_size, media))
        for stem, suffix in (
            (("features", "npz"), ("normalization_stats", "json"), ("dataset_manifest", "json")) if not bundle else ()
        ):
            data = f"{stem} of {name}=={number}\n".encode() * 5000
            media = "application/json" if suffix == "json" else "application/octet-stream"
            files.append(VersionFile(f"{stem}_v{number}.{suffix}", self.blobs.put_bytes(data), len(data), media))

        tests = [{"id": "6", "name": "6 distribution sanity", "status": "WARN", "reason": "look at <walk>"}]
        full = [item | {"measured": "", "rows": [], "figures": {"loss": [2.0, 1.0, 0.5]}, "wall_sec": 1.0} for item in tests]
        report_document = document({"status": "WARN", "subject": {"dataset": name, "version": number}, "tests": full})
        report = json.dumps(report_document).encode()
        files.append(VersionFile(f"verification_v{number}.json", self.blobs.put_bytes(report), len(report), "application/json"))

        def work(session: Any) -> None:
            assert claim.job.version_id is not None
            version = datasets.get_version_by_id(session, claim.job.version_id)
            selected = list(selection.select_members(session, Select.from_dict(version.select)))
            locking.publish_version(
                session,
                version.id,
                members=[
                    VersionMember(item.clip_id, item.rollout_id, item.name, start, end, tier)
                    for item in selected
                    for start, end, tier in ([(*pair, 0) for pair in ranges] or item.ranges)
                ],
                files=files,
                dataset_hash="sha256:" + hashlib.sha256(files[0].digest.encode()).hexdigest(),
                feature_code_hash="sha256:" + "0" * 64,
                manifest_digest=next(file.digest for file in files if file.name.startswith("dataset_manifest")),
                num_clips=len(selected),
                num_frames=50 * len(selected),
                readiness={
                    "checks": [{"name": "arrays", "passed": True, "members": len(selected)}],
                    "tests": tests,
                    **{key: report_document[key] for key in ("ready", "groups", "waivers")},
                },
                coverage={"seconds": 1.0 * len(selected)},
            )

        self.queue.complete(claim, work=work)
        with self.catalog.session() as session:
            return datasets.get_version(session, name, number)


class _SharedReaders(ReaderPool):
    """Of all applications of a test process: starting readers takes longer than most tests."""

    def close(self) -> None:
        """They are closed at the process's end."""


@functools.cache
def _shared_readers() -> ReaderPool:
    settings = make_settings(Path(tempfile.mkdtemp()))
    readers = _SharedReaders(settings, Spool(settings))
    atexit.register(shutil.rmtree, settings.data_dir.parent)
    atexit.register(ReaderPool.close, readers)
    return readers


def make_settings(folder: Path) -> Settings:
    """Small limits, and nothing of this machine's environment."""
    return Settings(data_dir=folder / "data", sse_interval_sec=0.02, max_upload_bytes=256 * 1024)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return make_settings(tmp_path)


@pytest.fixture
def api(settings: Settings) -> Iterator[Api]:
    with open_api(settings) as api:
        yield api


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """One for all tests of a module that store nothing in it."""
    with open_api(make_settings(tmp_path_factory.mktemp("idle"))) as api:
        yield api


@contextlib.contextmanager
def open_api(settings: Settings) -> Iterator[Api]:
    """The API for `settings`, on a migrated catalog."""
    make_catalog(settings.database_url)
    rung: list[str] = []
    app = create_app(settings, notify=rung.append, open_readers=lambda settings, spool: _shared_readers())
    with TestClient(app) as http:
        yield Api(http, app, settings, rung)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """One for all tests of a module, for them to fill."""
    with open_api(make_settings(tmp_path_factory.mktemp("fresh"))) as api:
        yield api


@pytest.fixture
def motion() -> Any:
    return motion_bytes


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """With two scored clips, a job that waits, and a dataset of two versions, one of them yanked."""
    with open_api(make_settings(tmp_path_factory.mktemp("seeded"))) as api:
        api.scored(1, "walk", tags="slow")
        api.scored(2, "squat", tier=-1)
        api.lock(version="0.1.0")
        api.lock(version="0.2.0")
        api.http.post("/v1/datasets/walk/versions/0.2.0/yank", json={"reason": "for the tests"})
        api.post(3)
        yield api
