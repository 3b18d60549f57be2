"""What `ampref demo` prints beside the service's own answers."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from amp_core.cli import main as cli
from amp_core.cli.output import Output
from amp_core.tiers import Tier
from ampref_workers.cli import demo


class Service:
    """A service whose locks succeed at once."""

    def __init__(self, *, ready: bool) -> None:
        self.ready = ready

    def lock_version(self, *_: Any, **__: Any) -> dict[str, Any]:
        return {"job": {}}

    def get_version(self, *_: Any) -> dict[str, Any]:
        return {"readiness": {"tests": [], "ready": self.ready}, "num_clips": 1, "num_frames": 2, "dataset_hash": "sha256:1"}


@pytest.mark.parametrize(
    ("ready", "has_jax", "advice"), [(True, True, False), (True, False, False), (False, True, False), (False, False, True)]
)
def test_a_version_that_is_not_ready_for_lack_of_jax_says_what_to_install(
    ready: bool, has_jax: bool, advice: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "wait_for_job", lambda *_, **__: None)
    monkeypatch.setattr(demo, "find_spec", lambda _: has_jax or None)
    demo._lock_version(Output(), Service(ready=ready), [{"tier": Tier.TIER_0}])  # type: ignore[arg-type]
    text = capsys.readouterr().out
    assert f"ready for training: {'yes' if ready else 'no'}" in text
    assert ("install ampref[train]" in text) == advice


@pytest.mark.parametrize("on_path", [True, False])
def test_the_next_steps_work_where_the_command_is_not_on_the_path(
    on_path: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    script = Path(sys.executable).with_name("ampref")
    monkeypatch.setenv("PATH", str(script.parent if on_path else tmp_path))
    monkeypatch.setattr(demo, "_run_service", lambda *_: nullcontext("http://service"))
    for name, answer in (("_score_motions", []), ("_lock_version", {}), ("_pull_version", {"manifest_sha256": "sha256:1"})):
        monkeypatch.setattr(demo, name, lambda *_, answer=answer: answer)
    monkeypatch.chdir(script.parents[2])
    assert cli.run(["demo"]) == 0
    command = "ampref" if on_path else script.relative_to(script.parents[2])
    assert f"\nNext: {command} score MOTION  your own motion" in capsys.readouterr().out
