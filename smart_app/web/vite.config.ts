import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { brotliCompressSync, constants, gzipSync } from "node:zlib";
import { defineConfig, type Plugin } from "vite";

const OUT = "../static/viewer";

/** The page's policy forbids style attributes that are set as text; the same through the CSSOM is allowed. */
function withoutStyleAttributes(): Plugin {
  const wanted = "textElement.setAttribute('style', combinedStyle)";
  let found = false;
  return {
    name: "without-style-attributes",
    transform(code, id) {
      if (!id.includes("drawSvg/drawTextBox") && !id.includes("drawingSvg/drawTextBox")) return null;
      if (!code.includes(wanted)) this.error("drawTextBox sets its style in another way than this version's");
      found = true;
      return { code: code.replace(wanted, "textElement.style.cssText = combinedStyle"), map: null };
    },
    buildEnd(error) {
      if (!error && !found) this.error("drawTextBox was not met: its style would be refused by the policy");
    },
  };
}

/** Compress once, here, what the server sends many times. */
function compressed(): Plugin {
  return {
    name: "compressed",
    closeBundle() {
      for (const entry of readdirSync(OUT, { recursive: true, withFileTypes: true })) {
        if (!entry.isFile() || !/\.(js|css)$/.test(entry.name)) continue;
        const path = join(entry.parentPath, entry.name);
        const content = readFileSync(path);
        writeFileSync(`${path}.br`, brotliCompressSync(content, { params: { [constants.BROTLI_PARAM_QUALITY]: 9 } }));
        writeFileSync(`${path}.gz`, gzipSync(content, { level: 9 }));
      }
    },
  };
}

export default defineConfig({
  base: "/smart/static/viewer/",
  resolve: {
    alias: [{ find: /^@kitware\/vtk\.js\/IO\/.*/, replacement: fileURLToPath(new URL("src/no_meshes.ts", import.meta.url)) }],
  },
  plugins: [withoutStyleAttributes(), compressed()],
  build: {
    outDir: OUT,
    emptyOutDir: true,
    manifest: "manifest.json",
    license: { fileName: "licenses.md" },
    target: "es2022",
    assetsInlineLimit: 0,
    chunkSizeWarningLimit: 4000,
    rolldownOptions: { input: "src/main.ts" },
  },
});
