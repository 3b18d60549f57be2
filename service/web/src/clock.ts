/** The time of a replay. Frames are whole: what is on the screen is a state that was simulated, never one between two. */

export const SPEEDS = [0.1, 0.25, 0.5, 1, 2, 4] as const;

const ROUNDING = 1e-9; // frames, which a sum of many short times may lack of a whole one

export interface Loop {
  readonly start: number;
  /** The first frame behind the loop. */
  readonly end: number;
}

export class Clock {
  private position = 0; // frames, with the part of a frame that has passed
  private lastTime: number | null = null; // ms
  private readonly listeners = new Set<() => void>();
  private isRunning = false;
  private rate = 1;
  private span: Loop | null = null;

  constructor(
    readonly frames: number,
    readonly dt: number,
  ) {}

  get frame(): number {
    return Math.min(Math.max(0, this.frames - 1), Math.max(0, Math.floor(this.position + ROUNDING)));
  }
  get seconds(): number {
    return this.frame * this.dt;
  }
  get playing(): boolean {
    return this.isRunning;
  }
  get speed(): number {
    return this.rate;
  }
  get loop(): Loop | null {
    return this.span;
  }

  /** Calls back after each change; returns what ends that. */
  onChange(listener: () => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  play(): void {
    if (this.frames < 2) return;
    // From the end one starts again.
    if (this.span === null && this.frame >= this.frames - 1) this.position = 0;
    if (this.span !== null && !isInside(this.span, this.frame)) this.position = this.span.start;
    this.isRunning = true;
    this.lastTime = null;
    this.notify();
  }

  pause(): void {
    if (!this.isRunning) return;
    this.isRunning = false;
    this.notify();
  }

  toggle(): void {
    if (this.isRunning) this.pause();
    else this.play();
  }

  seek(frame: number): void {
    this.position = Math.min(Math.max(0, this.frames - 1), Math.max(0, Math.round(frame)));
    if (this.span !== null && !isInside(this.span, this.frame)) this.span = null;
    this.lastTime = null;
    this.notify();
  }

  /** Stops, and goes so many frames on. */
  step(frames: number): void {
    this.isRunning = false;
    this.seek(this.frame + frames);
  }

  setSpeed(speed: number): void {
    this.rate = Math.min(SPEEDS[SPEEDS.length - 1]!, Math.max(SPEEDS[0], speed));
    this.notify();
  }

  setLoop(loop: Loop | null): void {
    this.span = loop !== null && loop.end - loop.start >= 2 ? loop : null;
    if (this.span !== null && !isInside(this.span, this.frame)) this.position = this.span.start;
    this.lastTime = null;
    this.notify();
  }

  /** Goes on to a time of the screen. @param now ms. Returns whether another frame is to be drawn. */
  tick(now: number): boolean {
    if (!this.isRunning) return false;
    // A tab that was in the background goes on where it was.
    const elapsed = this.lastTime === null ? 0 : Math.min(250, now - this.lastTime);
    this.lastTime = now;
    const before = this.frame;
    this.position += ((elapsed / 1000) * this.rate) / this.dt;
    if (this.span !== null) {
      const { start, end } = this.span;
      if (this.position + ROUNDING >= end) this.position = start + (Math.max(0, this.position - end) % (end - start));
    } else if (this.position >= this.frames - 1) {
      this.position = this.frames - 1;
      this.isRunning = false;
      this.notify();
      return true;
    }
    if (this.frame === before) return false;
    this.notify();
    return true;
  }

  /** Lets time pass without going on, because the frame is not there yet. */
  hold(): void {
    this.lastTime = null;
  }

  private notify(): void {
    for (const listener of this.listeners) listener();
  }
}

function isInside(loop: Loop, frame: number): boolean {
  return frame >= loop.start && frame < loop.end;
}
