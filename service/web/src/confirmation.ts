/** Asks before a form is sent: `data-confirm="…?"` on the form or on the button that was pressed. */

import { build } from "./dom.js";

const confirmed = new WeakSet<HTMLFormElement>();

/** Stops a form that needs a confirmation, and sends it again when that was given. Returns whether it was stopped. */
export function askBefore(event: SubmitEvent): boolean {
  const form = event.target as HTMLFormElement;
  const button = event.submitter;
  const question = button?.getAttribute("data-confirm") ?? form.getAttribute("data-confirm");
  if (question === null || confirmed.delete(form)) return false;
  event.preventDefault();
  event.stopPropagation();
  const send = build("button", { value: "send", class: "danger" }, button?.textContent?.trim() || "Go on");
  const dialog = build(
    "dialog",
    { class: "confirmation", "aria-label": question },
    build("p", {}, question),
    build("form", { method: "dialog", class: "row" }, build("button", { value: "", autofocus: true }, "Cancel"), send),
  );
  dialog.addEventListener("close", () => {
    dialog.remove();
    if (dialog.returnValue !== "send") return;
    confirmed.add(form);
    form.requestSubmit(button as HTMLButtonElement | null);
  });
  document.body.append(dialog);
  dialog.showModal();
  return true;
}
