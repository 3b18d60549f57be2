/** Spans of frames. */

const MAX_LANES = 4;

/** Puts spans into as few lanes as their overlaps allow; those beyond the last lane share it. */
export function packLanes<T extends { readonly start: number; readonly end: number }>(spans: readonly T[]): T[][] {
  const lanes: T[][] = [];
  for (const span of [...spans].sort((a, b) => a.start - b.start || b.end - a.end)) {
    const free = lanes.find((lane) => lane[lane.length - 1]!.end <= span.start);
    if (free !== undefined) free.push(span);
    else if (lanes.length < MAX_LANES) lanes.push([span]);
    else lanes[MAX_LANES - 1]!.push(span);
  }
  return lanes;
}

/** The spans [first, last] of the frames whose value is above one half. */
export function findSpans(series: Float32Array): [number, number][] {
  const spans: [number, number][] = [];
  let first = -1;
  for (let frame = 0; frame <= series.length; frame++) {
    const isOn = frame < series.length && series[frame]! > 0.5;
    if (isOn && first < 0) first = frame;
    if (!isOn && first >= 0) {
      spans.push([first, frame - 1]);
      first = -1;
    }
  }
  return spans;
}
