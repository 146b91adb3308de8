// The checks of scripts/page.mjs. Each function runs in the page, so that it cannot refer to anything outside itself, and returns a
// list of findings.

/** Headings, the table of contents, and required elements. */
export function contents() {
  const wrong = [];
  const text = element => element.innerText.trim();
  const titles = [...document.querySelectorAll("h1")];
  if (titles.length !== 1 || !text(titles[0])) wrong.push("the page has no title, or several");
  if (!document.title.trim()) wrong.push("the window has no title");
  const sections = [...document.querySelectorAll("main > section")];
  if (sections.length < 3) wrong.push(`the page has ${sections.length} parts`);
  for (const section of sections) {
    const heading = section.querySelector(":scope > h2");
    if (!heading || !text(heading)) wrong.push(`the part ${section.id} has no heading`);
    if (section.getBoundingClientRect().height < 60) wrong.push(`the part ${section.id} is empty`);
  }
  for (const heading of document.querySelectorAll("h3, h4, summary")) {
    // innerText is empty in collapsed elements.
    if (!heading.textContent.trim()) wrong.push("a heading is empty");
  }
  const linked = [...document.querySelectorAll("nav a")];
  if (linked.length !== sections.length) wrong.push(`the contents name ${linked.length} of ${sections.length} parts`);
  for (const link of linked) {
    if (!document.querySelector(link.getAttribute("href"))) wrong.push(`“${text(link)}” in the contents leads nowhere`);
  }
  if (document.querySelector("b b, main b:not(td.bar > b)")) wrong.push("markup of a caption became markup of the page");
  return wrong;
}

/** Missing images. */
export async function images() {
  const wrong = [];
  for (const image of document.images) {
    // The dialog's image has no URL before a pair is opened.
    if (image.hidden && !image.getAttribute("src")) continue;
    await image.decode().catch(() => {});
    if (!image.complete || image.naturalWidth === 0) {
      wrong.push(`an image is missing: ${image.alt.slice(0, 60)}, ${image.src.slice(0, 60)}`);
    }
  }
  return wrong;
}

/** Text with too little contrast: WCAG's contrast of computed colors; text over a bar is also checked against the bar's color. */
export function contrast() {
  const LEAST = 4.5;
  const parse = color => {
    const [red, green, blue, alpha = 1] = color.match(/[\d.]+/g)?.map(Number) ?? [0, 0, 0, 0];
    return { rgb: [red, green, blue], alpha };
  };
  const over = (top, alpha, ground) => top.map((value, at) => alpha * value + (1 - alpha) * ground[at]);
  const luminance = rgb => {
    const [red, green, blue] = rgb.map(value => (value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const ratio = (one, other) => {
    const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const paper = parse(getComputedStyle(document.body).backgroundColor);
  const canvas = matchMedia("(prefers-color-scheme: dark)").matches && !matchMedia("print").matches ? [18, 18, 18] : [255, 255, 255];
  const ground = element => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) {
      if (at instanceof SVGElement) continue;
      const layer = parse(getComputedStyle(at).backgroundColor);
      layers.push(layer);
      if (layer.alpha === 1) break;
    }
    return layers.reduceRight((below, layer) => over(layer.rgb, layer.alpha, below), paper.alpha === 1 ? paper.rgb : canvas);
  };
  const found = new Map();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || !element.checkVisibility({ visibilityProperty: true }) || element.closest("script")) continue;
    const style = getComputedStyle(element);
    const ink = parse(element instanceof SVGElement ? style.fill : style.color);
    const grounds = [ground(element)];
    const bar = element.closest("td.bar")?.querySelector("span");
    if (bar) grounds.push(over(parse(getComputedStyle(bar).backgroundColor).rgb, Number(getComputedStyle(bar).opacity), grounds[0]));
    for (const below of grounds) {
      const contrast = ratio(over(ink.rgb, ink.alpha * Number(style.opacity), below), below);
      const path = `${element.parentElement.localName} ${element.localName}`;
      if (contrast < LEAST && !found.has(path)) {
        found.set(path, `“${node.data.trim().slice(0, 40)}” (${path}) has a contrast of ${contrast.toFixed(2)}, not ${LEAST}`);
      }
    }
  }
  return [...found.values()];
}

/** Charts that are empty, too small or illegible. */
export function chart(kind) {
  const wrong = [];
  const charts = [...document.querySelectorAll("figure.chart > svg")];
  if (charts.length === 0) wrong.push("there is no chart");
  for (const svg of charts) {
    const name = `the chart “${svg.getAttribute("aria-label")}”`;
    const box = svg.getBoundingClientRect();
    if (!(box.width > 200 && box.height > 100)) wrong.push(`${name} is ${box.width} × ${box.height} pixels`);
    const marks = [...svg.querySelectorAll("path, polyline, rect, circle, polygon")];
    // Axes and grid use the variables ink and grid; data has colors of its own.
    const data = marks.filter(mark => {
      const paint = ["stroke", "fill"].map(key => mark.getAttribute(key) ?? "none").filter(value => value !== "none");
      const size = mark.getBBox();
      return paint.some(value => !value.startsWith("var(")) && (size.width > 1 || size.height > 1);
    });
    if (data.length === 0) wrong.push(`${name} is empty`);
    const texts = [...svg.querySelectorAll("text")];
    if (texts.length < 4) wrong.push(`${name} has ${texts.length} texts`);
    const scale = box.width / svg.viewBox.baseVal.width;
    const sizes = texts.map(text => parseFloat(getComputedStyle(text).fontSize) * scale);
    // On paper a pixel is 0.75 points.
    const least = kind === "print" ? 8 : 9;
    const smallest = Math.min(...sizes);
    if (smallest < least) wrong.push(`${name} has text of ${smallest.toFixed(1)} pixels`);
    for (const text of texts) {
      const words = text.getBoundingClientRect();
      if (words.left < box.left - 1 || words.right > box.right + 1 || words.bottom > box.bottom + 1 || words.top < box.top - 1) {
        wrong.push(`${name} cuts “${text.textContent.trim()}” off`);
      }
    }
    // Legend text that overflows its frame with the browser's font.
    const frames = [...svg.querySelectorAll("rect")].filter(rect => rect.getAttribute("fill") === "none" || rect.getAttribute("stroke") === "var(--grid)");
    for (const frame of frames) {
      const area = frame.getBoundingClientRect();
      for (const text of texts) {
        const words = text.getBoundingClientRect();
        const within = words.left > area.left && words.left < area.right && words.top > area.top - 4 && words.bottom < area.bottom + 4;
        if (within && words.right > area.right + 1) wrong.push(`${name}: “${text.textContent.trim()}” leaves its legend`);
      }
    }
  }
  return [...new Set(wrong)];
}

/** Colors of legends, bars and lines that are too close to the background or to one another. */
export function colors() {
  const wrong = [];
  const rgb = color => color.match(/[\d.]+/g).slice(0, 3).map(value => {
    const share = value / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  const luminance = ([red, green, blue]) => 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  const lab = ([red, green, blue]) => {
    const long = Math.cbrt(0.4122214708 * red + 0.5363325363 * green + 0.0514459929 * blue);
    const middle = Math.cbrt(0.2119034982 * red + 0.6806995451 * green + 0.1073969566 * blue);
    const short = Math.cbrt(0.0883024619 * red + 0.2817188376 * green + 0.6299787005 * blue);
    return [0.2104542553 * long + 0.793617785 * middle - 0.0040720468 * short,
      1.9779984951 * long - 2.428592205 * middle + 0.4505937099 * short,
      0.0259040371 * long + 0.7827717662 * middle - 0.808675766 * short];
  };
  const paper = rgb(getComputedStyle(document.body).backgroundColor);
  const ratio = color => {
    const [low, high] = [luminance(color), luminance(paper)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  // All kinds, even those that this page does not have.
  const probe = document.body.appendChild(document.createElement("i"));
  const kinds = Array.from({ length: 9 }, (_, at) => {
    probe.className = `kind-${at}`;
    return { name: `kind ${at}`, color: rgb(getComputedStyle(probe).backgroundColor) };
  });
  probe.remove();
  const lines = new Map();
  for (const mark of document.querySelectorAll("figure.chart > svg :is(path, polyline, line, circle)")) {
    for (const key of ["stroke", "fill"]) {
      const attribute = mark.getAttribute(key);
      const color = getComputedStyle(mark)[key];
      if (attribute && attribute !== "none" && !attribute.startsWith("var(") && color.startsWith("rgb")) {
        lines.set(attribute, { name: `a line's ${attribute}`, color: rgb(color) });
      }
    }
  }
  for (const { name, color } of [...kinds, ...lines.values()]) {
    if (ratio(color) < 2) wrong.push(`${name} has a contrast of ${ratio(color).toFixed(2)} to the paper, not 2`);
  }
  const swatches = document.querySelectorAll(".legend i");
  for (const swatch of swatches) {
    const box = swatch.getBoundingClientRect();
    if (box.width < 8 || box.height < 8) wrong.push("a swatch of a legend cannot be seen");
  }
  for (const together of [kinds, [...lines.values()]]) {
    together.forEach((one, at) => together.slice(at + 1).forEach(other => {
      const [a, b] = [lab(one.color), lab(other.color)];
      const distance = Math.hypot(a[0] - b[0], a[1] - b[1], a[2] - b[2]);
      if (distance < 0.08) wrong.push(`${one.name} and ${other.name} look alike (OKLab distance ${distance.toFixed(3)})`);
    }));
  }
  return wrong;
}

/** Elements wider than the window. Tables and charts may scroll. */
export function wide() {
  const width = document.documentElement.clientWidth;
  const whole = Math.max(document.documentElement.scrollWidth, document.body.scrollWidth);
  const found = { document: [], elements: [] };
  if (whole > width) found.document.push(`the page is ${whole} pixels wide in a window of ${width}`);
  for (const element of document.body.querySelectorAll("*")) {
    const box = element.getBoundingClientRect();
    if (box.width === 0 || box.right <= width + 1) continue;
    let scrolled = false;
    for (let at = element.parentElement; at; at = at.parentElement) {
      scrolled ||= ["auto", "scroll"].includes(getComputedStyle(at).overflowX) && at.getBoundingClientRect().right <= width + 1;
    }
    // Report an element once, without its descendants.
    if (!scrolled && !(element.parentElement !== document.body && element.parentElement.getBoundingClientRect().right > width + 1)) found.elements.push(`<${element.localName} class="${element.getAttribute("class") ?? ""}"> ends at ${box.right.toFixed(0)} of ${width} pixels`);
  }
  return found;
}

/** Sorting of every column: ascending after one click, descending after another, numbers numerically, missing values last. */
export function sort() {
  const wrong = [];
  let sorted = 0;
  for (const table of document.querySelectorAll("table")) {
    for (const head of table.querySelectorAll("th")) {
      const button = head.querySelector("button");
      if (!head.checkVisibility() && !head.closest("details:not([open])")) continue;
      const name = `the column “${head.innerText.trim()}”`;
      const keys = () => [...table.tBodies[0].rows].map(row => row.cells[head.cellIndex].dataset.sort ?? "");
      const all = keys().sort().join("\n");
      const numbers = keys().every(key => key === "" || !isNaN(key));
      for (const direction of ["ascending", "descending"]) {
        button.click();
        const now = keys();
        const present = now.filter(key => key !== "");
        if (now.slice(present.length).some(key => key !== "")) wrong.push(`${name} has gaps before its end, ${direction}`);
        if (now.slice().sort().join("\n") !== all) wrong.push(`${name} loses rows when it is sorted`);
        if (head.getAttribute("aria-sort") !== direction) wrong.push(`${name} does not say that it is ${direction}`);
        const order = (a, b) => (numbers ? a - b : a.localeCompare(b)) * (direction === "ascending" ? 1 : -1);
        if (present.some((key, at) => at > 0 && order(present[at - 1], key) > 0)) wrong.push(`${name} is not sorted, ${direction}`);
        sorted += new Set(present).size > 2;
      }
      if (table.querySelectorAll("th[aria-sort]").length !== 1) wrong.push(`${name} is sorted along with another`);
    }
  }
  if (sorted === 0) wrong.push("no table can be sorted");
  return wrong;
}

/** The dialog of a pair, compared with the page's data. `index` is that of the tile clicked last. */
export function pairDialog(index) {
  const dialog = document.getElementById("pair");
  if (!dialog.open) return ["a click on a tile opens no dialog"];
  const wrong = [];
  const shown = document.getElementById("pair-text").innerText;
  const sheets = [...document.querySelectorAll(".sheet")];
  const of = sheets.map(sheet => JSON.parse(document.getElementById(sheet.dataset.tiles).textContent)[Number(index)]);
  const tidy = text => text.replace(/\s+/g, " ").trim();
  const tile = of.find(one => one && tidy(shown).includes(`id ${one.id} `));
  if (!tile) return ["the dialog does not show the id of the pair"];
  const sheet = sheets[of.indexOf(tile)];
  const tiles = JSON.parse(document.getElementById(sheet.dataset.tiles).textContent);
  if (!tidy(shown).endsWith(tidy(tile.caption))) wrong.push(`the dialog does not show the caption of ${tile.id}`);
  if (!shown.includes(`rank ${tile.rank + 1} of ${sheet.dataset.rows}`)) wrong.push(`the dialog does not show the rank of ${tile.id}`);
  if (!shown.includes(`rating ${tile.rating}`)) wrong.push(`the dialog does not show the rating of ${tile.id}`);
  const ranked = new Set(tiles.map(one => one.rank));
  const expected = [];
  for (let rank = tile.rank - 3; rank <= tile.rank + 3; rank++) if (ranked.has(rank)) expected.push(rank + 1);
  const strip = [...document.querySelectorAll("#pair-strip .tile")];
  const ranks = strip.map(button => Number(/rank (\d+)/.exec(button.innerText)?.[1]));
  if (ranks.join() !== expected.join()) wrong.push(`the neighbors of rank ${tile.rank + 1} are ${ranks.join()}, not ${expected.join()}`);
  const current = strip.filter(button => button.getAttribute("aria-current") === "true");
  if (current.length !== 1 || !current[0].innerText.includes(`rank ${tile.rank + 1}`)) wrong.push("the pair is not marked among its neighbors");
  const image = document.getElementById("pair-image");
  const large = image.checkVisibility() && image.naturalWidth > 0;
  if (tile.missing) {
    if (!tidy(shown).includes(tidy(tile.missing))) wrong.push(`the dialog does not say why the image of ${tile.id} cannot be read`);
    if (large) wrong.push(`the dialog shows another image for ${tile.id}, which cannot be read`);
    if (!current[0]?.innerText.includes("cannot be read")) wrong.push("an image that cannot be read is not called so among the neighbors");
  } else if (!large) wrong.push(`the dialog shows no image of ${tile.id}`);
  for (const small of document.querySelectorAll("#pair-strip img")) {
    if (!small.src.startsWith("data:image/")) wrong.push("a neighbor has no image");
  }
  const box = dialog.getBoundingClientRect();
  if (box.left < 0 || box.right > innerWidth || box.top < 0 || box.bottom > innerHeight) wrong.push("the dialog is larger than the window");
  return wrong;
}
