/** Sends a form with `data-json` to the API: its fields as a JSON object, with the session's token. */

export async function sendJson(event: SubmitEvent, announce: (text: string) => void): Promise<void> {
  const form = event.target as HTMLFormElement;
  if (!form.hasAttribute("data-json") || event.defaultPrevented) return;
  event.preventDefault();
  const button = event.submitter as HTMLButtonElement | null;
  if (button !== null) button.disabled = true;
  const place = form.querySelector("[data-form-error]");
  if (place !== null) place.textContent = "";
  try {
    const response = await fetch(form.action, {
      method: form.dataset.method ?? "POST",
      headers: {
        "Content-Type": "application/json",
        Accept: "application/json",
        "X-CSRF-Token": document.querySelector<HTMLMetaElement>('meta[name="csrf-token"]')?.content ?? "",
      },
      body: JSON.stringify(readFields(form)),
    });
    if (response.ok) {
      if (form.dataset.then) location.assign(form.dataset.then);
      else location.reload();
      return;
    }
    const body = (await response.json().catch(() => ({}))) as { detail?: unknown; remedy?: unknown };
    const text = [body.detail, body.remedy].filter((part) => typeof part === "string").join(" ");
    fail(text || `The service refused (HTTP ${response.status}).`);
  } catch {
    fail("The service does not answer.");
  }

  function fail(text: string): void {
    if (button !== null) button.disabled = false;
    if (place !== null) place.textContent = text;
    announce(text);
  }
}

/** The fields by name: numbers as numbers, a checkbox without a value as true or false, a name that repeats as a list. */
export function readFields(form: HTMLFormElement): Record<string, unknown> {
  const fields: Record<string, unknown> = {};
  for (const element of form.elements) {
    if (
      !(
        element instanceof HTMLInputElement ||
        element instanceof HTMLSelectElement ||
        element instanceof HTMLTextAreaElement
      )
    ) {
      continue;
    }
    if (!element.name || element.disabled || element.name === "csrf_token") continue;
    let value: unknown = element.value;
    if (element instanceof HTMLInputElement) {
      if (element.type === "checkbox" && !element.hasAttribute("value")) value = element.checked;
      else if ((element.type === "checkbox" || element.type === "radio") && !element.checked) continue;
      else if (element.type === "number") {
        if (element.value === "") continue;
        value = element.valueAsNumber;
      }
    }
    if (element.value === "" && !element.hasAttribute("data-keep-empty") && value === "") continue;
    const earlier = fields[element.name];
    if (element.hasAttribute("data-list")) fields[element.name] = [...((earlier as unknown[]) ?? []), value];
    else fields[element.name] = earlier === undefined ? value : [earlier, value].flat();
  }
  return fields;
}
