"""The page of a clip without a service: what `ampref view` serves of exports on this machine.

The page, its parts and its scripts are those of the service; scene and frames come from the files. Only this machine's browser
gets an answer, and there is nothing that it could change.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from amp_core.errors import AmprefError, InputRefused, IntegrityError, NotFound
from amp_core.evaluation import evaluate
from amp_core.frames import WindowType, select_frames, slice_frames
from amp_core.npz import locate_arrays
from amp_core.recipe import PhysicsScale
from amp_core.robot import Robot
from amp_core.scene import write_scene
from ampref_service.web.clip_view import describe_changes, describe_replay, list_gates
from ampref_service.web.compare import list_differences, list_shown_metrics
from ampref_service.web.home import get_asset
from ampref_service.web.site import render_page

__all__ = ["ViewedRollout", "create_viewer", "read_export"]

_BINARY = "application/octet-stream"


@dataclass(frozen=True)
class ViewedRollout:
    """An export that is shown.

    Args:
      label: what the page calls it.
      result: the document `Score.to_dict()`, or that of `read_export`.
      source: the file that it was made of, where that is another one.
    """

    path: Path
    label: str
    robot: Robot
    result: Mapping[str, Any]
    source: Path | None = None

    @property
    def physics(self) -> PhysicsScale:
        return PhysicsScale(**self.result["provenance"]["recipe"].get("physics", {}))


def read_export(path: Path, robot: Robot) -> Mapping[str, Any]:
    """The result document of an export: what is measured in it now, and where it comes from by its own word.

    Raises:
      InputRefused: it is no export of this robot.
      IntegrityError: it is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}  # All of them: each has a checksum.
        measured = evaluate(path, robot).to_dict()
        provenance = json.loads(arrays["meta"].tobytes())["provenance"]
        PhysicsScale(**provenance["recipe"].get("physics", {}))
        needed = ("gate_profile", "recipe_digest", "robot_mass_kg", "robot_digest", "generator_version", "mujoco_version")
        if missing := [name for name in needed if name not in provenance]:
            raise KeyError(", ".join(missing))
    except (zipfile.BadZipFile, zlib.error) as error:
        raise IntegrityError(f"it is damaged ({error})", file=str(path), remedy="Make or copy it again") from None
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputRefused(
            f"its meta does not say where it comes from ({type(error).__name__}: {error})",
            file=str(path),
            expected="an export that ampref score wrote",
            remedy="View the motion itself, which is scored then: ampref view walk.pkl",
        ) from None
    tier = measured["best_tier"] if measured["tier"] is None else measured["tier"]
    absent: dict[str, Any] = {"ingest": None, "diagnosis": None, "failure": None, "attempts": []}
    facts = {"source_digest": provenance.get("source_digest"), "simulated_frames": measured["frames"]}
    return measured | absent | facts | {"tier": tier, "provenance": provenance}


def create_viewer(rollouts: Sequence[ViewedRollout], start_frame: int | None = None) -> Starlette:
    """The application that shows one rollout, or several side by side. All are of one robot.

    Raises:
      InputRefused: they are of different robots.
    """
    robots = {rollout.robot.digest: rollout.robot for rollout in rollouts}
    if len(robots) > 1:
        names = ", ".join(sorted({robot.name for robot in robots.values()}))
        raise InputRefused(f"the files are of different robots: {names}", expected="rollouts of one robot")
    viewer = _Viewer(rollouts, start_frame)
    return Starlette(
        routes=[
            Route("/", viewer.show_page),
            Route("/scene", viewer.get_scene),
            Route("/rollouts/{number:int}/frames", viewer.get_frames),
            Route("/assets/{asset}", lambda request: get_asset(request.path_params["asset"])),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"], www_redirect=False)],
        exception_handlers={AmprefError: _answer_error},
    )


def _answer_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, AmprefError)
    return JSONResponse(error.to_dict() | {"status": error.status}, error.status)


@dataclass
class _Viewer:
    rollouts: Sequence[ViewedRollout]
    start_frame: int | None
    _scene: bytes = field(default=b"", init=False)

    def show_page(self, request: Request) -> Response:
        replay = {
            "scene_url": "scene",
            "rollouts": [
                describe_replay(
                    rollout.result,
                    rollout_id=str(number),
                    label=rollout.label,
                    frames_url=f"rollouts/{number}/frames",
                    weight_n=rollout.robot.mg_for(rollout.physics),
                )
                for number, rollout in enumerate(self.rollouts)
            ],
            "start_frame": _read_number(request, "f", self.start_frame),
        }
        if len(self.rollouts) > 1:
            return render_page(request, "view_several.html", {"replay": replay, "navigation": ()} | self._describe_several())
        return render_page(request, "view.html", {"replay": replay, "navigation": ()} | self._describe_one())

    def _describe_one(self) -> dict[str, Any]:
        [rollout] = self.rollouts
        result = rollout.result
        return {
            "title": rollout.label,
            "section": "",
            "clip": {"name": result["name"], "source_digest": result["source_digest"]},
            "path": str(rollout.source or rollout.path),
            "result": result,
            "bucket": rollout.physics.name,
            "recipe": result["provenance"]["recipe"],
            "current": self._summarize(rollout),
            "gates": list_gates(result["gates"]),
            "changes": list(describe_changes(result["ingest"])) if result["ingest"] else [],
        }

    def _describe_several(self) -> dict[str, Any]:
        rows = [self._summarize(rollout) for rollout in self.rollouts]
        return {
            "title": "Compare " + ", ".join(rollout.label for rollout in self.rollouts)[:120],
            "section": "",
            "rows": rows,
            "labels": [rollout.label for rollout in self.rollouts],
            "owners": {},
            "left_out": 0,
            "metrics": list_shown_metrics([row["metrics"] for row in rows]),
            "differences": list(list_differences([rollout.result["provenance"]["recipe"] for rollout in self.rollouts])),
        }

    @staticmethod
    def _summarize(rollout: ViewedRollout) -> dict[str, Any]:
        """What a template reads of a rollout in the catalog."""
        result = rollout.result
        return {
            **{name: result[name] for name in ("tier", "tier_reason", "duration_sec", "mode")},
            **{name: result["provenance"][name] for name in ("gate_profile", "recipe_digest")},
            "id": "",
            "clip_id": "",
            "frames": result["simulated_frames"],
            "metrics": result["quality_metrics"],
            "arrays_digest": None,
        }

    def get_scene(self, request: Request) -> Response:
        self._scene = self._scene or write_scene(self.rollouts[0].robot)
        return Response(self._scene, media_type=_BINARY)

    def get_frames(self, request: Request) -> Response:
        number = request.path_params["number"]
        if number >= len(self.rollouts):
            raise NotFound(f"there is no rollout {number}")
        names = [name for name in request.query_params.get("arrays", "").split(",") if name] or None
        start, stop = _read_number(request, "start", 0), _read_number(request, "stop", None)
        with self.rollouts[number].path.open("rb") as file:
            kind: WindowType = "float32" if request.query_params.get("dtype") == "float32" else "stored"
            window = select_frames(locate_arrays(file, self.rollouts[number].path), names, start or 0, stop, kind)
            return Response(slice_frames(file, window), media_type=_BINARY)


def _read_number(request: Request, name: str, default: int | None) -> int | None:
    text = request.query_params.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else default
