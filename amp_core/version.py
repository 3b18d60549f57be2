"""The generator's version: what made a result. It is part of every recipe and of every locked version."""

from __future__ import annotations

__all__ = ["GENERATOR_RELEASE_DATE", "GENERATOR_VERSION", "__version__"]

__version__ = "0.12.0"
"""Of the distribution; the build reads it here."""

GENERATOR_VERSION = "0.12.0"
"""Changes whenever the same motion and recipe may give other bytes."""

GENERATOR_RELEASE_DATE = "2026-11-28"
"""The day on which this generator version was specified. Artifacts carry it as `generation_date`, so that locking the same
rollouts on another day gives the same bytes; the moment of locking is in the catalog."""
