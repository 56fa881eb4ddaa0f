#!/usr/bin/env bash
# Library:  uplot 1.6.32
# Expected: A NaN at the start of a series is drawn as a hole, as a null there and a NaN further on
#           are.
# Happens:  After a leading NaN the y scale stays empty, and nothing at all is drawn.
# For us:   uPlot is the library chosen for live charts. It gets null where there is no value, never
#           NaN.
set -euo pipefail
VERSION=${VERSION:-1.6.32}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
npm install --silent --no-audit --no-fund --no-package-lock "uplot@$VERSION" jsdom@26.1.0

node - <<'JAVASCRIPT'
// A page without a screen: it counts the points of the paths that uPlot builds.
const { readFileSync } = require("fs");
const { JSDOM } = require("jsdom");

const { window } = new JSDOM("", { pretendToBeVisual: true, runScripts: "outside-only" });
let points = 0;
const note = (x, y) => (points += Number.isFinite(x) && Number.isFinite(y));
window.Path2D = class { moveTo = note; lineTo = note; rect() {} closePath() {} };
window.matchMedia = () => ({ addEventListener() {}, removeEventListener() {} });
const get = (_, name) => (name === "measureText" ? () => ({ width: 10 }) : () => {});
window.HTMLCanvasElement.prototype.getContext = () => new Proxy({}, { get, set: () => true });
const uPlot = window.eval(readFileSync("node_modules/uplot/dist/uPlot.iife.js", "utf8") + ";uPlot");

async function drawn(values) {
  points = 0;
  const series = [{}, { stroke: "black", points: { show: false } }];
  new uPlot({ width: 300, height: 200, series }, [[1, 2, 3, 4], values], window.document.body);
  await new Promise((resolve) => setTimeout(resolve, 100));
  return points;
}

(async () => {
  const asNull = await drawn([null, 2, 3, 4]);
  const nanInside = await drawn([1, NaN, 3, 4]);
  const nanFirst = await drawn([NaN, 2, 3, 4]);
  console.log(`uplot ${JSON.parse(readFileSync("node_modules/uplot/package.json")).version}`);
  console.log(`expected: with a leading NaN as many points as with a leading null, ${asNull}`);
  console.log(`happened: ${nanFirst} points with a leading NaN, ${nanInside} with a NaN further on`);
  const same = nanFirst === 0 && asNull > 0 && nanInside > 0;
  if (!same) console.error("changed: a leading NaN no longer empties the chart");
  process.exit(same ? 0 : 1);
})();
JAVASCRIPT
