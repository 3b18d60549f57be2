"""`ampref view`: the page of a clip for files on this machine, without a service."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import tempfile
import webbrowser
from pathlib import Path
from typing import Annotated

import numpy as np
import uvicorn
from starlette.applications import Starlette
from typer import Argument, BadParameter, Option

from amp_core.cli.options import Fps, Json, Mode, Profile, QuatOrder, Quiet, RobotName, Seed, Threads
from amp_core.cli.output import Output
from amp_core.cli.reading import reading_options
from amp_core.cli.recipes import build_recipe
from amp_core.cpus import usable_cpus
from amp_core.formats import read_motion
from amp_core.npz import ARCHIVE_FAULTS
from amp_core.robot import Robot
from amp_core.scoring import score
from ampref_service import server
from ampref_service.cli.startup import ending_on_sigterm, url_of
from ampref_service.settings import Settings
from ampref_service.web.assets import load_assets
from ampref_service.web.compare import MOST
from ampref_service.web.viewer import ViewedRollout, create_viewer, read_export


def view(
    files: Annotated[list[Path], Argument(metavar="FILE", help="Exports of ampref score, or motions, which are scored first.")],
    robot: RobotName = "wildrobot",
    mode: Mode = None,
    seed: Seed = None,
    profile: Profile = None,
    fps: Fps = None,
    quat_order: QuatOrder = None,
    frame: Annotated[int | None, Option("--frame", "-f", min=0, metavar="N", help="The frame to begin at.")] = None,
    port: Annotated[int, Option(min=0, max=65535, metavar="N", help="Port to listen on; by default a free one.")] = 0,
    no_browser: Annotated[bool, Option("--no-browser", help="Print the address alone.")] = False,
    threads: Threads = None,
    json_out: Json = None,
    quiet: Quiet = False,
) -> None:
    """Open the page of a clip in the browser, without a service; several files are shown side by side.

    An export is shown as it is. A motion is scored first, in mode rollout unless another is named. It runs until Ctrl-C.
    """
    out = Output(json_out, quiet=quiet)
    if len(files) > MOST:
        raise BadParameter(f"{len(files)} files; at most {MOST} can be shown side by side", param_hint="FILE")
    loaded_robot = Robot.load(robot)
    recipe = build_recipe(None, mode or "rollout", seed, (), profile)
    with tempfile.TemporaryDirectory(prefix="ampref-view-") as folder, contextlib.suppress(KeyboardInterrupt):
        options = reading_options(files, fps, quat_order, out)
        rollouts = []
        for number, path in enumerate(files):
            if _is_export(path):
                export, document = path, read_export(path, loaded_robot)
                if document["provenance"]["robot_digest"] != loaded_robot.digest:
                    out.warn(
                        f"{path} was simulated with another model of the robot {loaded_robot.name}; it is drawn with this one"
                    )
            else:
                export = Path(folder) / f"{number}.npz"
                with out.progress(f"scoring {path.name}", total=1.0) as progress:
                    motion = read_motion(path, **options(path))
                    report, nthread = progress.update, threads or usable_cpus()
                    [result] = score([motion], loaded_robot, recipe, nthread=nthread, progress=report)
                result.export(export)
                document = result.to_dict()
            rollouts.append(ViewedRollout(export, path.stem, loaded_robot, document, source=path))
        application = create_viewer(rollouts, frame)
        listener = server.listen(Settings(host="127.0.0.1", port=port))
        url = url_of(listener) + "/"
        if not load_assets().are_built:
            out.warn("the pages' scripts are not built, so there is no replay: make setup")
        out.print_result({"url": url, "pid": os.getpid()}, [url])
        out.print(f"{url} shows {', '.join(path.name for path in files)}; Ctrl-C ends it")
        sys.stdout.flush()
        if not no_browser:
            webbrowser.open(url)
        with ending_on_sigterm():
            serve(application, listener)


def serve(application: Starlette, listener: socket.socket) -> None:
    """Answer requests until a signal ends it."""
    config = uvicorn.Config(application, log_level="warning", lifespan="off", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run([listener])


def _is_export(path: Path) -> bool:
    """Whether a file is an export: an npz with a result document."""
    if path.suffix.lower() != ".npz":
        return False
    try:
        with np.load(path, allow_pickle=False) as archive:
            return "meta" in archive.files and "qpos" in archive.files
    except ARCHIVE_FAULTS:
        return False  # What reads motions says what is wrong with it.
