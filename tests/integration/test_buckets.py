"""Clips in several physics: which rollouts a version takes, on both databases, and the whole line with a real worker."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from catalogkit import Clock, add_clip, add_rollout, recipe, result
from workerkit import settings_for

from amp_core.cli import main as cli
from amp_core.client import load_dataset
from amp_core.errors import InputRefused
from amp_core.motions import bundled_motions
from amp_core.recipe import PhysicsScale
from ampref_service.app import create_app
from ampref_service.catalog import Catalog, locking, rollouts, schema, selection
from ampref_service.catalog.members import get_buckets
from ampref_service.catalog.records import Segment, Select, VersionFile, VersionMember
from ampref_service.diff import compare_versions
from ampref_service.server import listen, make_server
from ampref_workers.embedded import EmbeddedWorker

OWN, SLIPPERY, HEAVY = PhysicsScale(), PhysicsScale(friction=0.7), PhysicsScale(mass=1.1)


@contextlib.contextmanager
def running(server: uvicorn.Server, listener: Any) -> Iterator[str]:
    """A server in a thread; its address."""
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def chosen(catalog: Catalog, **wanted: Any) -> list[tuple[str, str, str]]:
    """(clip, bucket, rollout) of a selection, in its order."""
    with catalog.session() as session:
        found = list(selection.select_members(session, Select("wildrobot", **wanted)))
    return [(one.name, PhysicsScale(**(one.physics or {})).name, one.rollout_id) for one in found]


def test_of_each_clip_the_best_rollout_of_each_bucket(catalog: Catalog) -> None:
    walk, turn = add_clip(catalog, "walk"), add_clip(catalog, "turn")
    own = add_rollout(catalog, walk, result(0), recipe())
    failed = add_rollout(catalog, walk, result(-1), recipe(friction=0.7))
    saved = add_rollout(catalog, walk, result(0, "tracked"), recipe("tracked", friction=0.7, mass=1.0))
    heavy = add_rollout(catalog, walk, result(1), recipe(mass=1.1))
    alone = add_rollout(catalog, turn, result(0), recipe(friction=0.7))

    assert chosen(catalog) == [("walk", "canonical", own.id)]
    assert chosen(catalog, buckets=(OWN,)) == chosen(catalog)
    slippery = [("turn", "friction=0.7", alone.id), ("walk", "friction=0.7", saved.id)]
    assert chosen(catalog, buckets=(SLIPPERY,)) == slippery
    assert sorted(chosen(catalog, buckets="all")) == sorted([*slippery, ("walk", "canonical", own.id)])
    assert chosen(catalog, buckets="all") == sorted(chosen(catalog, buckets="all"), key=lambda taken: taken[0])
    assert ("walk", "mass=1.1", heavy.id) in chosen(catalog, buckets="all", tiers=(0, 1))
    assert chosen(catalog, buckets=(SLIPPERY,), mode="rollout") == slippery[:1], "the walk's best in that mode failed"
    assert failed.id not in {taken[2] for taken in chosen(catalog, buckets="all", tiers=(0, 1))}
    assert chosen(catalog, buckets=(HEAVY,)) == []
    with catalog.session() as session:
        asked = Select("wildrobot", buckets=(SLIPPERY, HEAVY, PhysicsScale(damping=2.0)))
        assert selection.missing_buckets(session, asked) == ([HEAVY, PhysicsScale(damping=2.0)], [OWN, SLIPPERY])
        assert selection.missing_buckets(session, Select("wildrobot", buckets=(SLIPPERY,))) == ([], [SLIPPERY])


def test_windows_are_taken_in_every_bucket(catalog: Catalog) -> None:
    clip = add_clip(catalog)
    add_rollout(catalog, clip, result(0), recipe())
    add_rollout(catalog, clip, result(-1, segments=(Segment(10, 60, 0, 0.9),)), recipe(friction=0.7))
    assert [taken[1] for taken in chosen(catalog, buckets="all")] == ["canonical"]
    with catalog.session() as session:
        found = {
            PhysicsScale(**(one.physics or {})).name: one.ranges
            for one in selection.select_members(session, Select("wildrobot", buckets="all", segments=True))
        }
    assert found == {"canonical": ((0, 100, 0),), "friction=0.7": ((10, 60, 0),)}


@pytest.mark.parametrize("seed", range(4))
def test_a_buckets_best_is_ranked_as_a_clips_best_is(catalog: Catalog, clock: Clock, seed: int) -> None:
    """The ranking in SQL and the one that decides which rollout speaks for a clip are the same."""
    rng = random.Random(seed)
    numbers = itertools.count()
    made = [add_clip(catalog, name) for name in ("a", "b", "c")]
    for clip in made:
        for _ in range(8):
            clock.at += rng.choice((0, 1))
            tier, mode = rng.choice((0, 1, -1)), rng.choice(("rollout", "teacher_forced", "tracked"))
            windows = tuple(
                Segment(i * 20, i * 20 + rng.choice((5, 9)), rng.choice((0, 1)), 0.5) for i in range(rng.randint(0, 3))
            )
            add_rollout(catalog, clip, result(tier, mode, segments=windows), recipe(mode, seed=next(numbers)))
    with catalog.session() as session:
        best = [rollouts.for_clip(session, clip.id)[0] for clip in made]
    for tiers in ((0,), (0, 1)):
        taken = chosen(catalog, buckets=(OWN,), tiers=tiers)
        assert taken == chosen(catalog, tiers=tiers)
        assert {one[2] for one in taken} == {one.id for one in best if one.tier in tiers}


@pytest.mark.parametrize(
    ("wanted", "said"),
    [({"buckets": ()}, "empty"), ({"buckets": "all", "recipe": "sha256:" + "0" * 64}, "both buckets and a recipe")],
)
def test_a_selection_that_contradicts_itself_is_refused(catalog: Catalog, wanted: dict[str, Any], said: str) -> None:
    with pytest.raises(InputRefused, match=said):
        chosen(catalog, **wanted)


def test_a_selection_is_kept_as_it_was_asked_for() -> None:
    for buckets in (None, "all", (OWN, SLIPPERY)):
        wanted = Select("wildrobot", buckets=buckets)
        assert Select.from_dict(json.loads(json.dumps(wanted.to_dict()))) == wanted
    older = {key: value for key, value in Select("wildrobot").to_dict().items() if key != "buckets"}
    assert Select.from_dict(older) == Select("wildrobot")


def _lock(catalog: Catalog, version: str, **wanted: Any) -> Any:
    with catalog.begin() as session:
        begun, _ = locking.begin_version(session, "walk", version, Select("wildrobot", **wanted))
        members = list(selection.select_members(session, Select("wildrobot", **wanted)))
        return locking.publish_version(
            session,
            begun.id,
            members=[VersionMember(one.clip_id, one.rollout_id, one.name, *span) for one in members for span in one.ranges],
            files=[VersionFile("features.npz", "sha256:" + "0" * 64, 1)],
            dataset_hash="sha256:" + "0" * 64,
            feature_code_hash="sha256:" + "0" * 64,
            manifest_digest="sha256:" + "0" * 64,
            num_clips=len(members),
            num_frames=100 * len(members),
        )


def test_a_version_tells_its_buckets_and_a_diff_compares_within_each(catalog: Catalog) -> None:
    walk, turn = add_clip(catalog, "walk"), add_clip(catalog, "turn")
    add_rollout(catalog, walk, result(0), recipe())
    add_rollout(catalog, walk, result(0), recipe(friction=0.7))
    before = _lock(catalog, "1.0.0", buckets="all")
    add_rollout(catalog, walk, result(0), recipe(mass=1.1))
    add_rollout(catalog, turn, result(0), recipe(friction=0.7))
    better = add_rollout(catalog, walk, result(0, "tracked"), recipe("tracked", seed=1, friction=0.7))
    after = _lock(catalog, "1.1.0", buckets="all")
    with catalog.session() as session:
        held = [(one.name, one.num_clips, one.num_frames) for one in get_buckets(session, after.id)]
        assert held == [("canonical", 1, 100), ("friction=0.7", 2, 200), ("mass=1.1", 1, 100)]
        assert get_buckets(session, after.id)[1].physics == {"friction": 0.7, "mass": 1.0, "damping": 1.0}
        diff = compare_versions(session, before, after)
    assert [(share.name, share.bucket) for share in diff.added] == [("turn", "friction=0.7"), ("walk", "mass=1.1")]
    assert [(new.bucket, new.rollout_id) for _, new in diff.changed] == [("friction=0.7", better.id)]
    assert (diff.removed, diff.unchanged) == ([], 1)


@pytest.mark.filterwarnings("ignore:.* is not ready for training:amp_core.client.DatasetWarning")
def test_from_files_to_a_training_node_in_two_physics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Submit, lock and pull as docs/randomization.md has it; the bundled walk falls on the slippery floor."""
    settings = settings_for(tmp_path, host="127.0.0.1", port=0, lease_sec=30.0, heartbeat_sec=1.0, job_memory_mb=2048)
    schema.upgrade(settings.database_url)
    worker, listener = EmbeddedWorker(settings), listen(settings)
    app = create_app(settings, notify=worker.notify, background=worker.running)
    files = [str(path) for path in bundled_motions() if path.stem in ("walk", "side_step")]
    physics = ["--physics", "canonical", "--physics", "friction=0.7"]

    with running(make_server(app, settings), listener) as url:

        def said(*arguments: str) -> Any:
            assert cli.run([*arguments, "--url", url, "--json"]) == 0
            return json.loads(capsys.readouterr().out)

        made = said("submit", *files, "--mode", "rollout", *physics, "--wait")
        assert [one["bucket"] for one in made] == ["canonical", "friction=0.7"] * 2
        assert len({one["clip"]["id"] for one in made}) == 2
        scales = [one["rollout"]["recipe"]["physics"]["friction"] for one in made]
        assert scales == [1.0, 0.7] * 2
        assert [one["rollout"]["tier"] for one in made if one["clip"]["name"] == "walk"] == [0, -1]
        assert [one["rollout"]["bucket"] for one in made] == ["canonical", "friction=0.7"] * 2
        held = said("clip", "walk")["rollouts"]
        assert [(one["bucket"], one["tier"]) for one in held] == [("canonical", 0), ("friction=0.7", -1)]
        assert cli.run(["clip", "walk", "--url", url]) == 0
        assert "friction=0.7" in capsys.readouterr().out

        own = said("dataset", "lock", "walk", "0.1.0")
        assert [bucket["name"] for bucket in own["buckets"]] == ["canonical"]
        assert own["num_clips"] == 2
        whole = said("dataset", "lock", "walk", "0.2.0", "--bucket", "all", "--segments")
        assert [(bucket["name"], bucket["num_clips"]) for bucket in whole["buckets"]] == [("canonical", 2), ("friction=0.7", 2)]
        compared = said("dataset", "diff", "walk", "0.1.0", "0.2.0")
        assert [(one["name"], one["bucket"]) for one in compared["added"]] == [
            (n, "friction=0.7") for n in ("side_step", "walk")
        ]
        assert (compared["removed"], compared["changed"], compared["unchanged"]) == ([], [], 2)

        refused = ["dataset", "lock", "walk", "0.3.0", "--bucket", "mass=1.1", "--url", url]
        assert cli.run(refused) == 1
        error = capsys.readouterr().err
        assert "nothing of the selection is in the bucket 'mass=1.1'" in error
        assert "canonical, friction=0.7" in error
        data = load_dataset("walk==0.2.0", url=url, cache_dir=tmp_path / "cache", allow_not_ready=True)
    assert [bucket.name for bucket in data.buckets] == ["canonical", "friction=0.7"]
    canonical, slippery = data.buckets
    assert len(canonical) == own["num_frames"]
    assert canonical.dataset_hash == own["dataset_hash"], "the same rows as the version of that bucket alone"
    assert 400 < len(slippery) < len(canonical)
    assert {data.manifest["clips"][clip]["tier"] for clip in slippery.clips} == {0, -1}
    drawn = data.sample(np.random.default_rng(0), 100, bucket="friction=0.7")
    assert {row.tobytes() for row in drawn} <= {row.tobytes() for row in slippery.features}
