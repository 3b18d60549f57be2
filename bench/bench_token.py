"""What asking for a key costs: milliseconds a request of a service that asks, beside one that does not.

    python -m bench.bench_token [--rounds N] [--requests N]

Both are `ampref api` in processes of their own, and answer the same small request, which looks nothing up, over one connection
each. They take turns, some requests each, with the other one first in every round, so that a machine that gets slower gets
slower for both. The bound is on the difference of their processor time, the look-up of the key every two seconds included:
other programs on the machine change it little. The medians of what the client waits are printed beside it, and those of a
check alone in this process.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from starlette.requests import Request

from ampref_service.api.auth import Authenticator
from ampref_service.catalog import Catalog
from ampref_service.settings import Settings

LIMIT_MS = 0.3
PATH = "/v1/schema/gates/amp-0.12"
AMPREF = [sys.executable, "-m", "amp_core"]


@contextlib.contextmanager
def service(folder: Path, *options: str) -> Iterator[tuple[http.client.HTTPConnection, int]]:
    """A connection to a service with its data in `folder`, and the id of its process."""
    environment = os.environ | {"AMPREF_DATA_DIR": str(folder), "AMPREF_LOG_LEVEL": "warning", "AMPREF_KEEP_ALIVE_SEC": "600"}
    command = [*AMPREF, "api", "--port", "0", "--json", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            document = json.loads("".join(iter(process.stdout.readline, "}\n")) + "}")
            connection = http.client.HTTPConnection("127.0.0.1", urlsplit(document["url"]).port, timeout=60)
            for _ in range(600):
                with contextlib.suppress(OSError):
                    connection.request("GET", "/healthz")
                    connection.getresponse().read()
                    break
                connection.close()
                time.sleep(0.05)
            yield connection, process.pid
        finally:
            process.terminate()


def read_processor_time(process_id: int) -> float:
    """s of processor time that a process has had."""
    fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(connection: http.client.HTTPConnection, headers: dict[str, str], count: int) -> list[float]:
    """ms of each of `count` requests."""
    times = []
    for _ in range(count):
        start = time.perf_counter()
        connection.request("GET", PATH, headers=headers)
        answer = connection.getresponse()
        answer.read()
        times.append(1e3 * (time.perf_counter() - start))
        if answer.status != 200:
            raise RuntimeError(f"{PATH} was answered with {answer.status}")
    return times


def measure_check(folder: Path, text: str, count: int = 1000) -> dict[str, float]:
    """ms that one check takes in this process, of a key that is remembered and of one that has to be looked up (medians)."""
    settings = Settings(data_dir=folder, auth="keys")
    catalog = Catalog.open(settings.database_url)
    authenticator = Authenticator(catalog, settings)
    header = (b"authorization", f"Bearer {text}".encode())
    request = Request({"type": "http", "method": "GET", "path": PATH, "query_string": b"", "headers": [header]})

    async def check(*, is_known: bool) -> float:
        times = []
        for _ in range(count):
            if not is_known:
                authenticator.forget()
            start = time.perf_counter()
            await authenticator.identify(request)
            times.append(1e3 * (time.perf_counter() - start))
        return statistics.median(times)

    try:
        return {"remembered_ms": asyncio.run(check(is_known=True)), "looked_up_ms": asyncio.run(check(is_known=False))}
    finally:
        authenticator.close()
        catalog.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--requests", type=int, default=50, help="of each service in each round")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folders = {name: Path(folder) / name for name in ("open", "keyed")}
        for path in folders.values():
            environment = os.environ | {"AMPREF_DATA_DIR": str(path)}
            subprocess.run([*AMPREF, "migrate", "--quiet"], env=environment, stdout=subprocess.DEVNULL, check=True)
        create = [*AMPREF, "token", "create", "bench", "--quiet", "--data-dir", str(folders["keyed"])]
        text = subprocess.run(create, capture_output=True, text=True, check=True).stdout.strip()
        headers = {"open": {}, "keyed": {"authorization": f"Bearer {text}"}}
        with service(folders["open"], "--no-auth") as open_service, service(folders["keyed"]) as keyed_service:
            sides = {"open": open_service, "keyed": keyed_service}
            times: dict[str, list[float]] = {name: [] for name in sides}
            work = dict.fromkeys(sides, 0.0)
            for name, (connection, _) in sides.items():
                measure(connection, headers[name], 100)
            for turn in range(arguments.rounds):
                for name in sorted(sides, reverse=bool(turn % 2)):
                    connection, process_id = sides[name]
                    start = read_processor_time(process_id)
                    times[name] += measure(connection, headers[name], arguments.requests)
                    work[name] += read_processor_time(process_id) - start
        checks = measure_check(folders["keyed"], text)
    work_ms = {name: 1e3 * seconds / len(times[name]) for name, seconds in work.items()}
    cost = work_ms["keyed"] - work_ms["open"]
    for name, values in times.items():
        print(
            f"{name:<6} {work_ms[name]:.3f} ms of processor time a request, {statistics.median(values):.3f} ms waited (median)"
        )
    print(f"the key costs {cost:.3f} ms a request; at most {LIMIT_MS} ms are allowed")
    print(f"a check alone: {checks['remembered_ms']:.4f} ms, or {checks['looked_up_ms']:.3f} ms where the key is looked up")
    result = {
        **{f"{name}_ms": round(value, 4) for name, value in work_ms.items()},
        "key_ms": round(cost, 4),
        "ratio": round(work_ms["keyed"] / work_ms["open"], 3),
        "waited_ms": {name: round(statistics.median(values), 3) for name, values in times.items()},
        **{name: round(value, 5) for name, value in checks.items()},
        "limit_ms": LIMIT_MS,
    }
    print(json.dumps(result))
    return 0 if max(cost, checks["remembered_ms"]) <= LIMIT_MS else 1


if __name__ == "__main__":
    sys.exit(main())
