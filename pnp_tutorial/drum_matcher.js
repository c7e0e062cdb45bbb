// The element that finds the drum of a reader's own sound, in the page: nothing leaves the computer.
//
// It shows; what it shows is found by `core`, which is drum.js and drum_matching.js in one. Workers are made of the
// same text. The A/B player and the recorder are the book's others. Python puts them together (drum_matcher.py).

const LARGEST_MB = 30; // of a file: an hour of MP3, or three minutes of WAV, which take up to 2 GB when decoded
const MOST_WORKERS = 8;
const RATES = [8000, 96000]; // Hz, between which every browser decodes
const USUAL_RATE = 48000; // of files that do not tell theirs where `fileRate` looks
const PEAK = 0.9; // as in widgets.py: of the loudest sample among sounds that are compared
const FADED = 1e-3;
const FRAME = 1024; // samples of the pictures' windows: 46 ms
const HOP = 128;
const TOP_HZ = 5000;
const RANGE_DB = 70;
const LEAST_S = 0.1; // from one line about the search to the next

const CIVIDIS = [
  [0, 34, 78], [26, 56, 111], [67, 78, 108], [97, 101, 111], [125, 124, 120], [155, 148, 118], [188, 174, 108],
  [222, 201, 88], [254, 232, 56],
];

const STYLE = `
.drum-matcher { max-width: 48rem; padding: 0.3rem; line-height: 1.35; overflow-wrap: anywhere; }
.drum-matcher [hidden] { display: none; }
.drum-matcher .controls { display: flex; flex-wrap: wrap; align-items: center; gap: 0.4rem 1rem; }
.drum-matcher label { display: block; min-width: 0; max-width: 100%; margin: 0; }
.drum-matcher input { display: block; font: inherit; max-width: 100%; }
.drum-matcher .stop { font: inherit; padding: 0.2rem 1rem; color: inherit; background: transparent;
  border: 1px solid currentColor; border-radius: 0.3rem; cursor: pointer; }
.drum-matcher progress { display: block; width: 100%; margin: 0.6rem 0 0; accent-color: #0072b2; }
.drum-matcher p { margin: 0.4rem 0; }
.drum-matcher :is(.now, .how) { font-size: 0.85em; }
.drum-matcher dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 15rem), 1fr));
  gap: 0.5rem 2rem; margin: 0.8rem 0; }
.drum-matcher dt { font-weight: normal; font-size: 0.85em; margin: 0; }
.drum-matcher dd { margin: 0; }
.drum-matcher .pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr));
  gap: 0 1rem; }
.drum-matcher figure { margin: 0.4rem 0; }
.drum-matcher svg { display: block; width: 100%; fill: currentColor; font-size: 11px; }
.drum-matcher :focus-visible { outline: 3px solid #d55e00; outline-offset: 2px; }
html[data-theme="dark"] .bd-content div.cell_output .text_html:has(div.drum-matcher) { background: none;
  color: inherit; }
`; // the last rule: in its dark mode, the book's theme sets what a cell shows on a light ground

const LAYOUT = `
<div class="controls">
  <label>A sound file: one stroke <input type="file" accept="audio/*,.wav,.flac"></label>
  <div class="microphone"></div>
  <button type="button" class="stop" hidden>Stop</button>
</div>
<progress max="1" aria-label="Progress of this run of the search" hidden></progress>
<p class="said" role="status">Nothing leaves this computer.</p>
<p class="now"></p>
<div class="result" hidden>
  <div class="player"></div>
  <dl></dl>
  <p class="unsure"></p>
  <p class="how">± comes from how fast the distance of coarse spectra grows around the drum, beside the distance that is
    left. Of drums recorded in noise, in rooms or struck elsewhere, three of four errors are smaller. It says nothing
    of whether your sound is a drum of this kind: the distance does.</p>
  <div class="pictures"></div>
  <p><a class="download">Download the drum (WAV)</a></p>
</div>
`;

/** The sounds, equally loud over the loudest second of each and equally long, as in widgets.py: Float64Arrays. */
export function equallyLoud(sounds, sampleRate) {
  const second = Math.round(sampleRate);
  const scaled = sounds.map((x) => {
    const power = new Float64Array(x.length + 1);
    for (let n = 0; n < x.length; n++) power[n + 1] = power[n] + x[n] * x[n];
    let energy = 0;
    for (let n = 0; n === 0 || n + second <= x.length; n += Math.max(1, Math.floor(second / 10))) {
      energy = Math.max(energy, power[Math.min(n + second, x.length)] - power[n]);
    }
    const rms = Math.sqrt(energy);
    return x.map((value) => value / rms);
  });
  const loudest = Math.max(...scaled.map((x) => x.reduce((most, value) => Math.max(most, Math.abs(value)), 0)));
  const last = Math.max(...scaled.map((x) => x.findLastIndex((value) => Math.abs(value) > FADED * loudest)));
  return scaled.map((x) => x.subarray(0, Math.max(second, last + 1)).map((value) => (PEAK * value) / loudest));
}

/** A WAV file of one channel with 16 bits, as bytes. */
export function wav(x, sampleRate) {
  const view = new DataView(new ArrayBuffer(44 + 2 * x.length));
  const text = (at, letters) => Array.from(letters, (letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + 2 * x.length, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); // bytes of what follows
  view.setUint16(20, 1, true); // PCM
  view.setUint16(22, 1, true); // channel
  view.setUint32(24, sampleRate, true);
  view.setUint32(28, 2 * sampleRate, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, 2 * x.length, true);
  x.forEach((value, n) => view.setInt16(44 + 2 * n, Math.round(32767 * Math.max(-1, Math.min(1, value))), true));
  return new Uint8Array(view.buffer);
}

/** A number with two significant digits, or three, and a true minus sign. */
const short = (x, digits = 2) => String(Number(x.toPrecision(digits))).replace("-", "−");

/** What Python's `Match.to_dict` has, as far as it is known here. */
export function toJson(found, parameters) {
  const named = (values) => Object.fromEntries(parameters.map(({ name }, j) => [name, values[j]]));
  return {
    theta: named(found.theta),
    uncertainty: named(found.uncertainty),
    undetermined: parameters.filter((_, j) => found.isUnsure[j]).map(({ name }) => name),
    distance: found.distance,
    level_db: found.levelDb,
    noise_db: found.noiseDb,
    n_heard: found.nHeard,
  };
}

/** Workers that hear drums side by side: {hear, stop}. After `stop`, what they should still hear is never heard. */
function team(workerUrl, setting) {
  const size = Math.max(1, Math.min(MOST_WORKERS, navigator.hardwareConcurrency || 2));
  const waiting = []; // {job, resolve, reject}
  let fail; // ends all of the search
  const failed = new Promise((_, reject) => (fail = reject));
  failed.catch(() => {});
  const workers = Array.from({ length: size }, () => {
    const worker = new Worker(workerUrl);
    worker.postMessage({ setting });
    worker.addEventListener("message", ({ data }) => {
      worker.done(data);
      worker.done = undefined;
      next(worker);
    });
    worker.addEventListener("error", ({ message }) => fail(new Error(`A worker has failed: ${message}`)));
    return worker;
  });
  const next = (worker) => {
    if (worker.done || !waiting.length) return;
    const { job, resolve } = waiting.shift();
    worker.done = resolve;
    worker.postMessage(job);
  };
  return {
    async hear(vs, options) {
      const few = Math.ceil(vs.length / (4 * size)); // small parts: drums take different times
      const parts = [];
      for (let i = 0; i < vs.length; i += few) {
        const job = { vs: vs.slice(i, i + few), options };
        parts.push(new Promise((resolve) => waiting.push({ job, resolve })));
      }
      workers.forEach(next);
      return (await Promise.race([Promise.all(parts), failed])).flat();
    },
    stop() {
      workers.forEach((worker) => worker.terminate());
      fail(new DOMException("", "AbortError"));
    },
  };
}

/** Channels of a file as the browser decodes it, at which rate, and the file's own rate. */
async function decode(name, file, core) {
  if (file.size > 1e6 * LARGEST_MB) {
    throw new Error(`${name} has ${Math.round(file.size / 1e6)} MB: expected at most ${LARGEST_MB} MB in this page`);
  }
  try {
    const bytes = new Uint8Array(await file.arrayBuffer());
    const own = core.fileRate(bytes) ?? USUAL_RATE;
    if (core.isEmpty(bytes)) return { channels: [], rate: own, own };
    const rate = Math.max(RATES[0], Math.min(RATES[1], own)); // the file's own, unless a browser refuses it
    const audio = await new OfflineAudioContext(1, 1, rate).decodeAudioData(bytes.buffer);
    const channels = Array.from({ length: audio.numberOfChannels }, (_, i) => audio.getChannelData(i));
    return { channels, rate, own };
  } catch {
    throw new Error(`${name} cannot be read as audio (this browser cannot decode it)`);
  }
}

/** SVG of a spectrogram, in dB below its peak, and the frequency in Hz at which it is strongest. */
function picture(x, sampleRate, core) {
  const nFrames = Math.ceil(x.length / HOP);
  const frames = core.spectrogram(x, FRAME, HOP, -FRAME / 2, nFrames);
  const nBins = Math.floor((TOP_HZ * FRAME) / sampleRate);
  const peaks = frames.map((frame) => frame.subarray(0, nBins).reduce((a, b) => Math.max(a, b)));
  const loudest = peaks.indexOf(Math.max(...peaks));
  const canvas = document.createElement("canvas");
  canvas.width = nFrames;
  canvas.height = nBins;
  const context = canvas.getContext("2d");
  const image = context.createImageData(nFrames, nBins);
  frames.forEach((frame, t) => {
    for (let k = 0; k < nBins; k++) {
      const db = 10 * Math.log10(Math.max(frame[k] / peaks[loudest], 1e-20));
      const level = Math.max(0, 1 + db / RANGE_DB) * (CIVIDIS.length - 1);
      const i = Math.min(CIVIDIS.length - 2, Math.floor(level));
      const colour = CIVIDIS[i].map((c, j) => c + (level - i) * (CIVIDIS[i + 1][j] - c));
      image.data.set([...colour, 255], 4 * ((nBins - 1 - k) * nFrames + t));
    }
  });
  context.putImageData(image, 0, 0);

  const [left, right, top, bottom] = [34, 332, 6, 140];
  const seconds = x.length / sampleRate;
  const step = seconds > 1.5 ? 0.5 : 0.25;
  const times = Array.from({ length: Math.floor(seconds / step) + 1 }, (_, i) => i * step);
  const along = times.map((t) => {
    return `<text x="${left + ((right - left) * t) / seconds}" y="${bottom + 14}" text-anchor="middle">${t}</text>`;
  });
  const up = [0, 1, 2, 3, 4, 5].map((khz) => {
    return `<text x="${left - 4}" y="${bottom - ((bottom - top) * khz) / 5 + 4}" text-anchor="end">${khz}</text>`;
  });
  const svg = `<image x="${left}" y="${top}" width="${right - left}" height="${bottom - top}"
      preserveAspectRatio="none" href="${canvas.toDataURL()}"/>${along.join("")}${up.join("")}
    <text x="${(left + right) / 2}" y="${bottom + 29}" text-anchor="middle">time (s)</text>
    <text transform="translate(11 ${(top + bottom) / 2}) rotate(-90)" text-anchor="middle">frequency (kHz)</text>`;
  return { svg, hz: (frames[loudest].indexOf(peaks[loudest]) * sampleRate) / FRAME };
}

/**
 * Build the element's inside.
 *
 * @param {HTMLElement} element gets the attribute data-result when a drum has been found: JSON as of `toJson`.
 * @param {object} options parameters: those of the drum, in the order of θ; sampleRate in Hz and nSamples of its
 *   sounds; core, player, recorder: the modules; workerUrl: the first of them as a script for workers; onResult: called
 *   with what data-result has.
 * @returns {object} destroy(), which stops the search and removes it all.
 */
export function mount(element, options) {
  const { parameters, sampleRate, nSamples, core, workerUrl, player, recorder, onResult = () => {} } = options;
  const root = document.createElement("div");
  root.className = "drum-matcher";
  root.setAttribute("role", "group");
  root.setAttribute("aria-label", "Find the drum of a sound");
  root.setAttribute("data-lm-suppress-shortcuts", "true"); // JupyterLab would take the keys for its own
  root.innerHTML = `<style>${STYLE}</style>${LAYOUT}`;
  element.replaceChildren(root);
  const find = (selector) => root.querySelector(selector);
  const input = find("input");
  let search; // {stop} of the one that goes on
  let heard; // the A/B player
  let url; // of the WAV

  const say = (text) => (find(".said").textContent = text);

  function clear() {
    search?.stop();
    search = undefined;
    heard?.destroy();
    heard = undefined;
    if (url) URL.revokeObjectURL(url);
    url = undefined;
    find(".result").hidden = true;
    find(".now").textContent = "";
    element.removeAttribute("data-result");
  }

  function showSearch(goesOn) {
    if (!goesOn && document.activeElement === find(".stop")) input.focus(); // what is hidden loses the focus
    find(".stop").hidden = !goesOn;
    find("progress").hidden = !goesOn;
    find("progress").value = 0;
  }

  /** A function that shows how far the search has come, but not too often. */
  function teller() {
    let before = -Infinity;
    return ({ run, share, nHeard, distance, v }) => {
      if (performance.now() - before < 1000 * LEAST_S) return;
      before = performance.now();
      find("progress").value = share;
      const words = core.inWords(core.toTheta(v, parameters)).slice(0, 2).join(", ");
      const runs = `run ${run + 1} of at most ${core.BUDGET.nRuns}`;
      find(".now").textContent = `${runs}, ${nHeard} drums heard; the closest: ${words}, distance ${short(distance)}`;
    };
  }

  /** Match what `read` promises: {channels, rate, own}. */
  async function start(name, read) {
    clear();
    const own = { stop: () => (own.stopped = true) };
    search = own;
    say(`${name}: reading`);
    showSearch(true);
    const began = performance.now();
    try {
      const sound = await read();
      if (own.stopped) throw new DOMException("", "AbortError");
      const recording = core.prepare(name, sound.channels, sound.rate, sound.own, nSamples, sampleRate);
      const setting = { ...core.throughNoise(recording), parameters, sampleRate };
      const workers = team(workerUrl, setting);
      own.stop = workers.stop;
      say(`${name}: searching`);
      const found = await core.match(setting, workers.hear, teller());
      workers.stop();
      showResult(name, recording.x, found, (performance.now() - began) / 1000);
    } catch (error) {
      if (search !== own) return; // another sound has taken its place
      clear();
      say(error.name === "AbortError" ? `${name}: stopped` : error.message);
    }
    if (search === own) search = undefined;
    if (!search) showSearch(false);
  }

  function showResult(name, x, found, seconds) {
    const result = toJson(found, parameters);
    const distance = `distance of coarse spectra ${short(found.distance)}`;
    say(`${name}: ${found.nHeard} drums heard in ${short(seconds)} s, ${distance}`);
    find(".now").textContent = "";
    find(".result").hidden = false;

    const sounds = equallyLoud([x, found.sound], sampleRate);
    const labels = ["recording", "drum"];
    const dataUrl = (sound) => {
      const characters = Array.from(wav(sound, sampleRate), (byte) => String.fromCharCode(byte));
      return `data:audio/wav;base64,${btoa(characters.join(""))}`;
    };
    const pairs = sounds.map((sound, i) => ({ label: labels[i], url: dataUrl(sound) }));
    heard = player.mount(find(".player"), { sounds: pairs, caption: distance });

    const words = core.inWords(found.theta);
    find("dl").innerHTML = parameters
      .map(({ meaning, symbol, unit }, j) => {
        const value = `${short(found.theta[j], 4)} ± ${short(found.uncertainty[j])}${unit === "1" ? "" : ` ${unit}`}`;
        return `<div><dt>${meaning}</dt><dd>${symbol} = ${value}</dd><dt>${words[j]}</dt></div>`;
      })
      .join("");
    const inDoubt = parameters.filter((_, j) => found.isUnsure[j]);
    const unsure = inDoubt.map(({ meaning, symbol }) => `${meaning} (${symbol})`);
    const verdict = unsure.length
      ? `Not determined by the sound: ${unsure.join("; ")}.`
      : "The sound determines all parameters.";
    const warning = "No drum was found that comes close: other numbers may do as well.";
    find(".unsure").textContent = found.isFar ? warning : verdict;

    find(".pictures").innerHTML = sounds
      .map((sound, i) => {
        const { svg, hz } = picture(sound, sampleRate, core);
        const alt = `Spectrogram of the ${labels[i]}, 0 to 5 kHz: strongest near ${short(hz)} Hz.`;
        return `<figure><figcaption>${labels[i]}</figcaption>
          <svg viewBox="0 0 340 172" role="img" aria-label="${alt}">${svg}</svg></figure>`;
      })
      .join("");

    url = URL.createObjectURL(new Blob([wav(found.sound, sampleRate)], { type: "audio/wav" }));
    find(".download").href = url;
    find(".download").download = `${name.replace(/\.[^.]*$/, "")}_matched.wav`;
    element.dataset.result = JSON.stringify(result);
    onResult(result);
  }

  input.addEventListener("click", () => (input.value = "")); // so that the same file can be chosen again
  input.addEventListener("change", () => {
    const [file] = input.files;
    if (file) start(file.name, () => decode(file.name, file, core));
  });
  find(".stop").addEventListener("click", () => search?.stop());
  const microphone = recorder.mount(find(".microphone"), {
    onSound: (sound, rate) => start("recording", async () => ({ channels: [sound], rate, own: rate })),
  });

  return {
    destroy() {
      clear();
      microphone.destroy();
      root.remove();
    },
  };
}
