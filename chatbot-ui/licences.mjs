/** Writes `out/licences.txt`: every package that the page may contain, with its licence. Runs after the build. */
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const lock = JSON.parse(readFileSync("package-lock.json", "utf8"));
const entries = Object.entries(lock.packages)
  .filter(([path, each]) => path && !each.dev && !each.devOptional && !each.optional)
  .map(([path, each]) => ({ path, name: path.replace(/^.*node_modules\//, ""), version: each.version, licence: each.license }))
  .sort((one, other) => (one.name < other.name ? -1 : 1));

const unnamed = entries.filter((each) => !each.licence).map((each) => each.name);
if (unnamed.length) throw new Error(`no licence is named for ${unnamed.join(", ")}`);

/** Packages with the same text are listed above it together. */
const texts = new Map();
for (const { path, name, version, licence } of entries) {
  const file = readdirSync(path).find((each) => /^(licen[cs]e|copying)/i.test(each));
  const text = file ? readFileSync(join(path, file), "utf8").trim() : `Licence: ${licence}`;
  texts.set(text, [...(texts.get(text) ?? []), `${name} ${version} (${licence})`]);
}

const parts = [...texts].map(([text, names]) => `${names.join("\n")}\n\n${text}\n`);
const head = "The chat page is part of layerswarm (Apache-2.0). It is built with these packages, parts of which it contains.\n";
writeFileSync("out/licences.txt", [head, ...parts].join(`\n${"-".repeat(80)}\n\n`));
