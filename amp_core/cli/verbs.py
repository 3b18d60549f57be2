"""The verbs that need nothing of the service."""

from __future__ import annotations

from amp_core.cli.group import CATALOG, MOTIONS, TRAINING, Verb

VERBS = (
    Verb(
        "score",
        MOTIONS,
        "Roll motions out in MuJoCo and say which tier each reaches.",
        "amp_core.cli.score:score",
        extra="physics",
        json_word=True,
    ),
    Verb(
        "verify",
        MOTIONS,
        "Run the ten parity and readiness tests, and say whether this is fit to train on.",
        "amp_core.cli.verify:verify",
        extra="physics",
        json_word=True,
    ),
    Verb(
        "buckets",
        MOTIONS,
        "Score motions in several physics side by side: what share of each stays Tier 0 when the friction is 0.7?",
        "amp_core.cli.buckets:buckets",
        extra="physics",
        json_word=True,
    ),
    Verb(
        "augment",
        MOTIONS,
        "Make variants of clips for coverage: each option makes one variant of each clip, --apply combines.",
        "amp_core.cli.augment:augment",
        extra="physics",
    ),
    Verb(
        "robots",
        MOTIONS,
        "List the bundled robots; any other is given as a path to its robot.yaml.",
        "amp_core.cli.robots:robots",
        extra="physics",
    ),
    Verb("submit", CATALOG, "Upload motions and have them scored.", "amp_core.cli.submit:submit"),
    Verb(
        "clips",
        CATALOG,
        "Query the curriculum: clips by tier, robot, mode, tags, duration and any metric.",
        "amp_core.cli.clips:clips",
    ),
    Verb(
        "clip",
        CATALOG,
        "Show one clip with its rollouts and jobs; have it scored in another mode, or delete it.",
        "amp_core.cli.clips:clip",
    ),
    Verb("jobs", CATALOG, "List jobs; --state quarantined shows those that need somebody to look.", "amp_core.cli.jobs:jobs"),
    Verb("job", CATALOG, "Show one job; wait for it, cancel it or try it again.", "amp_core.cli.jobs:job"),
    Verb("dataset", CATALOG, "Lock, list, show and compare dataset versions.", "amp_core.cli.dataset:app"),
    Verb(
        "pull",
        TRAINING,
        "Bring a locked version to this machine, verified, and print the lines to paste into a training config.",
        "amp_core.cli.pull:pull",
    ),
)
