// Builds the scripts and the style sheet of the pages: node build.mjs --out DIR
//
// The names hold a hash of the content, so that a browser may keep them for ever. The same sources give the same bytes. The
// folder is replaced at the end, when everything has been written.

import { createHash } from "node:crypto";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { basename, dirname, join, relative, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

const HERE = dirname(fileURLToPath(import.meta.url));
const ENTRIES = ["src/pages.ts", "src/clip.ts", "src/compare.ts"];
const THEME = "src/theme.ts";
const SCRIPT_BUDGET = 250_000; // bytes of all scripts together, gzipped

const COMMON = {
  absWorkingDir: HERE,
  bundle: true,
  minify: true,
  legalComments: "none", // LICENSES.txt has the licences
  target: ["es2022"],
  charset: "utf8",
  metafile: true,
  write: false,
  logLevel: "warning",
  define: { "import.meta.env": "undefined" },
};

/** The modules that pages load, and what they share. */
async function bundleModules() {
  return build({
    ...COMMON,
    entryPoints: ENTRIES,
    format: "esm",
    splitting: true,
    entryNames: "[name]-[hash]",
    chunkNames: "shared-[hash]",
    outdir: "out",
  });
}

/** The script that sets the theme. It is no module, because a module waits until the page has been painted. */
async function bundleTheme() {
  return build({
    ...COMMON,
    entryPoints: [THEME],
    format: "iife",
    entryNames: "[name]-[hash]",
    outdir: "out",
  });
}

/** Name and text of the licence of every npm package that is in a bundle. */
function collectLicences(metafiles) {
  const packages = new Set();
  for (const input of metafiles.flatMap((metafile) => Object.keys(metafile.inputs))) {
    const match = /^node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(input);
    if (match) packages.add(match[1]);
  }
  packages.add("uplot"); // its style sheet is copied as it is
  return [...packages].sort().map((name) => {
    const folder = join(HERE, "node_modules", name);
    const about = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
    const file = readdirSync(folder).find((entry) => /^licen[cs]e(\.|$)/i.test(entry));
    if (file === undefined) throw new Error(`${name} has no licence file: say in build.mjs where its text is`);
    const heading = `${name} ${about.version} (${about.license})`;
    return `${heading}\n${"=".repeat(heading.length)}\n\n${readFileSync(join(folder, file), "utf8").trim()}\n`;
  });
}

function main() {
  const { values } = parseArgs({ options: { out: { type: "string" } } });
  if (values.out === undefined) {
    console.error("usage: node build.mjs --out DIR");
    process.exit(2);
  }
  return writeAssets(resolve(values.out));
}

async function writeAssets(out) {
  const results = await Promise.all([bundleModules(), bundleTheme()]);
  const metafiles = results.map((result) => result.metafile);
  const files = new Map();
  for (const output of results.flatMap((result) => result.outputFiles))
    files.set(basename(output.path), output.contents);

  const manifest = { entries: {} };
  for (const metafile of metafiles) {
    for (const [path, output] of Object.entries(metafile.outputs)) {
      // What is imported as the page runs is an entry point to esbuild as well.
      if (!ENTRIES.includes(output.entryPoint) && output.entryPoint !== THEME) continue;
      const entry = basename(output.entryPoint).replace(/\.ts$/, ".js");
      const imports = collectImports(metafile, path).map((file) => basename(file));
      manifest[entry] = basename(path);
      manifest.entries[entry] = { file: basename(path), imports };
    }
  }
  const sheet = readFileSync(join(HERE, "node_modules/uplot/dist/uPlot.min.css"));
  const sheetName = `uplot-${createHash("sha256").update(sheet).digest("hex").slice(0, 8)}.css`;
  files.set(sheetName, sheet);
  manifest["uplot.css"] = sheetName;
  files.set("LICENSES.txt", Buffer.from(collectLicences(metafiles).join("\n\n")));
  files.set("manifest.json", Buffer.from(`${JSON.stringify(sortKeys(manifest), null, 2)}\n`));

  mkdirSync(dirname(out), { recursive: true });
  const partial = mkdtempSync(join(dirname(out), `.${basename(out)}-`));
  try {
    for (const [name, content] of files) writeFileSync(join(partial, name), content);
    checkSizes(files);
    replaceFolder(partial, out);
  } finally {
    rmSync(partial, { recursive: true, force: true });
  }
}

/** The chunks that a bundle imports at any depth, also those that it asks for as it runs: a page preloads them. */
function collectImports(metafile, path) {
  const seen = new Set();
  const queue = [path];
  for (const current of queue) {
    for (const { path: imported, kind } of metafile.outputs[current].imports) {
      if (!kind.endsWith("import-statement") && kind !== "dynamic-import") continue;
      if (seen.has(imported)) continue;
      seen.add(imported);
      queue.push(imported);
    }
  }
  return [...seen].sort();
}

function sortKeys(value) {
  if (value === null || typeof value !== "object" || Array.isArray(value)) return value;
  return Object.fromEntries(
    Object.keys(value)
      .sort()
      .map((key) => [key, sortKeys(value[key])]),
  );
}

function checkSizes(files) {
  let total = 0;
  for (const name of [...files.keys()].sort()) {
    const content = files.get(name);
    const packed = gzipSync(content, { level: 9 }).length;
    if (name.endsWith(".js")) total += packed;
    console.log(`${name.padEnd(26)}${String(content.length).padStart(10)} bytes${String(packed).padStart(10)} gzipped`);
  }
  console.log(
    `${"all scripts".padEnd(26)}${"".padStart(16)}${String(total).padStart(10)} gzipped, of ${SCRIPT_BUDGET}`,
  );
  if (total > SCRIPT_BUDGET) throw new Error(`the scripts have ${total} bytes gzipped, over ${SCRIPT_BUDGET}`);
}

/** Puts the folder `from` in the place of `to`; what was there is kept until the new one stands. */
function replaceFolder(from, to) {
  const retired = `${from}-old`;
  const hasOld = existsSync(to);
  if (hasOld && !existsSync(join(to, "manifest.json"))) {
    throw new Error(`${relative(process.cwd(), to)} holds something else than built assets: name another folder`);
  }
  if (hasOld) renameSync(to, retired);
  renameSync(from, to);
  rmSync(retired, { recursive: true, force: true });
}

await main();
