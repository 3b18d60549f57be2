/** The page's colours, from the custom properties of its style sheet. */

import { Color } from "three";

export interface Theme {
  readonly isDark: boolean;
  readonly card: Color;
  readonly stage: Color;
  readonly ground: Color;
  readonly grid: Color;
  readonly rim: Color;
  readonly ghost: Color;
  readonly force: Color;
}

export function readTheme(element: Element): Theme {
  const style = getComputedStyle(element);
  const read = (name: string, fallback: string) => new Color(style.getPropertyValue(name).trim() || fallback);
  const card = read("--card", "#ffffff");
  const ink = read("--ink", "#1d1d1f");
  const isDark = card.r + card.g + card.b < 1.5;
  const stage = read("--stage", isDark ? "#1a1d22" : "#eef0f3");
  return {
    isDark,
    card,
    stage,
    ground: stage.clone().lerp(ink, isDark ? 0.045 : 0.03),
    grid: stage.clone().lerp(ink, isDark ? 0.2 : 0.17),
    rim: isDark ? new Color("#aab6c8") : new Color("#3a414d"),
    ghost: read("--c0", "#2f6fdb"),
    force: read("--c1", "#d1541b"),
  };
}
