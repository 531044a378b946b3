/** What the page looks like: `light`, `dark`, or empty for what the system says. */

export const theme = () => document.documentElement.dataset.theme ?? "";

/** Whether it will be remembered: some browsers keep nothing. */
export function setTheme(name: string): boolean {
  if (name) document.documentElement.dataset.theme = name;
  else delete document.documentElement.dataset.theme;
  try {
    if (name) localStorage.setItem("theme", name);
    else localStorage.removeItem("theme");
    return true;
  } catch {
    return false;
  }
}
