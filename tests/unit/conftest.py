"""Lets the unit tests share `verificationkit`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path += [str(Path(__file__).parent / "verify"), str(Path(__file__).parent)]
