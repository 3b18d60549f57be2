/** The time line: a slider over all frames, with segments, findings, the fall and the failure as marks to click. */

import type { Clock } from "./clock.js";
import { build, setText } from "./dom.js";
import { nameTier, type RolloutData } from "./page_data.js";
import { packLanes } from "./spans.js";

interface Span {
  readonly start: number;
  /** The first frame behind it. */
  readonly end: number;
  readonly text: string;
  readonly kind: string;
}

export class Timeline {
  readonly element: HTMLElement;
  private readonly slider: HTMLElement;
  private readonly thumb = build("i", { class: "timeline-thumb" });
  private readonly past = build("i", { class: "timeline-past" });
  private readonly loaded = build("i", { class: "timeline-loaded" });
  private readonly loop = build("i", { class: "timeline-loop", hidden: true });
  private lastText = 0;

  /**
   * @param describe says in words what is to be seen in a frame.
   * @param onSpan is told of a click on a span.
   */
  constructor(
    rollout: RolloutData,
    private readonly clock: Clock,
    private readonly describe: (frame: number) => string,
  ) {
    this.slider = build(
      "div",
      {
        class: "timeline-track",
        role: "slider",
        tabindex: 0,
        "aria-label": "Frame",
        "aria-valuemin": 0,
        "aria-valuemax": Math.max(0, clock.frames - 1),
        "data-timeline": true,
      },
      this.loaded,
      this.loop,
      this.past,
      this.thumb,
    );
    this.element = build("div", { class: "timeline" }, this.slider, ...this.buildLanes(rollout));
    this.listen();
    this.showFrame();
  }

  setProgress(share: number): void {
    this.loaded.style.width = `${100 * share}%`;
    this.loaded.hidden = share >= 1;
  }

  showFrame(): void {
    const { frame, frames, loop } = this.clock;
    const place = `${(100 * frame) / Math.max(1, frames - 1)}%`;
    this.thumb.style.left = place;
    this.past.style.width = place;
    this.loop.hidden = loop === null;
    if (loop !== null) this.placeSpan(this.loop, loop.start, loop.end);
    // While it plays, words that change 50 times a second help nobody.
    const now = performance.now();
    if (!this.clock.playing || now - this.lastText > 500) {
      this.lastText = now;
      this.slider.setAttribute("aria-valuenow", String(frame));
      this.slider.setAttribute("aria-valuetext", this.describe(frame));
    }
  }

  private placeSpan(element: HTMLElement, start: number, end: number): void {
    const last = Math.max(1, this.clock.frames - 1);
    element.style.left = `${(100 * start) / last}%`;
    element.style.width = `${(100 * Math.max(0, Math.min(end - 1, last) - start)) / last}%`;
  }

  private buildLanes(rollout: RolloutData): HTMLElement[] {
    const { clock } = this;
    const segments = rollout.segments.map(({ start, end, tier, score }) => ({
      start,
      end,
      text: `Segment, ${nameTier(tier)}${score === null ? "" : `, score ${score.toFixed(2)}`}`,
      kind: `tier-${tier}`,
    }));
    const lanes: { name: string; spans: Span[] }[] = [];
    if (segments.length > 0) lanes.push({ name: "segments", spans: segments });
    // The fall and the failure have flags of their own.
    const findings = rollout.marks.filter(({ kind }) => kind !== "fall" && kind !== "failure");
    for (const spans of packLanes(findings)) lanes.push({ name: "findings", spans });
    const events: { frame: number; text: string; kind: string }[] = [];
    if (rollout.fell_at_frame !== null) events.push({ frame: rollout.fell_at_frame, text: "Fall", kind: "fall" });
    if (rollout.failure_frame !== null) events.push({ frame: rollout.failure_frame, text: "Failure", kind: "failure" });
    const elements = lanes.map(({ name, spans }) => {
      const lane = build("div", { class: `timeline-lane timeline-${name}` });
      for (const span of spans) {
        const label = `${span.text}, frames ${span.start} to ${span.end - 1}`;
        const button = build(
          "button",
          {
            type: "button",
            class: `timeline-span kind-${span.kind.replace(/[^\w-]+/g, "-")}`,
            "aria-label": label,
            title: label,
            "data-start": span.start,
            "data-end": span.end,
            click: (event) => {
              clock.seek(span.start);
              // With shift, or at a second click, the span is repeated.
              if ((event as MouseEvent).shiftKey || (event as MouseEvent).detail === 2) clock.setLoop(span);
            },
          },
          span.text,
        );
        this.placeSpan(button, span.start, span.end);
        lane.append(button);
      }
      return lane;
    });
    for (const { frame, text, kind } of events) {
      const label = `${text} at frame ${frame}`;
      const flag = build(
        "button",
        {
          type: "button",
          class: `timeline-event kind-${kind}`,
          "aria-label": label,
          title: label,
          "data-start": frame,
          click: () => clock.seek(Math.min(frame, clock.frames - 1)),
        },
        build("span", {}, text),
      );
      flag.style.left = `${(100 * Math.min(frame, clock.frames - 1)) / Math.max(1, clock.frames - 1)}%`;
      if (frame > 0.85 * clock.frames) flag.classList.add("is-late");
      elements.unshift(build("div", { class: "timeline-lane timeline-events" }, flag));
    }
    return elements;
  }

  private listen(): void {
    const { slider, clock } = this;
    let isDragging = false;
    const seek = (event: PointerEvent) => {
      const box = slider.getBoundingClientRect();
      clock.seek(((event.clientX - box.left) / Math.max(1, box.width)) * (clock.frames - 1));
    };
    slider.style.touchAction = "none";
    slider.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      slider.setPointerCapture(event.pointerId);
      isDragging = true;
      seek(event);
    });
    slider.addEventListener("pointermove", (event) => {
      if (isDragging) seek(event);
    });
    for (const type of ["pointerup", "pointercancel"] as const)
      slider.addEventListener(type, () => (isDragging = false));
    slider.addEventListener("keydown", (event) => {
      // Arrows, Home and End are keys of the whole page.
      if (event.key === "PageUp" || event.key === "PageDown") {
        event.preventDefault();
        clock.step((event.key === "PageUp" ? 1 : -1) * Math.max(1, Math.round(clock.frames / 10)));
      }
    });
  }
}

/** The figures of the frame on the screen, in elements that tests and people read: `data-readout`, `data-value`. */
export class Readout {
  readonly element = build("dl", { class: "readout" });
  private readonly fields = new Map<string, HTMLElement>();

  constructor(names: readonly (readonly [name: string, label: string])[]) {
    for (const [name, label] of names) {
      const field = build("dd", { "data-readout": name }, "–");
      this.fields.set(name, field);
      this.element.append(build("div", {}, build("dt", {}, label), field));
    }
  }

  /** @param value is what the text was made of, for whoever compares it with the API. */
  write(name: string, text: string, value: number | string | null): void {
    const field = this.fields.get(name);
    if (field === undefined) return;
    setText(field, text);
    if (value === null || (typeof value === "number" && Number.isNaN(value))) field.removeAttribute("data-value");
    else field.setAttribute("data-value", String(value));
  }
}
