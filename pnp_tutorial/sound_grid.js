// Sounds to compare, one after another: a grid of buttons, each with a small picture of its sound.
//
// One module, no dependency. The book's page holds it inline and calls `mount`; Jupyter and Colab load it as the front
// end of an anywidget, through the default export. Both get sounds and pictures from Python (sound_grid.py).

const FADE_S = 0.005; // to silence, without a click
const STARTED = "ab-player-started"; // tells the other players of a page to stop

const STYLE = `
.sound-grid { max-width: 48rem; padding: 0.3rem; line-height: 1.35; }
.sound-grid .sounds { display: grid; gap: 0.5rem; grid-template-columns:
  repeat(auto-fill, minmax(max(7rem, (100% - (var(--columns) - 1) * 0.5rem) / var(--columns)), 1fr)); }
.sound-grid .first-alone > :nth-child(2) { grid-column-start: 1; }
.sound-grid button { position: relative; display: flex; flex-direction: column; gap: 0.2rem; padding: 0.3rem 0.4rem;
  font: inherit; font-size: 0.85em; text-align: left; color: inherit; background: transparent; cursor: pointer;
  border: 1px solid currentColor; border-radius: 0.3rem; }
.sound-grid [aria-pressed="true"] { color: #fff; background: #0072b2; border-color: #fff; }
.sound-grid button > :last-child { display: flex; overflow-wrap: anywhere; }
.sound-grid .picture { position: relative; width: 100%; height: 2.6rem; overflow: hidden; }
.sound-grid .levels { position: absolute; inset: 0; background: currentColor; mask-size: 100% 100%; }
.sound-grid .now { position: absolute; inset: 0 auto 0 0; width: 2px; background: #fff; visibility: hidden; }
.sound-grid .sign { flex: none; width: 1.2em; font-size: 0.85em; }
.sound-grid :focus-visible { outline: 3px solid #d55e00; outline-offset: 2px; }
.sound-grid p { font-size: 0.85em; margin: 0.35rem 0 0; }
html[data-theme="dark"] .bd-content div.cell_output .text_html:has(div.sound-grid) { background: none;
  color: inherit; }
`; // in its dark mode, the book's theme sets what a cell shows on a light ground

const TILE = `<span class="picture" aria-hidden="true"><span class="levels"></span><span class="now"></span></span>
  <span><span class="sign" aria-hidden="true">▶</span><span></span></span>`;

/** Bytes of a base64 data URL. */
export function bytes(url) {
  return Uint8Array.from(atob(url.slice(url.indexOf(",") + 1)), (character) => character.charCodeAt(0));
}

/**
 * Which box an arrow key leads to, from the one that has the focus; the same where there is none in that direction.
 *
 * @param {string} key ArrowLeft, ArrowRight, ArrowUp, ArrowDown, Home or End; undefined is returned for another key.
 * @param {number} from
 * @param {object[]} boxes {left, top} of each button, row by row
 */
export function target(key, from, boxes) {
  const last = boxes.length - 1;
  const beside = { ArrowLeft: Math.max(0, from - 1), ArrowRight: Math.min(last, from + 1), Home: 0, End: last };
  if (key in beside) return beside[key];
  if (key !== "ArrowUp" && key !== "ArrowDown") return undefined;
  const away = ({ left, top }) => {
    const rows = (key === "ArrowUp" ? -1 : 1) * (top - boxes[from].top);
    return rows > 0 ? 1e4 * rows + Math.abs(left - boxes[from].left) : Infinity; // the next row, then the same column
  };
  const distances = boxes.map(away);
  const nearest = distances.indexOf(Math.min(...distances));
  return distances[nearest] < Infinity ? nearest : from;
}

/**
 * Build the grid inside an element.
 *
 * @param {HTMLElement} element
 * @param {object} options sounds: a list of {label, url, picture}, data URLs of a WAV file and of a PNG whose opacity is
 *   drawn; columns: at most so many in a row; caption: a line on loudness and pictures, below the buttons.
 * @returns {object} destroy(), which silences and removes it all.
 */
export function mount(element, { sounds, columns, caption }) {
  const root = document.createElement("div");
  root.className = "sound-grid";
  root.setAttribute("data-lm-suppress-shortcuts", "true"); // JupyterLab would take the keys for its own
  root.innerHTML = `<style>${STYLE}</style><div class="sounds" role="toolbar"></div><p role="status"></p>`;
  const [, grid, hint] = root.children;
  grid.setAttribute("aria-label", "Sounds to compare");
  grid.style.setProperty("--columns", columns);
  grid.classList.toggle("first-alone", columns > 1 && sounds.length % columns === 1);
  const usage = `${caption} Keys: arrows to move, space to play or stop.`;
  hint.textContent = usage;
  const buttons = sounds.map(({ label, picture }, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.innerHTML = TILE;
    button.lastElementChild.lastChild.textContent = label;
    button.querySelector(".levels").style.maskImage = `url(${picture})`;
    button.addEventListener("click", () => (heard?.i === i ? stop() : play(i)));
    button.addEventListener("focus", () => reach(i));
    grid.append(button);
    return button;
  });
  element.replaceChildren(root);

  let context; // browsers let it sound only when the user has done something
  const buffers = new Map(); // a promise for each sound that was needed
  let heard; // {i} of the sound that is meant to be heard, with its source and gain once it is

  /** The tab key leads to one button, arrows to the others. */
  function reach(i) {
    buttons.forEach((button, j) => (button.tabIndex = i === j ? 0 : -1));
  }

  function show() {
    buttons.forEach((button, i) => {
      const on = heard?.i === i;
      button.setAttribute("aria-pressed", String(on));
      button.querySelector(".sign").textContent = on ? "■" : "▶";
    });
  }

  async function decoded(i) {
    if (!buffers.has(i)) buffers.set(i, context.decodeAudioData(bytes(sounds[i].url).buffer));
    return buffers.get(i);
  }

  async function play(i) {
    stop();
    const voice = { i };
    heard = voice;
    hint.textContent = usage;
    show();
    document.dispatchEvent(new CustomEvent(STARTED, { detail: root }));
    try {
      context ??= new AudioContext();
      context.resume();
      const buffer = await decoded(i);
      if (heard !== voice) return; // stopped meanwhile, or another was started
      voice.source = new AudioBufferSourceNode(context, { buffer });
      voice.gain = new GainNode(context);
      voice.source.connect(voice.gain).connect(context.destination);
      voice.source.addEventListener("ended", () => heard === voice && stop());
      voice.source.start();
      voice.line = sweep(buttons[i].querySelector(".now"), buffer.duration);
    } catch (error) {
      buffers.delete(i); // so that the next press tries again
      stop();
      hint.textContent = `The sound cannot be played (${error.name}).`;
    }
  }

  /** A line that crosses the picture as the sound goes on, unless the reader wants nothing to move. */
  function sweep(line, seconds) {
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) return undefined;
    const longest = Math.max(...sounds.map(({ url }) => url.length));
    const end = (100 * sounds[heard.i].url.length) / longest; // % of the picture
    const moves = [{ left: "0%" }, { left: `${end}%` }].map((place) => ({ ...place, visibility: "visible" }));
    return line.animate(moves, 1000 * seconds);
  }

  function stop() {
    if (!heard) return;
    const { source, gain, line } = heard;
    heard = undefined;
    line?.cancel();
    gain?.gain.setTargetAtTime(0, context.currentTime, FADE_S);
    source?.stop(context.currentTime + 5 * FADE_S);
    show();
  }

  grid.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const boxes = buttons.map(({ offsetLeft, offsetTop }) => ({ left: offsetLeft, top: offsetTop }));
    const next = target(event.key, buttons.indexOf(document.activeElement), boxes);
    if (next === undefined) return; // space and Enter press the button that has the focus
    event.preventDefault(); // the page must not scroll
    buttons[next].focus();
  });

  const yieldToOthers = ({ detail }) => detail !== root && stop();
  document.addEventListener(STARTED, yieldToOthers);
  reach(0);
  show();
  return {
    destroy() {
      document.removeEventListener(STARTED, yieldToOthers);
      stop();
      context?.close();
      root.remove();
    },
  };
}

/** The front end of the anywidget. */
export default {
  render({ model, el }) {
    const options = Object.fromEntries(["sounds", "columns", "caption"].map((name) => [name, model.get(name)]));
    const grid = mount(el, options);
    return () => grid.destroy();
  },
};
