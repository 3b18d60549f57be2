/** What the pages of a clip and of a comparison have in common: one clock, one picture, and the frames of each rollout. */

import { Clock, type Loop } from "./clock.js";
import { Controls } from "./controls.js";
import { build, prefersStillness, throttle } from "./dom.js";
import { fetchBytes, RequestError } from "./fetching.js";
import { classOfTier, nameTier, type PageData, type RolloutData } from "./page_data.js";
import { Replay } from "./replay.js";
import { parseScene, type Scene } from "./scene.js";
import { RolloutSeries } from "./series.js";
import type { Panel, Stage } from "./stage.js";
import { Readout, Timeline } from "./timeline.js";

export interface Track {
  readonly rollout: RolloutData;
  readonly replay: Replay;
  readonly readout: Readout;
  /** Where the robot is drawn. */
  readonly box: HTMLElement;
  series: RolloutSeries | null;
  panel: Panel | null;
}

const READOUTS = [
  ["frame", "Frame"],
  ["time", "Time"],
  ["load", "ΣF_n / mg"],
  ["height", "Height"],
  ["harness", "Harness"],
  ["contacts", "Contacts"],
] as const;

const CLOCK_READOUTS = READOUTS.slice(0, 2);
const SHORT_READOUTS = READOUTS.filter(([name]) => ["load", "height"].includes(name));

export class Viewer {
  readonly clock: Clock;
  readonly tracks: readonly Track[];
  readonly timeline: Timeline;
  readonly controls: Controls;
  scene: Scene | null = null;
  /** Whether it is known if there is a scene. */
  isSettled = false;
  private stage: Stage | null = null;
  /** Of several rollouts, what they have in common. */
  private readonly clockReadout: Readout | null;
  private showsGhost = true;
  private follows = true;
  private isPictured = false;
  private readonly canvas = build("canvas", { tabindex: 0, role: "img", class: "stage-canvas" });
  private readonly stageBox: HTMLElement;
  private readonly ghostPose: Float32Array[] = [];
  private readonly listeners = new Set<() => void>();
  private readonly keepAddress = throttle(400, () => this.writeAddress());
  private seenFrame = -1;
  private wasPlaying = false;
  private seenLoop: Loop | null = null;
  /** The part of time that the charts show, for the loop. */
  visibleFrames: () => readonly [number, number] | null = () => null;

  constructor(
    private readonly container: HTMLElement,
    readonly page: PageData,
  ) {
    const rollouts = page.rollouts;
    const single = rollouts.length === 1;
    const longest = Math.max(...rollouts.map((rollout) => rollout.frames));
    const dt = Math.min(...rollouts.map((rollout) => rollout.control_dt));
    const seconds = Math.max(...rollouts.map((rollout) => rollout.frames * rollout.control_dt));
    this.clock = new Clock(single ? longest : Math.round(seconds / dt), dt);
    this.clock.seek(readStartFrame(page));
    this.clockReadout = single ? null : new Readout(CLOCK_READOUTS);
    this.tracks = rollouts.map((rollout) => ({
      rollout,
      replay: new Replay(rollout),
      readout: new Readout(single ? READOUTS : SHORT_READOUTS),
      box: build("div", { class: "stage-panel", "data-rollout": rollout.id }),
      series: null,
      panel: null,
    }));
    this.canvas.setAttribute(
      "aria-label",
      `The robot in motion: ${rollouts.map((rollout) => rollout.label).join(", ")}`,
    );
    this.stageBox = build("div", { class: `stage stage-of-${rollouts.length}` }, this.canvas);
    this.tracks.forEach((track, i) => {
      if (!single) track.box.append(buildCaption(track, i));
      this.stageBox.append(track.box);
    });
    this.timeline = new Timeline(mergeMarks(rollouts, this.clock), this.clock, (frame) => this.describe(frame));
    this.controls = new Controls(
      this.clock,
      {
        toggleGhost: () => {
          this.showsGhost = !this.showsGhost;
          this.showFrame();
          return this.showsGhost;
        },
        toggleFollowing: () => {
          this.follows = !this.follows;
          for (const { panel } of this.tracks) panel?.setFollowing(this.follows);
          this.showFrame();
          return this.follows;
        },
        look: (view) => this.look(view),
        turn: (azimuth, elevation) => this.stage?.orbit.turn(azimuth, elevation),
        zoom: (factor) => this.stage?.orbit.zoom(factor),
        toggleLoop: () => this.toggleLoop(),
      },
      page.static ? null : () => this.addressOf(this.clock.frame),
    );
    const legend = build(
      "p",
      { class: "stage-legend" },
      build("span", { class: "legend-robot" }, "rollout"),
      build("span", { class: "legend-ghost" }, "clip"),
      build("span", { class: "legend-force" }, "contact force"),
    );
    if (single) this.stageBox.append(legend);
    container.replaceChildren(
      this.stageBox,
      ...(single ? [] : [legend]),
      this.timeline.element,
      this.controls.element,
      (single ? this.tracks[0]!.readout : this.clockReadout!).element,
    );
    this.clock.onChange(() => this.followClock());
    document.addEventListener("click", (event) => this.followSeekLink(event));
    container.dataset.state = "loading";
  }

  /** Calls back after the frame on the screen or the frames at hand have changed. */
  onChange(listener: () => void): void {
    this.listeners.add(listener);
  }

  /** Fetches the robot and the frames, and draws; what cannot be had is said in the page. */
  async open(): Promise<void> {
    // The module with WebGL comes, and makes its context, while the data is on its way.
    const stagePromise = import("./stage.js").then(({ Stage }) => new Stage(this.canvas, () => this.showReady()));
    stagePromise.catch(() => undefined);
    const scenePromise = fetchBytes(this.page.scene_url, "The robot").then(parseScene);
    scenePromise.catch(() => undefined);
    const report = (error: Error) => this.controls.announce(error.message);
    const framesPromise = Promise.all(
      this.tracks.map(({ rollout, replay }) => replay.load(this.frameOf(rollout), report)),
    );
    framesPromise.catch(() => undefined);
    for (const { replay } of this.tracks) replay.onChange(() => this.followData());
    try {
      this.scene = await scenePromise;
      for (const track of this.tracks) {
        track.series = new RolloutSeries(track.replay, this.scene);
        this.ghostPose.push(new Float32Array(this.scene.qpos0));
      }
    } catch (error) {
      this.fail(explainScene(error as Error));
    }
    this.isSettled = true;
    if (this.scene !== null) {
      try {
        this.openStage(await stagePromise, this.scene);
      } catch (error) {
        this.fail(`The robot cannot be drawn: ${(error as Error).message} The charts show the rollout all the same.`);
      }
    }
    try {
      await framesPromise;
    } catch (error) {
      this.fail((error as Error).message);
      return;
    }
    this.followData();
    this.showFrame();
    this.chooseHome();
  }

  /** The frame of a rollout at the time of the clock. */
  frameOf(rollout: RolloutData): number {
    const frame = this.tracks.length === 1 ? this.clock.frame : Math.round(this.clock.seconds / rollout.control_dt);
    return Math.min(Math.max(0, rollout.frames - 1), frame);
  }

  updateTheme(): void {
    this.stage?.updateTheme();
  }

  private openStage(stage: Stage, scene: Scene): void {
    const panels = stage.open(
      scene,
      this.tracks.map(({ box }) => box),
    );
    this.tracks.forEach((track, i) => {
      track.panel = panels[i]!;
    });
    this.stage = stage;
    stage.animate((now) => {
      if (this.isPictured) this.clock.tick(now);
      else this.clock.hold();
    });
    stage.setMoving(this.clock.playing);
  }

  /** The first view is on the robot's front, a little from its left. */
  private chooseHome(): void {
    const heading = this.tracks[0]?.panel?.heading ?? 0;
    this.stage?.orbit.setHome({ azimuth: heading + 0.62, elevation: 0.2, distance: 1 });
  }

  private look(view: "home" | "front" | "side" | "top"): void {
    const orbit = this.stage?.orbit;
    if (orbit === undefined) return;
    if (view === "home") {
      orbit.reset();
      return;
    }
    const heading = this.tracks[0]?.panel?.heading ?? 0;
    const views = { front: [0, 0.12], side: [-Math.PI / 2, 0.08], top: [-Math.PI / 2, 1.45] } as const;
    const [azimuth, elevation] = views[view];
    orbit.look({ azimuth: heading + azimuth, elevation });
  }

  private toggleLoop(): void {
    const { clock } = this;
    if (clock.loop !== null) {
      clock.setLoop(null);
      return;
    }
    const visible = this.visibleFrames();
    const segment = this.tracks[0]!.rollout.segments.find(
      ({ start, end }) => clock.frame >= start && clock.frame < end,
    );
    if (visible !== null) clock.setLoop({ start: visible[0], end: visible[1] + 1 });
    else clock.setLoop(segment ?? { start: 0, end: clock.frames });
  }

  private followClock(): void {
    const { clock } = this;
    if (clock.playing !== this.wasPlaying) {
      this.wasPlaying = clock.playing;
      if (this.stage !== null) this.stage.setMoving(clock.playing);
      else if (clock.playing) this.tickWithoutStage();
    }
    this.controls.update();
    this.timeline.showFrame();
    if (clock.loop !== this.seenLoop) {
      this.seenLoop = clock.loop;
      if (clock.loop !== null) writeCut(clock.loop, clock.frames);
    }
    if (clock.frame !== this.seenFrame) {
      this.showFrame();
      if (!this.page.static) this.keepAddress();
    }
  }

  private tickWithoutStage(): void {
    const tick = (now: number) => {
      if (!this.clock.playing || this.stage !== null) return;
      this.clock.tick(now);
      requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  }

  private followData(): void {
    const shares = this.tracks.map(({ replay }) => replay.progress);
    this.timeline.setProgress(shares.reduce((sum, share) => sum + share, 0) / shares.length);
    if (!this.isPictured) this.showFrame();
    this.notify();
  }

  private showFrame(): void {
    this.seenFrame = this.clock.frame;
    let isComplete = this.stage !== null;
    this.tracks.forEach((track, i) => {
      const frame = this.frameOf(track.rollout);
      track.replay.want(frame);
      const qpos = track.replay.row("qpos", frame);
      isComplete &&= qpos !== null;
      const ghost = this.ghostPose[i];
      const hasGhost =
        this.showsGhost &&
        this.scene !== null &&
        ghost !== undefined &&
        track.replay.readClipPose(this.scene, frame, ghost);
      const hasEnded = this.clock.seconds > (track.rollout.frames - 0.5) * track.rollout.control_dt;
      track.panel?.setDimming(hasEnded ? 0.45 : 0);
      track.box.classList.toggle("has-ended", hasEnded);
      track.panel?.show(
        { qpos, ghost: hasGhost ? ghost : null, loads: track.replay.row("channel_loads", frame) },
        this.clock.playing,
      );
      this.writeReadout(track, frame);
    });
    this.isPictured = isComplete;
    this.stageBox.classList.toggle("is-waiting", this.stage !== null && !isComplete);
    this.clockReadout?.write("frame", `${this.clock.frame} / ${Math.max(0, this.clock.frames - 1)}`, this.clock.frame);
    const seconds = this.clock.seconds + this.clock.dt;
    this.clockReadout?.write("time", `${seconds.toFixed(2)} s`, seconds);
    this.container.dataset.frame = String(this.clock.frame);
    this.notify();
  }

  private showReady(): void {
    this.container.dataset.state = "ready";
    performance.mark("ampref:first-frame");
    window.setTimeout(() => this.stage?.refine());
    if (this.container.hasAttribute("data-autoplay") && !prefersStillness()) this.clock.play();
  }

  private writeReadout({ rollout, replay, readout }: Track, frame: number): void {
    const first = (name: Parameters<Replay["row"]>[0], column = 0) => replay.row(name, frame)?.[column] ?? Number.NaN;
    const share = (newtons: number) => newtons / rollout.weight_n;
    const load = share(first("sum_fn_per_frame"));
    const harness = first("stab_force_per_frame");
    const height = this.scene === null ? Number.NaN : first("qpos", this.scene.meta.root_qpos + 2);
    readout.write("frame", `${frame} / ${Math.max(0, rollout.frames - 1)}`, frame);
    // Row k is the state at the end of control step k.
    const seconds = (frame + 1) * rollout.control_dt;
    readout.write("time", `${seconds.toFixed(2)} s`, seconds);
    readout.write("load", format(load, 2), load);
    readout.write("height", format(height, 3, " m"), height);
    readout.write("harness", format(harness, 1, " N"), harness);
    const contacts = replay.row("foot_contacts", frame);
    const names = this.scene?.meta.channels ?? [];
    const touching = contacts === null ? null : names.filter((_, channel) => contacts[channel]! > 0.5);
    const text = touching === null ? "–" : touching.length > 0 ? touching.join(", ") : "none";
    readout.write("contacts", text, touching === null ? null : touching.join(","));
  }

  private describe(frame: number): string {
    const { rollout, replay } = this.tracks[0]!;
    const seconds = ((frame + 1) * this.clock.dt).toFixed(2);
    const load = replay.row("sum_fn_per_frame", this.frameOf(rollout))?.[0];
    const marks = rollout.marks.filter(({ start, end }) => frame >= start && frame < end).map(({ text }) => text);
    if (rollout.fell_at_frame !== null && frame >= rollout.fell_at_frame) marks.push("fallen");
    const carried = load === undefined ? "" : `, carries ${(load / rollout.weight_n).toFixed(2)} of its weight`;
    return `Frame ${frame}, ${seconds} s${carried}${marks.length > 0 ? `. ${marks.join(". ")}` : ""}`;
  }

  private followSeekLink(event: MouseEvent): void {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    const link = (event.target as Element | null)?.closest?.("[data-seek]");
    if (!link) return;
    event.preventDefault();
    this.clock.pause();
    const [start, end] = (link.getAttribute("data-segment") ?? "").split(":").map(Number);
    if (start !== undefined && end !== undefined) this.clock.setLoop({ start, end });
    this.clock.seek(Number(link.getAttribute("data-seek")));
    this.container.scrollIntoView({ block: "nearest", behavior: prefersStillness() ? "auto" : "smooth" });
  }

  private addressOf(frame: number): string {
    const address = new URL(location.href);
    address.searchParams.set("f", String(frame));
    // A link means the rollout that it was made of, also when the clip has a better one by then.
    if (this.tracks.length === 1) address.searchParams.set("rollout", this.tracks[0]!.rollout.id);
    return address.href;
  }

  private writeAddress(): void {
    history.replaceState(history.state, "", this.addressOf(this.clock.frame));
  }

  /** Says in the place of the picture why there is none. */
  private fail(message: string): void {
    this.container.dataset.state = "failed";
    this.stage?.close();
    this.stage = null;
    this.stageBox.replaceChildren(build("p", { class: "replay-message", role: "alert" }, message));
    this.stageBox.classList.add("has-failed");
  }

  private notify(): void {
    for (const listener of this.listeners) listener();
  }
}

/** What is repeated is what a cut would be made of: the form for cuts gets it, in the frames of the upload. */
function writeCut({ start, end }: Loop, frames: number): void {
  const input = document.querySelector<HTMLInputElement>("[data-cut] input[name=frames]");
  const whole = /^0:(\d+)$/.exec(input?.getAttribute("data-whole") ?? "");
  if (input === null || whole === null) return;
  const scale = Number(whole[1]) / frames;
  input.value = `${Math.floor(start * scale)}:${Math.ceil(end * scale)}`;
}

function readStartFrame(page: PageData): number {
  const asked = new URLSearchParams(location.search).get("f");
  if (!page.static && asked !== null && /^\d+$/.test(asked)) return Number(asked);
  return page.start_frame ?? 0;
}

function explainScene(error: Error): string {
  if (error instanceof RequestError && error.status === 404) {
    return (
      "The robot of this rollout is not installed on the service in the version that made it, so it cannot be drawn. " +
      "The figures and the verdict on this page are those of the rollout all the same."
    );
  }
  return error.message;
}

function buildCaption(track: Track, index: number): HTMLElement {
  const { rollout, readout } = track;
  const swatch = build("i", { class: "swatch" });
  swatch.style.setProperty("--swatch", `var(--c${index % 6})`);
  const tier = build("span", { class: `badge ${classOfTier(rollout.tier)}` }, nameTier(rollout.tier));
  const title = build("a", { href: rollout.result_url, class: "panel-title" }, rollout.label);
  const mode = build("span", { class: "quiet" }, rollout.mode);
  return build(
    "div",
    { class: "panel-caption" },
    build("div", { class: "panel-head" }, swatch, title, tier, rollout.label.includes(rollout.mode) ? null : mode),
    readout.element,
  );
}

/** The marks of all rollouts on the frames of one clock. With several, findings would not fit: falls and failures remain. */
function mergeMarks(rollouts: readonly RolloutData[], clock: Clock): RolloutData {
  const first = rollouts[0]!;
  if (rollouts.length === 1) return first;
  const marks = rollouts.flatMap((rollout, i) => {
    const scale = rollout.control_dt / clock.dt;
    const at = rollout.fell_at_frame ?? rollout.failure_frame;
    if (at === null) return [];
    const start = Math.round(at * scale);
    const what = rollout.fell_at_frame === null ? "fails" : "falls";
    return [
      {
        start,
        end: Math.max(start + 1, Math.round(rollout.frames * scale)),
        text: `${rollout.label} ${what}`,
        kind: `rollout-${i % 6}`,
      },
    ];
  });
  return { ...first, marks, segments: [], fell_at_frame: null, failure_frame: null };
}

function format(value: number, digits: number, unit = ""): string {
  return Number.isNaN(value) ? "–" : `${value.toFixed(digits)}${unit}`;
}
