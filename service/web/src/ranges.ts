/** Histograms as filters: in a `data-range`, a drag over bars (`data-low`, `data-high`) sets its two number inputs. */

function readInputs(range: Element): [HTMLInputElement, HTMLInputElement] | null {
  const [low, high] = range.querySelectorAll<HTMLInputElement>("input[type=number]");
  return low !== undefined && high !== undefined ? [low, high] : null;
}

/** Bars outside the range get the class `cut`. */
export function markRanges(): void {
  for (const range of document.querySelectorAll("[data-range]")) {
    const inputs = readInputs(range);
    if (inputs === null) continue;
    const low = inputs[0].value === "" ? Number.NEGATIVE_INFINITY : inputs[0].valueAsNumber;
    const high = inputs[1].value === "" ? Number.POSITIVE_INFINITY : inputs[1].valueAsNumber;
    for (const bar of range.querySelectorAll("[data-low]")) {
      const { start, end } = readBar(bar);
      bar.classList.toggle("cut", end <= low || start >= high);
    }
  }
}

export function watchRanges(): void {
  let anchor: Element | null = null;
  document.addEventListener("pointerdown", (event) => {
    const bar = barAt(event);
    if (bar === null || event.button !== 0) return;
    event.preventDefault();
    anchor = bar;
    choose(anchor, bar);
  });
  document.addEventListener("pointermove", (event) => {
    if (anchor === null) return;
    const bar = barAt(event);
    if (bar !== null && bar.closest("[data-range]") === anchor.closest("[data-range]")) choose(anchor, bar);
  });
  document.addEventListener("pointerup", () => {
    if (anchor === null) return;
    const inputs = readInputs(anchor.closest("[data-range]")!);
    anchor = null;
    // The page may apply a filter as soon as it has changed.
    inputs?.[1].dispatchEvent(new Event("change", { bubbles: true }));
  });
  document.addEventListener("pointercancel", () => {
    anchor = null;
  });
  document.addEventListener("input", (event) => {
    if ((event.target as Element).closest("[data-range]") !== null) markRanges();
  });
}

/** The bar below the pointer, also above a bar that is low: a column is clickable in all its height. */
function barAt(event: PointerEvent): Element | null {
  const range = document.elementFromPoint(event.clientX, event.clientY)?.closest("[data-range]");
  const svg = range?.querySelector("svg");
  if (!range || !svg?.contains(document.elementFromPoint(event.clientX, event.clientY))) return null;
  for (const bar of range.querySelectorAll("[data-low]")) {
    const { left, right } = bar.getBoundingClientRect();
    if (event.clientX >= left && event.clientX <= right) return bar;
  }
  return null;
}

function choose(first: Element, last: Element): void {
  const inputs = readInputs(first.closest("[data-range]")!);
  if (inputs === null) return;
  const a = readBar(first);
  const b = readBar(last);
  inputs[0].value = String(Math.min(a.start, b.start));
  inputs[1].value = String(Math.max(a.end, b.end));
  markRanges();
}

function readBar(bar: Element): { start: number; end: number } {
  return { start: Number(bar.getAttribute("data-low")), end: Number(bar.getAttribute("data-high")) };
}
