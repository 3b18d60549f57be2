/** Sets the theme that was chosen, before anything is painted: a small script in the head, no module. */

const theme = (() => {
  try {
    return localStorage.getItem("ampref-theme");
  } catch {
    return null; // storage may be forbidden
  }
})();
if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
