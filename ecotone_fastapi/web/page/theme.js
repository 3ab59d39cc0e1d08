// Runs before the page is painted, so that a chosen theme does not flash; therefore it is no module.
(() => {
  const KEY = "ecotone-theme";
  const root = document.documentElement;

  function kept() {
    try {
      return localStorage.getItem(KEY) ?? "";
    } catch {
      return ""; // the browser keeps nothing for this site
    }
  }

  function keep(theme) {
    try {
      localStorage.setItem(KEY, theme);
    } catch {
      // It lasts as long as the page, then.
      return;
    }
  }

  function use(theme) {
    if (theme === "light" || theme === "dark") {
      root.dataset.theme = theme;
    } else {
      delete root.dataset.theme;
    }
  }

  use(kept());
  document.addEventListener("DOMContentLoaded", () => {
    const choice = document.getElementById("theme");
    choice.value = root.dataset.theme ?? "";
    choice.addEventListener("change", () => {
      use(choice.value);
      keep(choice.value);
    });
  });
})();
