"""Which rollouts a version takes, on SQLite and on PostgreSQL."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from catalogkit import add_clip, add_rollout, lock, opened, recipe, result, sha
from sqlalchemy import update

from amp_core.dataset import WEIGHT_METRICS
from amp_core.errors import Conflict, InputRefused
from amp_core.recipe import GATE_PROFILE
from ampref_service.catalog import Catalog, clips, locking, rollouts, selection
from ampref_service.catalog import tables as t
from ampref_service.catalog.records import Segment, Select
from ampref_service.jobs import JobQueue
from ampref_service.versions import name_robot


@pytest.fixture
def catalog(database_url: str) -> Iterator[Catalog]:
    with opened(database_url) as found:
        yield found


def test_members_are_the_best_rollout_of_each_clip_by_name(catalog: Catalog) -> None:
    named = {}
    for name, tiers in {"b": [1, 0], "a": [0], "c": [1], "d": [-1], "e": []}.items():
        clip = named[name] = add_clip(catalog, name, tags=["x"] if name in "ab" else ["y"])
        for seed, tier in enumerate(tiers):
            add_rollout(catalog, clip, result(tier), recipe(seed=seed))
    other = add_clip(catalog, "a", robot="other", source_digest=sha("o"))
    add_rollout(catalog, other)

    def chosen(**wanted: Any) -> list[tuple[str, int]]:
        with catalog.session() as session:
            return [
                (item.name, item.tier) for item in selection.select_members(session, Select("wildrobot", **wanted), chunk=1)
            ]

    assert chosen() == [("a", 0), ("b", 0)]
    assert chosen(tiers=(0, 1)) == [("a", 0), ("b", 0), ("c", 1)]
    assert chosen(tiers=(1,)) == [("c", 1)], "a clip is in the tier of its best rollout only"
    assert chosen(tags=("x",), clips=("b",)) == [("b", 0)]
    assert chosen(clips=(named["a"].id, "b")) == [("a", 0), ("b", 0)]
    assert chosen(recipe=recipe(seed=0).digest, tiers=(0, 1)) == [("a", 0), ("b", 1), ("c", 1)]
    assert chosen(mode="teacher_forced") == []
    assert chosen(tags=("x", "y")) == []
    with catalog.session() as session:
        assert selection.missing_clips(session, Select("wildrobot", clips=("a", "zz", named["b"].id))) == ["zz"]
    for bad in ({"tiers": ()}, {"tiers": (2,)}, {"tiers": (0, -1)}, {"mode": "rollout", "recipe": "x"}):
        with pytest.raises(InputRefused):
            chosen(**bad)


def test_scaled_physics_speaks_last_and_is_locked_only_by_name(catalog: Catalog) -> None:
    clip, alone = add_clip(catalog, "both"), add_clip(catalog, "alone")
    slippery = recipe(friction=0.7, mass=1.0)
    own = add_rollout(catalog, clip, result(1), recipe(friction=1.0))
    forced = add_rollout(catalog, clip, result(1, "teacher_forced"), recipe("teacher_forced"))
    scaled = add_rollout(catalog, clip, result(0), slippery)
    add_rollout(catalog, alone, result(0), slippery)

    def chosen(**wanted: Any) -> list[tuple[str, str]]:
        with catalog.session() as session:
            return [(it.name, it.rollout_id) for it in selection.select_members(session, Select("wildrobot", **wanted))]

    with catalog.session() as session:
        assert [item.id for item in rollouts.for_clip(session, clip.id)] == [own.id, forced.id, scaled.id]
        assert clips.count(session) == {"total": 2, "0": 1, "1": 1, "-1": 0, "unscored": 0}
    assert chosen() == []
    assert chosen(tiers=(0, 1)) == [("both", own.id)]
    assert [name for name, _ in chosen(recipe=slippery.digest)] == ["alone", "both"]
    with catalog.begin() as session:  # The column decides, and not the recipe's JSON, which no selection need read.
        session.execute(update(t.recipes).where(t.recipes.c.digest == slippery.digest).values(scaled=0))
    assert [name for name, _ in chosen()] == ["alone"]


def test_members_are_judged_by_one_profile(catalog: Catalog) -> None:
    """Also where another profile's verdict stands for the clip; by default the profile is that of new recipes."""
    dynamic, old = "amp-0.12-dynamic", "amp-0.11"
    verdicts = {
        "both": {GATE_PROFILE: 0, dynamic: 0, old: 0},
        "run": {GATE_PROFILE: 1, dynamic: 0},
        "ice": {old: 0, dynamic: -1},
    }
    for name, tiers in verdicts.items():
        clip = add_clip(catalog, name)
        for profile, tier in tiers.items():
            add_rollout(catalog, clip, result(tier, profile=profile))
    walk = add_clip(catalog, "walk")
    for mode, tier, profile in (("rollout", 1, old), ("tracked", 0, old), ("tracked", 1, GATE_PROFILE)):
        add_rollout(catalog, walk, result(tier, mode, profile=profile))

    def chosen(**wanted: Any) -> list[tuple[str, str, str]]:
        with catalog.session() as session:
            rows = selection.select_members(session, Select("wildrobot", **wanted))
            return [(row.name, row.mode, row.gate_profile) for row in rows]

    assert chosen() == chosen(gate_profile=GATE_PROFILE) == [("both", "rollout", GATE_PROFILE)]
    assert chosen(gate_profile=dynamic) == [("both", "rollout", dynamic), ("run", "rollout", dynamic)]
    assert chosen(gate_profile=old) == [("both", "rollout", old), ("ice", "rollout", old), ("walk", "tracked", old)]
    assert chosen(gate_profile=old, mode="rollout", tiers=(1,)) == [("walk", "rollout", old)]
    assert chosen(tiers=(1,), mode="tracked") == [("walk", "tracked", GATE_PROFILE)]
    assert chosen(buckets="all") == chosen()
    assert chosen(buckets="all", gate_profile=dynamic) == chosen(gate_profile=dynamic)
    assert chosen(recipe=recipe(profile=old).digest) == [("both", "rollout", old), ("ice", "rollout", old)]
    assert chosen(recipe=recipe(profile=old).digest, gate_profile=dynamic) == []


def test_a_dataset_is_of_one_robot(catalog: Catalog) -> None:
    add_rollout(catalog, add_clip(catalog))
    lock(catalog, "walk", "1.0.0")
    with pytest.raises(Conflict, match="is of the robot wildrobot"), catalog.begin() as session:
        locking.begin_version(session, "walk", "2.0.0", Select("other"))


def test_the_robot_of_a_version_is_that_of_its_clips_where_none_is_named(catalog: Catalog) -> None:
    services: Any = SimpleNamespace(catalog=catalog)

    def name(dataset: str = "new", *, allowed: tuple[str, ...] = ("g1", "wildrobot"), **wanted: Any) -> str:
        return name_robot(services, dataset, Select("", **wanted), allowed.__contains__).robot

    assert name() == "wildrobot"
    add_rollout(catalog, add_clip(catalog, "jump", robot="g1", tags=["leap"]))
    assert name() == "g1"
    add_rollout(catalog, add_clip(catalog, "stride"))
    with pytest.raises(InputRefused, match="2 robots: g1, wildrobot") as refusal:
        name()
    assert refusal.value.key == "select.robot"
    assert name(tags=("leap",)) == "g1"
    assert name(clips=("stride",)) == "wildrobot"
    assert name(allowed=("g1",)) == "g1"
    assert name_robot(services, "new", Select("other"), {"other"}.__contains__).robot == "other"
    lock(catalog, "walk", "1.0.0")
    assert name("walk") == "wildrobot"


def test_what_fits_and_is_still_being_scored_is_counted(catalog: Catalog) -> None:
    waiting = add_clip(catalog, "waiting", tags=["x"])
    add_clip(catalog, "elsewhere", robot="other")

    def pending(**wanted: Any) -> int:
        with catalog.session() as session:
            return selection.pending_clips(session, Select("wildrobot", **wanted))

    assert (pending(), pending(tags=("x",)), pending(tags=("y",)), pending(clips=(waiting.id,))) == (1, 1, 0, 1)
    with catalog.session() as session:
        (job,) = clips.get_with_rollouts(session, waiting.id)[2]
    JobQueue(catalog).cancel(job.id)
    assert pending() == 0


def test_segments_of_a_rejected_clip_can_be_members(catalog: Catalog) -> None:
    good, fallen = add_clip(catalog, "good"), add_clip(catalog, "fallen")
    add_rollout(catalog, good, result(0, segments=(Segment(0, 100, 0, 1.0),)))
    add_rollout(
        catalog, fallen, result(-1, segments=(Segment(30, 60, 0, 0.8), Segment(0, 28, 0, 0.9), Segment(61, 80, 1, 0.5)))
    )
    with catalog.session() as session:
        whole = [item.ranges for item in selection.select_members(session, Select("wildrobot"))]
        parts = [(item.name, item.ranges) for item in selection.select_members(session, Select("wildrobot", segments=True))]
    assert whole == [((0, 100, 0),)]
    assert parts == [("fallen", ((0, 28, 0), (30, 60, 0))), ("good", ((0, 100, 0),))]


def test_a_window_comes_with_its_own_metrics(catalog: Catalog) -> None:
    good, fallen = add_clip(catalog, "good"), add_clip(catalog, "fallen")
    add_rollout(catalog, good, result(0, slip_rate=0.02))
    measured = {"start": 30, "end": 60, "tier": 0, "quality_metrics": {"slip_rate": 0.03, "height_std": 9.0}}
    windows = (Segment(0, 28, 0, 0.9), Segment(30, 60, 0, 0.8))
    add_rollout(
        catalog,
        fallen,
        dataclasses.replace(result(-1, segments=windows, slip_rate=0.9), result={"gates": [], "segments": [measured]}),
    )
    with catalog.session() as session:
        first, second = selection.select_members(session, Select("wildrobot", segments=True))
    assert second.range_metrics == ({name: 0.5 for name in WEIGHT_METRICS} | {"slip_rate": 0.02},)
    # A window that was stored without metrics has none, and not the clip's.
    assert first.range_metrics == ({}, {name: None for name in WEIGHT_METRICS} | {"slip_rate": 0.03})


def test_select_survives_its_json() -> None:
    wanted = Select("r", (0, 1), "rollout", None, ("a",), ("b",), True)
    assert Select.from_dict(wanted.to_dict()) == wanted
