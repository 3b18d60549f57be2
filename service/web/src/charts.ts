/** Charts over time that share one time axis and one clock: a click or a drag seeks, a drag with shift zooms. */

import uPlot from "uplot";
import { build, setText, throttle } from "./dom.js";
import { findSpans } from "./spans.js";

export interface Line {
  readonly label: string;
  /** A custom property of the style sheet, as `--c0`. */
  readonly colour: string;
  readonly dash?: readonly number[];
  readonly width?: number;
  readonly values: () => Float32Array | null;
}

export interface Threshold {
  readonly value: number;
  readonly label: string;
}

/** Of each strip: 1 where it is on, 0 where it is off, NaN where nothing is known. */
export interface Strip {
  readonly label: string;
  readonly bars: readonly {
    readonly colour: string;
    readonly what: string;
    readonly values: () => Float32Array | null;
  }[];
}

export interface ChartSpec {
  readonly name: string;
  readonly title: string;
  readonly unit?: string;
  readonly digits?: number;
  readonly lines: readonly Line[];
  readonly thresholds?: readonly Threshold[];
  readonly strips?: readonly Strip[];
  /** The least range that the axis shows. */
  readonly range?: readonly [number | null, number | null];
  /** Stands behind the title, as a choice of what is drawn. */
  readonly control?: HTMLElement;
}

export interface Shade {
  readonly start: number;
  readonly end: number;
  readonly colour: string;
}

export interface Event_ {
  readonly frame: number;
  readonly label: string;
  readonly colour: string;
}

export interface ChartContext {
  readonly frames: number;
  readonly dt: number;
  readonly shades: readonly Shade[];
  readonly events: readonly Event_[];
  readonly seek: (frame: number) => void;
  /** The labels of strips; every chart leaves them room, so that one moment is in one column of all charts. */
  readonly stripLabels?: readonly string[];
}

const HEIGHT = 132;
const STRIP_HEIGHT = 30;

export class ChartGroup {
  readonly times: Float64Array;
  private readonly charts: Chart[] = [];
  private zoom: [number, number];
  private hover: number | null = null;
  private frame = 0;
  private readonly resetButton: HTMLButtonElement;
  private readonly updateValues = throttle(80, () => this.writeValues());

  constructor(
    private readonly container: HTMLElement,
    readonly context: ChartContext,
  ) {
    this.times = Float64Array.from({ length: context.frames }, (_, frame) => frame * context.dt);
    this.zoom = this.whole;
    this.resetButton = build(
      "button",
      { type: "button", hidden: true, click: () => this.setZoom(this.whole) },
      "Show all",
    );
    const bar = build(
      "div",
      { class: "chart-bar" },
      build(
        "span",
        { class: "quiet chart-hint" },
        "Click or drag to seek. Shift and drag to zoom, double click to see all.",
      ),
      build("button", { type: "button", click: () => this.scaleZoom(0.5) }, "Zoom in"),
      build("button", { type: "button", click: () => this.scaleZoom(2) }, "Zoom out"),
      this.resetButton,
    );
    container.append(bar);
    new ResizeObserver(() => {
      for (const chart of this.charts) chart.resize();
    }).observe(container);
  }

  get range(): readonly [number, number] {
    return this.zoom;
  }

  add(spec: ChartSpec): Chart {
    const chart = new Chart(spec, this);
    this.charts.push(chart);
    this.container.append(chart.element);
    chart.start();
    return chart;
  }

  /** Draws what has been fetched since. */
  updateData(): void {
    for (const chart of this.charts) chart.updateData();
    this.updateValues();
  }

  redraw(): void {
    for (const chart of this.charts) chart.redraw();
  }

  showFrame(frame: number, isPlaying: boolean): void {
    this.frame = frame;
    const time = frame * this.context.dt;
    const [low, high] = this.zoom;
    if (isPlaying && (time < low || time > high)) {
      const start = Math.min(time, this.whole[1] - (high - low));
      this.setZoom([start, start + high - low]);
    }
    for (const chart of this.charts) chart.placeLine("now", time);
    this.updateValues();
  }

  setHover(frame: number | null): void {
    if (frame === this.hover) return;
    this.hover = frame;
    for (const chart of this.charts) chart.placeLine("hover", frame === null ? null : frame * this.context.dt);
    this.updateValues();
  }

  setZoom(range: readonly [number, number]): void {
    const [first, last] = this.whole;
    const width = Math.max(Math.min(range[1] - range[0], last - first), Math.min(last - first, 5 * this.context.dt));
    const start = Math.min(Math.max(first, range[0]), last - width);
    this.zoom = [start, start + width];
    this.resetButton.hidden = width >= last - first;
    for (const chart of this.charts) chart.applyZoom();
  }

  placeLines(chart: Chart): void {
    chart.placeLine("now", this.frame * this.context.dt);
    chart.placeLine("hover", this.hover === null ? null : this.hover * this.context.dt);
  }

  showAll(): void {
    this.setZoom(this.whole);
  }

  private get whole(): [number, number] {
    return [0, Math.max(this.context.dt, (this.context.frames - 1) * this.context.dt)];
  }

  private scaleZoom(factor: number): void {
    const [low, high] = this.zoom;
    const time = this.frame * this.context.dt;
    const middle = time >= low && time <= high ? time : (low + high) / 2;
    this.setZoom([middle - (middle - low) * factor, middle + (high - middle) * factor]);
  }

  private writeValues(): void {
    for (const chart of this.charts) chart.writeValues(this.hover ?? this.frame);
  }
}

export class Chart {
  readonly element: HTMLElement;
  private readonly plotBox = build("div", { class: "chart-plot" });
  private readonly values: HTMLElement[] = [];
  private readonly lineAt = { now: build("i", { class: "chart-now" }), hover: build("i", { class: "chart-hover" }) };
  private plot: uPlot | null = null;
  private series: (Float32Array | null)[] = [];

  constructor(
    private spec: ChartSpec,
    private readonly group: ChartGroup,
  ) {
    const keys = build("div", { class: "chart-keys" });
    for (const line of spec.lines) keys.append(this.buildKey(line.label, line.colour, line.dash !== undefined));
    for (const bar of spec.strips?.[0]?.bars ?? []) keys.append(buildSwatch(bar.what, bar.colour));
    this.element = build(
      "figure",
      { class: "chart", "data-chart": spec.name },
      build(
        "figcaption",
        {},
        build("span", { class: "chart-title" }, spec.title),
        spec.unit ? build("span", { class: "quiet" }, ` ${spec.unit}`) : null,
        spec.control ?? null,
        keys,
      ),
      this.plotBox,
    );
  }

  start(): void {
    this.createPlot();
  }

  /** Draws something else by the same lines. */
  setThresholds(thresholds: readonly Threshold[], range?: ChartSpec["range"]): void {
    this.spec = { ...this.spec, thresholds, ...(range ? { range } : {}) };
    this.updateData();
  }

  updateData(): void {
    if (this.plot === null) return;
    this.plot.setData(this.readData(), false);
    this.applyZoom();
  }

  redraw(): void {
    this.plot?.destroy();
    this.createPlot();
    this.group.setZoom(this.group.range);
  }

  resize(): void {
    const width = this.plotBox.clientWidth;
    if (this.plot !== null && width > 0 && width !== this.plot.width) this.plot.setSize({ width, height: this.height });
  }

  applyZoom(): void {
    this.plot?.batch(() => {
      const [min, max] = this.group.range;
      this.plot!.setScale("x", { min, max });
    });
  }

  placeLine(which: "now" | "hover", time: number | null): void {
    const line = this.lineAt[which];
    const [low, high] = this.group.range;
    const isVisible = this.plot !== null && time !== null && time >= low && time <= high;
    line.hidden = !isVisible;
    if (isVisible) line.style.transform = `translateX(${this.plot!.valToPos(time, "x").toFixed(1)}px)`;
  }

  writeValues(frame: number): void {
    this.values.forEach((element, i) => {
      const value = this.series[i]?.[frame];
      setText(element, value === undefined || Number.isNaN(value) ? "–" : value.toFixed(this.spec.digits ?? 2));
    });
  }

  private get height(): number {
    return this.spec.strips ? 34 + STRIP_HEIGHT * this.spec.strips.length : HEIGHT;
  }

  private buildKey(label: string, colour: string, isDashed: boolean): HTMLElement {
    const value = build("span", { class: "chart-value" }, "–");
    this.values.push(value);
    const key = buildSwatch(label, colour, isDashed ? "dashed" : "");
    key.append(value);
    return key;
  }

  private readData(): uPlot.AlignedData {
    this.series = this.spec.lines.map((line) => line.values());
    const { times } = this.group;
    const columns = this.series.map((series) => toColumn(series, times.length));
    if (columns.length === 0) columns.push(Array.from(times, () => null));
    return [times, ...columns] as unknown as uPlot.AlignedData;
  }

  private createPlot(): void {
    const style = getComputedStyle(this.element);
    const read = (name: string) => style.getPropertyValue(name).trim() || "#808080";
    const font = `11px ${style.fontFamily || "sans-serif"}`;
    const grid = { stroke: read("--line"), width: 1 };
    const axis = { stroke: read("--quiet"), font, grid, ticks: { ...grid, size: 4 } };
    const { strips } = this.spec;
    this.plot = new uPlot(
      {
        width: Math.max(120, this.plotBox.clientWidth),
        height: this.height,
        legend: { show: false },
        cursor: { show: false },
        padding: [6, 8, 0, 0],
        scales: {
          x: { time: false, auto: false, range: () => [...this.group.range] as [number, number] },
          y: strips ? { range: [0, strips.length] } : { range: (_u, low, high) => this.chooseRange(low, high) },
        },
        axes: [
          { ...axis, size: 26, space: 60, values: (_u, ticks) => ticks.map((tick) => `${trim(tick)} s`) },
          strips
            ? {
                ...axis,
                size: labelWidth(this.group.context.stripLabels ?? []),
                splits: () => strips.map((_, i) => i + 0.5),
                grid: { show: false },
                ticks: { show: false },
                values: () => strips.map((_, i) => strips[strips.length - 1 - i]!.label),
              }
            : {
                ...axis,
                size: labelWidth(this.group.context.stripLabels ?? []),
                space: 28,
                values: (_u, ticks) => ticks.map(trim),
              },
        ],
        series: [
          {},
          ...(this.spec.lines.length > 0 ? this.spec.lines : [{ label: "", colour: "--line" } as Line]).map((line) => ({
            stroke: read(line.colour),
            width: line.width ?? 1.4,
            points: { show: false },
            ...(line.dash ? { dash: [...line.dash] } : {}),
          })),
        ],
        hooks: {
          drawClear: [(u) => this.drawBehind(u, read)],
          draw: [(u) => this.drawAbove(u, read, font)],
        },
      },
      this.readData(),
      this.plotBox,
    );
    this.plot.over.append(this.lineAt.hover, this.lineAt.now);
    this.listen(this.plot.over);
  }

  private chooseRange(low: number | null, high: number | null): [number, number] {
    const bounds = [low, high, ...(this.spec.range ?? [])].filter((value) => value !== null && value !== undefined);
    if (bounds.length === 0) return [0, 1];
    const min = Math.min(...bounds);
    const max = Math.max(...bounds);
    const margin = (max - min || Math.abs(max) || 1) * 0.06;
    return [min >= 0 && min - margin < 0 ? 0 : min - margin, max + margin];
  }

  private drawBehind(u: uPlot, read: (name: string) => string): void {
    const { dt, shades } = this.group.context;
    const { ctx, bbox } = u;
    clipTo(u);
    for (const { start, end, colour } of shades) {
      const left = u.valToPos(start * dt, "x", true);
      const right = u.valToPos((end - 1) * dt, "x", true);
      ctx.globalAlpha = 0.09;
      ctx.fillStyle = read(colour);
      ctx.fillRect(left, bbox.top, right - left, bbox.height);
    }
    ctx.restore();
    if (this.spec.strips) this.drawStrips(u, this.spec.strips, read);
  }

  private drawStrips(u: uPlot, strips: readonly Strip[], read: (name: string) => string): void {
    const { dt } = this.group.context;
    const { ctx, bbox } = u;
    const step = bbox.height / strips.length;
    clipTo(u);
    strips.forEach(({ bars }, i) => {
      const thickness = (step * 0.72) / bars.length;
      bars.forEach(({ colour, values }, k) => {
        const series = values();
        if (series === null) return;
        const top = bbox.top + i * step + step * 0.14 + k * thickness;
        ctx.fillStyle = read(colour);
        for (const [first, last] of findSpans(series)) {
          const left = u.valToPos((first - 0.5) * dt, "x", true);
          const right = u.valToPos((last + 0.5) * dt, "x", true);
          if (right < bbox.left || left > bbox.left + bbox.width) continue;
          ctx.fillRect(left, top, Math.max(1, right - left), thickness - devicePixelRatio);
        }
      });
    });
    ctx.restore();
  }

  private drawAbove(u: uPlot, read: (name: string) => string, font: string): void {
    const { ctx, bbox } = u;
    const { dt, events } = this.group.context;
    const ratio = devicePixelRatio;
    clipTo(u);
    ctx.font = font.replace("11px", `${10.5 * ratio}px`);
    ctx.lineWidth = ratio;
    for (const { value, label } of this.spec.thresholds ?? []) {
      const y = Math.round(u.valToPos(value, "y", true)) + 0.5;
      if (y < bbox.top || y > bbox.top + bbox.height) continue;
      ctx.setLineDash([2 * ratio, 3 * ratio]);
      ctx.strokeStyle = read("--fail");
      strokeLine(ctx, bbox.left, y, bbox.left + bbox.width, y);
      ctx.fillStyle = read("--quiet");
      ctx.textAlign = "right";
      const isHigh = y - bbox.top < 16 * ratio;
      ctx.textBaseline = isHigh ? "top" : "bottom";
      writeLabel(ctx, label, bbox.left + bbox.width - 4 * ratio, y + (isHigh ? 2 : -2) * ratio, read("--card"));
    }
    for (const { frame, label, colour } of events) {
      const x = Math.round(u.valToPos(frame * dt, "x", true)) + 0.5;
      if (x < bbox.left || x > bbox.left + bbox.width) continue;
      ctx.setLineDash([]);
      ctx.strokeStyle = read(colour);
      strokeLine(ctx, x, bbox.top, x, bbox.top + bbox.height);
      ctx.fillStyle = read(colour);
      const isRight = x > bbox.left + bbox.width - 60 * ratio;
      ctx.textAlign = isRight ? "right" : "left";
      ctx.textBaseline = "top";
      writeLabel(ctx, label, x + (isRight ? -4 : 4) * ratio, bbox.top + 2 * ratio, read("--card"));
    }
    ctx.restore();
    // Until a chart has been drawn nobody knows where a time is in it.
    this.group.placeLines(this);
  }

  private listen(over: HTMLElement): void {
    over.style.touchAction = "pan-y";
    const { context } = this.group;
    let zoomFrom: number | null = null;
    let isSeeking = false;
    const timeOf = (event: PointerEvent) => this.plot!.posToVal(event.clientX - over.getBoundingClientRect().left, "x");
    const frameOf = (event: PointerEvent) =>
      Math.min(context.frames - 1, Math.max(0, Math.round(timeOf(event) / context.dt)));
    over.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      over.setPointerCapture(event.pointerId);
      if (event.shiftKey) zoomFrom = timeOf(event);
      else {
        isSeeking = true;
        context.seek(frameOf(event));
      }
      event.preventDefault();
    });
    over.addEventListener("pointermove", (event) => {
      this.group.setHover(frameOf(event));
      if (isSeeking) context.seek(frameOf(event));
      if (zoomFrom !== null) {
        const a = this.plot!.valToPos(Math.min(zoomFrom, timeOf(event)), "x");
        const b = this.plot!.valToPos(Math.max(zoomFrom, timeOf(event)), "x");
        this.plot!.setSelect({ left: a, width: b - a, top: 0, height: over.clientHeight }, false);
      }
    });
    over.addEventListener("pointerup", (event) => {
      if (zoomFrom !== null) {
        const range = [zoomFrom, timeOf(event)].sort((a, b) => a - b) as [number, number];
        this.plot!.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
        if (range[1] - range[0] > 2 * context.dt) this.group.setZoom(range);
      }
      zoomFrom = null;
      isSeeking = false;
    });
    over.addEventListener("pointercancel", () => {
      zoomFrom = null;
      isSeeking = false;
    });
    over.addEventListener("pointerleave", () => this.group.setHover(null));
    over.addEventListener("dblclick", () => this.group.showAll());
  }
}

/** A series as uPlot wants it: its gaps are nulls. */
function toColumn(series: Float32Array | null, length: number): (number | null)[] {
  const column: (number | null)[] = new Array(length).fill(null);
  if (series === null) return column;
  for (let i = 0; i < Math.min(length, series.length); i++) {
    const value = series[i]!;
    if (!Number.isNaN(value)) column[i] = value;
  }
  return column;
}

function buildSwatch(label: string, colour: string, kind = ""): HTMLElement {
  const swatch = build("i", { class: `swatch ${kind}`.trim() });
  swatch.style.setProperty("--swatch", `var(${colour})`);
  return build("span", { class: "chart-key" }, swatch, label);
}

function clipTo({ ctx, bbox }: uPlot): void {
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip();
}

function strokeLine(ctx: CanvasRenderingContext2D, x0: number, y0: number, x1: number, y1: number): void {
  ctx.beginPath();
  ctx.moveTo(x0, y0);
  ctx.lineTo(x1, y1);
  ctx.stroke();
}

/** Pixels that the longest label of an axis needs. */
function labelWidth(labels: readonly string[]): number {
  return Math.min(120, Math.max(46, ...labels.map((label) => 12 + 6.3 * label.length)));
}

/** Writes a text that can be read over lines. */
function writeLabel(ctx: CanvasRenderingContext2D, text: string, x: number, y: number, halo: string): void {
  ctx.setLineDash([]);
  ctx.lineWidth = 3 * devicePixelRatio;
  ctx.lineJoin = "round";
  ctx.strokeStyle = halo;
  ctx.strokeText(text, x, y);
  ctx.lineWidth = devicePixelRatio;
  ctx.fillText(text, x, y);
}

function trim(value: number): string {
  return String(Number(value.toFixed(4)));
}
