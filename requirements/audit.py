"""Asks an advisory source whether the locked packages have known vulnerabilities.

    python audit.py [--url URL]      exit 0: none is known, or the source cannot be reached, which is said; exit 1: some are

The source is OSV (https://osv.dev), which has the Python packaging advisories and GitHub's. It is told names and versions of
the packages, nothing else. What is known and does not concern this product is listed in accepted_advisories.txt, an id and the
reason a line.
"""

import argparse
import json
import re
import sys
import urllib.error
import urllib.request
from pathlib import Path

FOLDER = Path(__file__).parent
ACCEPTED = FOLDER / "accepted_advisories.txt"
BATCH = 500  # Packages a request; the source takes 1,000.
PATIENCE_SEC = 30

parser = argparse.ArgumentParser(description="Ask an advisory source about the locked packages.")
parser.add_argument("--url", default="https://api.osv.dev", help="the source; default %(default)s")
url = parser.parse_args().url.rstrip("/")

pins = sorted(
    {
        (match[1].lower().replace("_", "-"), match[2])
        for path in sorted(FOLDER.glob("*.txt"))
        for match in re.finditer(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s;\\]+)", path.read_text(), re.MULTILINE)
    }
)
accepted = {line.split()[0] for line in ACCEPTED.read_text().splitlines() if line.strip() and not line.startswith("#")}

findings = []
try:
    for start in range(0, len(pins), BATCH):
        batch = pins[start : start + BATCH]
        queries = [{"package": {"name": name, "ecosystem": "PyPI"}, "version": version} for name, version in batch]
        request = urllib.request.Request(
            f"{url}/v1/querybatch", json.dumps({"queries": queries}).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=PATIENCE_SEC) as response:
            results = json.load(response)["results"]
        if len(results) != len(batch):
            raise ValueError(f"{len(results)} answers to {len(batch)} questions")
        for (name, version), result in zip(batch, results, strict=True):
            findings += [(name, version, advisory["id"]) for advisory in result.get("vulns") or ()]
except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    print(f"not checked: {len(pins)} locked packages, because {url} cannot be asked: {error}", file=sys.stderr)
    sys.exit(0)

open_findings = [finding for finding in findings if finding[2] not in accepted]
for name, version, advisory in open_findings:
    print(f"{name} {version}: {advisory}, https://osv.dev/vulnerability/{advisory}", file=sys.stderr)
if open_findings:
    print(
        f"{len(open_findings)} known vulnerabilities in {len(pins)} locked packages. Raise the versions (make lock), or "
        f"list an id with a reason in requirements/{ACCEPTED.name}",
        file=sys.stderr,
    )
    sys.exit(1)
print(f"no known vulnerability in {len(pins)} locked packages" + (f", {len(findings)} accepted" if findings else ""))
