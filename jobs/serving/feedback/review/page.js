"use strict";
// Keys press the page's own buttons; without this file everything works by mouse or by Tab and Enter.
const alias = { ArrowLeft: "1", ArrowRight: "2", "=": "3", "0": "4" };

function press(key) {
  const found = document.querySelector(`[data-key="${CSS.escape(key)}"]`);
  if (!found) return false;
  if (found.tagName === "SUMMARY") {
    const details = found.parentElement;
    details.open = true;
    const area = details.querySelector("textarea");
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
  } else {
    found.click();
  }
  return true;
}

document.addEventListener("keydown", (event) => {
  const area = event.target.closest?.("textarea");
  if (area) {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      area.parentElement.querySelector("button").click();
    } else if (event.key === "Escape") {
      area.parentElement.open = false;
      area.blur();
    }
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (press(alias[event.key] ?? event.key.toLowerCase())) event.preventDefault();
});

let sent = false; // a second press while the next page is on its way judges nothing
document.addEventListener("submit", (event) => {
  if (sent) event.preventDefault();
  sent = true;
});
window.addEventListener("pageshow", () => { sent = false; });
