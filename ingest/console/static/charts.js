// Charts of the overview: throughput and latency of the last hour or day, drawn by uPlot from one JSON answer.
"use strict";

(() => {
  const REFRESH_MS = 20_000;
  const root = document.querySelector("[data-charts]");
  if (!root) return;
  const charts = [...root.querySelectorAll("[data-chart]")].map((element) => ({ element, plot: null }));
  let range = "hour";
  let answer = null;

  function resolveColor(name) {
    const probe = document.createElement("span");
    probe.className = `probe-${name}`;
    root.append(probe);
    const { color } = getComputedStyle(probe);
    probe.remove();
    return color;
  }

  function formatValue(value, unit) {
    if (value === null || value === undefined) return "–";
    if (unit === "s") {
      if (value < 0.001 && value > 0) return `${(value * 1e6).toFixed(0)} µs`;
      if (value < 1) return `${(value * 1000).toFixed(value < 0.01 ? 1 : 0)} ms`;
      return `${value.toFixed(value < 10 ? 1 : 0)} s`;
    }
    const digits = value !== 0 && Math.abs(value) < 10 ? 1 : 0;
    return `${value.toFixed(digits)}${unit ? ` ${unit}` : ""}`;
  }

  function buildOptions(chart, spec) {
    const muted = resolveColor("muted");
    const grid = resolveColor("grid");
    const clock = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
    const axis = { stroke: muted, grid: { stroke: grid, width: 1 }, ticks: { stroke: grid, width: 1 }, font: "11px Inter, sans-serif" };
    return {
      width: Math.max(240, chart.element.clientWidth),
      height: 230,
      tzDate: (seconds) => new Date(seconds * 1000),
      cursor: { drag: { x: false, y: false } },
      scales: { y: { range: (_, low, high) => [Math.min(0, low || 0), high > 0 ? high * 1.1 : 1] } },
      axes: [
        { ...axis, values: (_, ticks) => ticks.map((tick) => clock.format(new Date(tick * 1000))) },
        { ...axis, size: 62, values: (_, ticks) => ticks.map((tick) => formatValue(tick, spec.unit)) },
      ],
      series: [
        { value: (_, at) => (at === null ? "–" : clock.format(new Date(at * 1000))) },
        ...spec.series.map((series, index) => ({
          label: series.label,
          stroke: resolveColor(`line-${index + 1}`),
          width: 2,
          dash: [[], [8, 4], [2, 4]][index] || [],
          // A line needs two neighbours; few samples are shown as points as well.
          points: { show: series.values.filter((value) => value !== null).length < 30, size: 5 },
          value: (_, value) => formatValue(value, spec.unit),
        })),
      ],
    };
  }

  // A node that was started a moment ago has nothing to show of the time before.
  function findFirst() {
    if (!answer) return 0;
    const series = charts.flatMap((chart) => answer[chart.element.dataset.chart]?.series ?? []);
    const known = answer.times.findIndex((_, index) => series.some((each) => each.values[index] !== null));
    return known < 0 ? 0 : Math.max(0, Math.min(known - 1, answer.times.length - 10));
  }

  function draw() {
    const first = findFirst();
    for (const chart of charts) {
      const spec = answer?.[chart.element.dataset.chart];
      const empty = chart.element.parentElement.querySelector("[data-empty]");
      chart.plot?.destroy();
      chart.plot = null;
      const hasValues = spec && spec.series.some((series) => series.values.some((value) => value !== null));
      empty.hidden = Boolean(hasValues);
      chart.element.hidden = !hasValues;
      chart.element.parentElement.querySelector("details").hidden = !hasValues;
      if (!hasValues) continue;
      const data = [answer.times.slice(first), ...spec.series.map((series) => series.values.slice(first))];
      chart.plot = new uPlot(buildOptions(chart, spec), data, chart.element);
      const peaks = spec.series.map((series) => {
        const values = series.values.filter((value) => value !== null);
        return `${series.label}: last ${formatValue(values.at(-1), spec.unit)}, highest ${formatValue(Math.max(...values), spec.unit)}`;
      });
      chart.element.setAttribute("aria-label", `${chart.element.dataset.title}, last ${range}. ${peaks.join(". ")}.`);
    }
    for (const table of root.querySelectorAll("details[open] table")) fillTable(table);
  }

  // The same figures as a table, newest first, for people who cannot use the picture.
  function fillTable(table) {
    const spec = answer?.[table.dataset.figures];
    if (!spec) return;
    const day = { weekday: "short", hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
    const clock = new Intl.DateTimeFormat([], range === "day" ? day : { ...day, weekday: undefined, second: "2-digit" });
    const head = makeRow("th", "col", ["Time", ...spec.series.map((series) => series.label)]);
    const rows = answer.times.map((at, index) => {
      const values = spec.series.map((series) => series.values[index]);
      if (values.every((value) => value === null)) return null;
      const row = makeRow("td", "", values.map((value) => formatValue(value, spec.unit)));
      row.prepend(makeCell("th", "row", clock.format(new Date(at * 1000))));
      return row;
    });
    table.tHead.replaceChildren(head);
    table.tBodies[0].replaceChildren(...rows.filter(Boolean).reverse());
  }

  function makeRow(kind, scope, texts) {
    const row = document.createElement("tr");
    row.append(...texts.map((text) => makeCell(kind, scope, text)));
    return row;
  }

  function makeCell(kind, scope, text) {
    const cell = document.createElement(kind);
    if (scope) cell.scope = scope;
    if (scope !== "row") cell.className = "number";
    cell.textContent = text;
    return cell;
  }

  async function load(isLive) {
    if (document.hidden) return;
    try {
      // What a page asks by itself does not prolong the session.
      const headers = isLive ? { "X-Live": "1" } : {};
      const url = `${root.dataset.charts}?range=${range}`;
      const response = await fetch(url, { credentials: "same-origin", headers });
      if (response.ok) {
        answer = await response.json();
        draw();
      }
    } catch {
      // The state of the live stream already says that the console is away.
    }
  }

  for (const button of root.querySelectorAll("[data-range]")) {
    button.addEventListener("click", () => {
      range = button.dataset.range;
      for (const other of root.querySelectorAll("[data-range]")) {
        other.setAttribute("aria-pressed", String(other === button));
      }
      load(false);
    });
  }
  for (const details of root.querySelectorAll("details")) {
    details.addEventListener("toggle", () => details.open && fillTable(details.querySelector("table")));
  }
  document.addEventListener("themechange", draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  let resized;
  addEventListener("resize", () => {
    clearTimeout(resized);
    resized = setTimeout(draw, 200);
  });
  setInterval(() => load(true), REFRESH_MS);
  load(false);
})();
