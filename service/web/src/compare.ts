/** The page of a comparison: several rollouts on one clock, and charts with a line for each. */

import { ChartGroup, type Event_, type Line } from "./charts.js";
import { build, throttle } from "./dom.js";
import { findCharts, type RolloutData, readPageData } from "./page_data.js";
import type { RolloutSeries } from "./series.js";
import { watchTheme } from "./theme_watch.js";
import { type Track, Viewer } from "./viewer.js";

function start(): void {
  const page = readPageData();
  const container = document.querySelector<HTMLElement>("[data-replay]");
  if (page === null || container === null || page.rollouts.length === 0) return;
  const viewer = new Viewer(container, page);
  const charts = findCharts(container);
  void viewer.open();
  let group: ChartGroup | null = null;
  const showFrame = () => group?.showFrame(viewer.clock.frame, viewer.clock.playing);
  const draw = throttle(400, () => {
    if (viewer.scene === null) return;
    if (viewer.tracks.some(({ replay }) => replay.column("qpos") === null)) return;
    if (group === null) {
      group = buildCharts(charts, viewer);
      const { frames, dt } = group.context;
      viewer.visibleFrames = () => {
        const [low, high] = group!.range;
        const first = Math.ceil(low / dt - 1e-6);
        const last = Math.min(frames - 1, Math.floor(high / dt + 1e-6));
        return first <= 0 && last >= frames - 1 ? null : [first, last];
      };
    } else group.updateData();
    showFrame();
  });
  let progress = -1;
  viewer.onChange(() => {
    const share = viewer.tracks.reduce((sum, { replay }) => sum + replay.progress, 0);
    if (share !== progress || group === null) {
      progress = share;
      draw();
    }
    showFrame();
  });
  watchTheme(() => {
    viewer.updateTheme();
    group?.redraw();
  });
}

const DASHES = [undefined, [7, 3], [2, 2]] as const;

function buildCharts(container: HTMLElement, viewer: Viewer): ChartGroup {
  container.replaceChildren();
  container.classList.add("charts");
  const { clock, tracks } = viewer;
  const group = new ChartGroup(container, {
    frames: clock.frames,
    dt: clock.dt,
    shades: [],
    stripLabels: viewer.scene!.meta.channels,
    events: tracks.flatMap(({ rollout }, i) => eventsOf(rollout, i, clock.dt)),
    seek: (frame) => {
      clock.pause();
      clock.seek(frame);
    },
  });
  const names = viewer.scene!.meta.joints;
  const ranking = tracks[0]!.series!.rankJoints();
  let joint = ranking[0]?.joint ?? 0;
  const joints = build("select", { "aria-label": "Joint", class: "chart-choice" });
  for (const { joint: i } of ranking) joints.append(build("option", { value: i }, names[i]!.replace(/_joint$/, "")));
  joints.addEventListener("change", () => {
    joint = Number(joints.value);
    group.updateData();
  });
  const lines = (values: (series: RolloutSeries) => Float32Array): Line[] =>
    tracks.map((track, i) => ({
      label: track.rollout.label,
      colour: `--c${i % 6}`,
      ...(DASHES[Math.floor(i / 6)] ? { dash: DASHES[Math.floor(i / 6)]! } : {}),
      values: () => resample(values(track.series!), track, clock.frames, clock.dt),
    }));
  group.add({ name: "load", title: "Normal force", unit: "ΣF_n / mg", lines: lines((s) => s.load()), range: [0, 1.2] });
  group.add({
    name: "contacts",
    title: "Contacts",
    lines: [],
    strips: viewer.scene!.meta.channels.map((label, channel) => ({
      label,
      bars: tracks.map((track, i) => ({
        colour: `--c${i % 6}`,
        what: track.rollout.label,
        values: () => resample(track.series!.contact(channel), track, clock.frames, clock.dt),
      })),
    })),
  });
  group.add({ name: "height", title: "Height of the root", unit: "m", digits: 3, lines: lines((s) => s.height()) });
  group.add({
    name: "tilt",
    title: "Tilt of the root",
    unit: "degrees",
    digits: 1,
    lines: lines((s) => s.tilt()),
    range: [0, 10],
  });
  group.add({
    name: "joint",
    title: "Joint",
    unit: "rad",
    digits: 3,
    control: joints,
    lines: lines((s) => s.joint(joint)),
  });
  group.add({
    name: "torque",
    title: "Torque, greatest of all joints",
    unit: "share of the limit",
    lines: lines((s) => s.peakTorque()),
    thresholds: [{ value: 1, label: "limit" }],
    range: [0, 1.05],
  });
  group.add({
    name: "harness",
    title: "Harness",
    unit: "force / mg",
    digits: 3,
    lines: lines((s) => s.harness()),
    range: [0, 0.05],
  });
  return group;
}

/** A rollout's values on the frames of the common clock; NaN behind its end. */
function resample(values: Float32Array, { rollout }: Track, frames: number, dt: number): Float32Array {
  if (values.length === frames && rollout.control_dt === dt) return values;
  const result = new Float32Array(frames).fill(Number.NaN);
  for (let frame = 0; frame < frames; frame++) {
    const source = Math.round((frame * dt) / rollout.control_dt);
    if (source < values.length) result[frame] = values[source]!;
  }
  return result;
}

function eventsOf(rollout: RolloutData, index: number, dt: number): Event_[] {
  const frame = rollout.fell_at_frame ?? rollout.failure_frame;
  if (frame === null) return [];
  const label = rollout.fell_at_frame === null ? "failure" : "fall";
  return [{ frame: Math.round((frame * rollout.control_dt) / dt), label, colour: `--c${index % 6}` }];
}

start();
