// Sounds to compare: one is heard, in a loop, and another takes its place at the press of a key.
//
// One module, no dependency. The book's page holds it inline and calls `mount`; Jupyter and Colab load it as the front
// end of an anywidget, through the default export. Both get the sounds from Python (widgets.py), equally loud and
// equally long. All of them start together, each with a gain of its own: 1 for the one that is heard, else 0.

const FADE_S = 0.005; // from one sound to the next, without a click
const LEAD_S = 0.02; // in which all sounds get ready to start at one sample
const STARTED = "ab-player-started"; // tells the other players of a page to stop

const STYLE = `
.ab-player { max-width: 48rem; padding: 0.3rem; line-height: 1.35; }
.ab-player .buttons { display: flex; flex-wrap: wrap; gap: 0.4rem; }
.ab-player button { font: inherit; padding: 0.35rem 1rem; color: inherit; background: transparent;
  border: 1px solid currentColor; border-radius: 0.3rem; cursor: pointer; }
.ab-player .play { min-width: 6rem; margin-right: 0.8rem; }
.ab-player [aria-pressed="true"] { color: #fff; background: #0072b2; border-color: #fff; }
.ab-player [aria-hidden] { margin-right: 0.5rem; font-size: 0.85em; }
.ab-player :focus-visible { outline: 3px solid #d55e00; outline-offset: 2px; }
.ab-player p { font-size: 0.85em; margin: 0.35rem 0 0; }
`;

/** Bytes of a base64 data URL. */
export function bytes(url) {
  return Uint8Array.from(atob(url.slice(url.indexOf(",") + 1)), (character) => character.charCodeAt(0));
}

/** Which of n sounds a key stands for, from 0: 1, 2, 3 or A, B, C, and so on; undefined for another key. */
export function keyed(key, n) {
  const at = Math.max("123456789".indexOf(key), "abcdefghi".indexOf(key.toLowerCase()));
  return key.length === 1 && at >= 0 && at < n ? at : undefined;
}

/**
 * Build the player inside an element.
 *
 * @param {HTMLElement} element
 * @param {object} options sounds: a list of {label, url}, each a data URL of equally many samples; caption: a line of
 *   text below the buttons.
 * @returns {object} destroy(), which silences and removes it all.
 */
export function mount(element, { sounds, caption = "" }) {
  const root = document.createElement("div");
  root.className = "ab-player";
  root.setAttribute("role", "group");
  root.setAttribute("aria-label", `Sounds to compare: ${sounds.map(({ label }) => label).join(", ")}`);
  root.setAttribute("data-lm-suppress-shortcuts", "true"); // JupyterLab would take the keys for its own
  root.innerHTML = `<style>${STYLE}</style><div class="buttons"></div><p></p><p></p>`;
  const [line, hint] = root.querySelectorAll("p");
  line.textContent = caption;
  line.hidden = !caption;
  const digits = sounds.slice(0, 9).map((_, i) => i + 1);
  const usage = `Equally loud, in a loop. Keys: space to play or stop, ${digits.join(", ")} to switch.`;
  hint.textContent = usage;
  hint.setAttribute("role", "status"); // it also says why there is no sound

  const addButton = (label, keys, onClick) => {
    const button = document.createElement("button");
    button.type = "button";
    button.innerHTML = `<span aria-hidden="true"></span><span></span>`; // a sign for the eye, and the name
    button.lastChild.textContent = label;
    button.setAttribute("aria-keyshortcuts", keys);
    button.addEventListener("click", () => {
      button.focus(); // Safari does not, and the keys would go to the page
      onClick();
    });
    root.querySelector(".buttons").append(button);
    return button;
  };
  const playButton = addButton("", "Space", () => (playing ? stop() : play()));
  playButton.className = "play";
  const choices = sounds.map(({ label }, i) => {
    const button = addButton(label, i < 9 ? `${i + 1} ${"ABCDEFGHI"[i]}` : "", () => choose(i));
    button.firstChild.textContent = i < 9 ? i + 1 : "";
    return button;
  });
  element.replaceChildren(root);

  let context; // browsers let it sound only when the user has done something
  let buffers; // a promise, once it is needed
  let voices = []; // {source, gain} of each sound, while they are heard
  let playing = false;
  let chosen = 0;

  function show() {
    playButton.firstChild.textContent = playing ? "■" : "▶";
    playButton.lastChild.textContent = playing ? "Stop" : "Play";
    choices.forEach((button, i) => button.setAttribute("aria-pressed", String(i === chosen)));
  }

  function fade({ gain: { gain } }, level) {
    const now = context.currentTime;
    gain.cancelScheduledValues(now);
    gain.setValueAtTime(gain.value, now);
    gain.linearRampToValueAtTime(level, now + FADE_S);
  }

  function choose(i) {
    chosen = i;
    voices.forEach((voice, j) => fade(voice, j === chosen ? 1 : 0));
    show();
  }

  async function play() {
    playing = true;
    hint.textContent = usage;
    show();
    document.dispatchEvent(new CustomEvent(STARTED, { detail: root }));
    let ready;
    try {
      context ??= new AudioContext();
      context.resume();
      buffers ??= Promise.all(sounds.map(({ url }) => context.decodeAudioData(bytes(url).buffer)));
      ready = await buffers;
    } catch (error) {
      buffers = undefined; // so that the next press tries again
      stop();
      hint.textContent = `The sounds cannot be played (${error.name}).`;
      return;
    }
    if (!playing || voices.length) return; // stopped meanwhile, or even started again
    const when = context.currentTime + LEAD_S;
    voices = ready.map((buffer, i) => {
      const source = new AudioBufferSourceNode(context, { buffer, loop: true });
      const gain = new GainNode(context, { gain: i === chosen ? 1 : 0 });
      source.connect(gain).connect(context.destination);
      source.start(when);
      return { source, gain };
    });
  }

  function stop() {
    playing = false;
    for (const voice of voices) {
      fade(voice, 0);
      voice.source.stop(context.currentTime + LEAD_S);
    }
    voices = [];
    show();
  }

  root.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const choice = keyed(event.key, sounds.length);
    if (event.key !== " " && choice === undefined) return; // Enter presses the button that has the focus
    event.preventDefault(); // the page must not scroll
    if (event.repeat) return;
    if (choice !== undefined) choose(choice);
    else if (playing) stop();
    else play();
  });
  root.addEventListener("keyup", (event) => event.key === " " && event.preventDefault()); // nor a button be pressed

  const yieldToOthers = ({ detail }) => detail !== root && playing && stop();
  document.addEventListener(STARTED, yieldToOthers);
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
    const player = mount(el, { sounds: model.get("sounds"), caption: model.get("caption") });
    return () => player.destroy();
  },
};
