// Keeps the page up to date: events, charts, ages. Reads only. What it is told is HTML that the sidecar has escaped.
"use strict";
(() => {
  const root = document.documentElement;
  const connection = document.getElementById("connection");
  const FIRST_WAIT = 1000, LONGEST_WAIT = 30000, SILENT = 5000, STEP = 15, KEPT = 121;
  let number = root.dataset.number, run = root.dataset.run;
  let at = Number(root.dataset.at), heardAt = performance.now();
  let source = null, wait = FIRST_WAIT, retry = 0, lostAt = "";

  // Ages.
  const now = () => at + (performance.now() - heardAt) / 1000;
  const age = (seconds) => {
    if (seconds < 120) return `${Math.max(0, Math.round(seconds))} s ago`;
    if (seconds < 7200) return `${Math.round(seconds / 60)} min ago`;
    return seconds < 172800 ? `${Math.round(seconds / 3600)} h ago` : `${Math.round(seconds / 86400)} d ago`;
  };
  const clock = () => new Date(at * 1000).toISOString().slice(11, 19) + " UTC";
  const showAges = () => {
    for (const time of document.querySelectorAll("main time")) {
      const told = time.nextElementSibling;
      const text = ` (${age(now() - Date.parse(time.dateTime) / 1000)})`;
      if (told?.className === "age") { told.textContent = text; continue; }
      const made = document.createElement("span");
      made.className = "age";
      made.textContent = text;
      time.after(made);
    }
  };

  // The connection. `told` is said by screen readers when it changes, and only then.
  const say = (state, text) => {
    connection.dataset.connection = state;
    if (connection.textContent !== text) connection.textContent = text;
  };
  const lost = () => {
    source?.close();
    source = null;
    if (root.dataset.lost === undefined) {
      root.dataset.lost = "";
      lostAt = clock();
      document.title = `no connection – ${document.querySelector("h1").textContent}`;
    }
    say("lost", `No connection to dsobs: everything below is from ${lostAt} and may be wrong. Trying again.`);
    clearTimeout(retry);
    // Back-off with jitter, so that many pages do not all come back at once.
    retry = setTimeout(open, wait * (0.75 + Math.random() / 2));
    wait = Math.min(wait * 2, LONGEST_WAIT);
  };
  const beat = (data) => {
    if (data.assets !== root.dataset.assets) { location.reload(); return; }
    at = data.at;
    heardAt = performance.now();
    run = data.run;
    number = data.number;
    wait = FIRST_WAIT;
    if (root.dataset.lost !== undefined) {
      delete root.dataset.lost;
      loadCharts();
    }
    document.title = `${data.state} – ${data.name}`;
    say("live", "Live");
    if (data.points) append(data.points);
    showAges();
  };
  const open = () => {
    if (document.hidden || source) return;
    heardAt = performance.now();
    source = new EventSource(`status/events?run=${run}&since=${number}`);
    source.addEventListener("part", (event) => put(JSON.parse(event.data)));
    source.addEventListener("beat", (event) => beat(JSON.parse(event.data)));
    source.onerror = lost;
  };
  setInterval(() => {
    if (source && performance.now() - heardAt > SILENT) lost();
    if (document.hidden || !source) return;
    showAges();
  }, 1000);
  document.addEventListener("visibilitychange", () => {
    // Nobody looks at a hidden page: it costs the sidecar nothing.
    if (document.hidden) {
      clearTimeout(retry);
      source?.close();
      source = null;
    } else open();
  });

  // Parts: changed in place, so that focus, selection, scroll and what was opened stay.
  const put = ({ id, html }) => {
    const old = document.getElementById(id);
    if (!old) return;
    Idiomorph.morph(old, html, {
      morphStyle: "outerHTML",
      callbacks: {
        beforeNodeMorphed: (from) => !(from.nodeType === 1 && from.classList.contains("chart")),
        beforeNodeRemoved: (node) => !(node.nodeType === 1 && node.className === "age"),
        beforeAttributeUpdated: (name, node) => !(name === "open" && node.tagName === "DETAILS"),
      },
    });
    for (const pre of document.querySelectorAll("#log pre")) follow(pre);
    observeCharts();
  };
  const follow = (pre) => {
    if (pre.dataset.held !== "yes") pre.scrollTop = pre.scrollHeight;
    pre.onscroll = () => {
      pre.dataset.held = pre.scrollTop + pre.clientHeight < pre.scrollHeight - 20 ? "yes" : "no";
    };
  };

  // Charts: drawn when they come into view.
  const shown = new Map();
  let data = null;
  // As it is in force: a canvas does not know light-dark().
  const colour = (name) => {
    const probe = document.createElement("span");
    probe.style.color = `var(${name})`;
    document.body.append(probe);
    const found = getComputedStyle(probe).color;
    probe.remove();
    return found;
  };
  const format = (value, unit) => {
    if (value === null || value === undefined) return "unknown";
    if (unit === "ratio") return `${+(value * 100).toPrecision(3)} %`;
    if (unit === "seconds") return value < 1 ? `${+(value * 1000).toPrecision(3)} ms` : `${+value.toPrecision(3)} s`;
    return `${+value.toPrecision(3)}${unit === "bool" ? "" : ` ${unit === "celsius" ? "°C" : unit}`}`;
  };
  const columns = (name) => {
    const lines = Object.values(data.series[name] ?? {});
    const times = Array.from({ length: data.count }, (_, n) => data.start + n * data.step);
    return [times, ...(lines.length ? lines : [times.map(() => null)])];
  };
  const describe = (element, name, unit) => {
    const title = element.closest(".tile").querySelector("h4").textContent;
    const values = Object.values(data.series[name] ?? {}).flat().filter((value) => value !== null);
    const last = Object.values(data.series[name] ?? {}).map((line) => format(line.at(-1), unit)).join(", ");
    const text = values.length
      ? `least ${format(Math.min(...values), unit)}, most ${format(Math.max(...values), unit)}, last ${last}`
      : "nothing known";
    element.setAttribute("aria-label", `${title}, the last 30 minutes: ${text}`);
    element.title = text;
  };
  const draw = (element) => {
    const { indicator, unit, threshold } = element.dataset;
    const rows = columns(indicator);
    const old = shown.get(indicator);
    if (old && old.element === element && old.plot.series.length === rows.length) {
      old.plot.setData(rows);
    } else {
      old?.plot.destroy();
      element.textContent = "";
      const limit = threshold === undefined ? null : Number(threshold);
      // The axis begins at 0 and holds the threshold only where that does not flatten the line.
      const range = (_, low, high) => {
        const most = Math.max(high ?? 0, limit !== null && limit <= 4 * (high ?? 0) ? limit : 0);
        return [Math.min(0, low ?? 0), most > 0 ? most * 1.1 : 1];
      };
      const line = colour("--link"), soft = colour("--soft"), bad = colour("--bad");
      const plot = new uPlot({
        width: element.clientWidth || 240, height: 64, legend: { show: false }, cursor: { show: false },
        padding: [4, 2, 2, 2],
        scales: { x: { time: true }, y: { range } },
        axes: [{ show: false }, {
          size: 46, stroke: soft, font: "10px system-ui", ticks: { show: false }, grid: { show: false },
          splits: (_, __, low, high) => [Math.max(low, 0), high / 1.1],
          values: (_, splits) => splits.map((value) => format(value, ["ratio", "seconds", "celsius"].includes(unit) ? unit : "bool")),
        }],
        series: [{}, ...rows.slice(1).map((_, n) => ({ stroke: line, width: 1.5, dash: n ? [2 + 2 * n, 3] : [], points: { show: false } }))],
        hooks: { draw: [(self) => {
          if (limit === null) return;
          const y = self.valToPos(limit, "y", true), { left, top, width, height } = self.bbox;
          if (!(y >= top && y <= top + height)) return;
          self.ctx.save();
          self.ctx.strokeStyle = bad;
          self.ctx.setLineDash([4, 4]);
          self.ctx.beginPath();
          self.ctx.moveTo(left, y);
          self.ctx.lineTo(left + width, y);
          self.ctx.stroke();
          self.ctx.restore();
        }] },
      }, rows, element);
      shown.set(indicator, { element, plot });
    }
    describe(element, indicator, unit);
  };
  const inView = new Set();
  const observer = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) inView.add(target); else inView.delete(target);
      if (isIntersecting && data) draw(target);
    }
  }, { rootMargin: "200px" });
  const observed = new WeakSet();
  const observeCharts = () => {
    for (const element of document.querySelectorAll(".chart")) {
      if (!observed.has(element)) { observed.add(element); observer.observe(element); }
    }
  };
  const drawAll = () => inView.forEach((element) => { if (element.isConnected) draw(element); });
  const loadCharts = async () => {
    try {
      const answer = await fetch("status/charts");
      if (!answer.ok) return;
      data = await answer.json();
      root.dataset.charts = "drawn";
      drawAll();
    } catch { /* The connection is lost; that is said elsewhere. */ }
  };
  const append = (points) => {
    if (!data) return;
    const end = data.start + (data.count - 1) * data.step, next = Math.floor(at / STEP) * STEP;
    if (next <= end) return;
    if (next - end > STEP) { loadCharts(); return; }
    for (const name of new Set([...Object.keys(data.series), ...Object.keys(points)])) {
      const lines = (data.series[name] ??= {}), told = points[name] ?? {};
      for (const model of Object.keys(told)) lines[model] ??= Array(data.count).fill(null);
      for (const [model, line] of Object.entries(lines)) {
        line.push(told[model] ?? null);
        if (line.length > KEPT) line.shift();
      }
    }
    data.start += STEP;
    drawAll();
  };
  const redraw = () => {
    for (const { plot } of shown.values()) plot.destroy();
    shown.clear();
    if (data) drawAll();
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  let resizing = 0;
  addEventListener("resize", () => { clearTimeout(resizing); resizing = setTimeout(redraw, 200); });

  for (const pre of document.querySelectorAll("#log pre")) follow(pre);
  showAges();
  observeCharts();
  open();
  // After the first paint: the values are there already.
  requestAnimationFrame(() => setTimeout(loadCharts, 0));
})();
