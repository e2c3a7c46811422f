"use strict";
// Sliders over the weights of a mixture by projektor, and what it would score.
(() => {
  const tool = document.getElementById("mixer-tool");
  if (!tool) return;
  const SVG = "http://www.w3.org/2000/svg";
  const CHUNK = 24;
  const HEIGHT = Math.sqrt(3) / 2;
  const CORNERS = [[0, HEIGHT], [1, HEIGHT], [0.5, 0]];
  // Viridis, after van der Walt and Smith.
  const SHADES = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];

  const field = (name) => tool.querySelector(`[data-field="${name}"]`);
  const sliders = [...tool.querySelectorAll(".slider[data-source]")].map((element) => ({
    name: element.dataset.source,
    chosen: Number(element.dataset.chosen),
    range: element.querySelector("input[type=range]"),
    lock: element.querySelector("input[type=checkbox]"),
    output: element.querySelector("output"),
    colour: [...element.classList].find((each) => each.startsWith("part-")),
  }));
  const names = sliders.map((each) => each.name);
  const scored = tool.dataset.predicts === "yes";
  const sizeRange = document.getElementById("size");
  const smallest = Math.log(Number(tool.dataset.smallest));
  const largest = Math.log(Number(tool.dataset.largest));
  let size = Number(tool.dataset.size);
  let shares = normal(sliders.map((each) => each.chosen));
  let report = null;
  let drawnRun = 0;
  let metric = null;
  let best = null;

  function normal(values) {
    const total = values.reduce((a, b) => a + b, 0);
    return total > 0 ? values.map((each) => each / total) : values.map(() => 1 / values.length);
  }
  const weightsOf = (values) => Object.fromEntries(names.map((name, i) => [name, values[i]]));
  const valueOf = (prediction) => (scored ? prediction.mean : prediction.transport);
  const percent = (share) => `${(100 * share).toFixed(1)}%`;

  function text(value) {
    const scale = Math.abs(best?.sd || value) || 1;
    const decimals = Math.min(Math.max((best?.sd ? 1 : 2) - Math.floor(Math.log10(scale)), 0), 6);
    return value.toFixed(decimals).replace("-", "−");
  }

  // Moving one share: what it takes or leaves, the others that are not kept share as they did before.
  function moved(number, wanted) {
    const free = names.map((_, i) => i).filter((i) => i !== number && !sliders[i].lock.checked);
    const kept = shares.reduce((sum, each, i) => (i !== number && sliders[i].lock.checked ? sum + each : sum), 0);
    const room = Math.max(1 - kept, 0);
    const own = free.length ? Math.min(wanted, room) : room;
    const before = free.reduce((sum, i) => sum + shares[i], 0);
    return shares.map((share, i) => {
      if (i === number) return own;
      if (!free.includes(i)) return share;
      return before > 0 ? ((room - own) * share) / before : (room - own) / free.length;
    });
  }

  function showShares(moving) {
    sliders.forEach((each, i) => {
      if (i !== moving || Math.abs(each.range.value / 1000 - shares[i]) > 0.0006) {
        each.range.value = Math.round(1000 * shares[i]);
      }
      each.output.textContent = percent(shares[i]);
      each.range.setAttribute("aria-valuetext", percent(shares[i]));
    });
    placeMarker();
  }

  async function ask(weights) {
    const answer = await fetch("/v1/predict/mixture", {
      method: "POST",
      credentials: "same-origin",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ mixture: tool.dataset.mixture, weights, sizes: [size] }),
    });
    const said = await answer.json();
    if (!answer.ok) throw new Error(said.detail);
    return said;
  }

  // One question at a time; what was moved meanwhile is asked next.
  let asking = false;
  let again = false;
  async function predict() {
    if (asking) { again = true; return; }
    asking = true;
    try {
      do {
        again = false;
        const others = (report?.candidates ?? []).filter((each) => each.name !== "chosen");
        const said = await ask([weightsOf(shares), ...others.map((each) => each.weights)]);
        metric = said.metric;
        best = said.chosen[0];
        show(said.predictions[0], others.map((each, i) => ({ name: each.name, ...said.predictions[i + 1] })));
      } while (again);
      field("status").textContent = "";
    } catch (error) {
      field("status").textContent = String(error.message ?? error);
      for (const name of ["mean", "interval", "difference", "extrapolates", "transport"]) {
        if (field(name)) field(name).textContent = "–";
      }
    } finally {
      asking = false;
    }
  }

  function show(mine, others) {
    const value = valueOf(mine);
    field("mean").textContent = text(value);
    const difference = value - valueOf(best);
    const apart = text(Math.abs(difference));
    field("difference").textContent = Number(apart) ? `${difference > 0 ? "+" : "−"}${apart}` : "the same";
    if (scored) {
      field("interval").textContent = `${text(mine.low)} to ${text(mine.high)}`;
      field("extrapolates").textContent = mine.extrapolates ? "no, it extrapolates" : "yes";
      field("transport").textContent = mine.transport.toPrecision(3);
    }
    drawComparison([{ name: "this mixture", mine: true, ...mine }, { name: "best predicted", ...best }, ...others]);
  }

  function draw(parent, name, attributes, content) {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (content !== undefined) element.textContent = content;
    parent.append(element);
    return element;
  }
  const titled = (element, words) => { draw(element, "title", {}, words); return element; };

  function drawComparison(rows) {
    const svg = field("compare");
    const runs = scored ? largestRuns() : [];
    const ends = rows.flatMap((row) => [row.low, row.high, valueOf(row)]).concat(runs.map((run) => run.score)).filter((each) => each !== null);
    const low = Math.min(...ends);
    const high = Math.max(...ends);
    // Room for the names on the left, in hundredths.
    const left = Math.min(60, (100 * 132) / (svg.clientWidth || 480));
    const x = (value) => `${(left + ((100 - left - 2) * (value - low)) / (high - low || 1)).toFixed(2)}%`;
    svg.replaceChildren();
    const n = rows.length + (runs.length ? 1 : 0);
    svg.setAttribute("height", 26 * n + 20);
    rows.forEach((row, i) => {
      const y = 26 * i + 13;
      const group = draw(svg, "g", { class: row.mine ? "mine" : "other" });
      draw(group, "text", { x: 0, y: y + 4 }, row.name);
      if (row.low !== null) draw(group, "line", { class: "interval", x1: x(row.low), x2: x(row.high), y1: y, y2: y });
      titled(draw(group, "circle", { class: "point", cx: x(valueOf(row)), cy: y, r: 5 }), `${row.name}: ${text(valueOf(row))}`);
    });
    if (runs.length) {
      const y = 26 * rows.length + 13;
      draw(svg, "text", { x: 0, y: y + 4 }, "runs");
      for (const run of runs) {
        const words = names.filter((name) => run.weights[name] > 0).map((name) => `${name} ${percent(run.weights[name])}`);
        titled(draw(svg, "circle", { class: "run", cx: x(run.score), cy: y, r: 4 }), `${text(run.score)}: ${words.join(", ")}`);
      }
    }
    for (const [value, anchor] of [[low, "start"], [high, "end"]]) {
      draw(svg, "text", { class: "soft", x: x(value), y: 26 * n + 14, "text-anchor": anchor }, text(value));
    }
    svg.setAttribute("aria-label", rows.map((row) => `${row.name} ${text(valueOf(row))}`).join(", "));
  }

  function largestRuns() {
    const runs = report?.runs ?? [];
    const most = Math.max(...runs.map((run) => run.size));
    return runs.filter((run) => run.size === most);
  }

  // The surface: a curve for two sources, a triangle for three, else a slice through this mixture for each source.
  const surface = () => (names.length === 3 ? drawTriangle : drawSlices);

  async function drawSurface() {
    const turn = ++drawnRun;
    field("surface-figure").hidden = false;
    try {
      await surface()(turn);
    } catch (error) {
      field("status").textContent = String(error.message ?? error);
    }
  }

  async function* chunks(mixtures, turn) {
    // Small questions, so that those of the sliders are answered between them.
    for (let i = 0; i < mixtures.length && turn === drawnRun; i += CHUNK) {
      const said = await ask(mixtures.slice(i, i + CHUNK).map(weightsOf));
      if (turn === drawnRun) yield said.predictions;
    }
  }

  const place = (values) => [0, 1].map((axis) => values.reduce((sum, value, i) => sum + value * CORNERS[i][axis], 0));
  const brighterIsLess = () => !scored || (metric?.direction ?? "minimize") === "minimize";

  function shade(share) {
    const at = Math.min(Math.max(brighterIsLess() ? 1 - share : share, 0), 1) * (SHADES.length - 1);
    const i = Math.min(Math.floor(at), SHADES.length - 2);
    return SHADES[i].map((each, c) => Math.round(each + (at - i) * (SHADES[i + 1][c] - each)));
  }

  let marker = null;
  function placeMarker() {
    if (!marker) return;
    const [x, y] = place(shares);
    for (const ring of marker) { ring.setAttribute("cx", x); ring.setAttribute("cy", y); }
  }

  async function drawTriangle(turn) {
    for (const steps of [6, 18]) {
      const grid = new Map();
      const mixtures = [];
      for (let i = 0; i <= steps; i++) for (let j = 0; j <= steps - i; j++) {
        grid.set(`${i} ${j}`, mixtures.length);
        mixtures.push([i / steps, j / steps, (steps - i - j) / steps]);
      }
      const values = [];
      for await (const predictions of chunks(mixtures, turn)) values.push(...predictions.map(valueOf));
      if (turn !== drawnRun) return;
      paintTriangle(steps, grid, values);
    }
  }

  // The view of the triangle: left, top, width and height around corners that are 1 apart.
  const VIEW = [-0.06, -0.07, 1.12, 1.02];

  function paintTriangle(steps, grid, values) {
    const low = Math.min(...values);
    const high = Math.max(...values);
    const svg = document.createElementNS(SVG, "svg");
    for (const [key, value] of Object.entries({ class: "surface", viewBox: VIEW.join(" "), role: "img", "aria-label": `Predictions for all mixtures, from ${text(low)} to ${text(high)}` })) svg.setAttribute(key, value);
    draw(svg, "path", { class: "side", d: `M${CORNERS.map((corner) => corner.join(" ")).join("L")}Z`, "vector-effect": "non-scaling-stroke" });
    for (const run of largestRuns()) {
      const [cx, cy] = place(names.map((name) => run.weights[name] ?? 0));
      titled(draw(svg, "circle", { class: "run", cx, cy, r: 0.009, "vector-effect": "non-scaling-stroke" }), `run: ${text(run.score)}`);
    }
    const [sx, sy] = place(names.map((name) => best?.weights[name] ?? 0));
    titled(draw(svg, "path", { class: "star", d: star(sx, sy, 0.024), "vector-effect": "non-scaling-stroke" }), "best predicted");
    marker = ["here-edge", "here"].map((each) => draw(svg, "circle", { class: each, r: 0.022, "vector-effect": "non-scaling-stroke" }));
    names.forEach((name, i) => {
      const [x, y] = CORNERS[i];
      const words = draw(svg, "text", { x, y: i === 2 ? y - 0.02 : y + 0.05, "text-anchor": ["start", "end", "middle"][i], "font-size": 0.036 }, name.length > 22 ? `${name.slice(0, 21)}…` : name);
      words.style.fontSize = "0.036px";
    });
    svg.addEventListener("click", (event) => {
      const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      set(mixtureAt(at.x, at.y).map((each) => Math.max(each, 0)));
    });
    const box = document.createElement("div");
    box.className = "ternary";
    box.append(heat(steps, grid, values, low, high), svg);
    field("surface").replaceChildren(box, scaleBar(low, high));
    field("surface-caption").textContent = "Bright is better. The ring is this mixture, the star the best predicted, dots are the runs. Click to go there.";
    placeMarker();
  }

  function mixtureAt(x, y) {
    const third = (HEIGHT - y) / HEIGHT;
    const second = x - third / 2;
    return [1 - second - third, second, third];
  }

  // Between the mixtures that were asked about, colours are interpolated linearly.
  function heat(steps, grid, values, low, high) {
    const canvas = document.createElement("canvas");
    canvas.width = 672;
    canvas.height = Math.round((672 * VIEW[3]) / VIEW[2]);
    const context = canvas.getContext("2d");
    const image = context.createImageData(canvas.width, canvas.height);
    const of = (i, j) => values[grid.get(`${i} ${j}`)];
    for (let row = 0; row < canvas.height; row++) for (let column = 0; column < canvas.width; column++) {
      const x = VIEW[0] + (VIEW[2] * (column + 0.5)) / canvas.width;
      const y = VIEW[1] + (VIEW[3] * (row + 0.5)) / canvas.height;
      const mixture = mixtureAt(x, y);
      if (mixture.some((each) => each < 0)) continue;
      const [i, j] = mixture.map((each) => Math.floor(each * steps));
      const [u, v] = [mixture[0] * steps - i, mixture[1] * steps - j];
      const near = of(i, j);
      const value = u + v <= 1
        ? near + u * ((of(i + 1, j) ?? near) - near) + v * ((of(i, j + 1) ?? near) - near)
        : of(i + 1, j + 1) + (1 - u) * (of(i, j + 1) - of(i + 1, j + 1)) + (1 - v) * (of(i + 1, j) - of(i + 1, j + 1));
      image.data.set([...shade((value - low) / (high - low || 1)), 255], 4 * (row * canvas.width + column));
    }
    context.putImageData(image, 0, 0);
    return canvas;
  }

  function star(x, y, radius) {
    const points = Array.from({ length: 10 }, (_, i) => {
      const angle = (Math.PI * i) / 5 - Math.PI / 2;
      const r = i % 2 ? radius * 0.45 : radius;
      return `${(x + r * Math.cos(angle)).toFixed(4)} ${(y + r * Math.sin(angle)).toFixed(4)}`;
    });
    return `M${points.join("L")}Z`;
  }

  function scaleBar(low, high) {
    const box = document.createElement("div");
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("class", "scale-bar");
    for (let i = 0; i < 40; i++) draw(svg, "rect", { x: `${2.5 * i}%`, width: "2.6%", height: "100%", fill: `rgb(${shade(i / 39).join(",")})` });
    const words = document.createElement("small");
    words.textContent = `${text(low)} to ${text(high)}, ${tool.dataset.metric}`;
    box.append(svg, words);
    return box;
  }

  const MAX_PANELS = 6;
  async function drawSlices(turn) {
    const order = names.map((_, i) => i).sort((a, b) => sliders[b].chosen - sliders[a].chosen);
    const shown = names.length === 2 ? [0] : order.slice(0, MAX_PANELS);
    const steps = names.length === 2 ? 40 : 10;
    const here = shares;
    const wanted = shown.flatMap((number) => Array.from({ length: steps + 1 }, (_, step) => alone(here, number, step / steps)));
    const found = [];
    for await (const predictions of chunks(wanted, turn)) found.push(...predictions);
    if (turn !== drawnRun) return;
    const ends = found.flatMap((each) => (each.low === null ? [valueOf(each)] : [each.low, each.high]));
    const span = [Math.min(...ends), Math.max(...ends)];
    const box = document.createElement("div");
    box.className = names.length === 2 ? "one-panel" : "panels";
    shown.forEach((number, i) => box.append(panel(number, found.slice(i * (steps + 1), (i + 1) * (steps + 1)), span, here)));
    marker = null;
    field("surface").replaceChildren(box);
    field("surface-caption").textContent = `Across: the share of a source from 0 to 100 %, the others in this mixture's proportions. Up: ${tool.dataset.metric}.`;
  }

  function alone(values, number, share) {
    const rest = values.reduce((sum, each, i) => (i === number ? sum : sum + each), 0);
    return values.map((each, i) => {
      if (i === number) return share;
      return rest > 0 ? ((1 - share) * each) / rest : (1 - share) / (values.length - 1);
    });
  }

  function panel(number, predictions, [low, high], here) {
    const figure = document.createElement("figure");
    const caption = document.createElement("figcaption");
    caption.textContent = names[number];
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("class", `chart ${sliders[number].colour}`);
    svg.setAttribute("width", "100%");
    svg.setAttribute("height", names.length === 2 ? "220" : "112");
    svg.setAttribute("role", "img");
    const y = (value) => (100 - (100 * (value - low)) / (high - low || 1)).toFixed(2);
    const x = (i) => ((100 * i) / (predictions.length - 1)).toFixed(2);
    const inner = draw(svg, "svg", { viewBox: "0 0 100 100", preserveAspectRatio: "none", width: "100%", height: "100%" });
    for (const at of [0, 50, 100]) draw(inner, "line", { class: "grid", x1: 0, x2: 100, y1: at, y2: at, "vector-effect": "non-scaling-stroke" });
    if (scored) {
      const upper = predictions.map((each, i) => `${x(i)},${y(each.high)}`);
      const lower = predictions.map((each, i) => `${x(i)},${y(each.low)}`).reverse();
      draw(inner, "polygon", { class: `band ${sliders[number].colour}`, points: [...upper, ...lower].join(" ") });
    }
    draw(inner, "polyline", { class: `curve ${sliders[number].colour}`, points: predictions.map((each, i) => `${x(i)},${y(valueOf(each))}`).join(" ") });
    const at = here[number] * (predictions.length - 1);
    const i = Math.min(Math.floor(at), predictions.length - 2);
    const value = valueOf(predictions[i]) + (at - i) * (valueOf(predictions[i + 1]) - valueOf(predictions[i]));
    draw(svg, "circle", { class: "point", cx: `${100 * here[number]}%`, cy: `${y(value)}%`, r: 5 });
    draw(svg, "text", { class: "soft", x: "100%", y: -4, "text-anchor": "end" }, text(high));
    draw(svg, "text", { class: "soft", x: "100%", y: "100%", dy: 14, "text-anchor": "end" }, text(low));
    draw(svg, "text", { class: "soft", x: 0, y: "100%", dy: 14 }, "0 %");
    draw(svg, "text", { class: "soft", x: "50%", y: "100%", dy: 14, "text-anchor": "middle" }, "50 %");
    svg.setAttribute("aria-label", `${names[number]} from 0 to 100 %: ${text(valueOf(predictions[0]))} to ${text(valueOf(predictions.at(-1)))}`);
    figure.append(caption, svg);
    return figure;
  }

  function set(values) {
    shares = normal(values);
    showShares(-1);
    predict();
    if (names.length !== 3) drawSurface();
  }

  sliders.forEach((each, i) => {
    each.range.addEventListener("input", () => {
      shares = moved(i, each.range.value / 1000);
      showShares(i);
      predict();
    });
    each.range.addEventListener("change", () => {
      showShares(-1);
      if (names.length !== 3) drawSurface();
    });
  });
  for (const button of tool.querySelectorAll("button[data-set]")) {
    button.addEventListener("click", () => {
      for (const each of sliders) each.lock.checked = false;
      if (button.dataset.set === "uniform") set(names.map(() => 1));
      else set(names.map((name, i) => best?.weights[name] ?? sliders[i].chosen));
    });
  }
  if (sizeRange) {
    const showSize = () => {
      const words = size.toLocaleString("en-US");
      field("size").textContent = words;
      sizeRange.setAttribute("aria-valuetext", `${words} ${tool.dataset.unit}`);
    };
    sizeRange.value = Math.round((1000 * (Math.log(size) - smallest)) / (largest - smallest || 1));
    sizeRange.addEventListener("input", () => {
      const exact = Math.exp(smallest + (sizeRange.value / 1000) * (largest - smallest));
      size = Math.max(1, Number(exact.toPrecision(3)));
      showSize();
      predict();
    });
    sizeRange.addEventListener("change", drawSurface);
    showSize();
  }

  async function start() {
    tool.hidden = false;
    showShares(-1);
    const answer = await fetch(`/v1/mixtures/${tool.dataset.mixture}/report`, { credentials: "same-origin" });
    if (answer.ok) report = await answer.json();
    await predict();
    if (best) await drawSurface();
  }
  // The first question fits the predictor: not before somebody looks at this part of the page.
  const seen = new IntersectionObserver((entries) => {
    if (!entries.some((each) => each.isIntersecting)) return;
    seen.disconnect();
    start();
  }, { rootMargin: "200px" });
  tool.hidden = false;
  seen.observe(tool);
})();
