"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);
// Paul Tol's "bright" without its gray, then the same again with dashes: told apart by most eyes, on white and on black.
const COLORS = ["#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377"], DASHES = ["solid", "dash", "dot", "dashdot"];
const MOST_POINTS = 2000;  // drawn of one curve; the data has all of them
const hidden = new Set();
const color = run => COLORS[run % COLORS.length], dash = run => DASHES[Math.floor(run / COLORS.length) % DASHES.length];
const DARK = matchMedia("(prefers-color-scheme: dark)");
// Viridis without its yellow end, which is lost on white. The best trials are far from the background, the worst near to it.
const SCALE = [[0, "#440154"], [0.33, "#31688e"], [0.67, "#35b779"], [1, "#90d743"]];
const TOUCH = matchMedia("(pointer: coarse)").matches;

const CHARTS = [
  ["Loss in training [nats]", ["loss_nats"]],
  ["Loss on held-out text [nats]", ["eval_loss_nats"]],
  ["Learning rate", ["learning_rate"]],
  ["Tokens a second", ["tokens_per_second"]],
  ["Model FLOPs utilization", ["mfu"]],
  ["Goodput: share of the time in steps", ["goodput"]],
];
const keys = [...new Set(DATA.runs.flatMap(run => run.tables.flatMap(table => Object.keys(table.columns))))].filter(key => key !== "step");
for (const key of keys) if (/(^|_)norm(_|$)/.test(key)) CHARTS.push([key.replaceAll("_", " ").replace(/^grad /, "gradient "), [key]]);

function element(parent, tag, text, className) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (className) node.className = className;
  parent.append(node);
  return node;
}
function chart(parent, title, full) {
  const figure = element(parent, "figure", undefined, "chart" + (full ? " full" : ""));
  element(figure, "figcaption", title);
  return element(figure, "div");
}
const style = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
function draw(node, traces, {x = {}, y = {}, ...more} = {}) {
  const line = {gridcolor: style("--grid"), zerolinecolor: style("--grid"), linecolor: style("--line"), automargin: true};
  const layout = {
    height: 300, margin: {l: 50, r: 12, t: 8, b: 40}, showlegend: false, hovermode: "closest", dragmode: TOUCH ? false : "zoom",
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: {color: style("--ink"), size: 12, family: "system-ui, sans-serif"},
    hoverlabel: {bgcolor: style("--raised"), bordercolor: style("--line"), font: {color: style("--ink")}},
    xaxis: {...line, ...x}, yaxis: {...line, ...y}, ...more,
  };
  return Plotly.react(node, traces, layout, {responsive: true, displayModeBar: false, scrollZoom: false});
}

// Points of a metric of one run, in order; null where the chosen axis is not known.
function series(run, key, axis) {
  const points = [];
  for (const table of run.tables) {
    if (!(key in table.columns)) continue;
    const x = axis === "step" ? table.columns.step : table.axes[axis];
    if (!x) return null;
    table.columns[key].forEach((value, i) => { if (typeof value !== "boolean" && value !== null && Number.isFinite(Number(value))) points.push([x[i], Number(value)]); });
  }
  return points.sort((a, b) => a[0] - b[0]);
}
// Exponential mean without the pull towards its start (Kingma & Ba 2015, section 3).
function smoothed(values, weight) {
  let mean = 0, norm = 0;
  return values.map(value => (mean = weight * mean + (1 - weight) * value, norm = weight * norm + 1 - weight, mean / norm));
}
function thinned(values) {
  const stride = Math.ceil(values.length / MOST_POINTS);
  return stride < 2 ? values : values.filter((_, i) => i % stride === 0 || i === values.length - 1);
}
function curve(node, wanted) {
  const axis = $("axis").value, weight = Number($("smooth").value), traces = [];
  DATA.runs.forEach((run, number) => {
    if (hidden.has(number)) return;
    for (const key of wanted) {
      const points = series(run, key, axis);
      if (!points || !points.length) continue;
      const xs = points.map(p => p[0]), ys = points.map(p => p[1]), smooth = weight > 0 && !key.startsWith("eval_") && key !== "learning_rate" && key !== "goodput" && points.length > 2;
      const trace = (values, opacity, width) => ({
        x: thinned(xs), y: thinned(values), name: run.name, opacity, mode: points.length < 40 && opacity === 1 && !smooth ? "lines+markers" : "lines",
        line: {color: color(number), dash: dash(number), width}, marker: {size: 5, color: color(number)},
        hovertemplate: "%{y:.5g} at %{x:.6~g}<extra>%{fullData.name}</extra>",
      });
      if (smooth) traces.push(trace(ys, 0.35, 1));
      traces.push(trace(smooth ? smoothed(ys, weight) : ys, 1, 2));
    }
  });
  const title = {step: "step", tokens: "tokens", flops: "FLOPs", hours: "hours of steps"}[axis];
  draw(node, traces, {x: {title: {text: title}, type: $("logx").checked ? "log" : "linear", exponentformat: "SI"}, y: {type: $("logy").checked ? "log" : "linear", rangemode: wanted[0] === "learning_rate" && !$("logy").checked ? "tozero" : "normal"}});
}

const curves = [];
function drawCurves() {
  const axis = $("axis").value;
  const without = DATA.runs.filter(run => run.tables.length && axis !== "step" && !run.tables.every(table => axis in table.axes)).map(run => run.name);
  $("unknown").textContent = without.length ? `Not drawn by ${axis}, which their metrics do not tell: ${without.join(", ")}.` : "";
  for (const [node, wanted] of curves) curve(node, wanted);
  curve($("any-chart"), [$("any").value]);
}
function setUpCurves() {
  DATA.runs.forEach((run, number) => {
    const button = element($("legend"), "button");
    const dot = element(button, "span", undefined, "dot");
    dot.style.background = color(number);
    button.append(run.name);
    button.setAttribute("aria-pressed", "true");
    button.title = "show or hide " + run.name;
    button.onclick = () => {
      hidden.has(number) ? hidden.delete(number) : hidden.add(number);
      button.setAttribute("aria-pressed", String(!hidden.has(number)));
      drawCurves();
    };
  });
  for (const [title, wanted] of CHARTS) if (wanted.some(key => keys.includes(key))) curves.push([chart($("curves"), title), wanted]);
  $("any").replaceChildren(...keys.map(key => new Option(key)));
  $("any").value = keys.find(key => key.startsWith("eval_") && key !== "eval_loss_nats") || keys[0];
  for (const id of ["axis", "smooth", "logx", "logy", "any"]) $(id).oninput = drawCurves;
}

function drawTime() {
  const runs = DATA.runs.filter(run => Object.keys(run.seconds).length), node = $("time-chart") || chart($("time"), "Share of each run's time", true);
  node.id = "time-chart";
  const causes = Object.keys(runs[0].seconds).filter(cause => runs.some(run => run.seconds[cause] > 0)), total = run => Object.values(run.seconds).reduce((a, b) => a + b, 0);
  const colors = {steps: "#228833", start: "#4477aa", compile: "#66ccee", data: "#ccbb44", eval: "#aa3377", checkpoint: "#ee6677", repeated: "#bbbbbb", down: "#777777"};
  draw(node, causes.map(cause => ({
    type: "bar", orientation: "h", name: cause, y: runs.map(run => run.name), x: runs.map(run => run.seconds[cause] / total(run)), marker: {color: colors[cause]},
    customdata: runs.map(run => run.seconds[cause]), hovertemplate: "%{fullData.name}: %{customdata:.4g} s, %{x:.1%}<extra></extra>",
  })), {barmode: "stack", height: 110 + 28 * runs.length, showlegend: true, legend: {orientation: "h", y: -0.25, yanchor: "top", traceorder: "normal"}, x: {tickformat: ".0%", range: [0, 1]}, y: {autorange: "reversed", type: "category"}});
}

function drawScaling() {
  const law = DATA.scaling, node = $("scaling-chart") || chart($("scaling"), "Loss against size, with the law and its 90% band", true), x = law.curve.map(p => p[0]);
  node.id = "scaling-chart";
  const line = (values, more) => ({x, y: values, mode: "lines", hoverinfo: "skip", line: {width: 0}, ...more});
  draw(node, [
    line(law.curve.map(p => p[2])), line(law.curve.map(p => p[3]), {fill: "tonexty", fillcolor: "rgba(68,119,170,0.2)"}),
    line(law.curve.map(p => p[1]), {line: {width: 2, color: COLORS[0]}, hoverinfo: "x+y"}),
    {x: law.points.map(p => p[1 + law.axis]), y: law.points.map(p => p[3]), text: law.points.map(p => p[0]), mode: "markers", marker: {size: 9, color: COLORS[1]}, hovertemplate: "%{text}: %{y:.5g} at %{x:.4s}<extra></extra>"},
  ], {x: {type: "log", title: {text: law.variable}, exponentformat: "SI"}, y: {title: {text: "held-out loss [nats]"}}});
}

const number = value => typeof value === "number";
const looksLog = values => values.every(v => number(v) && v > 0) && Math.max(...values) / Math.min(...values) >= 8;
function drawStudy(study, index) {
  const place = $("study-" + index);
  place.replaceChildren();
  const trials = study.trials.filter(t => study.measured.includes(t.number)), values = trials.map(t => t.value);
  if (!trials.length) { element(place, "p", "No trial has been measured yet.", "remark"); return; }
  draw(chart(place, "Best so far"), [
    {x: trials.map(t => t.number), y: values, mode: "markers", marker: {size: 6, color: COLORS[0], opacity: 0.5}, hovertemplate: "trial %{x}: %{y:.5g}<extra></extra>"},
    {x: study.best_so_far.map(p => p[0]), y: study.best_so_far.map(p => p[1]), mode: "lines", line: {shape: "hv", color: COLORS[1], width: 2}, hovertemplate: "best up to trial %{x}: %{y:.5g}<extra></extra>"},
  ], {x: {title: {text: "trial"}}, y: {title: {text: study.metric}}});
  const names = Object.keys(study.importance).reverse();
  if (names.length) draw(chart(place, "Importance: rank correlation with " + study.metric), [
    {type: "bar", orientation: "h", y: names, x: names.map(name => study.importance[name]), marker: {color: COLORS[0]}, hovertemplate: "%{y}: %{x:.2f}<extra></extra>"},
  ], {x: {range: [0, 1]}, y: {type: "category"}});
  for (const key of study.parameters) {
    const having = trials.filter(t => key in t.params), given = having.map(t => t.params[key]);
    if (new Set(given.map(String)).size < 2) continue;
    draw(chart(place, key), [{
      x: given.every(number) ? given : given.map(String), y: having.map(t => t.value), text: having.map(t => t.number), mode: "markers", marker: {size: 8, color: COLORS[0]},
      hovertemplate: "trial %{text}: %{y:.5g} at %{x}<extra></extra>",
    }], {x: {type: looksLog(given) ? "log" : given.every(number) ? "linear" : "category", exponentformat: "power"}, y: {title: {text: study.metric}}});
  }
  const complete = trials.filter(t => study.parameters.every(key => key in t.params));
  if (complete.length < 2) return;
  const dimensions = study.parameters.map(key => {
    const given = complete.map(t => t.params[key]), label = key.split(".").pop();
    if (!given.every(number)) {
      const found = [...new Set(given.map(String))];
      return {label, values: given.map(v => found.indexOf(String(v))), tickvals: found.map((_, i) => i), ticktext: found};
    }
    if (!looksLog(given)) return {label, values: given};
    const ticks = [...new Set(given)].sort((a, b) => a - b), shown = ticks.length > 8 ? [ticks[0], ticks[ticks.length >> 1], ticks.at(-1)] : ticks;
    return {label, values: given.map(Math.log10), tickvals: shown.map(Math.log10), ticktext: shown.map(v => v.toPrecision(3))};
  });
  const node = chart(place, "Parallel coordinates: drag along an axis to select", true);
  node.parentElement.classList.add("wide");
  node.style.minWidth = 110 * (dimensions.length + 1) + "px";  // on a phone it is moved sideways, instead of its axes being pushed together
  const losses = complete.map(t => t.value);
  draw(node, [{
    type: "parcoords", dimensions: [...dimensions, {label: study.metric, values: losses}],
    line: {color: losses, colorscale: SCALE, reversescale: DARK.matches !== study.maximize}, labelfont: {size: 12}, tickfont: {size: 11, color: style("--ink")}, rangefont: {size: 1, color: "rgba(0,0,0,0)"},
  }], {height: 340, margin: {l: 60, r: 60, t: 60, b: 20}});
}

function drawAll() {
  if (curves.length) drawCurves();
  if ($("time")) drawTime();
  if ($("scaling")) drawScaling();
  DATA.studies.forEach(drawStudy);
  document.documentElement.dataset.drawn = "yes";
}
if (DATA.runs.length) setUpCurves();
document.querySelectorAll("th.run").forEach(head => {
  const dot = document.createElement("span");
  dot.className = "dot";
  dot.style.background = color(Number(head.dataset.run));
  head.prepend(dot);
});
DARK.addEventListener("change", drawAll);
drawAll();
