/** The clips that were chosen in the table: kept over swaps and pages, sent by the form with `data-selection`. */

import { build, setText } from "./dom.js";

const KEY = "ampref-selection";

function readForm(): HTMLFormElement | null {
  return document.querySelector<HTMLFormElement>("form[data-selection]");
}

function readBoxes(form: HTMLFormElement): HTMLInputElement[] {
  return [...form.elements].filter(
    (element): element is HTMLInputElement => element instanceof HTMLInputElement && element.type === "checkbox",
  );
}

function readChosen(): Set<string> {
  try {
    return new Set(JSON.parse(sessionStorage.getItem(KEY) ?? "[]") as string[]);
  } catch {
    return new Set();
  }
}

function keep(chosen: ReadonlySet<string>): void {
  try {
    sessionStorage.setItem(KEY, JSON.stringify([...chosen]));
  } catch {
    // Where storage is forbidden the selection is that of the page.
  }
}

/** Checks the boxes that were checked before, and writes how many there are. */
export function restoreSelection(): void {
  const form = readForm();
  if (form === null) return;
  const chosen = readChosen();
  for (const box of readBoxes(form)) box.checked = chosen.has(box.value);
  const count = document.querySelector("[data-selection-count]");
  if (count !== null) {
    if (!count.hasAttribute("data-empty")) count.setAttribute("data-empty", count.textContent ?? "");
    const text = chosen.size === 1 ? "1 clip is selected." : `${chosen.size} clips are selected.`;
    setText(count, chosen.size === 0 ? (count.getAttribute("data-empty") ?? "") : text);
  }
  for (const button of form.querySelectorAll<HTMLButtonElement>("[data-needs-selection]")) {
    button.disabled = chosen.size === 0;
  }
  const clear = form.querySelector("[data-selection-clear]") ?? addClearButton(form);
  (clear as HTMLElement).hidden = chosen.size === 0;
}

export function watchSelection(announce: (text: string) => void): void {
  document.addEventListener("change", (event) => {
    const form = readForm();
    const box = event.target as HTMLInputElement;
    if (form === null || box.form !== form || box.type !== "checkbox") return;
    const chosen = readChosen();
    if (box.checked) chosen.add(box.value);
    else chosen.delete(box.value);
    keep(chosen);
    restoreSelection();
    announce(document.querySelector("[data-selection-count]")?.textContent ?? "");
  });
  document.addEventListener("click", (event) => {
    if ((event.target as Element).closest("[data-selection-clear]") === null) return;
    keep(new Set());
    restoreSelection();
  });
  document.addEventListener("submit", (event) => {
    const form = event.target as HTMLFormElement;
    if (!form.matches("[data-selection]")) return;
    for (const input of form.querySelectorAll("input[data-elsewhere]")) input.remove();
    const boxes = readBoxes(form);
    const here = new Set(boxes.map((box) => box.value));
    // Those of other pages of the table have no box on this one.
    for (const value of readChosen()) {
      if (here.has(value)) continue;
      form.append(build("input", { type: "hidden", name: boxes[0]?.name ?? "clip", value, "data-elsewhere": true }));
    }
  });
}

function addClearButton(form: HTMLFormElement): HTMLElement {
  const button = build("button", { type: "button", class: "plain", "data-selection-clear": true }, "Clear");
  form.append(button);
  return button;
}
