import { defineConfig } from "vite";

/** The service that `npm run dev` shows the page in front of. */
const SERVICE = "http://127.0.0.1:8000";

/** Relative addresses throughout, so that the page works behind any path prefix. */
export default defineConfig({
  base: "./",
  build: {
    outDir: "../service/wsisam_service/page",
    emptyOutDir: true,
    assetsDir: "page",
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    target: "es2022",
  },
  server: {
    proxy: { "/v1": SERVICE, "/metrics": SERVICE },
  },
});
