"""Small clips, recipes and results for tests of the catalog."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ampref_service.catalog import Catalog, clips, recipes, rollouts
from ampref_service.catalog.records import Clip, NewClip, NewRollout, RecipeRow, Rollout, Segment
from ampref_service.catalog.tables import METRIC_COLUMNS


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


def recipe(mode: str = "rollout", seed: int = 0, **physics: float) -> RecipeRow:
    return RecipeRow(sha(f"{mode} {seed} {sorted(physics.items())}"), mode, {"mode": mode, "seed": seed, "physics": physics})


def result(
    tier: int = 0, mode: str = "rollout", *, segments: tuple[Segment, ...] = (), **metrics: float | int | None
) -> NewRollout:
    values: Mapping[str, Any] = {name: 0.5 for name in METRIC_COLUMNS} | {"fell_at_frame": None} | metrics
    return NewRollout(
        mode=mode,
        tier=tier,
        tier_reason=f"because {tier}",
        gate_profile="amp-0.11",
        metrics=values,
        frames=100,
        duration_sec=2.0,
        arrays_digest=sha(f"arrays {tier} {mode} {sorted(metrics.items())}"),
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
    used = with_recipe or recipe(new.mode)
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
