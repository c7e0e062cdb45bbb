// A button that records the microphone; the front end of the anywidget `Recorder` (match_maker.py).
//
// The browser's corrections for speech are off: they would take a drum for noise.

const LONGEST_S = 4;
const SAMPLE_RATE = 48000; // Hz, at which browsers record

const STYLE = `
.recorder { display: flex; flex-wrap: wrap; align-items: center; gap: 0.3rem 0.8rem; padding: 2px; }
.recorder button { font: inherit; padding: 0.2rem 1rem; color: inherit; background: transparent;
  border: 1px solid currentColor; border-radius: 0.3rem; cursor: pointer; }
.recorder button[data-recording] { color: #fff; background: #b3261e; border-color: #fff; }
.recorder :focus-visible { outline: 3px solid #d55e00; outline-offset: 2px; }
`;

/** The mean of channels of equally many samples, as Float32Array. */
export function mono(channels) {
  return channels[0].map((_, n) => channels.reduce((sum, channel) => sum + channel[n], 0) / channels.length);
}

/** Why there is no recording, from the name of the browser's error. */
export function inWords(name) {
  const words = {
    NotAllowedError: "The microphone may not be used: allow it in the browser's settings for this page.",
    NotFoundError: "No microphone was found.",
    NotReadableError: "The microphone cannot be used: another program may have it.",
    NotSupportedError: "This browser gives no microphone to this page: upload a sound instead.",
    EncodingError: "Nothing was recorded: hold on a little longer.",
  };
  return words[name] ?? `Recording failed (${name}).`;
}

/** Start recording: {stop, sound}, sound being a promise of a Float32Array, one channel at SAMPLE_RATE. */
async function record() {
  if (!navigator.mediaDevices || !globalThis.MediaRecorder) throw new DOMException("", "NotSupportedError");
  const audio = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
  const stream = await navigator.mediaDevices.getUserMedia({ audio });
  const microphoneOff = () => stream.getTracks().forEach((track) => track.stop()); // its sign in the browser goes out
  const chunks = [];
  let recorder, stopped;
  try {
    recorder = new MediaRecorder(stream, { audioBitsPerSecond: 256000 });
    recorder.addEventListener("dataavailable", ({ data }) => chunks.push(data));
    stopped = new Promise((resolve) => recorder.addEventListener("stop", resolve));
    recorder.start();
  } catch (error) {
    microphoneOff();
    throw error;
  }
  const stop = () => recorder.state === "recording" && recorder.stop();
  const timer = setTimeout(stop, 1000 * LONGEST_S);

  const sound = stopped.then(async () => {
    clearTimeout(timer);
    microphoneOff();
    const encoded = await new Blob(chunks, { type: recorder.mimeType }).arrayBuffer();
    const decoded = await new OfflineAudioContext(1, 1, SAMPLE_RATE).decodeAudioData(encoded);
    return mono(Array.from({ length: decoded.numberOfChannels }, (_, i) => decoded.getChannelData(i)));
  });
  return { stop, sound };
}

/** Build the button inside an element; onSound is called with the samples and their rate in Hz. */
export function mount(element, { onSound }) {
  const root = document.createElement("div");
  root.className = "recorder";
  root.setAttribute("data-lm-suppress-shortcuts", "true"); // JupyterLab would take the keys for its own
  root.innerHTML = `<style>${STYLE}</style><button type="button"></button><span role="status"></span>`;
  element.replaceChildren(root);
  const button = root.querySelector("button");
  const status = root.querySelector("[role=status]");
  let recording; // {stop, sound} while the microphone is on
  let busy = false; // from the first press until the sound is there
  let gone = false;

  function show(text) {
    button.textContent = recording ? "■ Stop" : "● Record";
    button.toggleAttribute("data-recording", Boolean(recording));
    status.textContent = text;
  }

  button.addEventListener("click", async () => {
    if (busy) {
      recording?.stop(); // a disabled button would lose the focus
      return;
    }
    busy = true;
    document.dispatchEvent(new CustomEvent("ab-player-started", { detail: root })); // what plays would be recorded
    try {
      show("Waiting for the microphone …");
      recording = await record();
      if (gone) recording.stop();
      show(`Recording, for at most ${LONGEST_S} s: strike now.`);
      const sound = await recording.sound;
      recording = undefined;
      if (gone) return;
      show(`${(sound.length / SAMPLE_RATE).toFixed(1)} s recorded.`);
      onSound(sound, SAMPLE_RATE);
    } catch (error) {
      recording = undefined;
      show(inWords(error.name));
    } finally {
      busy = false;
    }
  });

  show("");
  return {
    destroy() {
      gone = true;
      recording?.stop();
      root.remove();
    },
  };
}

/** The front end of the anywidget: a recording goes into its traitlets `pcm` and `sample_rate`. */
export default {
  render({ model, el }) {
    const recorder = mount(el, {
      onSound: (sound, sampleRate) => {
        model.set("sample_rate", sampleRate);
        model.set("pcm", new DataView(sound.buffer));
        model.save_changes();
      },
    });
    return () => recorder.destroy();
  },
};
