"""`ampref demo`: the whole line once, on this machine, in a temporary folder.

The service runs as a process of its own and is used as any client would use it: over HTTP.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from amp_core.cli.options import Json, Quiet
from amp_core.cli.output import Output
from amp_core.cli.remote import connect, wait_for_job
from amp_core.cli.results import print_results
from amp_core.cli.text import size
from amp_core.client import ApiClient, DatasetWarning, load_dataset, pull
from amp_core.cpus import usable_cpus
from amp_core.digests import digest_of
from amp_core.errors import IntegrityError, Unavailable
from amp_core.motions import bundled_motions, reading_options
from amp_core.tiers import Tier

VERSION = "0.11.0"
# By the best tier that there is: a name must not promise more than the clips hold.
DATASET = {Tier.TIER_0: "demo", Tier.TIER_1: "demo-curriculum", Tier.REJECTED: "demo-rejected"}
# Planning takes seconds for each second of a clip: only the clip that falls by itself is planned, which shows what it is for.
PLANNED_CLIP = "walk_long_stride"
START_SEC = 60.0
STOP_SEC = 15.0


def demo(
    keep: Annotated[bool, Option("--keep", help="Keep the temporary folder and say where it is.")] = False,
    json_out: Json = None,
    quiet: Quiet = False,
) -> None:
    """Do everything once: serve, post the bundled motions, score, lock a version, pull it back, verify every digest.

    It takes a free port and a temporary folder, and leaves neither a process nor a file behind.
    """
    start = time.monotonic()
    out = Output(json_out, quiet=quiet)
    folder = Path(tempfile.mkdtemp(prefix="ampref-demo-"))
    try:
        with _run_service(out, folder) as url, connect(url, out, patient=True) as api:
            rollouts = _score_motions(out, api)
            version = _lock_version(out, api, rollouts)
            with warnings.catch_warnings(action="ignore", category=DatasetWarning):  # Step 3 prints whether it is ready.
                result = _pull_version(out, url, folder / "cache", version)
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    seconds = time.monotonic() - start
    clips = [{"name": r["clip_name"], **{key: r[key] for key in ("mode", "tier", "tier_reason")}} for r in rollouts]
    document = {"url": url, "clips": clips, **result, "folder": str(folder) if keep else None, "seconds": round(seconds, 1)}
    out.print_result(document, [result["manifest_sha256"]])
    rest = f"everything is kept in {folder}" if keep else "no process and no file is left"
    out.print(f"\nDone in {seconds:.0f} s; {rest}.")
    script = Path(sys.executable).with_name("ampref")
    command = "ampref" if shutil.which("ampref") or not script.exists() else os.path.relpath(script)
    steps = {
        f"{command} score MOTION": "your own motion, without a server",
        f"{command} up": "the service, to stay",
        "docs/score-clips.md": "the same steps, one by one",
    }
    for label, (step, purpose) in zip(("Next:", "", ""), steps.items(), strict=True):
        out.print(f"{label:<5} {step:<{max(map(len, steps))}}  {purpose}")


@contextlib.contextmanager
def _run_service(out: Output, folder: Path) -> Iterator[str]:
    """`ampref up` in a process of its own, on a free port, stopped at the end in any case; its URL."""
    out.print("1. Start the service (SQLite, local files, workers; nothing to install)")
    log = folder / "service.log"
    # Settings that are meant for another service must not reach this one.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AMPREF_")}
    environment["AMPREF_THUMBNAILS"] = "false"  # Nobody opens its pages before it ends.
    workers = min(4, usable_cpus())
    # -P: without it -m would look for every module in the working directory first.
    command = [sys.executable, "-P", "-m", "amp_core.cli", "up", "--port", "0", "--data-dir", str(folder / "data")]
    command += ["--workers", str(workers), "--json", "--stop-with-parent"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with (
        log.open("wb") as stderr,
        # Ctrl-C reaches this process alone, which stops the service in order.
        subprocess.Popen(command, stderr=stderr, env=environment, start_new_session=True, **pipes) as process,
    ):
        try:
            ready = _read_document(process, log)
            out.print(f"   {ready['url']}, {workers} workers, data in {ready['data_dir']}\n")
            yield ready["url"]
        finally:
            process.terminate()
            try:
                process.wait(STOP_SEC)
            except subprocess.TimeoutExpired:
                process.kill()


def _read_document(process: subprocess.Popen[str], log: Path) -> dict[str, Any]:
    """The JSON document that the service prints when it is ready.

    Raises:
      Unavailable: it could not start, or took too long.
    """
    watchdog = threading.Timer(START_SEC, process.kill)
    text, document = "", {}
    try:
        watchdog.start()
        for line in process.stdout or ():
            text += line
            with contextlib.suppress(ValueError):
                document = json.loads(text)
                break
    finally:
        watchdog.cancel()
    if "url" not in document:
        lines = log.read_text(errors="replace").strip().splitlines()
        reason = document.get("what") or " / ".join(lines[-3:]) or f"no answer within {START_SEC:.0f} s"
        remedy = document.get("remedy") or "Try it by itself: ampref up --port 0"
        raise Unavailable(f"the service did not start: {reason}", remedy=remedy)
    return document


def _score_motions(out: Output, api: ApiClient) -> list[dict[str, Any]]:
    motions = bundled_motions()
    out.print(f"2. POST {len(motions)} bundled motions over HTTP and have them scored in mode rollout")
    out.print(f"   and {PLANNED_CLIP}, which falls in it, once more in mode tracked, which plans its balance")
    rollouts = []
    with out.progress("scoring", total=len(motions) + 1) as progress:
        answers = [api.submit_clip(path, mode="rollout", tags=["demo"], **reading_options(path)) for path in motions]
        planned_id = next(answer["clip"]["id"] for answer in answers if answer["clip"]["name"] == PLANNED_CLIP)
        for answer in (*answers, api.add_rollout(planned_id, mode="tracked")):
            job = wait_for_job(api, answer["job"], progress, label=answer["clip"]["name"], timeout=300.0)
            rollouts.append(api.get_rollout(job["result"]["rollout_id"]))
    rollouts.sort(key=lambda rollout: (rollout["clip_name"], rollout["mode"]))
    print_results(out, rollouts)
    out.print()
    return rollouts


def _lock_version(out: Output, api: ApiClient, rollouts: list[dict[str, Any]]) -> dict[str, Any]:
    best = Tier.best(rollout["tier"] for rollout in rollouts)
    name = DATASET[best]
    out.print(f"3. Run the ten tests on what is {best.label}, and lock it as {name}=={VERSION}")
    if best != Tier.TIER_0:
        purpose = "for a curriculum" if best == Tier.TIER_1 else "to look at"
        out.print(f"   No clip reached Tier 0, so this version is {purpose}, not for training.")
    with out.progress(f"locking {name}=={VERSION}", total=1) as progress:
        locking = api.lock_version(name, VERSION, select={"tier": [best], "tags": ["demo"]})
        wait_for_job(api, locking["job"], progress, label=f"{name}=={VERSION}", timeout=300.0)
    version = api.get_version(name, VERSION)
    for test in version["readiness"]["tests"]:
        out.print(f"   {test['status']:<4}  {test['name']}{': ' + test['reason'] if test['reason'] else ''}")
    is_ready, lacks_jax = version["readiness"]["ready"], find_spec("jax") is None or find_spec("optax") is None
    advice = ": the tests that are skipped need JAX; install ampref[train], then run the demo again" if lacks_jax else ""
    out.print(f"   ready for training: {'yes' if is_ready else f'no{advice}'}")
    out.print(f"   {version['num_clips']} clips, {version['num_frames']} frames, dataset_hash {version['dataset_hash']}\n")
    return version


def _pull_version(out: Output, url: str, cache: Path, version: dict[str, Any]) -> dict[str, Any]:
    spec = f"{version['dataset']}=={version['version']}"
    out.print(f"4. Pull {spec} into an empty cache and verify every digest")
    with out.progress(f"pulling {spec}") as progress:
        pin: dict[str, Any] = {"url": url, "manifest_sha256": version["manifest_sha256"], "cache_dir": cache}
        result = pull(spec, progress=lambda amount, total: progress.update(amount, total=total), **pin)
    # The client has verified the digests; a demo that claims so computes them itself.
    expected = {file["name"]: file["sha256"] for file in version["files"]}
    for path in result.files:
        digest = digest_of(path.read_bytes())
        if digest != expected[path.name]:
            raise IntegrityError(f"its digest is {digest}", file=str(path), expected=expected[path.name])
        out.print(f"   ok  {path.name:<34} {size(path.stat().st_size):>9}  {digest}")
    data = load_dataset(spec, **pin, allow_not_ready=True)
    digest = digest_of(data.features.astype("<f4").tobytes())
    if digest != version["dataset_hash"]:
        raise IntegrityError(f"the features' digest is {digest}", file=str(result.features), expected=version["dataset_hash"])
    frames, dimensions = data.features.shape
    out.print(f"   ok  dataset_hash of the {frames} x {dimensions} features that load_dataset maps")
    return {
        "dataset": spec,
        "manifest_sha256": version["manifest_sha256"],
        "dataset_hash": digest,
        "features": [frames, dimensions],
        "files": expected,
    }
