"use strict";
// Three views by the address: #/ lists runs, #/run/ID shows one, #/compare/ID,ID several. All text is set as text, never as HTML.
const main = document.getElementById("main");
const COLORS = ["--c1", "--c2", "--c3", "--c4", "--c5", "--c6", "--c7", "--c8"];
const chosen = new Set();
let shown = 0; // number of the newest view: an answer that comes after another view began is dropped

function el(name, attributes = {}, ...children) {
  const svg = ["svg", "path", "polyline", "line", "text", "g", "rect"].includes(name);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

function words(value) {
  if (value === null || value === undefined || value === "") return "–";
  if (typeof value === "number") return Number.isInteger(value) ? value.toLocaleString("en") : String(+value.toPrecision(5));
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

const date = (seconds) => (seconds ? new Date(seconds * 1000).toLocaleString("sv") : "–");
const duration = (s) => (s >= 5400 ? `${(s / 3600).toFixed(1)} h` : s >= 90 ? `${(s / 60).toFixed(1)} min` : `${s.toFixed(1)} s`);
const section = (title, ...content) => [el("h2", {}, title), ...content];
const title = (text) => el("h1", { tabindex: -1 }, text); // focused when a view begins, so that it is read aloud
const runLink = (id) => el("a", { href: `#/run/${encodeURIComponent(id)}` }, id);

function table(caption, columns, rows) {
  const head = columns.map((name) => el("th", { scope: "col" }, name));
  const body = rows.map((row) => el("tr", {}, row.map((cell) => el("td", {}, cell instanceof Node ? cell : words(cell)))));
  return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    el("table", {}, el("caption", { class: "hidden" }, caption), el("thead", {}, el("tr", {}, head)), el("tbody", {}, body)));
}

function facts(pairs) {
  return el("dl", { class: "facts" }, Object.entries(pairs).map(([name, value]) =>
    el("div", {}, el("dt", {}, name), el("dd", {}, value instanceof Node ? value : words(value)))));
}

async function ask(path, parameters = []) {
  const query = new URLSearchParams(parameters).toString();
  const response = await fetch(`/api/${path}${query ? `?${query}` : ""}`);
  const isJson = (response.headers.get("content-type") || "").includes("json");
  const answer = isJson ? await response.json() : { error: await response.text() };
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

// --- charts

function sparkline(values) {
  if (values.length < 2) return "";
  const low = Math.min(...values), span = Math.max(...values) - low || 1;
  const points = values.map((v, i) => `${(i / (values.length - 1)) * 96 + 2},${22 - ((v - low) / span) * 20}`).join(" ");
  const label = `loss from ${words(values[0])} to ${words(values.at(-1))}`;
  return el("svg", { class: "spark", viewBox: "0 0 100 24", role: "img", "aria-label": label },
    el("polyline", { points, fill: "none", stroke: "var(--accent)", "stroke-width": 1.5 }));
}

function chart(title, curves) {
  const W = 760, H = 260, left = 64, bottom = 26, top = 8, right = 8;
  const steps = curves.flatMap((c) => [c.steps[0], c.steps.at(-1)]), all = curves.flatMap((c) => c.values);
  const x0 = Math.min(...steps), x1 = Math.max(...steps, x0 + 1);
  let y0 = Infinity, y1 = -Infinity;
  for (const value of all) { y0 = Math.min(y0, value); y1 = Math.max(y1, value); }
  if (y0 === y1) { y0 -= 1; y1 += 1; }
  const x = (s) => left + ((s - x0) / (x1 - x0)) * (W - left - right);
  const y = (v) => H - bottom - ((v - y0) / (y1 - y0)) * (H - bottom - top);
  const grid = [0, 1, 2, 3, 4].map((k) => y0 + ((y1 - y0) * k) / 4).flatMap((v) => [
    el("line", { x1: left, x2: W - right, y1: y(v), y2: y(v), class: "grid" }),
    el("text", { x: left - 6, y: y(v) + 4, "text-anchor": "end" }, words(+v.toPrecision(4)))]);
  const labels = [[x0, "start"], [x1, "end"]].map(([s, anchor]) =>
    el("text", { x: x(s), y: H - 8, "text-anchor": anchor }, `step ${words(s)}`));
  const lines = curves.map((c, i) => el("polyline", {
    points: c.steps.map((s, k) => `${x(s).toFixed(1)},${y(c.values[k]).toFixed(1)}`).join(" "),
    fill: "none", stroke: `var(${COLORS[i % COLORS.length]})`, "stroke-width": 1.6,
    "stroke-dasharray": ["", "6 3", "2 2", "8 3 2 3"][Math.floor(i / COLORS.length) % 4] }));
  const description = curves.map((c) => `${c.run}: ${words(c.values[0])} to ${words(c.values.at(-1))}`).slice(0, 8).join("; ");
  const legend = table(`last values of ${title}`, ["", "run", "points", "first", "last", "lowest", "highest"], curves.map((c, i) => [
    el("span", { class: "swatch", style: null, "data-color": i % COLORS.length }), runLink(c.run), c.points,
    c.values[0], c.values.at(-1), Math.min(...c.values), Math.max(...c.values)]));
  return el("section", { "aria-label": title },
    el("svg", { class: "chart", viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${title}. ${description}` }, grid, labels, lines),
    legend);
}

function curvesSection(runs, names) {
  const box = el("div", {});
  const select = el("select", { id: "metric", onchange: () => draw() }, names.map((name) => el("option", {}, name)));
  if (names.includes("train/loss")) select.value = "train/loss";
  async function draw() {
    const parameters = [...runs.map((run) => ["run", run]), ["key", select.value]];
    const curves = await ask("curves", parameters);
    box.replaceChildren(curves.length ? chart(select.value, curves) : el("p", { class: "note" }, "no values yet"));
  }
  if (!names.length) return section("Curves", el("p", { class: "note" }, "no metrics yet"));
  draw().catch(fail);
  return section("Curves", el("p", {}, el("label", { for: "metric" }, "metric "), select), box);
}

// --- views

async function listView() {
  const rows = await ask("runs");
  const body = el("tbody"), count = el("span", { class: "note", role: "status" });
  const compare = el("button", { disabled: chosen.size < 2, onclick: () => { location.hash = `#/compare/${[...chosen].map(encodeURIComponent).join(",")}`; } },
    "Compare the selected runs");
  const mark = (id, on) => { on ? chosen.add(id) : chosen.delete(id); compare.disabled = chosen.size < 2; };
  const line = (row) => el("tr", {},
    el("td", {}, el("input", { type: "checkbox", checked: chosen.has(row.run), "aria-label": `select ${row.run}`, onchange: (event) => mark(row.run, event.target.checked) })),
    el("td", {}, runLink(row.run)), el("td", {}, row.job), el("td", { class: `state ${row.state}` }, row.state),
    el("td", { class: "right" }, row.steps ? `${words(row.step)} / ${words(row.steps)}` : words(row.step)),
    el("td", { class: "right" }, words(row.loss)), el("td", {}, sparkline(row.sparkline)),
    el("td", {}, row.result || row.progress?.words || row.reason || ""), el("td", {}, date(row.created)));
  const draw = () => {
    const wanted = filter.value.toLowerCase().split(/\s+/);
    const found = rows.filter((row) => wanted.every((word) => `${row.run} ${row.job} ${row.state}`.toLowerCase().includes(word)));
    body.replaceChildren(...found.map(line));
    count.textContent = ` ${found.length} of ${rows.length} runs`;
  };
  const filter = el("input", { id: "filter", type: "search", oninput: draw });
  draw();
  const names = ["select", "run", "job", "state", "step", "loss", "loss over time", "result", "created"];
  document.title = "Runs · Ropewalk";
  return [title("Runs"),
    el("p", { class: "tools" }, el("label", { for: "filter" }, "name, job or state "), filter, count, compare),
    el("div", { class: "scroll" }, el("table", { id: "runs" }, el("thead", {}, el("tr", {}, names.map((name) => el("th", { scope: "col" }, name)))), body))];
}

function goodput(values) {
  const seconds = Object.entries(values.seconds), total = seconds.reduce((sum, [, s]) => sum + s, 0) || 1;
  const share = values.share === null ? "unknown" : `${(100 * values.share).toFixed(1)}%`;
  return section("Goodput", el("p", {}, `share of useful time: ${share}`), table("seconds by class", ["class", "time", "share"],
    seconds.map(([name, s]) => [name, duration(s), el("meter", { min: 0, max: 1, value: s / total, "aria-label": `${(100 * s / total).toFixed(1)}%` })])));
}

async function runView(id) {
  const run = await ask(`runs/${encodeURIComponent(id)}`);
  document.title = `${run.run} · Ropewalk`;
  const { text, command } = run.why.remedy, price = run.cost.rows[0], currency = run.cost.currency || "money";
  const costs = Object.entries(price).filter(([name]) => !["name", "runs"].includes(name));
  return [back(), title(run.run),
    facts({ job: run.job, state: run.state, step: run.step, cluster: run.cluster, nodes: run.nodes, attempts: run.attempts, created: date(run.created), directory: run.directory }),
    ...section("Why", el("p", { class: "why" }, run.why.cause), run.why.evidence.length ? el("ul", {}, run.why.evidence.map((line) => el("li", {}, line))) : null,
      text || command ? el("p", {}, text || "", command ? el("code", {}, ` ${command.join(" ")}`) : "") : null),
    ...curvesSection([run.run], run.curve_names),
    ...goodput(run.goodput),
    ...section("Cost", table("cost", costs.map(([name]) => (name === "money" ? currency : name.replaceAll("_", " "))), [costs.map(([, value]) => (value === null ? "unknown" : value))]),
      el("ul", {}, Object.entries(run.cost.unknown).map(([name, reason]) => el("li", {}, `${name.replaceAll("_", " ")} unknown: ${reason}`)))),
    ...(run.hangs.length ? section("Hangs", run.hangs.map((hang) => el("details", {}, el("summary", {}, hang.text), el("pre", {}, hang.stacks || "no stacks were recorded")))) : []),
    ...run.tables.flatMap((one) => section(one.name === "samples" ? "Samples" : one.name, table(one.name, one.columns, one.rows))),
    ...(Object.keys(run.results || {}).length ? section("Results", facts(run.results)) : []),
    ...section("Attempts", table("attempts", ["attempt", "state", "cause"], run.attempt_list.map((each, index) => [each.attempt ?? index + 1, each.state, each.cause]))),
    ...section("Events", el("ul", {}, run.events.map((line) => el("li", {}, line)))),
    ...section("Configuration", el("pre", { tabindex: 0 }, JSON.stringify(run.config, null, 2)))];
}

async function compareView(ids) {
  const answer = await ask("comparison", ids.map((id) => ["run", id]));
  document.title = `${ids.length} runs · Ropewalk`;
  return [back(), title(`${ids.length} runs`), ...curvesSection(answer.runs, answer.curve_names),
    ...section("Differences of the configurations", answer.differences.length
      ? table("keys that differ", ["key", ...answer.runs], answer.differences.map((row) => [el("code", {}, row.key), ...row.values]))
      : el("p", { class: "note" }, "none"))];
}

const back = () => el("nav", { "aria-label": "pages" }, el("a", { href: "#/" }, "all runs"));

function fail(error) {
  main.replaceChildren(back(), title("Not available"), el("p", { class: "bad", role: "alert" }, error.message));
}

async function route() {
  const [, view, rest = ""] = location.hash.split("/"), number = ++shown;
  const ids = rest.split(",").filter(Boolean).map(decodeURIComponent);
  try {
    const content = await (view === "run" ? runView(ids[0]) : view === "compare" ? compareView(ids) : listView());
    if (number !== shown) return;
    main.replaceChildren(...content.flat().filter(Boolean));
    main.querySelector("h1").focus();
    window.scrollTo(0, 0);
  } catch (error) {
    if (number === shown) fail(error);
  }
}

window.addEventListener("hashchange", route);
route();
