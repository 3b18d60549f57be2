/** Calls back when the page's theme changes: by its switch, or with the system's. */
export function watchTheme(onChange: () => void): void {
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", onChange);
  new MutationObserver(onChange).observe(document.documentElement, {
    attributes: true,
    attributeFilter: ["data-theme"],
  });
}
