"""Fifty nodes that pull one version of 500 MB at a time, against one nginx process that serves the same file.

    python -m bench.bench_nodes [--nodes N] [--megabytes N] [--rounds N]

The server is the product's HTTP application in a process of its own, as it is after `ampref api`; the other is nginx with one
process and `sendfile`. A node is a `curl` that throws away what it gets, so that the servers have as much of the machine as
there is; all start at once, and each has to get every byte. The two take turns. The rate is the bytes of all nodes over the
time until the last one is done; the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import servers
from bench.bench_pull import lock_random, publish, wait_until_ready

LIMIT_RATIO = 0.8


def pull_at_once(curl: str, address: str, nodes: int, size: int) -> tuple[float, int]:
    """The rate in MB/s of so many nodes together, and how many of them got something else than `size` bytes."""
    start = time.perf_counter()
    processes = [
        subprocess.Popen(
            [curl, "-sS", "-f", "-o", os.devnull, "-w", "%{size_download}", address],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for _ in range(nodes)
    ]
    outputs = [(process.communicate()[0], process.returncode) for process in processes]
    seconds = time.perf_counter() - start
    errors = sum(1 for output, status in outputs if status != 0 or output != str(size))
    return nodes * size / seconds / 1e6, errors


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=50)
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    curl = shutil.which("curl")
    if curl is None:
        raise SystemExit("the nodes of this benchmark are curl, which is not installed")
    rates: dict[str, list[float]] = {"ampref": [], "nginx": []}
    errors = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # nginx may run as another user.
        folder.chmod(0o755)
        (folder / "version").mkdir()
        bundle = lock_random(folder / "version", args.megabytes)
        publish(folder / "data", bundle)
        port_file = folder / "port"
        command = [sys.executable, "-m", "bench.bench_pull", "--serve", str(folder / "data"), str(port_file)]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            url = wait_until_ready(server, port_file)
            with servers.nginx(folder / "version") as nginx_url:
                addresses = {
                    "nginx": f"{nginx_url}/{bundle.features.name}",
                    "ampref": f"{url}/v1/datasets/walk/versions/0.11.0/files/{bundle.features.name}",
                }
                for address in addresses.values():
                    pull_at_once(curl, address, 1, bundle.features.size)
                for _ in range(args.rounds):
                    for server_name, address in addresses.items():
                        rate, errors_now = pull_at_once(curl, address, args.nodes, bundle.features.size)
                        rates[server_name].append(rate)
                        errors += errors_now
                    print(f"nginx {rates['nginx'][-1]:6.0f} MB/s   ampref {rates['ampref'][-1]:6.0f} MB/s   {errors} errors")
        finally:
            server.terminate()
            server.wait()
    medians = {f"{server_name}_mb_s": statistics.median(values) for server_name, values in rates.items()}
    medians |= {"ratio": medians["ampref_mb_s"] / medians["nginx_mb_s"], "errors": errors, "nodes": args.nodes}
    medians["load"] = os.getloadavg()[0]
    is_pass = errors == 0 and medians["ratio"] >= LIMIT_RATIO
    required = {"ratio": f">= {LIMIT_RATIO:g}", "errors": "0"}
    print(json.dumps({"name": "nodes", "figures": medians, "required": required, "passed": is_pass}))
    return 0 if is_pass else 1


if __name__ == "__main__":
    sys.exit(main())
