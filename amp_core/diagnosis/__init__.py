"""Diagnosis: why a clip is not Tier 0, in physical words and with measured values.

Everything is computed from the rollout, the clip and the model; no sentence is written without a measurement behind it. What
comes after a fall is the fall's doing, so causes are looked for in the frames before the robot begins to tip.

`CODES` and `SUGGESTIONS` name every finding and every suggestion; docs/diagnosis.md explains each.
"""

from amp_core.diagnosis.findings import CODES, SUGGESTIONS, Diagnosis, Finding, Suggestion
from amp_core.diagnosis.report import diagnose

__all__ = ["CODES", "SUGGESTIONS", "Diagnosis", "Finding", "Suggestion", "diagnose"]
