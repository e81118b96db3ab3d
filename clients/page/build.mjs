// Builds the page into the Python package that serves it. File names have no hashes: the server sends ETags.
import { build } from "esbuild";
import { copyFileSync, mkdirSync } from "node:fs";

const out = process.argv[2] ?? "../../service/sagittal/page/built";
mkdirSync(out, { recursive: true });
await build({
  entryPoints: ["src/page.tsx"],
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  jsx: "automatic",
  jsxImportSource: "preact",
  outfile: `${out}/page.js`,
  legalComments: "none",
  charset: "utf8",
});
await build({ entryPoints: ["src/page.css"], bundle: true, minify: true, outfile: `${out}/page.css` });
copyFileSync("src/index.html", `${out}/index.html`);
copyFileSync("src/icon.svg", `${out}/icon.svg`);
