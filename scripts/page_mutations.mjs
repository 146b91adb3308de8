// Mutations of a page, and the finding that scripts/page.mjs must report for each, which proves that its checks can fail. `at` names
// the view (default: a wide window in light colors). `use` marks mutations that only interaction reveals, `screenshot` those that
// only a screenshot reveals.
const style = rules => html => html.replace("</style>", `${rules}</style>`);
// The page's own script is the last one.
const script = code => html => html.replace(/<\/script><\/body>/, () => `\n${code}</script></body>`);
const replace = (from, to) => html => html.replace(from, () => to);
const policy = /<meta http-equiv="Content-Security-Policy"[^>]*>/;

export const MUTATIONS = [
  { what: "an image with a broken URL", mutate: replace(/src="data:image\/jpeg;base64,[^"]{40}/, 'src="data:image/jpeg;base64,'), found: /an image is missing/ },
  { what: "an error in the console", mutate: script('console.error("mutated");'), found: /the console says: mutated/ },
  { what: "a warning in the console", mutate: script('console.warn("mutated");'), found: /the console says: mutated/ },
  { what: "a script that fails", mutate: script('throw new Error("mutated");'), found: /a script fails: mutated/ },
  { what: "a request that the policy refuses", mutate: replace("</main>", '<img alt="" src="http://127.0.0.1:9/a.png"></main>'), found: /the console says: .*(Refused|violates)/s },
  { what: "a request without the policy", mutate: html => html.replace(policy, "").replace("</main>", '<img alt="" src="http://127.0.0.1:9/a.png"></main>'), found: /127\.0\.0\.1:9\/a\.png is requested/ },
  { what: "a page that is too wide", mutate: style("main { width: 1500px; }"), found: /^light: the page is 1\d\d\d pixels wide in a window of 1280/ },
  { what: "a page that is too wide for a phone", mutate: style("h1 { min-width: 500px; }"), at: "phone", found: /^phone: the page is \d+ pixels wide in a window of 390/ },
  { what: "something wide that nothing shows", mutate: style("main { overflow-x: clip; } h2 { width: 1500px; }"), found: /^light: <h2 class=""> ends at/ },
  { what: "an empty chart", mutate: html => html.replace(/(<figure class="chart"><svg[^>]*>).*?<\/svg>/s, "$1</svg>"), found: /the chart “.*” is empty/ },
  { what: "a chart without its lines", mutate: html => html.replace(/<figure class="chart"><svg.*?<\/svg>/s, svg => svg.replace(/<(\w+)[^>]*"#[0-9A-F]{6}"[^>]*\/>/g, "")), found: /the chart “.*” is empty/ },
  { what: "a small chart", mutate: style("figure.chart > svg { width: 150px !important; min-width: 0 !important; }"), found: /the chart “.*” is 150 ×/ },
  { what: "small text in a chart", mutate: style("figure.chart text { font-size: 8px !important; }"), found: /has text of \d\.\d pixels/ },
  { what: "text in a chart that is cut off", mutate: style("figure.chart text { font-size: 90px !important; }"), found: /cuts “.*” off/ },
  { what: "text that leaves a legend", mutate: style('figure.chart text[text-anchor="start"] { font-size: 60px !important; }'), found: /leaves its legend/ },
  { what: "text in a chart like paper, in the dark", mutate: style("@media (prefers-color-scheme: dark) { figure.chart text { fill: var(--paper); } }"), at: "dark", found: /^dark: .* text\) has a contrast of 1\.00/ },
  { what: "text like paper", mutate: style("section > p { color: var(--paper); }"), found: /^light: .*\(section p\) has a contrast of 1\.00/ },
  { what: "faint text in the dark", mutate: style("@media (prefers-color-scheme: dark) { td { color: #555; } }"), at: "dark", found: /^dark: .* td\) has a contrast of/ },
  { what: "a bar that hides its number", mutate: style("td.bar span { opacity: 1 !important; background: var(--ink) !important; }"), found: /\(td b\) has a contrast of/ },
  { what: "dark paper in print", mutate: style("@media print { :root { --paper: #14181c; } }"), at: "print", found: /^print: the paper is rgb\(20, 24, 28\)/ },
  { what: "swatches like paper", mutate: style(".kind-1 { background: var(--paper) !important; }"), found: /kind 1 has a contrast of 1\.00 to the paper/ },
  { what: "swatches like one another", mutate: style(".kind-1, .kind-2 { background: #0072b2 !important; }"), found: /kind 1 and kind 2 look alike/ },
  { what: "lines like one another", at: "dark", mutate: style('figure.chart [stroke="#D55E00"] { stroke: #009e73; }'), found: /a line's #\w+ and a line's #\w+ look alike/ },
  { what: "no heading", mutate: replace(/<h2>[^<]*<\/h2>/, ""), found: /the part part-\d+ has no heading/ },
  { what: "no title", mutate: replace(/<h1>.*?<\/h1>/s, "<h1></h1>"), found: /the page has no title/ },
  { what: "contents that lead nowhere", mutate: replace('href="#part-1"', 'href="#part-99"'), found: /in the contents leads nowhere/ },
  { what: "a caption that becomes markup", mutate: html => html.replace(/&lt;b&gt;bold&lt;\/b&gt;( caption[^<]*<\/span>)/, "<b>bold</b>$1"), found: /markup of a caption/ },
  { screenshot: true, what: "a page that shows nothing", mutate: style("body > * { visibility: hidden; }"), found: /the screenshot is of 1 colors/ },
  { use: true, what: "tables that are not sorted", mutate: replace("table.tBodies[0].append(...rows);", ""), found: /is not sorted, ascending/ },
  { use: true, what: "tables that are sorted one way only", mutate: replace("return down ? -order : order;", "return order;"), found: /is not sorted, descending/ },
  { use: true, what: "numbers that are sorted as text", mutate: replace("isNaN(a) || isNaN(b) ?", "true ?"), found: /is not sorted, ascending/ },
  { use: true, what: "a column that does not say how it is sorted", mutate: replace('head.setAttribute("aria-sort"', 'head.setAttribute("data-order"'), found: /does not say that it is ascending/ },
  { use: true, what: "a dialog that does not open", mutate: replace("dialog.showModal();", ""), found: /opens no dialog/ },
  { use: true, what: "a dialog without the id", mutate: replace("const lines = [`id ${tile.id}`, ", "const lines = ["), found: /does not show the id/ },
  { use: true, what: "a dialog without the caption", mutate: replace('lines.push("", tile.caption);', ""), found: /does not show the caption/ },
  { use: true, what: "a dialog without the rank", mutate: replace("`rank ${tile.rank + 1} of", "`${tile.rank + 1} of"), found: /does not show the rank/ },
  { use: true, what: "neighbors that are too few", mutate: replace("Math.min(tiles.length - 1, at + 3)", "Math.min(tiles.length - 1, at + 1)"), found: /the neighbors of rank \d+ are/ },
  { use: true, what: "neighbors in the wrong order", mutate: replace("strip.append(button);", "strip.prepend(button);"), found: /the neighbors of rank \d+ are/ },
  { use: true, what: "a pair that is not marked", mutate: replace('button.setAttribute("aria-current", "true")', "button.blur()"), found: /is not marked among its neighbors/ },
  { use: true, what: "arrow keys that do nothing", mutate: replace("ArrowRight: 1", "ArrowUp: 1"), found: /ArrowRight leads from|do not lead back/ },
  { use: true, what: "arrow keys that work once", mutate: html => script("const shown = show; show = index => { shown(index); document.activeElement.blur(); };")(html), found: /Arrow\w+ leads from rank (\d+) to \1$/ },
  { use: true, what: "a dialog that Escape does not close", mutate: script('dialog.addEventListener("cancel", event => event.preventDefault());'), found: /Escape does not close/ },
  { use: true, what: "an image that cannot be read and is not called so", mutate: replace("if (tile.missing) lines.push(tile.missing);", ""), found: /does not say why the image/ },
  { use: true, what: "a dialog that keeps the last image", mutate: replace("image.hidden = !source;", "image.hidden = false;"), found: /shows another image for/ },
  { use: true, what: "a dialog that is too large", mutate: style("#pair { min-height: 2000px; max-height: none; }"), found: /the dialog is larger than the window/ },
  { what: "folded parts that stay shut in print", mutate: html => html.replace('addEventListener("beforeprint"', 'addEventListener("never"').replace("</main>", "<details><summary>More</summary>words</details></main>"), at: "print", found: /“More” is shut in print/ },
];
