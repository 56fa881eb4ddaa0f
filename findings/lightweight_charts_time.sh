#!/usr/bin/env bash
# Library:  lightweight-charts 5.2.1, production build
# Expected: Times out of order or doubled are refused, as the development build does, and an hour
#           without data is wide.
# Happens:  The production build accepts them without an error; in both builds an hour's hole is as
#           wide as a second.
# For us:   Holes must be seen. uPlot, whose x axis is time, is the library chosen for live charts.
set -euo pipefail
VERSION=${VERSION:-5.2.1}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
npm install --silent --no-audit --no-fund --no-package-lock "lightweight-charts@$VERSION" jsdom@26.1.0

node - <<'JAVASCRIPT'
const { readFileSync } = require("fs");
const { JSDOM } = require("jsdom");

const START = 1796083200;
const metrics = { width: 10, actualBoundingBoxAscent: 5, actualBoundingBoxDescent: 2 };
const context = new Proxy({}, { get: (_, name) => () => (name === "measureText" ? metrics : context), set: () => true });

async function look(build) {
  const { window } = new JSDOM("", { pretendToBeVisual: true, runScripts: "outside-only" });
  window.matchMedia = () => ({ addListener() {}, removeListener() {}, addEventListener() {}, removeEventListener() {} });
  window.HTMLCanvasElement.prototype.getContext = () => context;
  const file = `node_modules/lightweight-charts/dist/lightweight-charts.standalone.${build}.js`;
  window.eval(readFileSync(file, "utf8"));
  const charts = window.LightweightCharts;
  const chart = charts.createChart(window.document.body, { width: 600, height: 300 });
  const series = chart.addSeries(charts.LineSeries);
  const show = (seconds) => series.setData(seconds.map((s, i) => ({ time: START + s, value: i })));
  show([0, 1, 3601]);
  await new Promise((resolve) => setTimeout(resolve, 200));
  const [a, b, c] = [0, 1, 3601].map((s) => chart.timeScale().timeToCoordinate(START + s));
  const takes = (seconds) => {
    try {
      show(seconds);
      return "accepted";
    } catch {
      return "refused";
    }
  };
  const [unordered, doubled] = [takes([0, 2, 1]), takes([0, 1, 1])];
  return { version: charts.version(), second: b - a, hour: c - b, unordered, doubled };
}

(async () => {
  const [production, development] = [await look("production"), await look("development")];
  console.log(`lightweight-charts ${production.version}`);
  console.log("expected: unordered and doubled times refused by both builds; an hour wider than a second");
  for (const [build, seen] of Object.entries({ production, development }))
    console.log(
      `happened: ${build}: unordered ${seen.unordered}, doubled ${seen.doubled}, ` +
        `second ${seen.second} px, hour ${seen.hour} px`,
    );
  const taken = [production, development].flatMap((seen) => [seen.unordered, seen.doubled]).join(" ");
  const same = taken === "accepted accepted refused refused" && production.hour === production.second;
  if (!same) console.error("changed: the builds agree, or holes have a width");
  process.exit(same ? 0 : 1);
})();
JAVASCRIPT
