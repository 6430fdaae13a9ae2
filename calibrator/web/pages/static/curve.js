// Replaces the server's chart of a curve by an interactive one, with uPlot (vendor/uplot): the same numbers as in the
// table, read from the API, with goodput on a second axis and a readout at the pointer.

const QUANTILES = ["p50", "p90", "p99"];
const CUT = 3; // points above this multiple of the limit are drawn at the upper edge: the interesting part is near the limit
const HEIGHT = 320;
const GOODPUT = 1 + 3 * QUANTILES.length; // index of its series

let shown = ""; // sweep and number of levels
let sweep = null;
let isDrawing = false;

export async function drawCurves() {
  const place = document.getElementById("curve");
  const path = place?.dataset.sweep;
  if (!path || isDrawing || typeof uPlot === "undefined") return;
  const key = `${place.dataset.sweepId} ${place.dataset.levels} ${place.querySelector("p")?.textContent}`;
  isDrawing = true;
  try {
    if (key !== shown) {
      const answer = await fetch(path, { headers: { Accept: "application/json" } });
      if (!answer.ok) return; // keep the server's chart
      sweep = await answer.json();
      shown = key;
    }
    for (const figure of document.querySelectorAll("#curve figure[data-metric]")) draw(figure);
  } finally {
    isDrawing = false;
  }
}

function draw(figure) {
  const { metric, limit } = figure.dataset;
  const picture = figure.querySelector(".picture");
  if (picture.querySelector("canvas")) return;
  const width = picture.clientWidth;
  if (!width) return;
  const data = dataOf(`${metric}_s`);
  picture.replaceChildren();
  const plot = new uPlot(options({ metric, limit: Number(limit) }, data, width, figure), data, picture);
  picture.querySelector(".uplot").setAttribute("aria-hidden", "true"); // screen readers get the table
  figure.plot = plot;
  figure.querySelector(".legend").hidden = false; // the server's chart has its own
  new ResizeObserver(() => {
    const now = picture.clientWidth;
    if (now && now !== plot.width) plot.setSize({ width: now, height: HEIGHT });
  }).observe(picture);
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const figure of document.querySelectorAll("#curve figure[data-metric]")) {
    if (!figure.plot) continue;
    figure.plot.destroy();
    draw(figure);
  }
});

// ------------------------------------------------------------------------------------------------------------- data
// x, then value, low and high of each quantile, then goodput. Values that n does not support are null, and so are
// intervals without an upper bound, as their band would cover the chart. The table has their lower bounds.
function dataOf(metric) {
  const levels = [...sweep.levels].sort((one, other) => one.concurrency - other.concurrency);
  const rows = [levels.map((level) => level.concurrency)];
  for (const name of QUANTILES) {
    rows.push(levels.map((level) => level[metric][name]));
    const bounded = levels.map((level) => level[metric][`${name}_interval`]).map((ends) => (ends?.[1] == null ? null : ends));
    rows.push(bounded.map((ends) => ends && ends[0]), bounded.map((ends) => ends && ends[1]));
  }
  rows.push(levels.map((level) => (level.n ? level.goodput_per_second : null)));
  return rows;
}

// ---------------------------------------------------------------------------------------------------------- picture
function options({ metric, limit }, data, width, figure) {
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const axis = { stroke: colour("quiet"), grid: { stroke: colour("line"), width: 1 }, ticks: { show: false }, font: "12px system-ui" };
  const series = [{}];
  const bands = [];
  for (const name of QUANTILES) {
    const edge = { scale: "y", stroke: "transparent", width: 0, points: { show: false } };
    bands.push({ series: [series.length + 2, series.length + 1], fill: `${colour(name)}2e` });
    series.push({ scale: "y", stroke: colour(name), width: 2, spanGaps: true, points: { show: true, size: 6, fill: colour("panel") } });
    series.push({ ...edge }, { ...edge });
  }
  series.push({ scale: "rate", stroke: colour("goodput"), width: 2, dash: [2, 4], spanGaps: true, points: { show: true, size: 5 } });
  const levels = data[0];
  return {
    width,
    height: HEIGHT,
    legend: { show: false },
    cursor: { y: false, drag: { x: false, y: false } },
    scales: {
      x: { time: false, distr: 3, log: 2, range: () => around(levels) },
      y: { range: () => [0, top(data, limit)] },
      rate: { range: (_plot, _low, high) => [0, (high || 1) * 1.15] },
    },
    axes: [
      { ...axis, splits: () => powers(around(levels)), values: (_plot, splits) => splits.map((split) => split ?? ""), label: "requests in flight", size: 28, labelSize: 18, labelFont: "12px system-ui" },
      { ...axis, scale: "y", values: (_plot, splits) => splits.map((split) => (split === null ? "" : seconds(split))), size: 58 },
      { ...axis, scale: "rate", side: 1, grid: { show: false }, size: 44, label: "goodput/s", labelSize: 18, labelFont: "12px system-ui" },
    ],
    series,
    bands,
    hooks: {
      drawClear: [(plot) => paintBand(plot, colour)],
      draw: [(plot) => paintMarks(plot, colour, limit, metric)],
      setCursor: [(plot) => showReadout(plot, data, figure)],
    },
  };
}

function around(levels) {
  const low = levels[0];
  const high = levels[levels.length - 1];
  return [low / 1.15, Math.max(high, low * 1.5) * 1.15];
}

function powers([low, high]) {
  const found = [];
  for (let level = 1; level <= high; level *= 2) if (level >= low) found.push(level);
  return found;
}

function top(data, limit) {
  const seen = data.slice(1, GOODPUT).flat().filter((value) => value !== null);
  const highest = Math.max(...seen, 0);
  return 1.08 * Math.max(limit, Math.min(highest, CUT * limit));
}

function paintBand(plot, colour) {
  const capacity = sweep.capacity;
  if (!capacity || capacity.low < 1) return;
  const { ctx, bbox } = plot;
  const [left, right] = [capacity.low, capacity.high].map((level) => clamp(plot.valToPos(level, "x", true), bbox));
  ctx.save();
  ctx.fillStyle = colour("band");
  ctx.fillRect(left, bbox.top, Math.max(2, right - left), bbox.height);
  ctx.restore();
}

function clamp(x, bbox) {
  return Math.min(Math.max(x, bbox.left), bbox.left + bbox.width);
}

function paintMarks(plot, colour, limit, metric) {
  const { ctx, bbox } = plot;
  ctx.save();
  ctx.lineWidth = 2 * devicePixelRatio;
  line(ctx, colour("limit"), [6, 4], bbox.left, plot.valToPos(limit, "y", true), bbox.width, 0);
  const knee = sweep.insight?.knee_concurrency;
  if (knee) line(ctx, colour("knee"), [1, 4], clamp(plot.valToPos(knee, "x", true), bbox), bbox.top, 0, bbox.height);
  const burst = sweep.burst;
  if (burst && burst.metric === metric) {
    for (const name of QUANTILES) {
      const value = burst.burst_s[name];
      if (value !== null) diamond(ctx, colour(name), plot.valToPos(burst.concurrency, "x", true), Math.max(bbox.top, plot.valToPos(value, "y", true)));
    }
  }
  ctx.restore();
}

function line(ctx, stroke, dash, x, y, across, down) {
  ctx.beginPath();
  ctx.setLineDash(dash.map((length) => length * devicePixelRatio));
  ctx.strokeStyle = stroke;
  ctx.moveTo(x, y);
  ctx.lineTo(x + across, y + down);
  ctx.stroke();
}

function diamond(ctx, fill, x, y) {
  const size = 6 * devicePixelRatio;
  ctx.beginPath();
  ctx.fillStyle = fill;
  ctx.moveTo(x, y - size);
  ctx.lineTo(x + size, y);
  ctx.lineTo(x, y + size);
  ctx.lineTo(x - size, y);
  ctx.fill();
}

function showReadout(plot, data, figure) {
  const index = plot.cursor.idx;
  const place = figure.querySelector(".readout");
  if (index === null || index === undefined) {
    place.textContent = "";
    return;
  }
  const quantiles = QUANTILES.map((name, which) => [name, data[1 + 3 * which][index]]).filter(([, value]) => value !== null);
  const parts = quantiles.map(([name, value]) => `${name.toUpperCase()} ${seconds(value)}`);
  const rate = data[GOODPUT][index];
  if (rate !== null) parts.push(`goodput ${Number(rate.toPrecision(3))}/s`);
  place.textContent = `${data[0][index]} in flight: ${parts.join(", ")}`;
}

function seconds(value) {
  return value < 0.9995 ? `${Number((value * 1000).toPrecision(3))} ms` : `${Number(value.toPrecision(3))} s`;
}
