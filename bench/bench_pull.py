"""`pull` of a 500 MB version, verified, against `curl` of its features file from the same server.

    python -m bench.bench_pull [--megabytes N] [--rounds N]

The server is the product's HTTP application in a process of its own, on 127.0.0.1. `curl` writes the features to a file on
the same disk, verifies nothing and does not sync. `pull` runs in a new process each time with an empty cache: it asks for the
version, downloads its three files, verifies them and puts them in place; its rate is their size over the time of the call, its
memory `ru_maxrss` of the process, imports included. Neither time includes the start of the process, nor the sync to the disk,
which `pull` does in a thread after it has returned; the rate with it is `pull_and_sync_mb_s`. The two take turns; the ratio is
that of the medians. `load` is the machine's load average: other work slows `pull`, which needs more processor time, more.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx2
import numpy as np

from amp_core.client import pull
from amp_core.dataset import Bundle, Member, lock_bundle
from amp_core.files import write_file
from bench.bench_lock import LAYOUT, ROBOT

LIMIT_RATIO = 0.6
LIMIT_MIB = 150.0
CLIPS = 100


def lock_random(folder: Path, megabytes: int) -> Bundle:
    """A version whose features file has about this size."""
    frames = megabytes * 1_000_000 // (CLIPS * (LAYOUT.dim + 3) * 4)
    rows = np.random.default_rng(0).normal(size=(frames, LAYOUT.dim)).astype(np.float32)

    # Members with the same rows would be counted once.
    members = [
        Member(
            f"clip_{i:03d}",
            f"sha256:{i:064x}",
            0,
            "rollout",
            "sha256:" + "1" * 64,
            ((0, frames),),
            {},
            functools.partial(np.add, rows, i),
        )
        for i in range(CLIPS)
    ]
    # In one file, as `curl` and nginx have it as well.
    return lock_bundle(
        members,
        folder,
        name="walk",
        version="0.11.0",
        robot=ROBOT,
        mujoco_version="4.0.1",
        gate_profile="amp-0.11",
        shard_bytes=1 << 40,
    )


def publish(data_dir: Path, bundle: Bundle) -> None:
    """Put the version into a new service's catalog and blobs, without the clips that it came from."""
    from sqlalchemy import insert, update

    from ampref_service.blobs import open_blobs
    from ampref_service.catalog import Catalog, schema, tables
    from ampref_service.catalog.locking import begin_version
    from ampref_service.catalog.records import Select
    from ampref_service.settings import Settings

    settings = Settings.load(data_dir=data_dir)
    schema.upgrade(settings.database_url)
    blobs = open_blobs(settings.blob_url)
    catalog = Catalog.open(settings.database_url)
    with catalog.begin() as session:
        version, _ = begin_version(session, "walk", "0.11.0", Select(robot="wildrobot"))
        for file in bundle.files:
            digest = blobs.put_file(file.path)
            row = {"version_id": version.id, "name": file.name, "digest": digest, "size": file.size}
            session.execute(insert(tables.version_files).values(row | {"media_type": "application/octet-stream"}))
        session.execute(
            update(tables.versions)
            .where(tables.versions.c.id == version.id)
            .values(
                state="locked",
                locked_at=time.time(),
                dataset_hash=bundle.dataset_hash,
                feature_code_hash=bundle.feature_code_hash,
                manifest_digest=bundle.manifest.sha256,
                num_clips=bundle.num_clips,
                num_frames=bundle.num_frames,
            )
        )


def serve(data_dir: Path, port_file: Path) -> None:
    from ampref_service.app import create_app
    from ampref_service.server import listen, run
    from ampref_service.settings import Settings

    settings = Settings.load(data_dir=data_dir, port=0)
    listener = listen(settings)
    write_file(port_file, str(listener.getsockname()[1]).encode())
    run(create_app(settings), settings, listener)


def wait_until_ready(server: subprocess.Popen[bytes], port_file: Path) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        if port_file.exists():
            url = f"http://127.0.0.1:{port_file.read_text()}"
            try:
                if httpx2.get(f"{url}/readyz").is_success:
                    return url
            except httpx2.HTTPError:
                pass
        time.sleep(0.1)
    raise RuntimeError("the server did not start")


def measure_pull(url: str, cache: Path) -> dict[str, float]:
    """In a process of its own: one pull into an empty cache."""
    start = time.perf_counter()
    version = pull("walk==0.11.0", url=url, cache_dir=cache)
    seconds = time.perf_counter() - start
    version.wait_for_disk()
    seconds_synced = time.perf_counter() - start
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "rate_mb_s": version.downloaded_bytes / seconds / 1e6,
        "synced_rate_mb_s": version.downloaded_bytes / seconds_synced / 1e6,
        "peak_mib": usage.ru_maxrss / 1024,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--serve", nargs=2, type=Path)
    parser.add_argument("--pull", nargs=2)
    args = parser.parse_args()
    if args.serve:
        serve(*args.serve)
        return 0
    if args.pull:
        print(json.dumps(measure_pull(args.pull[0], Path(args.pull[1]))))
        return 0
    curl_program = shutil.which("curl")
    if curl_program is None:
        raise SystemExit("this benchmark compares with curl, which is not installed")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "version").mkdir()
        bundle = lock_random(folder / "version", args.megabytes)
        publish(folder / "data", bundle)
        shutil.rmtree(folder / "version")
        port_file = folder / "port"
        command = [sys.executable, __file__, "--serve", str(folder / "data"), str(port_file)]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            url = wait_until_ready(server, port_file)
            address = f"{url}/v1/datasets/walk/versions/0.11.0/files/{bundle.features.name}"
            curls, pulls = [], []
            for _ in range(args.rounds):
                target, cache = folder / "curl", folder / "cache"
                command = [curl_program, "-sS", "-f", "-o", str(target), "-w", "%{speed_download}", address]
                os.sync()
                output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                curls.append(float(output) / 1e6)
                target.unlink()
                os.sync()
                command = [sys.executable, __file__, "--pull", url, str(cache)]
                output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                pulls.append(json.loads(output))
                shutil.rmtree(cache)
                print(f"curl {curls[-1]:6.0f} MB/s   pull {pulls[-1]['rate_mb_s']:6.0f} MB/s   {pulls[-1]['peak_mib']:.0f} MiB")
        finally:
            server.terminate()
            server.wait()
    measurements = {
        "megabytes": bundle.features.size / 1e6,
        "curl_mb_s": statistics.median(curls),
        "pull_mb_s": statistics.median(measurements["rate_mb_s"] for measurements in pulls),
        "pull_and_sync_mb_s": statistics.median(measurements["synced_rate_mb_s"] for measurements in pulls),
        "peak_mib": max(measurements["peak_mib"] for measurements in pulls),
        "load": os.getloadavg()[0],
    }
    measurements["ratio"] = measurements["pull_mb_s"] / measurements["curl_mb_s"]
    is_pass = measurements["ratio"] >= LIMIT_RATIO and measurements["peak_mib"] <= LIMIT_MIB
    requirements = {"ratio": f">= {LIMIT_RATIO:g}", "peak_mib": f"<= {LIMIT_MIB:g}"}
    print(json.dumps({"name": "pull", "figures": measurements, "required": requirements, "passed": is_pass}))
    return 0 if is_pass else 1


if __name__ == "__main__":
    sys.exit(main())
