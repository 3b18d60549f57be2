"""Small clips, recipes, results and versions for tests of the catalog."""

from __future__ import annotations

import atexit
import functools
import hashlib
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from amp_core.recipe import GATE_PROFILE
from ampref_service.catalog import Catalog, clips, datasets, locking, recipes, rollouts, schema, selection
from ampref_service.catalog.records import (
    Clip,
    NewClip,
    NewRollout,
    RecipeRow,
    Rollout,
    Segment,
    Select,
    Version,
    VersionFile,
    VersionMember,
)
from ampref_service.catalog.tables import METRIC_COLUMNS
from ampref_service.jobs import JobQueue


@functools.cache
def _migrated_file() -> Path:
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    schema.upgrade(f"sqlite:///{folder / 'catalog.sqlite3'}")
    return folder / "catalog.sqlite3"


def make_catalog(url: str) -> None:
    """Bring a database to this release's schema; a new SQLite file is a copy, in a hundredth of the migrations' time."""
    path = Path(url.removeprefix("sqlite:///"))
    if url.startswith("sqlite:///") and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_migrated_file(), path)
    else:
        schema.upgrade(url)


def sha(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def new_clip(name: str = "walk", **changes: Any) -> NewClip:
    facts: dict[str, Any] = {
        "name": name,
        "robot": "wildrobot",
        "robot_digest": sha("robot"),
        "source_digest": sha(name),
        "source_format": "npz",
        "blob_digest": sha(name),
        "size": 1000,
        "frames_in": 100,
        "fps_in": 50.0,
        "duration_sec": 2.0,
    }
    return NewClip(**(facts | changes))


def recipe(mode: str = "rollout", seed: int = 0, *, profile: str = GATE_PROFILE, **physics: float) -> RecipeRow:
    facts = {"mode": mode, "seed": seed, "physics": physics, "gate_profile": profile}
    return RecipeRow(sha(f"{mode} {seed} {profile} {sorted(physics.items())}"), mode, facts)


def result(
    tier: int = 0,
    mode: str = "rollout",
    *,
    profile: str = GATE_PROFILE,
    segments: tuple[Segment, ...] = (),
    **metrics: float | int | None,
) -> NewRollout:
    values: Mapping[str, Any] = {name: 0.5 for name in METRIC_COLUMNS} | {"fell_at_frame": None} | metrics
    return NewRollout(
        mode=mode,
        tier=tier,
        tier_reason=f"because {tier}",
        gate_profile=profile,
        metrics=values,
        frames=100,
        duration_sec=2.0,
        arrays_digest=sha(f"arrays {tier} {mode} {profile} {sorted(metrics.items())}"),
        arrays_size=5000,
        feature_code_hash=sha("features"),
        mujoco_version="4.0.1",
        result={"tier": tier, "gates": []},
        segments=segments,
    )


def add_clip(catalog: Catalog, name: str = "walk", **changes: Any) -> Clip:
    with catalog.begin() as session:
        return clips.submit(session, new_clip(name, **changes), recipe()).clip


def add_rollout(catalog: Catalog, clip: Clip, new: NewRollout | None = None, with_recipe: RecipeRow | None = None) -> Rollout:
    new = new or result()
    used = with_recipe or recipe(new.mode, profile=new.gate_profile)
    with catalog.begin() as session:
        recipes.add(session, used)
        return rollouts.add(session, clip.id, used.digest, new)[0]


class Clock:
    """Time that only the test moves."""

    def __init__(self) -> None:
        self.at = 1_700_000_000.0

    def __call__(self) -> float:
        return self.at


@contextmanager
def opened(url: str, clock: Clock | None = None) -> Iterator[Catalog]:
    catalog = Catalog.open(url, clock)
    try:
        yield catalog
    finally:
        catalog.close()


def rows(catalog: Catalog, table: Any) -> int:
    with catalog.session() as session:
        return int(session.execute(select(func.count()).select_from(table)).scalar_one())


def together(count: int, action: Any) -> list[Any]:
    """The results, or the exceptions, of `count` threads that begin at once."""
    gate = threading.Barrier(count)
    found: list[Any] = []

    def run(number: int) -> None:
        gate.wait()
        try:
            found.append(action(number))
        except Exception as error:
            found.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == count
    return found


def lock(catalog: Catalog, name: str = "walk", version: str = "1.0.0", wanted: Select | None = None) -> Version:
    queue = JobQueue(catalog)
    wanted = wanted or Select("wildrobot")
    with catalog.begin() as session:
        begun, _ = locking.begin_version(session, name, version, wanted)
    claim = queue.claim("locker", kinds=("lock",))
    assert claim is not None
    with catalog.session() as session:
        chosen = list(selection.select_members(session, wanted))
    queue.complete(claim, work=lambda session: publish(session, begun.id, chosen) and None)
    with catalog.session() as session:
        return datasets.get_version(session, name, version)


def publish(session: Any, version_id: str, chosen: Any) -> Version:
    return locking.publish_version(
        session,
        version_id,
        members=[
            VersionMember(item.clip_id, item.rollout_id, item.name, start, end, tier)
            for item in chosen
            for start, end, tier in item.ranges
        ],
        files=[VersionFile("features.npz", sha("features"), 100), VersionFile("manifest.json", sha("manifest"), 10)],
        dataset_hash=sha("rows"),
        feature_code_hash=sha("code"),
        manifest_digest=sha("manifest"),
        num_clips=len(chosen),
        num_frames=100,
        readiness={"ready": True},
        coverage={"seconds": 2.0},
    )
