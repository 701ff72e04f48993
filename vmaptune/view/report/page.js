"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const config = {
    displaylogo: false, responsive: true, scrollZoom: false, showSendToCloud: false, plotlyServerURL: "",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
  };
  const NAME_WIDTH = 100; // pixels that the name of an axis needs
  const figures = new Map();
  let arrays = [];
  let words = null;

  // ---- unpacking ---------------------------------------------------------------------------------

  async function unpack(id) {
    const holder = byId(id);
    const bytes = Uint8Array.from(atob(holder.textContent.trim()), (c) => c.charCodeAt(0));
    holder.remove();
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).arrayBuffer();
  }

  function decode(node) {
    if (Array.isArray(node)) return node.map(decode);
    if (node === null || typeof node !== "object") return node;
    if ("$a" in node) return arrays[node.$a];
    if ("$c" in node) {
      const columns = node.$c.map(decode);
      return Array.from(columns[0], (_, i) => columns.map((column) => (Number.isFinite(column[i]) ? column[i] : null)));
    }
    return Object.fromEntries(Object.entries(node).map(([key, value]) => [key, decode(value)]));
  }

  // ---- colours: "@name" or "@name/alpha", from the style sheet, so that dark and print are its matter ----

  function colour(text) {
    const [name, alpha] = text.slice(1).split("/");
    const hex = getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
    if (alpha === undefined) return hex;
    const parts = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
    return `rgba(${parts.join(",")},${alpha})`;
  }

  function coloured(node, key = "") {
    if (typeof node === "string") {
      return node.startsWith("@") && (key.endsWith("color") || key.endsWith("colorscale")) ? colour(node) : node;
    }
    if (Array.isArray(node)) return node.map((value) => coloured(value, key));
    if (node === null || typeof node !== "object" || ArrayBuffer.isView(node)) return node;
    return Object.fromEntries(Object.entries(node).map(([k, v]) => [k, coloured(v, k)]));
  }

  // ---- drawing -----------------------------------------------------------------------------------

  function hasWebGL() {
    try {
      return Boolean(document.createElement("canvas").getContext("webgl"));
    } catch {
      return false;
    }
  }

  function draw(id) {
    const figure = figures.get(id);
    const place = byId(id);
    if (!figure || !place) return;
    if (figure.data.some((trace) => trace.type === "parcoords") && !hasWebGL()) {
      place.textContent = "This picture needs WebGL, which this browser has switched off.";
      place.dataset.drawn = "without-webgl";
      return;
    }
    const kept = figure.drawn ? place.data : null;
    const data = coloured(figure.data);
    const layout = coloured(figure.layout);
    if (id === "parallel" && place.clientWidth < NAME_WIDTH * data[0].dimensions.length) {
      data[0].labelangle = -35; // side by side the names would lie over each other
      layout.margin = { ...layout.margin, t: 110 };
    }
    if (kept && id === "parallel") {
      data[0].dimensions.forEach((d, i) => {
        if (kept[0].dimensions[i].constraintrange) d.constraintrange = kept[0].dimensions[i].constraintrange;
      });
    }
    const drawn = figure.drawn
      ? Plotly.react(place, data, layout, config)
      : Plotly.newPlot(place, data, layout, config);
    const first = !figure.drawn;
    figure.drawn = true;
    return drawn.then(() => {
      place.dataset.drawn = "yes";
      if (first && id === "parallel") brush(place);
    });
  }

  function fail(error) {
    console.error(error);
    const place = byId("trouble");
    place.hidden = false;
    place.textContent = "The figures could not be drawn: " + error.message + ". The answer and the tables stand.";
  }

  // ---- brushing: what was chosen in words, and the same from the keyboard --------------------------------

  function chosen(place) {
    const trace = place.data[0];
    const within = (value, range) => (Array.isArray(range[0]) ? range : [range]).some(([a, b]) => value >= a && value <= b);
    const active = trace.dimensions.filter((d) => d.constraintrange);
    const found = [];
    for (let i = 0; i < words.trials.length; i++) {
      if (active.every((d) => within(d.values[i], d.constraintrange))) found.push(i);
    }
    return { active: active.map((d) => d.label), found };
  }

  // Plotly's own brush ends a quarter of the way to the next tick: so do we, for words and picture to agree.
  function snapped(ticks, a, b) {
    const mean = (from, to) => 0.75 * from + 0.25 * to;
    const first = Math.max(0, ticks.findIndex((t) => t >= a));
    let last = ticks.length - 1;
    while (last > first && ticks[last] > b) last--;
    return [mean(ticks[first], ticks[Math.max(0, first - 1)]), mean(ticks[last], ticks[Math.min(ticks.length - 1, last + 1)])];
  }

  function element(tag, text, attributes = {}) {
    const made = document.createElement(tag);
    if (text !== null) made.textContent = text;
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  }

  function brush(place) {
    const panel = byId("brush");
    const said = element("p", null, { "aria-live": "polite", id: "brush-words" });
    const list = element("div", null, { class: "scroll", id: "brush-table" });
    const form = element("form", null, { class: "keyboard" });
    const axis = element("select", null, { "aria-label": "Axis to choose on", id: "brush-axis" });
    words.names.forEach((name, i) => axis.append(element("option", name, { value: i })));
    axis.value = String(words.names.length - 1);
    const range = (label, id, value) =>
      element("input", null, { type: "range", min: 0, max: 100, step: 1, value, "aria-label": label, id });
    const low = range("from, in percent of the axis", "brush-low", 0);
    const high = range("to, in percent of the axis", "brush-high", 100);
    const clear = element("button", "Clear", { type: "button", id: "brush-clear" });
    form.append("Choose on ", axis, " from ", low, " to ", high, clear);

    const tell = () => {
      const { active, found } = chosen(place);
      list.replaceChildren();
      if (!active.length) {
        said.textContent = "Nothing is chosen; all trials are shown.";
        return;
      }
      const lost = found.filter((i) => words.rows[i].at(-1) === "infeasible").length;
      said.textContent =
        `${found.length.toLocaleString("en")} of ${words.trials.length.toLocaleString("en")} trials are chosen` +
        (lost ? `, ${lost} of them infeasible` : "") + (found.length ? "; the best of them:" : ".");
      if (!found.length) return;
      const table = element("table", null);
      const head = element("tr", null);
      ["trial", ...words.names].forEach((name) => head.append(element("th", name, { scope: "col" })));
      table.append(head);
      for (const i of found.sort((a, b) => words.rank[a] - words.rank[b]).slice(0, 5)) {
        const row = element("tr", null);
        [words.trials[i], ...words.rows[i]].forEach((text) => row.append(element("td", String(text))));
        table.append(row);
      }
      list.append(table);
    };
    const move = () => {
      const i = Number(axis.value);
      const [from, to] = place.data[0].dimensions[i].range;
      const a = Math.min(low.valueAsNumber, high.valueAsNumber) / 100;
      const b = Math.max(low.valueAsNumber, high.valueAsNumber) / 100;
      const whole = a === 0 && b === 1;
      const range = snapped(place.data[0].dimensions[i].tickvals, from + a * (to - from), from + b * (to - from));
      Plotly.restyle(place, { [`dimensions[${i}].constraintrange`]: whole ? null : [range] });
    };
    low.addEventListener("input", move);
    high.addEventListener("input", move);
    axis.addEventListener("change", () => { low.value = 0; high.value = 100; });
    form.addEventListener("submit", (event) => event.preventDefault());
    clear.addEventListener("click", () => {
      low.value = 0;
      high.value = 100;
      const none = {};
      words.names.forEach((_, i) => { none[`dimensions[${i}].constraintrange`] = null; });
      Plotly.restyle(place, none);
    });
    place.on("plotly_restyle", tell);
    panel.append(form, said, list);
    tell();
  }

  // ---- the start: after the answer has been painted ------------------------------------------------------

  async function start() {
    if (typeof DecompressionStream === "undefined") {
      throw new Error("this browser is too old to unpack them (it lacks DecompressionStream)");
    }
    const [payload, raw, plotly] = await Promise.all(["payload", "arrays", "plotly"].map(unpack));
    const found = JSON.parse(new TextDecoder().decode(payload));
    arrays = found.arrays.map(([kind, at, length]) =>
      kind === "f4" ? new Float32Array(raw, at, length) : new Int32Array(raw, at, length));
    words = found.words;
    for (const figure of found.figures) {
      figures.set(figure.id, { data: decode(figure.data), layout: decode(figure.layout), drawn: false });
    }
    const script = document.createElement("script");
    script.textContent = new TextDecoder().decode(plotly);
    document.head.append(script);

    const watcher = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        watcher.unobserve(entry.target);
        Promise.resolve(draw(entry.target.id)).catch(fail);
      }
    }, { rootMargin: "500px 0px" });
    for (const id of figures.keys()) watcher.observe(byId(id));

    const again = () => { for (const [id, figure] of figures) if (figure.drawn) Promise.resolve(draw(id)).catch(fail); };
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
    const drawAll = () => Promise.all([...figures.keys()].map((id) => (watcher.unobserve(byId(id)), draw(id))));
    // Paper has a width of its own, which no resize event tells of.
    const fit = () => { for (const [id, figure] of figures) if (figure.drawn) Plotly.Plots.resize(byId(id)); };
    addEventListener("beforeprint", () => {
      document.documentElement.classList.add("printing");
      drawAll().catch(fail);
      fit();
    });
    addEventListener("afterprint", () => { document.documentElement.classList.remove("printing"); again(); fit(); });
    window.vmaptuneReport = { drawAll, ids: [...figures.keys()] };
    document.documentElement.dataset.ready = "yes";
  }

  requestAnimationFrame(() => setTimeout(() => start().catch(fail), 0));
})();
