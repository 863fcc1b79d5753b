// What is wrong with a page: controls and pictures without a name, and texts with too little contrast.
const wrong = [];
for (const node of document.querySelectorAll("a, button, input, select, svg, meter")) {
  const label = node.id && document.querySelector(`label[for="${node.id}"]`);
  const hidden = node.closest("[aria-hidden=true]") || node.parentElement.closest("svg");
  if (!hidden && !(node.getAttribute("aria-label") || node.textContent.trim() || label)) wrong.push(`no name: ${node.outerHTML.slice(0, 80)}`);
}
const channels = (color) => color.match(/[\d.]+/g).map(Number);
const light = ([r, g, b]) => [r, g, b].map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
  .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
for (const node of document.querySelectorAll("main *")) {
  const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
  if (!own || node.closest("svg, :disabled")) continue;
  let behind = node;
  while (behind && (channels(getComputedStyle(behind).backgroundColor)[3] ?? 1) === 0) behind = behind.parentElement;
  const pair = [getComputedStyle(node).color, behind ? getComputedStyle(behind).backgroundColor : "rgb(255, 255, 255)"].map(channels).map(light);
  const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
  if (ratio < 4.5) wrong.push(`contrast ${ratio.toFixed(1)}: ${node.outerHTML.slice(0, 80)}`);
}
return wrong;
