// Checks pages written by `report` in a headless browser: light and dark, in a wide window, on a phone, and in print. Prints the
// findings and fails if there are any. Writes screenshots and the printed page next to each page.
//
//     node scripts/page.mjs PAGE.html…
//     node scripts/page.mjs --self-test PAGE.html     # mutates the page; each mutation must be detected
//
// scripts/page.sh creates the pages and installs the dependencies: Chromium (or CHROMIUM=/path/to/it) and playwright-core.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { basename, join, resolve } from "node:path";
import { pathToFileURL } from "node:url";

import { chart, colors, contents, contrast, images, pairDialog, sort, wide } from "./page_checks.mjs";
import { MUTATIONS } from "./page_mutations.mjs";

const { chromium } = createRequire(new URL("../target/page/", import.meta.url))("playwright-core");

const WIDE = { width: 1280, height: 900 };
const PHONE = { width: 390, height: 844 };
// An A4 page without Chromium's margins, in CSS pixels.
const PAPER = { width: 718, height: 1047 };

/** Findings about a page: failures, and notes that do not fail the check. */
class Findings {
  constructor() {
    this.wrong = new Set();
    this.notes = new Set();
  }

  add(where, list) {
    for (const text of list) this.wrong.add(`${where}: ${text}`);
  }
}

async function open(browser, file, where, viewport, scheme, findings) {
  const context = await browser.newContext({ viewport, colorScheme: scheme });
  const page = await context.newPage();
  page.setDefaultTimeout(10_000);
  const own = pathToFileURL(file).href;
  page.on("console", message => {
    if (["error", "warning"].includes(message.type())) findings.add(where, [`the console says: ${message.text().slice(0, 200)}`]);
  });
  page.on("pageerror", error => findings.add(where, [`a script fails: ${error.message}`]));
  page.on("request", request => {
    const address = request.url();
    if (!address.startsWith("data:") && address.split("#")[0] !== own) findings.add(where, [`${address} is requested`]);
  });
  await page.goto(own, { waitUntil: "load" });
  return page;
}

/** Runs all checks that need no interaction. The screenshot is written to `file` if given. */
async function look(page, where, findings, kind, screenshot, file) {
  findings.add(where, await page.evaluate(contents));
  findings.add(where, await page.evaluate(images));
  findings.add(where, await page.evaluate(contrast));
  findings.add(where, await page.evaluate(chart, kind));
  findings.add(where, await page.evaluate(colors));
  const widths = await page.evaluate(wide);
  findings.add(where, kind === "phone" ? widths.document : [...widths.document, ...widths.elements]);
  if (kind === "phone") widths.elements.forEach(text => findings.notes.add(`${where}: ${text}`));
  if (!screenshot) return;
  const shot = await page.screenshot({ fullPage: true, path: file });
  findings.add(where, await onlyOneColor(page, shot));
}

/** Decodes the screenshot in the browser, in an empty page whose policy allows it. */
async function onlyOneColor(page, shot) {
  const empty = await page.context().newPage();
  const found = await empty.evaluate(async address => {
    const image = await createImageBitmap(await (await fetch(address)).blob());
    const canvas = new OffscreenCanvas(image.width, image.height);
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    const pixels = new Uint32Array(context.getImageData(0, 0, image.width, image.height).data.buffer);
    const counts = new Map();
    for (let at = 0; at < pixels.length; at += 7) counts.set(pixels[at], (counts.get(pixels[at]) ?? 0) + 1);
    return { colors: counts.size, most: Math.max(...counts.values()) / Math.ceil(pixels.length / 7) };
  }, `data:image/png;base64,${shot.toString("base64")}`);
  await empty.close();
  if (found.colors >= 16 && found.most < 0.998) return [];
  return [`the screenshot is of ${found.colors} colors, ${(100 * found.most).toFixed(1)}% of it of one`];
}

/** Interacts with the page: sorts every table, opens pairs and steps through the ranking. */
async function interact(page, where, findings, file) {
  findings.add(where, await page.evaluate(sort));
  const tiles = page.locator(".sheet .tile");
  const count = await tiles.count();
  if (count === 0) {
    findings.add(where, ["there is no sheet of images"]);
    return;
  }
  const missing = page.locator(".sheet .tile:has(.missing)");
  const longest = await tiles.evaluateAll(all => {
    const lengths = all.map(tile => tile.innerText.length);
    return lengths.indexOf(Math.max(...lengths));
  });
  const opened = [tiles.first(), tiles.nth(count >> 1), tiles.last(), tiles.nth(longest)];
  if (await missing.count()) opened.push(missing.first());
  for (const tile of opened) {
    await tile.scrollIntoViewIfNeeded();
    await tile.click();
    const index = await tile.getAttribute("data-tile");
    findings.add(where, await page.evaluate(pairDialog, index));
    if (!(await page.evaluate(() => document.getElementById("pair").open))) continue;
    findings.add(where, await page.evaluate(wide).then(found => found.document));
    findings.add(where, await page.evaluate(contrast));
    const rank = () => page.evaluate(() => Number(/^rank (\d+) of/m.exec(document.getElementById("pair-text").innerText)?.[1]));
    // Three times, because the first step must not move the focus out of the dialog.
    const first = await rank();
    const forward = Number(index) >= 3 ? "ArrowLeft" : "ArrowRight";
    const step = forward === "ArrowLeft" ? -1 : 1;
    let before = first;
    for (let time = 1; time <= 3; time++) {
      await page.keyboard.press(forward);
      const now = await rank();
      // The pairs in the page may have gaps in rank, so only the direction is known.
      if (!((now - before) * step > 0)) findings.add(where, [`${forward} leads from rank ${before} to ${now}`]);
      before = now;
    }
    for (let time = 1; time <= 3; time++) await page.keyboard.press(forward === "ArrowLeft" ? "ArrowRight" : "ArrowLeft");
    if ((await rank()) !== first) findings.add(where, [`the arrow keys do not lead back to rank ${first} but to ${await rank()}`]);
    if (file && tile === opened[1]) await page.screenshot({ path: file });
    await page.keyboard.press("Escape");
    if (await page.evaluate(() => document.getElementById("pair").open)) {
      findings.add(where, ["Escape does not close the dialog"]);
      await page.evaluate(() => document.getElementById("pair").close());
    }
  }
}

async function print(page, where, findings, file) {
  await page.emulateMedia({ media: null });
  await page.evaluate(() => {
    // After the page's own listener.
    addEventListener("beforeprint", () => {
      window.shut = [...document.querySelectorAll("details:not([open])")].map(part => part.querySelector("summary").innerText);
    });
  });
  const bytes = await page.pdf({ format: "A4", printBackground: false, path: file });
  const pages = bytes.toString("latin1").match(/\/Type\s*\/Page\b/g)?.length ?? 0;
  if (pages === 0) findings.add(where, ["the printed page has no pages"]);
  const shut = await page.evaluate(() => window.shut);
  if (shut === undefined) findings.add(where, ["the browser does not tell the page that it is printed"]);
  findings.add(where, (shut ?? []).map(title => `“${title}” is shut in print`));
}

/** The views of a page: window, color scheme, and whether to interact with it. */
const VIEWS = [
  { where: "light", viewport: WIDE, scheme: "light", kind: "wide", use: true },
  { where: "dark", viewport: WIDE, scheme: "dark", kind: "wide", use: true },
  { where: "phone", viewport: PHONE, scheme: "light", kind: "phone", use: true },
  { where: "phone in the dark", viewport: PHONE, scheme: "dark", kind: "phone" },
  { where: "print", viewport: PAPER, scheme: "light", kind: "print" },
  { where: "print in the dark", viewport: PAPER, scheme: "dark", kind: "print" },
];

/** Runs all checks in these views of a page. Writes screenshots and prints next to it if `files` is set. */
async function check(browser, file, views, files) {
  const findings = new Findings();
  for (const { where, viewport, scheme, kind, use, screenshot = true } of views) {
    const shot = files && join(resolve(file, ".."), `${basename(file, ".html")}-${where.replaceAll(" ", "-")}`);
    const page = await open(browser, file, where, viewport, scheme, findings);
    if (kind === "print") {
      await page.emulateMedia({ media: "print", colorScheme: scheme });
      await page.evaluate(() => dispatchEvent(new Event("beforeprint")));
    }
    await look(page, where, findings, kind, screenshot, shot && `${shot}.png`);
    if (use) {
      await interact(page, where, findings, shot && `${shot}-pair.png`).catch(error => {
        findings.add(where, [`a reader cannot use it: ${error.message.split("\n")[0]}`]);
      });
    }
    if (kind === "print") {
      const paper = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
      if (paper !== "rgb(255, 255, 255)") findings.add(where, [`the paper is ${paper}`]);
      await page.evaluate(() => dispatchEvent(new Event("afterprint")));
      await print(page, where, findings, shot && `${shot}.pdf`);
    }
    await page.context().close();
  }
  return findings;
}

/** Applies each mutation to the page; all must be detected. */
async function selfTest(browser, file) {
  const html = readFileSync(file, "utf8");
  const folder = mkdtempSync(join(tmpdir(), "page-"));
  const missed = [];
  try {
    for (const { what, mutate, found, at = "light", use = false, screenshot = false } of MUTATIONS) {
      const mutated = mutate(html);
      if (mutated === html) {
        missed.push(`“${what}” changes nothing in ${file}`);
        continue;
      }
      const path = join(folder, "mutated.html");
      writeFileSync(path, mutated);
      const findings = await check(browser, path, [{ ...VIEWS.find(view => view.where === at), use, screenshot }], false);
      const finding = [...findings.wrong].find(text => found.test(text));
      if (finding) console.log(`${what}: detected, “${finding.slice(0, 130)}”`);
      else missed.push(`“${what}” is not detected; findings: ${[...findings.wrong].slice(0, 5).join("; ") || "nothing"}`);
    }
  } finally {
    rmSync(folder, { recursive: true });
  }
  return missed;
}

async function main() {
  const named = process.argv.slice(2);
  const testing = named[0] === "--self-test";
  const files = (testing ? named.slice(1) : named).map(name => resolve(name));
  if (testing && files.length === 0) files.push(resolve("target/page/run.html"));
  if (files.length === 0) throw new Error("no pages given");
  const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM || "/usr/bin/chromium",
    args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
      "--disable-component-update", "--disable-sync"],
  });
  const wrong = [];
  try {
    for (const file of files) {
      if (testing) {
        wrong.push(...(await selfTest(browser, file)));
        continue;
      }
      const findings = await check(browser, file, VIEWS, true);
      findings.notes.forEach(note => console.log(`${basename(file)}: note: ${note}`));
      wrong.push(...[...findings.wrong].map(text => `${basename(file)}: ${text}`));
      if (findings.wrong.size === 0) console.log(`${basename(file)}: ok`);
    }
  } finally {
    await browser.close();
  }
  wrong.forEach(text => console.error(text));
  if (wrong.length) process.exit(1);
}

await main();
