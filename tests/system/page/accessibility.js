// The faults of the page for people who do not see it, see little, or have no mouse: the body of a function that returns a list of sentences.
const faults = [];
const isSeen = (element) => element.checkVisibility({ visibilityProperty: true });
const all = (selector) => [...document.querySelectorAll(selector)].filter(isSeen);
const named = (element) => element.outerHTML.slice(0, 120);
const textOf = (id) => document.getElementById(id)?.textContent.trim() ?? "";

for (const landmark of ["header", "main"]) {
  if (all(landmark).length !== 1) faults.push("there is not one " + landmark);
}
for (const child of document.body.children) {
  if (isSeen(child) && !child.matches("header, main, #skip")) faults.push("outside of all landmarks: " + named(child));
}

if (all("h1").length !== 1) faults.push("there is not one first heading");
let level = 0;
for (const heading of all("h1, h2, h3, h4, h5, h6")) {
  const own = Number(heading.tagName[1]);
  if (own > level + 1) faults.push("a level of headings is left out before " + named(heading));
  if (heading.textContent.trim() === "") faults.push("a heading is empty: " + named(heading));
  level = own;
}

for (const field of all("input, select, textarea")) {
  const labels = [...field.labels].filter((label) => isSeen(label) && label.textContent.trim() !== "");
  if (labels.length === 0) faults.push("without a label: " + named(field));
}
for (const control of all("a, button")) {
  if (control.textContent.trim() === "") faults.push("without a text: " + named(control));
}
for (const element of all("[aria-labelledby]")) {
  if (textOf(element.getAttribute("aria-labelledby")) === "") faults.push("without a name: " + named(element));
}
for (const table of all("table")) {
  if ((table.caption?.textContent.trim() ?? "") === "") faults.push("without a caption: " + named(table));
  if (table.querySelector("th:not([scope])")) faults.push("a header without its scope: " + named(table));
}

const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
for (const id of new Set(ids)) {
  if (ids.filter((other) => other === id).length > 1) faults.push("an id is there twice: " + id);
}

const parts = (colour) => colour.match(/[\d.]+/g).map(Number);
const luminance = (colour) => {
  const linear = (part) => (part <= 10 ? part / 3294.6 : ((part / 255 + 0.055) / 1.055) ** 2.4);
  const [red, green, blue] = parts(colour).map(linear);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
};
const behind = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const colour = getComputedStyle(at).backgroundColor;
    if ((parts(colour)[3] ?? 1) === 1) return colour;
  }
  return "rgb(255, 255, 255)";
};
for (const element of all("body *")) {
  const hasText = [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.textContent.trim() !== "");
  if (!hasText) continue;
  const [text, back] = [luminance(getComputedStyle(element).color), luminance(behind(element))];
  const contrast = (Math.max(text, back) + 0.05) / (Math.min(text, back) + 0.05);
  if (contrast < 4.5) faults.push("a contrast of " + contrast.toFixed(2) + ": " + named(element));
}
return faults;
