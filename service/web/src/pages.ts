/** What every page has: htmx, and the small parts that README.md describes. Each works on what is there when it is used, so that
 * nothing has to be set up again after htmx has swapped a part of the page. */

import htmx from "htmx.org";
import { askBefore } from "./confirmation.js";
import { build, copyText, setText } from "./dom.js";
import { markRanges, watchRanges } from "./ranges.js";
import { restoreSelection, watchSelection } from "./selection.js";
import { sendJson } from "./sending.js";

const COPIED_MS = 1600;
const RELATIVE_MS = 30_000;

/** Says something to people who use a screen reader, and to those who look at a button, which says it itself. */
function announce(text: string): void {
  const region = document.querySelector("[data-announce]");
  if (region === null) return;
  region.textContent = "";
  // Without a pause the same words twice would be said once.
  window.setTimeout(() => setText(region, text), 50);
}

function configureHtmx(): void {
  // An answer that is no success is a page of its own, and never a part of this one.
  htmx.config.noSwap = [204, 304, "4xx", "5xx"] as unknown as number[];
  htmx.config.includeIndicatorCSS = false;
  document.addEventListener("htmx:config:request", (event) => {
    const { ctx } = (event as CustomEvent).detail;
    const token = document.querySelector<HTMLMetaElement>('meta[name="csrf-token"]')?.content;
    if (token) ctx.request.headers["X-CSRF-Token"] = token;
  });
  document.addEventListener("htmx:before:request", (event) => {
    // What nobody looks at is not asked for.
    const { ctx } = (event as CustomEvent).detail;
    if (document.hidden && ctx.sourceElement?.matches("[hx-trigger^=every]")) event.preventDefault();
  });
  const showFault = () => setFault("The service does not answer. The page shows what it last said.");
  document.addEventListener("htmx:error", showFault);
  document.addEventListener("htmx:response:error", (event) => {
    const { ctx } = (event as CustomEvent).detail;
    // What was waited for is gone with the page that it is on.
    if (ctx?.response?.status === 404 && ctx.sourceElement?.matches("[data-reload-when-gone]")) location.reload();
    else showFault();
  });
  document.addEventListener("htmx:after:swap", () => setFault(null));
  document.addEventListener("htmx:after:swap", () => refresh());
}

/** Shows what went wrong with a request of the page itself, until one succeeds. */
function setFault(text: string | null): void {
  const shown = document.querySelector(".page-fault");
  if (text === null) shown?.remove();
  else if (shown === null) {
    document.querySelector("main")?.prepend(build("p", { class: "notice page-fault", role: "alert" }, text));
  }
}

/** After the page has been loaded, and after each swap. */
function refresh(): void {
  writeRelativeTimes();
  restoreSelection();
  markRanges();
  reloadWhenGone();
}

const awaited = new Set<string>();

/** A part with `data-reload-when-gone` was waited for; when it is no longer there, the page has something new to show. */
function reloadWhenGone(): void {
  for (const element of document.querySelectorAll("[data-reload-when-gone][id]")) awaited.add(element.id);
  if ([...awaited].some((id) => document.getElementById(id) === null)) location.reload();
}

async function copy(button: HTMLElement): Promise<void> {
  const source = document.querySelector<HTMLElement>(button.dataset.copy ?? "");
  if (source === null) return;
  const text = source instanceof HTMLInputElement ? source.value : (source.textContent ?? "");
  const isCopied = await copyText(text.trim());
  announce(isCopied ? "Copied." : "The browser does not allow copying.");
  const label = button.dataset.idleLabel ?? button.textContent ?? "";
  button.dataset.idleLabel = label;
  setText(button, isCopied ? "Copied" : "Not allowed");
  window.setTimeout(() => setText(button, label), COPIED_MS);
}

const THEMES = ["auto", "light", "dark"] as const;

function readTheme(): (typeof THEMES)[number] {
  const theme = document.documentElement.dataset.theme;
  return theme === "light" || theme === "dark" ? theme : "auto";
}

function changeTheme(): void {
  const theme = THEMES[(THEMES.indexOf(readTheme()) + 1) % THEMES.length]!;
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  try {
    if (theme === "auto") localStorage.removeItem("ampref-theme");
    else localStorage.setItem("ampref-theme", theme);
  } catch {
    // Where storage is forbidden the choice holds for this page.
  }
  labelThemeButtons();
  announce(`Theme: ${theme}.`);
}

function labelThemeButtons(): void {
  for (const button of document.querySelectorAll<HTMLElement>("[data-theme-toggle]")) {
    button.hidden = false;
    setText(button, `Theme: ${readTheme()}`);
  }
}

const UNITS: readonly (readonly [Intl.RelativeTimeFormatUnit, number])[] = [
  ["year", 31_557_600],
  ["month", 2_629_800],
  ["week", 604_800],
  ["day", 86_400],
  ["hour", 3_600],
  ["minute", 60],
];
const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto" });

export function formatRelative(seconds: number): string {
  const [unit, size] = UNITS.find(([, size]) => Math.abs(seconds) >= size) ?? ["second", 1];
  if (unit === "second") return Math.abs(seconds) < 10 ? "just now" : relative.format(Math.round(seconds), unit);
  return relative.format(Math.round(seconds / size), unit);
}

function writeRelativeTimes(): void {
  for (const element of document.querySelectorAll<HTMLTimeElement>("time[data-relative]")) {
    const at = Date.parse(element.dateTime);
    if (Number.isNaN(at)) continue;
    if (!element.title) element.title = element.textContent ?? "";
    setText(element, formatRelative((at - Date.now()) / 1000));
  }
}

function start(): void {
  configureHtmx();
  document.addEventListener("click", (event) => {
    const target = event.target as Element;
    const copying = target.closest<HTMLElement>("[data-copy]");
    if (copying !== null) void copy(copying);
    if (target.closest("[data-theme-toggle]") !== null) changeTheme();
  });
  document.addEventListener("submit", (event) => {
    if (askBefore(event)) return;
    void sendJson(event, announce);
  });
  watchRanges();
  watchSelection(announce);
  labelThemeButtons();
  refresh();
  window.setInterval(writeRelativeTimes, RELATIVE_MS);
}

start();
