// The kit of the explorables: what their scenes share. Python puts drum.js and speaker.js before it.
//
// A scene, explorable_NAME.js, says explorables.register("NAME", scene). In the page it finds its elements,
// <div data-explorable="NAME">; in Jupyter and Colab it is the front end of an anywidget (explorables.py).
//
// scene(root, data, kit) fills root, an empty element whose children stand side by side where there is room. It may
// return a function that is called when the scene goes. data is what Python gave; an array is {shape, values}, row by
// row, values a Float32Array. Of the kit:
//
//   panel(root)                      a <div> in root, to put the following into
//   note(parent, text)               a paragraph; returned
//   select(parent, {label, options, value, onInput})           options: [[value, text], …]; onInput(value)
//   slider(parent, {label, low, high, value, steps, log, say, onInput})    say(value): what is shown and spoken
//   button(parent, text, onClick)
//     of select and slider: .value can be read and set
//   readout(parent, {name: label})   a list of values; readout.set({name: text}); each is in an element [data-value=name]
//   sounds(parent, {label: () => ({x, sampleRate})}, policy)   a button that plays each; policy, of loudness, stands below
//   legend(parent, [[label, colour, dash], …])                 colour: 1 to 5, or 0, the text's; dash as in SVG, or ""
//   plot(parent, {label, x, y, width, height})                 axes {label, low, high, log, ticks}, see below
//   number(x, n)                     x with n significant digits, for people
//   rectangularDrum                                            of drum.js
//   fadedDrum(theta, nSamples, sampleRate)                     the drum, its last quarter faded out
//
// Of a plot, in the units of its axes, `key` naming what is drawn anew when the same key comes again:
//
//   axes(x, y)                                  other axes; clears all but the points
//   line(key, xs, ys, {color, dash, width})     dots(key, xs, ys, {color, width})     cross(key, x, y, {color})
//   band(key, {x: [from, to]} or {y: [from, to]})
//   contours(key, {values, shape, x: [from, to], y: [from, to]}, levels, {color, dash})
//   heat(key, {values, shape, x, y}, low, high)        in cividis; shape (rows along y, columns along x)
//   point({label, at: [x, y], step: [dx, dy], snap, say, nudge, onMove, color})
//     to drag by mouse and touch, or by arrow keys (× 10 with Shift). snap(x, y): where it may stand instead;
//     say(x, y): what is spoken; nudge(x, y, i, j): where an arrow leads; onMove(x, y). Returned: moveTo(x, y), say().

const CIVIDIS = [
  [0, 34, 78], [26, 56, 111], [67, 78, 108], [97, 101, 111], [125, 124, 120], [155, 148, 118], [188, 174, 108],
  [222, 201, 88], [254, 232, 56],
];

const STYLE = `
.explorable { --c0: currentColor; --c1: #0072b2; --c2: #c44e00; --c3: #007f5c; --c4: #a8487c; --c5: #8a6100;
  max-width: 48rem; padding: 0.3rem; line-height: 1.35; }
:is([data-theme="dark"], [data-jp-theme-light="false"]) .explorable { --c1: #56b4e9; --c2: #f58b3d; --c3: #2fc79d;
  --c4: #e59cc6; --c5: #e6b800; }
.explorable > .scene { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr));
  gap: 0.5rem 2rem; }
.explorable .panel { min-width: 0; }
.explorable .said { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
.explorable p { margin: 0.3rem 0; font-size: 0.85em; }
.explorable label { display: block; margin: 0 0 0.5rem; }
.explorable select { display: block; font: inherit; max-width: 100%; color: var(--pst-color-text-base, CanvasText);
  background: var(--pst-color-background, Canvas); border: 1px solid currentColor; border-radius: 0.3rem; }
.explorable input { display: block; width: 100%; margin: 0.25rem 0; accent-color: var(--c1); }
.explorable .value, .explorable dl { font-size: 0.85em; font-variant-numeric: tabular-nums; }
.explorable button { font: inherit; padding: 0.3rem 0.9rem; margin: 0 0.4rem 0.4rem 0; color: inherit;
  background: transparent; border: 1px solid currentColor; border-radius: 0.3rem; cursor: pointer; }
.explorable dl { display: grid; grid-template-columns: auto auto; justify-content: start; gap: 0 0.8rem;
  margin: 0.3rem 0; }
.explorable dt { font-weight: normal; margin: 0; }
.explorable dd { margin: 0; text-align: right; }
.explorable .legend { display: flex; flex-wrap: wrap; gap: 0 1rem; font-size: 0.85em; }
.explorable .legend svg { display: inline-block; width: 2rem; height: 0.6rem; margin-right: 0.3rem; overflow: visible; }
.explorable .plot { display: block; width: 100%; max-width: 26rem; fill: currentColor; font-size: 12px;
  touch-action: pan-x pan-y; user-select: none; }
.explorable .grid { stroke: currentColor; stroke-opacity: 0.2; }
.explorable .band { fill: currentColor; fill-opacity: 0.1; }
.explorable .curve { fill: none; stroke-linejoin: round; }
.explorable .point { cursor: grab; outline: none; }
.explorable .point .ring { fill: none; stroke: none; stroke-width: 2.5; }
.explorable .point:focus-visible .ring { stroke: #d55e00; }
.explorable .point .dot { stroke: var(--pst-color-background, #fff); stroke-width: 1.5; }
.explorable :is(button, select, input):focus-visible { outline: 3px solid #d55e00; outline-offset: 2px; }
html[data-theme="dark"] .bd-content div.cell_output .text_html:has(div[data-explorable]) { background: none;
  color: inherit; }
@media print {
  .explorable .said { position: static; width: auto; height: auto; clip-path: none; }
  .explorable :is(button, input, select) { display: none; }
}
`; // in its dark mode, the book's theme sets what a cell shows on a light ground

const CLIP = { count: 0 }; // of the regions that cut off what lies outside of a plot's axes
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

/** The drum, its last quarter faded out. */
function fadedDrum(theta, nSamples, sampleRate) {
  const [start, m] = [(3 * nSamples) / 4, nSamples / 4];
  const fade = (i) => (i < start ? 1 : (1 + Math.cos((Math.PI * (i - start)) / (m - 1))) / 2);
  return rectangularDrum(theta, nSamples, sampleRate).map((v, i) => v * fade(i));
}

/** A number with n significant digits; very large and very small ones as a power of ten. */
function number(x, n = 3) {
  if (!Number.isFinite(x) || x === 0) return String(x).replace("-", "−").replace("Infinity", "∞");
  const rounded = Number(x.toPrecision(n));
  const power = Math.floor(Math.log10(Math.abs(rounded)));
  if (power >= -3 && power < 6) {
    return rounded.toFixed(clamp(n - 1 - power, 0, 20)).replace("-", "−");
  }
  const superscript = String(power).replace(/./g, (c) => (c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[c]));
  return `${(rounded / 10 ** power).toFixed(n - 1).replace("-", "−")} · 10${superscript}`;
}

/** Where an axis has its numbers: about five round ones, or the powers of ten. */
function ticks({ low, high, log, ticks: given }) {
  if (given) return given;
  if (log) {
    const [first, last] = [Math.ceil(Math.log10(low) - 1e-9), Math.floor(Math.log10(high) + 1e-9)];
    const every = Math.ceil((last - first + 1) / 7);
    return Array.from({ length: last - first + 1 }, (_, i) => 10 ** (first + i)).filter((_, i) => i % every === 0);
  }
  const rough = (high - low) / 5;
  const size = 10 ** Math.floor(Math.log10(rough));
  const step = size * [1, 2, 5, 10].find((m) => m * size >= rough);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, i) => (first + i) * step);
}

/** What stands at a tick: as many decimals as the steps between ticks need. */
function tickLabel(value, all, log) {
  if (log && (value >= 1e5 || value < 1e-3)) return number(value, 1).replace("1 · ", "");
  if (log) return String(Number(value.toPrecision(3)));
  const step = all.length > 1 ? Math.abs(all[1] - all[0]) : Math.abs(value) || 1;
  if (step >= 1e5) return value ? number(value, 2) : "0";
  return value.toFixed(clamp(-Math.floor(Math.log10(step) + 1e-9), 0, 8)).replace(/^-(?=.*[1-9])/, "−").replace("-", "");
}

/** SVG path of the lines on which a grid, shape (rows, columns), has the value `level`: marching squares. */
function contour(values, [rows, columns], level, x, y) {
  const parts = [];
  const at = (r, c) => values[r * columns + c] - level;
  for (let r = 0; r + 1 < rows; r++) {
    for (let c = 0; c + 1 < columns; c++) {
      const corners = [[r, c], [r, c + 1], [r + 1, c + 1], [r + 1, c]];
      const heights = corners.map(([i, j]) => at(i, j));
      const crossings = [];
      for (let k = 0; k < 4; k++) {
        const [a, b] = [heights[k], heights[(k + 1) % 4]];
        if (a < 0 === b < 0) continue;
        const [from, to, share] = [corners[k], corners[(k + 1) % 4], a / (a - b)];
        const [row, column] = [0, 1].map((axis) => from[axis] + share * (to[axis] - from[axis]));
        crossings.push(`${x(column / (columns - 1)).toFixed(2)} ${y(row / (rows - 1)).toFixed(2)}`);
      }
      // In a saddle, the value in the middle says which corners belong together.
      const middle = heights.reduce((sum, height) => sum + height, 0);
      if (crossings.length === 4 && middle < 0 === heights[0] < 0) crossings.push(crossings.shift());
      for (let k = 0; k + 1 < crossings.length; k += 2) parts.push(`M${crossings[k]}L${crossings[k + 1]}`);
    }
  }
  return parts.join("");
}

function plot(parent, { label, x, y, width = 340, height = 300 }) {
  const box = { left: 52, right: width - 10, top: 8, bottom: height - 40 };
  const clip = `explorable-clip-${CLIP.count++}`;
  const template = document.createElement("div");
  template.innerHTML = `<svg class="plot" viewBox="0 0 ${width} ${height}" role="group">
    <clipPath id="${clip}"><rect x="${box.left}" y="${box.top}" width="${box.right - box.left}"
      height="${box.bottom - box.top}"/></clipPath>
    <rect class="ground" x="${box.left}" y="${box.top}" width="${box.right - box.left}"
      height="${box.bottom - box.top}" fill="transparent"/>
    <g class="heat" clip-path="url(#${clip})"></g><g class="axes" aria-hidden="true"></g>
    <g class="marks" clip-path="url(#${clip})"></g><g class="points"></g></svg>`;
  const svg = template.firstChild;
  svg.setAttribute("aria-label", label);
  parent.append(svg);
  const find = (selector) => svg.querySelector(selector);
  const points = [];
  let axis = { x, y };

  const scale = ({ low, high, log }, from, to) => {
    const [a, b] = log ? [Math.log(low), Math.log(high)] : [low, high];
    return {
      to: (value) => from + ((to - from) * ((log ? Math.log(value) : value) - a)) / (b - a),
      back: (place) => {
        const value = a + ((b - a) * (place - from)) / (to - from);
        return log ? Math.exp(value) : value;
      },
    };
  };
  const sx = () => scale(axis.x, box.left, box.right);
  const sy = () => scale(axis.y, box.bottom, box.top);
  const element = (name, attributes, layer) => {
    const made = document.createElementNS(svg.namespaceURI, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    layer?.append(made);
    return made;
  };
  const drawn = new Map();
  const draw = (key, name, attributes, layer = ".marks") => {
    const made = element(name, attributes);
    if (drawn.has(key)) drawn.get(key).replaceWith(made);
    else find(layer).append(made);
    drawn.set(key, made);
  };
  const stroke = ({ color = 1, dash = "", width: thickness = 1.5 }) =>
    `stroke: var(--c${color}); stroke-width: ${thickness}; ${dash && `stroke-dasharray: ${dash}`}`;

  function drawAxes() {
    const [toX, toY] = [sx().to, sy().to];
    const [across, up] = [ticks(axis.x), ticks(axis.y)];
    const { left, right, top, bottom } = box;
    const parts = [
      ...across.map((value) => `<line class="grid" x1="${toX(value)}" x2="${toX(value)}" y1="${top}" y2="${bottom}"/>
        <text x="${toX(value)}" y="${bottom + 14}" text-anchor="middle">${tickLabel(value, across, axis.x.log)}</text>`),
      ...up.map((value) => `<line class="grid" x1="${left}" x2="${right}" y1="${toY(value)}" y2="${toY(value)}"/>
        <text x="${left - 5}" y="${toY(value) + 4}" text-anchor="end">${tickLabel(value, up, axis.y.log)}</text>`),
      `<text x="${(left + right) / 2}" y="${bottom + 31}" text-anchor="middle"></text>`,
      `<text transform="translate(11 ${(top + bottom) / 2}) rotate(-90)" text-anchor="middle"></text>`,
    ];
    find(".axes").innerHTML = parts.join("");
    const labels = [...find(".axes").querySelectorAll("text")].slice(-2);
    [labels[0].textContent, labels[1].textContent] = [axis.x.label, axis.y.label];
  }

  const self = {
    axes(newX, newY) {
      axis = { x: newX, y: newY };
      for (const made of drawn.values()) made.remove();
      drawn.clear();
      drawAxes();
      for (const point of points) point.place();
    },
    line(key, xs, ys, options = {}) {
      const [toX, toY] = [sx().to, sy().to];
      const path = Array.from(xs, (value, i) => `${toX(value).toFixed(2)},${toY(ys[i]).toFixed(2)}`);
      draw(key, "polyline", { class: "curve", points: path.join(" "), style: stroke(options) });
    },
    dots(key, xs, ys, { color = 1, width: size = 5 } = {}) {
      const [toX, toY] = [sx().to, sy().to];
      const path = Array.from(xs, (value, i) => `M${toX(value).toFixed(2)} ${toY(ys[i]).toFixed(2)}h0`);
      draw(key, "path", { class: "curve", d: path.join(""), style: `${stroke({ color, width: size })} stroke-linecap: round` });
    },
    band(key, { x: along, y: up }) {
      const [x1, x2] = along ? along.map(sx().to) : [box.left, box.right];
      const [y2, y1] = up ? up.map(sy().to) : [box.bottom, box.top];
      draw(key, "rect", { class: "band", x: x1, y: y1, width: Math.max(0, x2 - x1), height: Math.max(0, y2 - y1) });
    },
    cross(key, px, py, { color = 0 } = {}) {
      const [u, v] = [sx().to(px), sy().to(py)];
      const path = `M${u - 5} ${v - 5}L${u + 5} ${v + 5}M${u - 5} ${v + 5}L${u + 5} ${v - 5}`;
      draw(key, "path", { class: "curve", d: path, style: stroke({ color, width: 2 }) });
    },
    contours(key, { values, shape, x: along, y: up }, levels, options = {}) {
      const [toX, toY] = [sx().to, sy().to];
      const at = (to, [from, end]) => (share) => to(from + share * (end - from));
      const paths = levels.map((level) => contour(values, shape, level, at(toX, along), at(toY, up)));
      draw(key, "path", { class: "curve", d: paths.join(""), style: stroke(options) });
    },
    heat(key, { values, shape: [rows, columns], x: along, y: up }, low, high) {
      const canvas = Object.assign(document.createElement("canvas"), { width: columns, height: rows });
      const context = canvas.getContext("2d");
      const picture = context.createImageData(columns, rows);
      values.forEach((value, i) => {
        const place = clamp((value - low) / (high - low), 0, 1) * (CIVIDIS.length - 1);
        const k = Math.min(Math.floor(place), CIVIDIS.length - 2);
        const color = CIVIDIS[k].map((c, j) => c + (place - k) * (CIVIDIS[k + 1][j] - c));
        const row = rows - 1 - Math.floor(i / columns); // the first row lies at the bottom
        picture.data.set([...color, 255], 4 * (row * columns + (i % columns)));
      });
      context.putImageData(picture, 0, 0);
      const [x1, x2] = along.map(sx().to);
      const [y2, y1] = up.map(sy().to);
      const place = { x: x1, y: y1, width: x2 - x1, height: y2 - y1, preserveAspectRatio: "none" };
      const look = { href: canvas.toDataURL(), style: "image-rendering: pixelated" };
      draw(key, "image", { ...place, ...look }, ".heat");
    },
    point(options) {
      const made = movable(self, () => axis, () => [sx(), sy()], element, options);
      find(".points").append(made.group);
      points.push(made);
      return made;
    },
    /** Where in the units of the axes a mouse or a finger is. */
    under(event) {
      const { x: u, y: v } = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      return [sx().back(u), sy().back(v)];
    },
  };
  svg.addEventListener("click", (event) => {
    if (!event.target.closest(".point") && points.length) points[0].moveTo(...self.under(event), true);
  });
  drawAxes();
  return self;
}

/** A point of a plot to drag, by mouse, touch and keys. */
function movable(plane, axis, scales, element, options) {
  const { label, at, step = [0, 0], snap = (x, y) => [x, y], say, onMove = () => {}, color = 1 } = options;
  const { nudge = (x, y, i, j) => [x + i * step[0], y + j * step[1]] } = options;
  const group = element("g", { class: "point", role: "slider", tabindex: 0, "aria-label": label });
  element("circle", { r: 18, fill: "transparent" }, group); // as large as a finger
  element("circle", { r: 10, class: "ring" }, group);
  element("circle", { r: 6, class: "dot", style: `fill: var(--c${color})` }, group);
  let here = at;

  const self = {
    group,
    say() {
      group.setAttribute("aria-valuetext", say(...here));
    },
    place() {
      const { x, y } = axis();
      const [sx, sy] = scales();
      const inside = [clamp(here[0], x.low, x.high), clamp(here[1], y.low, y.high)];
      group.setAttribute("transform", `translate(${sx.to(inside[0])} ${sy.to(inside[1])})`);
      group.setAttribute("aria-valuemin", x.low);
      group.setAttribute("aria-valuemax", x.high);
      group.setAttribute("aria-valuenow", here[0]);
      self.say();
    },
    moveTo(px, py, told = false) {
      const { x, y } = axis();
      here = snap(clamp(px, x.low, x.high), clamp(py, y.low, y.high));
      if (told) onMove(...here);
      self.place();
    },
  };
  group.addEventListener("pointerdown", (event) => {
    group.setPointerCapture(event.pointerId);
    group.focus({ preventScroll: true });
    event.preventDefault();
  });
  // A finger would scroll the page: inside of an SVG, touch-action does not help.
  group.addEventListener("touchstart", (event) => event.preventDefault(), { passive: false });
  group.addEventListener("pointermove", (event) => {
    if (group.hasPointerCapture(event.pointerId)) self.moveTo(...plane.under(event), true);
  });
  group.addEventListener("keydown", (event) => {
    const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowDown: [0, -1], ArrowUp: [0, 1] };
    if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in arrows)) return;
    event.preventDefault(); // the page must not scroll
    const [i, j] = arrows[event.key].map((n) => n * (event.shiftKey ? 10 : 1));
    self.moveTo(...nudge(...here, i, j), true);
  });
  self.place();
  return self;
}

/** The kit of one scene; `ending` collects what is to be done when it goes. */
function makeKit(ending) {
  let speaker;
  const add = (parent, name, properties = {}) => {
    const made = Object.assign(document.createElement(name), properties);
    parent.append(made);
    return made;
  };
  const button = (parent, text, onClick) => {
    const made = add(parent, "button", { type: "button", textContent: text });
    made.addEventListener("click", onClick);
    return made;
  };
  const note = (parent, text) => add(parent, "p", { textContent: text });
  return {
    rectangularDrum, fadedDrum, number, plot, button, note,
    panel: (root) => add(root, "div", { className: "panel" }),
    select(parent, { label, options, value, onInput }) {
      const made = add(add(parent, "label", { textContent: label }), "select");
      for (const [each, text] of options) add(made, "option", { value: each, textContent: text });
      made.value = value;
      made.addEventListener("input", () => onInput(made.value));
      return made;
    },
    slider(parent, { label, low, high, value, steps = 100, log = false, say, onInput }) {
      const line = add(parent, "label", { textContent: label });
      const made = add(line, "input", { type: "range", min: 0, max: steps, step: 1 });
      const shown = add(line, "span", { className: "value", ariaHidden: "true" }); // aria-valuetext has the same
      const [from, to] = log ? [Math.log(low), Math.log(high)] : [low, high];
      const self = {
        get value() {
          const share = made.valueAsNumber / steps;
          const there = from * (1 - share) + to * share; // exact at both ends
          return log ? Math.exp(there) : there;
        },
        set value(x) {
          made.value = Math.round((steps * ((log ? Math.log(x) : x) - from)) / (to - from));
          self.say();
        },
        say() {
          shown.textContent = say(self.value);
          made.setAttribute("aria-valuetext", shown.textContent);
        },
      };
      made.addEventListener("input", () => {
        onInput(self.value);
        self.say();
      });
      self.value = value;
      return self;
    },
    readout(parent, labels) {
      const list = add(parent, "dl");
      list.setAttribute("aria-live", "polite");
      list.setAttribute("aria-atomic", "true"); // a number is spoken with its name
      const values = {};
      for (const [name, label] of Object.entries(labels)) {
        add(list, "dt", { textContent: label });
        values[name] = add(list, "dd");
        values[name].dataset.value = name;
      }
      return {
        set(texts) {
          for (const [name, text] of Object.entries(texts)) values[name].textContent = text;
        },
      };
    },
    sounds(parent, makers, policy) {
      speaker ??= loudspeaker();
      const row = add(parent, "div");
      for (const [label, make] of Object.entries(makers)) button(row, `▶ ${label}`, () => speaker.play(make()));
      ending[0] = speaker.close;
      note(parent, policy);
    },
    legend(parent, entries) {
      const row = add(parent, "div", { className: "legend" });
      for (const [label, color, dash = ""] of entries) {
        const entry = add(row, "span");
        entry.innerHTML = `<svg viewBox="0 0 32 10" aria-hidden="true"><path class="curve" d="M0 5H32"
          style="stroke: var(--c${color}); stroke-width: 2; stroke-dasharray: ${dash || "none"}"/></svg>`;
        entry.append(label);
      }
    },
  };
}

/** What Python gave, with every {shape, float32} as {shape, values}. */
function decode(value) {
  if (Array.isArray(value)) return value.map(decode);
  if (value === null || typeof value !== "object") return value;
  if (typeof value.float32 === "string") {
    const bytes = Uint8Array.from(atob(value.float32), (character) => character.charCodeAt(0));
    return { shape: value.shape, values: new Float32Array(bytes.buffer) };
  }
  return Object.fromEntries(Object.entries(value).map(([key, each]) => [key, decode(each)]));
}

globalThis.explorables ??= {
  scenes: {},
  register(name, scene) {
    this.scenes[name] = scene;
    for (const element of document.querySelectorAll(`[data-explorable="${name}"]`)) {
      const data = element.querySelector("script");
      if (data) this.mount(element, name, data.textContent, element.querySelector("p").textContent);
    }
  },
  /** Build the scene inside an element, from its data as JSON and its text; returned: what takes it away. */
  mount(element, name, data, text) {
    element.innerHTML = `<div class="explorable" role="group"><style>${STYLE}</style>
      <p class="said"></p><div class="scene"></div></div>`;
    const root = element.firstChild;
    root.setAttribute("data-lm-suppress-shortcuts", "true"); // JupyterLab would take the arrow keys for its own
    root.setAttribute("aria-label", "Picture to move");
    root.querySelector("p").textContent = text;
    const ending = [() => {}];
    const end = this.scenes[name](root.querySelector(".scene"), decode(JSON.parse(data)), makeKit(ending));
    return () => {
      for (const each of ending) each();
      end?.();
      root.remove();
    };
  },
};

/** The front end of the anywidget. */
export default {
  render({ model, el }) {
    el.dataset.explorable = model.get("name");
    return explorables.mount(el, model.get("name"), model.get("data"), model.get("text"));
  },
};
