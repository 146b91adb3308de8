// Writes a small corpus for the pages of scripts/page.sh: `node scripts/page_corpus.mjs FOLDER`. The images are shapes on gradients,
// and some noise and single colors, which the column `flaw` marks; some captions are hard to render.
import { mkdirSync, writeFileSync } from "node:fs";
import { crc32, deflateSync } from "node:zlib";

const SIDE = 48;
const folder = process.argv[2];
if (!folder) throw new Error("no folder given");

// A reproducible random generator of values in [0, 1) (mulberry32).
function stream(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let mixed = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

function png(colorAt) {
  const chunk = (name, body) => {
    const bytes = Buffer.alloc(body.length + 12);
    bytes.writeUInt32BE(body.length, 0);
    bytes.write(name, 4, "latin1");
    body.copy(bytes, 8);
    bytes.writeUInt32BE(crc32(bytes.subarray(4, body.length + 8)), body.length + 8);
    return bytes;
  };
  const rows = Buffer.alloc(SIDE * (1 + 3 * SIDE));
  for (let y = 0; y < SIDE; y++) {
    for (let x = 0; x < SIDE; x++) rows.set(colorAt(x, y), y * (1 + 3 * SIDE) + 1 + 3 * x);
  }
  const head = Buffer.alloc(13);
  head.writeUInt32BE(SIDE, 0);
  head.writeUInt32BE(SIDE, 4);
  head.set([8, 2, 0, 0, 0], 8);
  const signature = Buffer.from([137, 80, 78, 71, 13, 10, 26, 10]);
  return Buffer.concat([signature, chunk("IHDR", head), chunk("IDAT", deflateSync(rows)), chunk("IEND", Buffer.alloc(0))]);
}

const COLORS = { red: [204, 51, 51], green: [60, 150, 70], blue: [50, 90, 190], yellow: [235, 200, 60], violet: [130, 70, 170] };
const SHAPES = {
  circle: (x, y, size) => x * x + y * y < size * size,
  square: (x, y, size) => Math.max(Math.abs(x), Math.abs(y)) < 0.85 * size,
  diamond: (x, y, size) => Math.abs(x) + Math.abs(y) < size,
  cross: (x, y, size) => Math.min(Math.abs(x), Math.abs(y)) < 0.3 * size && Math.max(Math.abs(x), Math.abs(y)) < size,
};

function image(random, flaw) {
  const pick = list => list[Math.floor(random() * list.length)];
  const [name, shape, other] = [pick(Object.keys(COLORS)), pick(Object.keys(SHAPES)), pick(Object.keys(COLORS))];
  const [left, top, size] = [14 + 20 * random(), 14 + 20 * random(), 8 + 8 * random()];
  const plain = [random(), random(), random()].map(share => Math.floor(256 * share));
  const bytes = png((x, y) => {
    if (flaw === "noise") return [random(), random(), random()].map(share => Math.floor(256 * share));
    if (flaw === "plain") return plain;
    if (SHAPES[shape](x - left, y - top, size)) return COLORS[name];
    return COLORS[other].map(value => Math.floor(255 - (255 - value) * (0.15 + (0.3 * (x + y)) / (2 * SIDE))));
  });
  return { bytes, caption: `a ${name} ${shape} on a pale ${other} ground` };
}

// By row modulo 20, so that the page shows each of them for any ratings.
const ODD = new Map([
  [3, "a </script><b>bold</b> caption & a \"quoted\" one, with a comma <!-- and the start of a comment"],
  [5, `${"a caption that does not end, of a red circle and a blue square and ".repeat(40)}a${"w".repeat(300)}ord without a gap`],
  [7, ""],
  [9, "два кота под 雨 🌧️\nand a second line"],
]);

function corpus(name, count, seed, kinds) {
  mkdirSync(`${folder}/${name}`, { recursive: true });
  const random = stream(seed);
  const lines = ["id,image_save_path,caption,flaw"];
  for (let row = 0; row < count; row++) {
    const flaw = kinds(row);
    const { bytes, caption } = image(random, flaw);
    const file = `${name}/${String(row).padStart(4, "0")}.png`;
    writeFileSync(`${folder}/${file}`, bytes);
    const said = name === "train" ? (ODD.get(row % 20) ?? caption) : caption;
    lines.push(`${name}-${row},${file},"${said.replaceAll('"', '""')}",${flaw}`);
  }
  writeFileSync(`${folder}/${name}.csv`, `${lines.join("\n")}\n`);
}

corpus("train", 240, 1, row => (row % 8 === 1 ? "noise" : row % 10 === 4 ? "plain" : "clean"));
corpus("validation", 32, 2, () => "clean");
