// The rectangular drum as an instrument: five sliders, a membrane to strike, its sound and its spectrum.
//
// One module with drum.js and speaker.js before it, and no dependency. The book's page holds it inline and calls `mount`;
// Jupyter and Colab load it as the front end of an anywidget, through the default export. Both get θ, the ranges of the
// sliders and the sample rate from Python (drum_instrument.py).

const STEPS = 200; // of a slider, from one end of its range to the other
const SHOWN_HZ = 0.5; // at which the eye sees the first mode swing
const SHOWN_S = 20; // after which the picture of a strike stops
const LOWEST_HZ = 20; // of the spectrum
const LOWEST_DB = -60;
const COLUMNS = 96; // points of the picture along the longer side
const NARROWEST = 0.06; // α of the narrowest membrane that is drawn in its true shape
const UP = [213, 94, 0]; // Okabe and Ito's vermilion and blue: told apart by the colour-blind
const DOWN = [0, 114, 178];

const STYLE = `
.drum-instrument { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr));
  gap: 0.5rem 2rem; max-width: 48rem; padding: 0.3rem; line-height: 1.35; }
.drum-instrument .sliders > * { margin-bottom: 0.7rem; }
.drum-instrument label { display: block; margin: 0; }
.drum-instrument input { display: block; width: 100%; margin: 0.25rem 0; accent-color: #0072b2; }
.drum-instrument .words { display: block; font-size: 0.85em; margin: 0.2rem 0 0; min-height: 2.7em; }
.drum-instrument .sliders .words { margin: 0; min-height: 1.35em; }
.drum-instrument button { font: inherit; padding: 0.35rem 1.5rem; color: #fff; background: #0072b2;
  border: 1px solid #fff; border-radius: 0.3rem; cursor: pointer; }
.drum-instrument :focus-visible { outline: 3px solid #d55e00; outline-offset: 2px; }
.drum-instrument .frame { display: flex; align-items: center; aspect-ratio: 1; max-width: 15rem; margin: 0.3rem auto; }
.drum-instrument .skin { position: relative; width: 100%; border: 2px solid currentColor; }
.drum-instrument canvas { position: absolute; width: 100%; height: 100%; cursor: crosshair;
  touch-action: manipulation; }
.drum-instrument .spot { position: absolute; transform: translate(-50%, 50%); pointer-events: none; line-height: 1; }
.drum-instrument svg[role] { display: block; width: 100%; fill: currentColor; font-size: 11px; }
.drum-instrument .line { stroke: currentColor; stroke-opacity: 0.25; }
.drum-instrument .curve { fill: none; stroke: #0072b2; stroke-width: 1.5; }
`;

const LAYOUT = `
<div>
  <div class="sliders"></div>
  <button type="button">Strike</button>
  <p class="words" role="status" aria-live="polite"></p>
</div>
<div>
  <div class="frame"><div class="skin">
    <canvas tabindex="0" role="button"></canvas>
    <span class="spot strike" aria-hidden="true">✕</span><span class="spot ear" aria-hidden="true">○</span>
  </div></div>
  <p class="words"><span class="seen"></span><br>
    orange: up, blue: down, ✕: strike, ○: ear<span class="wider"></span></p>
  <svg viewBox="0 0 340 190" role="img"></svg>
</div>
`;

/** SVG of the spectrum, in dB below its highest point, over a logarithmic axis of frequency. */
function spectrum(theta, sampleRate, options) {
  const all = modes(theta, options);
  const [left, right, top, bottom] = [42, 330, 8, 150];
  const octaves = Math.log2(sampleRate / 2 / LOWEST_HZ);
  const x = (hz) => left + ((right - left) * Math.log2(hz / LOWEST_HZ)) / octaves;
  const y = (db) => top + ((bottom - top) * db) / LOWEST_DB;

  // Even steps along the axis, and every mode: a line may be narrower than a step.
  const steps = Array.from({ length: 300 }, (_, i) => LOWEST_HZ * 2 ** ((octaves * i) / 299));
  const lines = Array.from(all.omega, (w) => w / (2 * Math.PI));
  const hz = [...steps, ...lines].filter((f) => f <= sampleRate / 2).sort((a, b) => a - b);
  const levels = hz.map((f) => 20 * Math.log10(magnitude(f, all, sampleRate)));
  const highest = Math.max(...levels);
  const points = hz.map((f, i) => `${x(f).toFixed(1)},${y(levels[i] - highest).toFixed(1)}`);

  const vertical = [20, 50, 100, 200, 500, 1000, 2000, 5000, 10000].map(
    (f) =>
      `<line class="line" x1="${x(f)}" x2="${x(f)}" y1="${top}" y2="${bottom}"/>` +
      `<text x="${x(f)}" y="${bottom + 14}" text-anchor="middle">${f < 1000 ? f : `${f / 1000}k`}</text>`,
  );
  const horizontal = [0, -20, -40, -60].map(
    (db) =>
      `<line class="line" x1="${left}" x2="${right}" y1="${y(db)}" y2="${y(db)}"/>` +
      `<text x="${left - 5}" y="${y(db) + 4}" text-anchor="end">${db < 0 ? `−${-db}` : db}</text>`,
  );
  const [width, height] = [right - left, bottom - top];
  return `${vertical.join("")}${horizontal.join("")}
    <text x="${left + width / 2}" y="${bottom + 32}" text-anchor="middle">frequency (Hz)</text>
    <text transform="translate(12 ${top + height / 2}) rotate(-90)" text-anchor="middle">level (dB below peak)</text>
    <svg x="${left}" y="${top}" width="${width}" height="${height}" viewBox="${left} ${top} ${width} ${height}">
      <polyline class="curve" points="${points.join(" ")}"/>
    </svg>`; // the inner svg cuts off what lies below the axis
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowDown: [0, -1], ArrowUp: [0, 1] };
const inside = (u) => Math.min(0.99, Math.max(0.01, u)); // the rim itself does not move
const spot = (strike) => strike.map((u) => u.toFixed(2)).join(", ");

/**
 * Build the instrument inside an element.
 *
 * @param {HTMLElement} element
 * @param {object} options theta: five numbers; parameters: five {symbol, unit, low, high, meaning} of the sliders, in
 *   the order of θ; sampleRate in Hz; onTheta: called with θ whenever a slider has moved.
 * @returns {object} setTheta(theta), which moves the sliders, and destroy(), which silences and removes it all.
 */
export function mount(element, { theta, parameters, sampleRate, onTheta = () => {} }) {
  const root = document.createElement("div");
  root.className = "drum-instrument";
  root.setAttribute("role", "group");
  root.setAttribute("aria-label", "Drum to play");
  root.setAttribute("data-lm-suppress-shortcuts", "true"); // JupyterLab would take the arrow keys for its own
  root.innerHTML = `<style>${STYLE}</style>${LAYOUT}`;
  element.replaceChildren(root);

  const find = (selector) => root.querySelector(selector);
  const canvas = find("canvas");
  const skin = find(".skin");
  const speaker = loudspeaker();
  let strike = POSITION;
  let frame; // of the animation, while it runs

  const sliders = parameters.map((parameter, j) => {
    const row = document.createElement("div");
    row.innerHTML =
      `<label>${parameter.meaning}<input type="range" min="0" max="${STEPS}"></label>` +
      `<span class="words" aria-hidden="true"></span>`; // a screen reader has the same words from aria-valuetext
    find(".sliders").append(row);
    const slider = row.querySelector("input");
    slider.addEventListener("input", () => {
      const share = slider.valueAsNumber / STEPS;
      theta = theta.slice();
      theta[j] = parameter.low * (1 - share) + parameter.high * share; // exact at both ends
      showTheta();
      onTheta(theta);
    });
    return slider;
  });

  function showTheta() {
    rest();
    const words = inWords(theta);
    parameters.forEach(({ symbol, unit, low, high }, j) => {
      const text = `${symbol} = ${digits(theta[j], 4)}${unit === "1" ? "" : ` ${unit}`}: ${words[j]}`;
      sliders[j].value = (STEPS * (theta[j] - low)) / (high - low);
      sliders[j].setAttribute("aria-valuetext", text);
      find(".sliders").children[j].lastElementChild.textContent = text;
    });
    showSpectrum();
  }

  function showSpectrum() {
    find("svg").innerHTML = spectrum(theta, sampleRate, { strike });
    find("svg").setAttribute("aria-label", `Spectrum of the drum, in decibels over hertz; pitch ${inWords(theta)[0]}.`);
  }

  function place(spot, [u1, u2]) {
    find(spot).style.left = `${100 * u1}%`;
    find(spot).style.bottom = `${100 * u2}%`;
  }

  /** The membrane flat. */
  function rest() {
    cancelAnimationFrame(frame);
    const drawn = Math.max(theta[4], NARROWEST);
    canvas.width = COLUMNS;
    canvas.height = Math.round(COLUMNS * drawn); // this clears it, too
    skin.style.aspectRatio = `1 / ${drawn}`;
    find(".wider").textContent = drawn > theta[4] ? "; drawn wider than it is" : "";
    const how = "Click to strike it there; or arrow keys move the spot, and space strikes it";
    canvas.setAttribute("aria-label", `Membrane, ${inWords(theta)[4]}. ${how}.`);
    find(".seen").textContent = "The membrane: click where to strike it, or move the spot with the arrow keys";
    place(".strike", strike);
    place(".ear", POSITION);
  }

  /** Let the eye follow what the ear has heard: the same modes, with time slowed down. */
  function animate() {
    rest();
    const grid = (n) => Array.from({ length: n }, (_, i) => (i + 0.5) / n);
    const rows = grid(canvas.height).reverse(); // the picture's first row is the membrane's upper edge
    const displacement = membrane(theta, grid(canvas.width), rows, sampleRate, { strike });
    const hz = 10 ** theta[0] / (2 * Math.PI);
    const slowdown = Number((hz / SHOWN_HZ).toPrecision(2));
    const end = Math.min(SHOWN_S / slowdown, Math.log(1000) * theta[1]); // s of sound

    // Full colour stands for a third of the largest displacement in the first period of the first mode.
    let largest = 0;
    for (let i = 1; i <= 32; i++) for (const u of displacement(i / 32 / hz)) largest = Math.max(largest, Math.abs(u));

    const context = canvas.getContext("2d");
    const draw = (t, remark) => {
      const picture = context.createImageData(canvas.width, canvas.height);
      displacement(t).forEach((u, i) => {
        picture.data.set(u > 0 ? UP : DOWN, 4 * i);
        picture.data[4 * i + 3] = 255 * Math.min(1, (3 * Math.abs(u)) / largest); // at rest transparent, on any theme
      });
      context.putImageData(picture, 0, 0);
      find(".seen").textContent = `${digits(1000 * t, 3)} ms after the strike, ${remark}`;
    };

    if (matchMedia("(prefers-reduced-motion: reduce)").matches) {
      draw(1 / hz / 4, "standing still");
      return;
    }
    const start = performance.now();
    const next = (now) => {
      const t = Math.max(0, now - start) / 1000 / slowdown;
      if (t < end) {
        draw(t, `slowed down ${slowdown} ×`);
        frame = requestAnimationFrame(next);
      } else {
        draw(end, "where the picture stops");
      }
    };
    frame = requestAnimationFrame(next);
  }

  function play(position = POSITION) {
    strike = position;
    const sigma = 1 / theta[1];
    const nSamples = Math.ceil((Math.log(1000) / sigma) * sampleRate); // until it is 60 dB down
    speaker.play({ x: rectangularDrum(theta, nSamples, sampleRate, { strike }), sampleRate });
    showSpectrum();
    animate();
    const [hz, decay] = inWords(theta);
    find("[role=status]").textContent = `Struck at (${spot(strike)}) of the sides: ${hz}, ${decay}.`;
  }

  find("button").addEventListener("click", () => play());
  canvas.addEventListener("click", (event) => {
    const box = canvas.getBoundingClientRect();
    play([(event.clientX - box.left) / box.width, (box.bottom - event.clientY) / box.height].map(inside));
  });
  root.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return; // the browser's own
    const [there, arrow] = [event.target === canvas, ARROWS[event.key]];
    const strikes = event.key === " " || (event.key === "Enter" && there);
    if (event.target === find("button") || !(strikes || (there && arrow))) return; // the button has keys of its own
    event.preventDefault(); // the page must not scroll
    if (strikes) {
      if (!event.repeat) play(there ? strike : POSITION);
      return;
    }
    strike = strike.map((u, i) => inside(u + 0.05 * arrow[i]));
    rest();
    showSpectrum();
    find("[role=status]").textContent = `The next strike: at (${spot(strike)}) of the sides.`;
  });

  showTheta();
  return {
    setTheta(values) {
      theta = Array.from(values);
      showTheta();
    },
    destroy() {
      cancelAnimationFrame(frame);
      speaker.close();
      root.remove();
    },
  };
}

/** The front end of the anywidget: its traitlet `theta` and the sliders follow each other. */
export default {
  render({ model, el }) {
    const instrument = mount(el, {
      theta: model.get("theta"),
      parameters: model.get("parameters"),
      sampleRate: model.get("sample_rate"),
      onTheta: (theta) => {
        model.set("theta", theta);
        model.save_changes();
      },
    });
    const follow = () => instrument.setTheta(model.get("theta"));
    model.on("change:theta", follow);
    return () => {
      model.off("change:theta", follow);
      instrument.destroy();
    };
  },
};
