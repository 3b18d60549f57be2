/** The page of one clip: its replay and the charts of the rollout. */

import { type Chart, ChartGroup, type Event_, type Shade, type Threshold } from "./charts.js";
import { build, throttle } from "./dom.js";
import { findCharts, type RolloutData, readPageData } from "./page_data.js";
import { ForceSeries, type RolloutSeries } from "./series.js";
import { watchTheme } from "./theme_watch.js";
import { Viewer } from "./viewer.js";

function start(): void {
  const page = readPageData();
  const container = document.querySelector<HTMLElement>("[data-replay]");
  if (page === null || container === null || page.rollouts.length === 0) return;
  const viewer = new Viewer(container, page);
  const charts = findCharts(container);
  void viewer.open();
  let drawn: ClipCharts | null = null;
  const draw = throttle(page.rollouts[0]!.frames > 5000 ? 900 : 250, () => {
    if (!viewer.isSettled || viewer.tracks[0]!.replay.column("qpos") === null) return;
    if (drawn === null) {
      drawn = new ClipCharts(charts, viewer);
      viewer.visibleFrames = () => drawn!.visibleFrames();
    } else drawn.updateData();
    drawn.showFrame();
  });
  let progress = -1;
  viewer.onChange(() => {
    const share = viewer.tracks[0]!.replay.progress;
    if (share !== progress || drawn === null) {
      progress = share;
      draw();
    }
    drawn?.showFrame();
  });
  watchTheme(() => {
    viewer.updateTheme();
    drawn?.redraw();
  });
}

class ClipCharts {
  private readonly group: ChartGroup;
  private readonly joints = build("select", { "aria-label": "Joint", class: "chart-choice" });
  private joint = 0;
  private jointChart: Chart | null = null;
  private torqueChart: Chart | null = null;
  private isRanked = false;

  constructor(
    container: HTMLElement,
    private readonly viewer: Viewer,
  ) {
    const { rollout } = viewer.tracks[0]!;
    container.replaceChildren();
    container.classList.add("charts");
    this.group = new ChartGroup(container, {
      frames: rollout.frames,
      dt: rollout.control_dt,
      shades: shadesOf(rollout),
      events: eventsOf(rollout),
      stripLabels: viewer.scene?.meta.channels ?? [],
      seek: (frame) => {
        viewer.clock.pause();
        viewer.clock.seek(frame);
      },
    });
    this.joints.addEventListener("change", () => this.chooseJoint(Number(this.joints.value)));
    if (viewer.scene !== null) this.listJoints();
    this.addCharts(rollout);
  }

  updateData(): void {
    if (!this.isRanked && this.viewer.scene !== null && this.viewer.tracks[0]!.replay.isComplete) this.listJoints();
    this.group.updateData();
  }

  redraw(): void {
    this.group.redraw();
  }

  showFrame(): void {
    this.group.showFrame(this.viewer.clock.frame, this.viewer.clock.playing);
  }

  /** The frames that the charts show, or null while they show all. */
  visibleFrames(): [number, number] | null {
    const { frames, dt } = this.group.context;
    const [low, high] = this.group.range;
    const first = Math.ceil(low / dt - 1e-6);
    const last = Math.floor(high / dt + 1e-6);
    return first <= 0 && last >= frames - 1 ? null : [first, Math.min(last, frames - 1)];
  }

  /** Without the robot there are the forces alone. */
  private addCharts(rollout: RolloutData): void {
    const { replay, series } = this.viewer.tracks[0]!;
    const forces = series ?? new ForceSeries(replay);
    this.group.add({
      name: "load",
      title: "Normal force",
      unit: "ΣF_n / mg",
      lines: [{ label: "rollout", colour: "--c1", values: () => forces.load() }],
      thresholds: thresholdsOf(rollout.thresholds, "mean_sum_fn_over_mg", "mean at least"),
      range: [0, 1.2],
    });
    if (series !== null) this.addRobotCharts(series, rollout);
    else {
      this.group.add({
        name: "contacts",
        title: "Contacts",
        lines: [],
        strips: Array.from({ length: replay.column("foot_contacts")?.width ?? 0 }, (_, channel) => ({
          label: `channel ${channel + 1}`,
          bars: [{ colour: "--c1", what: "rollout", values: () => forces.contact(channel) }],
        })),
      });
    }
    this.group.add({
      name: "harness",
      title: "Harness",
      unit: "force / mg",
      digits: 3,
      lines: [{ label: "rollout", colour: "--c3", values: () => forces.harness() }],
      thresholds: thresholdsOf(rollout.thresholds, "p90_stab_force_over_mg", "90th percentile at most"),
      range: [0, 0.05],
    });
  }

  private addRobotCharts(series: RolloutSeries, { thresholds }: RolloutData): void {
    const { meta } = this.viewer.scene!;
    const { group } = this;
    group.add({
      name: "contacts",
      title: "Contacts",
      lines: [],
      strips: meta.channels.map((label, channel) => ({
        label,
        bars: [
          { colour: "--c0", what: "clip", values: () => series.clipContact(channel) },
          { colour: "--c1", what: "rollout", values: () => series.contact(channel) },
        ],
      })),
    });
    group.add({
      name: "height",
      title: "Height of the root",
      unit: "m",
      digits: 3,
      lines: [
        { label: "clip", colour: "--c0", dash: [5, 3], values: () => series.clipHeight() },
        { label: "rollout", colour: "--ink", values: () => series.height() },
      ],
      thresholds: [
        ...thresholdsOf(thresholds, "height_min", "at least"),
        ...thresholdsOf(thresholds, "height_max", "at most"),
      ],
    });
    group.add({
      name: "tilt",
      title: "Tilt of the root",
      unit: "degrees",
      digits: 1,
      lines: [
        { label: "clip", colour: "--c0", dash: [5, 3], values: () => series.clipTilt() },
        { label: "rollout", colour: "--ink", values: () => series.tilt() },
      ],
      thresholds: thresholdsOf(thresholds, "max_tilt_deg", "at most"),
      range: [0, 10],
    });
    this.jointChart = group.add({
      name: "joint",
      title: "Joint",
      unit: "rad",
      digits: 3,
      control: this.joints,
      lines: [
        { label: "clip", colour: "--c0", dash: [5, 3], values: () => series.clipJoint(this.joint) },
        { label: "rollout", colour: "--ink", values: () => series.joint(this.joint) },
      ],
      thresholds: this.limitsOf(this.joint),
    });
    this.torqueChart = group.add({
      name: "torque",
      title: "Torque",
      unit: "share of the limit",
      lines: [
        { label: "all joints, greatest", colour: "--c3", values: () => series.peakTorque() },
        { label: "this joint", colour: "--ink", values: () => series.torque(this.joint) },
      ],
      thresholds: [{ value: 1, label: "limit" }],
      range: [0, 1.05],
    });
  }

  private chooseJoint(joint: number): void {
    this.joint = joint;
    this.jointChart?.setThresholds(this.limitsOf(joint));
    this.torqueChart?.updateData();
    this.showFrame();
  }

  private limitsOf(joint: number): Threshold[] {
    const range = this.viewer.scene!.meta.joint_range[joint];
    if (!range) return [];
    return [
      { value: range[0], label: "lower limit" },
      { value: range[1], label: "upper limit" },
    ];
  }

  /** Lists the joints, the one that differs most from the clip first, by the frames at hand. */
  private listJoints(): void {
    const { replay, series } = this.viewer.tracks[0]!;
    const names = this.viewer.scene!.meta.joints;
    const ranking = series!.rankJoints();
    const isFirst = this.joints.options.length === 0;
    this.joints.replaceChildren(
      ...ranking.map(({ joint, rmse }) =>
        build("option", { value: joint }, `${names[joint]!.replace(/_joint$/, "")}, RMSE ${rmse.toFixed(3)} rad`),
      ),
    );
    if (isFirst) this.joint = ranking[0]?.joint ?? 0;
    this.joints.value = String(this.joint);
    this.isRanked = replay.isComplete;
  }
}

/** A gate's threshold as lines: one for a number, two for a range. */
function thresholdsOf(thresholds: RolloutData["thresholds"], name: string, what: string): Threshold[] {
  const threshold = thresholds[name];
  if (threshold === undefined) return [];
  const values = typeof threshold === "number" ? [threshold] : threshold;
  return values.flatMap((value) => (value === null ? [] : [{ value, label: `${what} ${Number(value.toFixed(3))}` }]));
}

function shadesOf({ segments }: RolloutData): Shade[] {
  return segments.map(({ start, end, tier }) => ({ start, end, colour: tier === 0 ? "--pass" : "--warn" }));
}

function eventsOf({ fell_at_frame: fall, failure_frame: failure }: RolloutData): Event_[] {
  const events: Event_[] = [];
  if (fall !== null) events.push({ frame: fall, label: "fall", colour: "--fail" });
  if (failure !== null) events.push({ frame: failure, label: "failure", colour: "--fail" });
  return events;
}

start();
