/** What the server writes into the page for the replay: `<script type="application/json" id="replay-data">`. */

export interface Mark {
  readonly start: number;
  readonly end: number;
  readonly text: string;
  readonly kind: string;
}

export interface Segment {
  readonly start: number;
  readonly end: number;
  readonly tier: number;
  readonly score: number | null;
}

export interface RolloutData {
  readonly id: string;
  readonly label: string;
  readonly mode: string;
  readonly tier: number | null;
  readonly frames_url: string;
  readonly frames: number;
  readonly control_dt: number;
  readonly weight_n: number;
  readonly fell_at_frame: number | null;
  readonly failure_frame: number | null;
  readonly marks: readonly Mark[];
  readonly segments: readonly Segment[];
  /** A number, or [low, high], by the name of the gate's metric. */
  readonly thresholds: Readonly<Record<string, number | readonly [number | null, number | null]>>;
  readonly result_url: string;
}

export interface PageData {
  readonly scene_url: string;
  readonly rollouts: readonly RolloutData[];
  readonly start_frame: number | null;
  /** Whether the page is a file of its own, with no address to keep the frame in. */
  readonly static: boolean;
}

export function readPageData(): PageData | null {
  const element = document.getElementById("replay-data");
  return element === null ? null : (JSON.parse(element.textContent ?? "") as PageData);
}

export function nameTier(tier: number | null): string {
  if (tier === null) return "not scored";
  return tier < 0 ? "Rejected" : `Tier ${tier}`;
}

/** The class by which the style sheet colours a tier. */
export function classOfTier(tier: number | null): string {
  if (tier === null) return "unscored";
  return tier < 0 ? "rejected" : `tier-${tier}`;
}

/** Where the charts go: the element that the page has for them, or a new one behind the replay. */
export function findCharts(replay: HTMLElement): HTMLElement {
  const existing = document.querySelector<HTMLElement>("[data-charts]");
  if (existing !== null) return existing;
  const section = document.createElement("section");
  section.dataset.charts = "";
  replay.after(section);
  return section;
}
