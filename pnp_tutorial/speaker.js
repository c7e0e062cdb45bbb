// A loudspeaker for sounds that are made in the page. Python puts this file before those that use it.

const GAIN = 0.45; // of all sounds: one is as loud beside another as whoever makes them has it
const PLAYS = "ab-player-started"; // tells all other players of a page to be silent

/** A loudspeaker that plays one sound at a time. Browsers let it open only when the user has done something. */
function loudspeaker() {
  let context;
  let playing;
  const stop = () => {
    if (!playing) return;
    playing.gain.gain.setTargetAtTime(0, context.currentTime, 0.003); // without a click
    playing.source.stop(context.currentTime + 0.03);
    playing = undefined;
  };
  const yieldToOthers = ({ detail }) => detail !== stop && stop();
  document.addEventListener(PLAYS, yieldToOthers);
  return {
    play({ x, sampleRate }) {
      document.dispatchEvent(new CustomEvent(PLAYS, { detail: stop }));
      context ??= new AudioContext();
      context.resume();
      stop();
      const buffer = new AudioBuffer({ length: x.length, sampleRate });
      buffer.copyToChannel(Float32Array.from(x), 0);
      const source = new AudioBufferSourceNode(context, { buffer });
      const gain = new GainNode(context, { gain: GAIN });
      gain.gain.setTargetAtTime(0, context.currentTime + x.length / sampleRate - 0.02, 0.003); // nor one at its end
      source.connect(gain).connect(context.destination);
      source.start();
      playing = { source, gain };
    },
    close() {
      document.removeEventListener(PLAYS, yieldToOthers);
      stop();
      context?.close();
    },
  };
}
