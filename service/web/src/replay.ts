/** The frames of a rollout: fetched in windows, those about the frame on the screen first. */

import { fetchBytes, isAbort } from "./fetching.js";
import { buildClipPose } from "./kinematics.js";
import { Npz } from "./npz.js";
import type { RolloutData } from "./page_data.js";
import type { Scene } from "./scene.js";

const ARRAYS = [
  "qpos",
  "reference_root_pos",
  "reference_root_rot",
  "reference_dof_pos",
  "channel_loads",
  "foot_contacts",
  "reference_contacts",
  "sum_fn_per_frame",
  "stab_force_per_frame",
  "actuator_force",
] as const;

export type ArrayName = (typeof ARRAYS)[number];

const FRAMES_A_WINDOW = 1000;
const ATTEMPTS = 3;

interface Column {
  readonly width: number;
  /** (frames, width); NaN where nothing has been fetched yet. */
  readonly data: Float32Array;
}

export class Replay {
  readonly frames: number;
  private readonly columns = new Map<ArrayName, Column>();
  private readonly windows: ("missing" | "loading" | "loaded")[];
  private readonly listeners = new Set<() => void>();
  private readonly abort = new AbortController();
  private wantedFrame = 0;
  /** Whether the arrays are asked for by name: a rollout of an earlier release may not have all of them. */
  private asksByName = true;
  private error: Error | null = null;

  constructor(
    readonly rollout: RolloutData,
    private readonly framesPerWindow = FRAMES_A_WINDOW,
  ) {
    this.frames = rollout.frames;
    this.windows = Array.from({ length: Math.ceil(this.frames / framesPerWindow) }, () => "missing");
  }

  /** Calls back whenever frames have arrived; returns what ends that. */
  onChange(listener: () => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  /**
   * Fetches everything, the window about `frame` first. Resolves when that window is there; the rest follows.
   *
   * @param onError is told of a window in the background that could not be fetched.
   */
  async load(frame: number, onError: (error: Error) => void): Promise<void> {
    this.wantedFrame = frame;
    if (this.frames === 0) return;
    await this.loadWindow(this.windowOf(frame));
    void this.loadRest(onError);
  }

  /** Says which frame is on the screen, so that its window comes next. */
  want(frame: number): void {
    this.wantedFrame = frame;
  }

  close(): void {
    this.abort.abort();
    this.listeners.clear();
  }

  get isComplete(): boolean {
    return this.windows.every((state) => state === "loaded");
  }

  /** The share of the frames that have been fetched. */
  get progress(): number {
    return this.windows.filter((state) => state === "loaded").length / Math.max(1, this.windows.length);
  }

  hasFrame(frame: number): boolean {
    return this.windows[this.windowOf(frame)] === "loaded";
  }

  /** The row of an array in a frame, or null if the frame has not been fetched, or the rollout has no such array. */
  row(name: ArrayName, frame: number): Float32Array | null {
    const column = this.columns.get(name);
    if (column === undefined || !this.hasFrame(frame)) return null;
    return column.data.subarray(frame * column.width, (frame + 1) * column.width);
  }

  /** All rows of an array, with its number of columns. NaN where nothing has been fetched yet. */
  column(name: ArrayName): Column | null {
    return this.columns.get(name) ?? null;
  }

  /** Builds the clip's configuration in a frame; false if the frame has not been fetched. */
  readClipPose(scene: Scene, frame: number, out: Float32Array): boolean {
    const pos = this.row("reference_root_pos", frame);
    const rot = this.row("reference_root_rot", frame);
    const dof = this.row("reference_dof_pos", frame);
    if (pos === null || rot === null || dof === null) return false;
    buildClipPose(scene, pos, rot, dof, out);
    return true;
  }

  private windowOf(frame: number): number {
    return Math.floor(Math.min(Math.max(frame, 0), this.frames - 1) / this.framesPerWindow);
  }

  private async loadRest(onError: (error: Error) => void): Promise<void> {
    try {
      for (let next = this.nextWindow(); next !== null; next = this.nextWindow()) await this.loadWindow(next);
    } catch (error) {
      if (isAbort(error) || this.abort.signal.aborted) return;
      this.error = error as Error;
      onError(this.error);
    }
  }

  /** The window of the wanted frame, or the next missing one behind it, or the first missing one. */
  private nextWindow(): number | null {
    const from = this.windowOf(this.wantedFrame);
    const behind = this.windows.indexOf("missing", from);
    const next = behind >= 0 ? behind : this.windows.indexOf("missing");
    return next >= 0 ? next : null;
  }

  private async loadWindow(window: number): Promise<void> {
    const start = window * this.framesPerWindow;
    const stop = Math.min(this.frames, start + this.framesPerWindow);
    const what = `Frames ${start} to ${stop - 1}`;
    this.windows[window] = "loading";
    for (let attempt = 1; ; attempt++) {
      try {
        const names = this.asksByName ? `&arrays=${ARRAYS.join(",")}` : "";
        const query = `start=${start}&stop=${stop}${names}&dtype=float32`;
        const url = this.rollout.frames_url + (this.rollout.frames_url.includes("?") ? "&" : "?") + query;
        this.store(new Npz(await fetchBytes(url, what, this.abort.signal), what), start, stop);
        break;
      } catch (error) {
        const status = (error as { status?: number }).status;
        if (status === 422 && this.asksByName) {
          this.asksByName = false;
          continue;
        }
        const isPermanent = status !== undefined && status >= 400 && status < 500 && status !== 429;
        if (isAbort(error) || isPermanent || attempt === ATTEMPTS) {
          this.windows[window] = "missing";
          throw error;
        }
        await new Promise((resolve) => setTimeout(resolve, 400 * attempt));
      }
    }
    this.windows[window] = "loaded";
    for (const listener of this.listeners) listener();
  }

  private store(npz: Npz, start: number, stop: number): void {
    for (const name of ARRAYS) {
      if (!npz.has(name)) continue;
      const { shape, data } = npz.read(name);
      if (shape[0] !== stop - start) {
        throw new Error(`Frames ${start} to ${stop - 1} cannot be shown: ${name} has ${shape[0]} rows.`);
      }
      const width = shape.slice(1).reduce((product, n) => product * n, 1);
      let column = this.columns.get(name);
      if (column === undefined) {
        column = { width, data: new Float32Array(this.frames * width).fill(Number.NaN) };
        this.columns.set(name, column);
      }
      column.data.set(data, start * width);
    }
  }
}
