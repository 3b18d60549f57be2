"""`ampref demo`: the whole line once, on this machine, in a temporary folder.

The service runs as a process of its own and is used as anybody would use it: over HTTP, with the client.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from amp_core.cli.output import Json, Output, Quiet, size
from amp_core.cli.remote import show_results, tell_retries, wait_for_job
from amp_core.cpus import usable_cpus
from amp_core.errors import IntegrityError, Unavailable
from amp_core.tiers import Tier

if TYPE_CHECKING:
    from amp_core.client import ApiClient

VERSION = "0.11.0"
# By the best tier that there is: a name must not promise more than the clips hold.
DATASET = {Tier.TIER_0: "demo", Tier.TIER_1: "demo-curriculum", Tier.REJECTED: "demo-rejected"}
# Planning takes seconds for each second of a clip: the one that falls by itself is planned as well, which shows what it is for.
PLANNED = "walk_long_stride"
START_SEC = 60.0
STOP_SEC = 15.0


@dataclass(frozen=True)
class _Service:
    url: str
    pid: int


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Keep the temporary folder and say where it is.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Do everything once: serve, post the bundled motions, score, lock a version, pull it back, verify every digest.

    It takes a free port and a temporary folder, and leaves neither a process nor a file behind.
    """
    began = time.monotonic()
    out = Output(as_json=as_json, quiet=quiet)
    tell_retries(out)
    folder = Path(tempfile.mkdtemp(prefix="ampref-demo-"))
    try:
        document = _run(out, folder)
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    seconds = time.monotonic() - began
    out.document(document | {"folder": str(folder) if keep else None, "seconds": round(seconds, 1)})
    out.values([document["manifest_sha256"]])
    left = f"everything is kept in {folder}" if keep else "no process and no file is left"
    out.say(f"\nDone in {seconds:.0f} s; {left}.")
    out.say("Next: ampref score MOTION      your own motion, without a server")
    out.say("      ampref up                the service, to stay")
    out.say("      docs/quickstart.md       the same steps, one by one")


def _run(out: Output, folder: Path) -> dict[str, Any]:
    from amp_core.client import ApiClient

    with _service(out, folder) as service, ApiClient(service.url) as api:
        rollouts = _score(out, api)
        version = _lock(out, api, rollouts)
        pulled = _pull(out, service.url, folder / "cache", version)
        return {
            "url": service.url,
            "clips": [
                {"name": r["clip_name"], "mode": r["mode"], "tier": r["tier"], "tier_reason": r["tier_reason"]}
                for r in rollouts
            ],
            **pulled,
        }


@contextlib.contextmanager
def _service(out: Output, folder: Path) -> Iterator[_Service]:
    """`ampref up` in a process of its own, on a free port; stopped at the end, whatever happened."""
    out.say("1. Start the service (SQLite, local files, workers; nothing to install)")
    log = folder / "service.log"
    # The demo is its own: settings meant for another service must not reach it.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AMPREF_")}
    workers = min(4, usable_cpus())
    command = [sys.executable, "-m", "amp_core.cli", "up", "--port", "0", "--data-dir", str(folder / "data")]
    command += ["--workers", str(workers), "--json", "--stop-with-parent"]
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches us, and we stop it in order.
        )
    try:
        assert process.stdout is not None
        ready = _first_document(process, process.stdout, log)
        if "url" not in ready:
            raise Unavailable(
                f"the service did not start: {ready.get('what') or ready.get('detail') or ready}",
                remedy=ready.get("remedy") or "Try it by itself: ampref up --port 0",
            )
        out.say(f"   {ready['url']}, {workers} workers, data in {ready['data_dir']}\n")
        yield _Service(ready["url"], process.pid)
    finally:
        _stop(process)


def _first_document(process: subprocess.Popen[str], stream: IO[str], log: Path) -> dict[str, Any]:
    watchdog = threading.Timer(START_SEC, process.kill)
    watchdog.start()
    text = ""
    try:
        for line in stream:
            text += line
            with contextlib.suppress(ValueError):
                document: dict[str, Any] = json.loads(text)
                return document
    finally:
        watchdog.cancel()
    said = log.read_text(errors="replace").strip().splitlines()
    raise Unavailable(
        f"the service did not start: {' / '.join(said[-3:]) or f'no answer within {START_SEC:.0f} s'}",
        remedy="Try it by itself: ampref up --port 0",
    )


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SEC)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    finally:
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


def _score(out: Output, api: ApiClient) -> list[dict[str, Any]]:
    from amp_core.motions import bundled_motions, reading_options

    motions = bundled_motions()
    out.say(f"2. POST {len(motions)} bundled motions over HTTP and have them scored in mode rollout")
    out.say(f"   and {PLANNED}, which falls in it, once more in mode tracked, which plans its balance")
    rollouts = []
    with out.progress("scoring", total=len(motions) + 1) as progress:
        submitted = [api.submit_clip(path, mode="rollout", tags=["demo"], **reading_options(path)) for path in motions]
        fallen = next(answer["clip"]["id"] for answer in submitted if answer["clip"]["name"] == PLANNED)
        for answer in (*submitted, api.add_rollout(fallen, mode="tracked")):
            job = wait_for_job(api, answer["job"], progress, label=answer["clip"]["name"], timeout=300.0)
            rollouts.append(api.get_rollout(job["result"]["rollout_id"]))
    rollouts.sort(key=lambda rollout: (rollout["clip_name"], rollout["mode"]))
    show_results(out, rollouts)
    out.say()
    return rollouts


def _lock(out: Output, api: ApiClient, rollouts: list[dict[str, Any]]) -> dict[str, Any]:
    best = Tier.best(rollout["tier"] for rollout in rollouts)
    name = DATASET[best]
    out.say(f"3. Run the ten tests on what is {best.label}, and lock it as {name}=={VERSION}")
    if best != Tier.TIER_0:
        purpose = "for a curriculum" if best == Tier.TIER_1 else "to look at"
        out.say(f"   No clip reached Tier 0, so this version is {purpose}, not for training.")
    with out.progress(f"locking {name}=={VERSION}", total=1) as progress:
        locking = api.lock_version(name, VERSION, select={"tier": [best], "tags": ["demo"]})
        wait_for_job(api, locking["job"], progress, label=f"{name}=={VERSION}", timeout=300.0)
    version = api.get_version(name, VERSION)
    for test in version["readiness"]["tests"]:
        out.say(f"   {test['status']:<4}  {test['name']}{': ' + test['reason'] if test['reason'] else ''}")
    out.say(f"   ready for training: {'yes' if version['readiness']['ready'] else 'no'}")
    out.say(f"   {version['num_clips']} clips, {version['num_frames']} frames, dataset_hash {version['dataset_hash']}\n")
    return version


def _pull(out: Output, url: str, cache: Path, version: dict[str, Any]) -> dict[str, Any]:
    from amp_core.client import load_dataset, pull

    spec = f"{version['dataset']}=={version['version']}"
    out.say(f"4. Pull {spec} into an empty cache and verify every digest")
    with out.progress(f"pulling {spec}") as progress:
        pulled = pull(
            spec,
            url=url,
            manifest_sha256=version["manifest_sha256"],
            cache_dir=cache,
            progress=lambda done, total: progress.update(done, total=total),
        )
    # The client has verified them; a demo that says so looks for itself.
    promised = {file["name"]: file["sha256"] for file in version["files"]}
    for path in pulled.files:
        found = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
        if found != promised[path.name]:
            raise IntegrityError(f"its digest is {found}", file=str(path), expected=promised[path.name])
        out.say(f"   ok  {path.name:<34} {size(path.stat().st_size):>9}  {found}")
    data = load_dataset(spec, url=url, manifest_sha256=version["manifest_sha256"], cache_dir=cache)
    found = f"sha256:{hashlib.sha256(data.features.astype('<f4').tobytes()).hexdigest()}"
    if found != version["dataset_hash"]:
        raise IntegrityError(f"the features' digest is {found}", file=str(pulled.features), expected=version["dataset_hash"])
    frames, dimensions = data.features.shape
    out.say(f"   ok  dataset_hash of the {frames} x {dimensions} features that load_dataset maps")
    return {
        "dataset": spec,
        "manifest_sha256": version["manifest_sha256"],
        "dataset_hash": found,
        "features": [frames, dimensions],
        "files": promised,
    }
