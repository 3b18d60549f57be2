"""A locked version for people: its contents, what it covers, its checks, and warnings about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from amp_core.cli.output import Output
from amp_core.cli.text import counted, size
from amp_core.client import ApiClient
from amp_core.tiers import Tier

SOURCES_SHOWN = 5
_BARS = "▁▂▃▄▅▆▇█"


def print_version(out: Output, api: ApiClient, dataset: str, version_or_alias: str) -> dict[str, Any]:
    """Fetch and print a locked version, warn of what a training set usually does not hold, and return the JSON document.

    The document is the service's, with `contents` from the manifest: clips and frames by tier, the digests of the recipes, the
    weighting of the frames.
    """
    version = api.get_version(dataset, version_or_alias)
    manifest = api.get_manifest(dataset, version["version"])
    clips_by_tier, frames_by_tier = manifest["gates"]["clips_by_tier"], manifest["gates"]["frames_by_tier"]
    recipes, weighting = sorted({clip["recipe_digest"] for clip in manifest["clips"]}), manifest.get("weighting")
    buckets = version.get("buckets") or ()
    contents = {"clips_by_tier": clips_by_tier, "frames_by_tier": frames_by_tier, "recipes": recipes, "weighting": weighting}
    document = version | {"contents": contents}
    out.print_result(document, [version["manifest_sha256"]])
    tiers = ", ".join(f"{clips_by_tier[str(tier)]} {tier.label}" for tier in Tier if clips_by_tier.get(str(tier))) or "-"
    if set(frames_by_tier) == {"0"} and set(clips_by_tier) != {"0"}:
        tiers += " (clips; of those that are not Tier 0, Tier 0 windows)"
    lines = [
        ("robot", version["robot"]),
        ("tiers", tiers),
        ("recipes", recipes[0] if len(recipes) == 1 else len(recipes)),
        *(
            ("bucket", f"{bucket['name']}: {counted(bucket['num_clips'], 'clip')}, {bucket['num_frames']} frames")
            for bucket in buckets
            # The robot's own physics alone go without saying.
            if len(buckets) > 1 or bucket["name"] != "canonical"
        ),
        *_coverage_lines(version.get("coverage"), weighting),
        ("aliases", ", ".join(version["aliases"]) or "-"),
        ("dataset_hash", version["dataset_hash"]),
        ("manifest_sha256", version["manifest_sha256"]),
    ]
    name = f"{version['dataset']}=={version['version']}"
    out.print(f"{name} ({version_state(version)}): {counted(version['num_clips'], 'clip')}, {version['num_frames']} frames")
    for label, text in lines:
        out.print(f"  {label:<16} {text}")
    out.print()
    for file in version["files"]:
        out.print(f"  {file['name']:<36} {size(file['size']):>9}  {file['sha256']}")
    if version["readiness"]:
        print_readiness(out, version["readiness"])
    # By the frames that are taken: the Tier 0 windows of a Rejected clip are training data.
    if any(count for tier, count in frames_by_tier.items() if tier != "0"):
        frames = ", ".join(f"{count} frames of {Tier(int(tier)).label}" for tier, count in sorted(frames_by_tier.items()))
        out.warn(f"{name} holds {frames}: for a curriculum, not for training")
    # Each bucket has a recipe of its own, and was asked for by name.
    if len(recipes) > max(1, len(buckets)):
        digests = ", ".join(recipes)
        out.warn(f"{name} holds rollouts of {len(recipes)} recipes; --recipe DIGEST takes those of one: {digests}")
    return document


def version_state(version: Mapping[str, Any]) -> str:
    """`locked`, or that it is archived or yanked and why."""
    if version.get("archived"):
        return f"archived: {version['archive_reason']}"
    return f"yanked: {version['yank_reason']}" if version["yanked"] else "locked"


def _coverage_lines(coverage: Mapping[str, Any] | None, weighting: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """What a version covers, a line a subject; nothing for one that was locked before it was measured."""
    if coverage is None:
        return []
    tiers = sorted(coverage["tiers"], key=lambda entry: Tier(entry["tier"]).rank)
    sources = [f"{source['name']} {source['seconds']:.1f} s" for source in coverage["sources"][:SOURCES_SHOWN]]
    if len(coverage["sources"]) > SOURCES_SHOWN:
        sources.append(f"and {len(coverage['sources']) - SOURCES_SHOWN} more")
    stance, space = coverage["stance"], coverage["feature_space"]
    seconds = [f"{t['seconds']:.1f} s of {Tier(t['tier']).label} from {counted(t['sources'], 'source')}" for t in tiers]
    histograms = []
    for name in ("forward_speed", "lateral_speed", "turning_rate"):
        histogram = coverage[name]
        heights, start = histogram["seconds"], histogram["from"]
        bars = "".join(_BARS[round(height / max(heights) * (len(_BARS) - 1))] if height > 0 else " " for height in heights)
        end = start + histogram["bin"] * len(heights)
        histograms.append((name.replace("_", " "), f"{start:g} {bars} {end:g} {histogram['unit']}"))
    lines = [
        ("seconds", "; ".join(seconds)),
        ("sources", ", ".join(sources)),
        *histograms,
        (
            "stance",
            f"single {stance['single_share']:.0%}, double {stance['double_share']:.0%}, flight {stance['flight_share']:.0%}; "
            f"{stance['steps_per_second']:.1f} steps/s",
        ),
        (
            "feature space",
            f"{space['effective_dimensions']:.1f} effective dimensions of {space['varying_dimensions']} that vary; "
            f"{space['poses']['effective']:.0f} poses and {space['velocities']['effective']:.0f} velocities, effectively",
        ),
    ]
    if weighting is not None:
        least, greatest, share = weighting["least"], weighting["greatest"], weighting["effective_share"]
        lines.append(("weights", f"{least:.2f} to {greatest:.2f}; a weighted sample is worth {share:.0%} of the frames"))
    return lines


def print_readiness(out: Output, readiness: Mapping[str, Any]) -> None:
    """Print the training-readiness checklist of the lock, criterion by criterion."""
    checks = readiness.get("checks")
    if isinstance(checks, list):
        failures = [str(check.get("name")) for check in checks if not check.get("passed")]
        text = (
            f"{len(checks) - len(failures)} of {len(checks)} checks passed" + "; not: " * bool(failures) + ", ".join(failures)
        )
    else:
        text = "see --json"
    out.print(f"\nchecks of every clip: {text}")
    for entry in readiness.get("duplicates") or ():
        out.print(f"left out: {entry['name']} has the same frames as {entry['of']['name']}, which count once")
    if "groups" not in readiness:
        out.print("readiness: locked before there were readiness tests; ampref verify NAME==VERSION runs them")
        return
    rows = [
        (criterion["status"], f"{group['name']}: {criterion['name']}", criterion["evidence"])
        for group in readiness["groups"]
        for criterion in group["criteria"]
    ]
    out.print(f"ready for training: {'yes' if readiness.get('ready') else 'no'}\n")
    out.print_table(("Status", "Criterion", "Evidence"), rows)
    for waiver in readiness.get("waivers") or ():
        out.print(f"waived: test {waiver['test']}: {waiver['reason']}")
