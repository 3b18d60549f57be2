"""The verbs that need nothing of the service."""

from __future__ import annotations

from amp_core.cli.group import CATALOG, MOTIONS, OPERATORS, TRAINING, list_verbs

_SIMULATING = {
    "amp_core.cli.score:score": "Roll motions out in MuJoCo and say which tier each reaches.",
    "amp_core.cli.check:check": "Say what is wrong with motions, and what would mend them, without simulating.",
    "amp_core.cli.evaluate:evaluate": "Measure existing references, replay their controls, and say what could not be verified.",
    "amp_core.cli.verify:verify": "Run the ten parity and readiness tests, and say whether this is fit to train on.",
    "amp_core.cli.buckets:buckets": (
        "Score motions in several physics side by side: what share of each stays Tier 0 when the friction is 0.7?"
    ),
}
_PREPARING = {
    "amp_core.cli.augment:augment": (
        "Make variants of clips for coverage: each option makes one variant of each clip, --apply combines."
    ),
    "amp_core.cli.cut:cut": "Write parts of motions as clips of their own: some frames, or a long clip in parts.",
    "amp_core.cli.robot:robot": "Make a robot.yaml for a model, or say what of a robot will not work, and why.",
    "amp_core.cli.robots:robots": "List the bundled robots; any other is given as a path to its robot.yaml.",
}
_CATALOG = {
    "amp_core.cli.submit:submit": "Upload motions and have them scored.",
    "amp_core.cli.clips:clips": (
        "Query the curriculum: clips by tier, robot, mode, tags, duration and any metric; fetch and pin their arrays."
    ),
    "amp_core.cli.clips:clip": "Show one clip with its rollouts and jobs; have it scored in another mode, or delete it.",
    "amp_core.cli.jobs:jobs": "List jobs; --state quarantined shows those that need somebody to look.",
    "amp_core.cli.jobs:job": "Show one job; wait for it, cancel it or try it again.",
    "amp_core.cli.events:events": "List what happened, or follow it: clips scored, versions locked, jobs quarantined.",
    "amp_core.cli.webhook:webhook": "Have events sent to an address; list, test, retry and remove what was added.",
    "amp_core.cli.dataset:dataset": "Lock, list, show and compare dataset versions.",
}
_TRAINING = {
    "amp_core.cli.pull:pull": (
        "Bring a locked version to this machine, verified, and print the lines to paste into a training config."
    ),
}
_OPERATING = {"amp_core.cli.purge:purge": "Delete Rejected clips of long ago, with their rollouts."}
_RECORDING = {
    "amp_core.cli.track:track": "Run a policy of motion tracking on a clip, and record what it did, as a clip with controls.",
}
_DRAWING = {
    "amp_core.cli.render:render": "Draw a clip or a rollout: poses side by side, an animation, or a video.",
}
VERBS = (
    *list_verbs(MOTIONS, _SIMULATING, extra="physics", json_word=True),
    *list_verbs(MOTIONS, _PREPARING, extra="physics"),
    *list_verbs(MOTIONS, _RECORDING, extra="track"),
    *list_verbs(MOTIONS, _DRAWING, extra="render"),
    *list_verbs(CATALOG, _CATALOG),
    *list_verbs(TRAINING, _TRAINING),
    *list_verbs(OPERATORS, _OPERATING),
)
