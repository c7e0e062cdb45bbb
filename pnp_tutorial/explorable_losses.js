// The introduction's idea, moved: a target and an estimate in the plane of the toy's two knobs, the three losses, and
// for each of them all estimates that it takes for as good. data: hz and decay, of both knobs at 0; sampleRate,
// nSamples; window, hop, of the spectrogram; span of the plane, on either side of 0.
//
// The toy is a decaying sine, x[n] = Im zⁿ. Its spectrogram has a closed form: frame k of the window w is frame 0 times
// z^(hop k), and the half of the sine that turns the other way does not reach the positive frequencies, so that
//     |STFT(f, k)| = ½ |z|^(hop k) |Σ_n w[n] zⁿ exp(−2πi f n / N)|.
// The losses are computed from it as the reader moves; a test holds them to those of the chapter.

const ASIDE = 12; // bands above the highest tone, in which its bell-shaped line has vanished
const GRID = [25, 49]; // points of the map, along decay and pitch

explorables.register("losses", (root, { hz, decay, sampleRate, nSamples, window: w, hop, span }, kit) => {
  const n = w.values.length;
  const nFrames = Math.floor((nSamples - n) / hop) + 1;
  const tone = ([pitch, sustain]) => [hz * 2 ** pitch, decay * 2 ** sustain];
  const nBands = Math.ceil((tone([span, 0])[0] * n) / sampleRate) + ASIDE;
  const cos = Float64Array.from({ length: n }, (_, i) => Math.cos((2 * Math.PI * i) / n));

  function features(nu) {
    const [f0, tau] = tone(nu);
    const [re, im] = [new Float64Array(n), new Float64Array(n)];
    for (let i = 0; i < n; i++) {
      const size = w.values[i] * Math.exp(-i / (tau * sampleRate));
      re[i] = size * Math.cos((2 * Math.PI * f0 * i) / sampleRate);
      im[i] = size * Math.sin((2 * Math.PI * f0 * i) / sampleRate);
    }
    const S = new Float64Array(nBands * nFrames);
    const fall = Math.exp(-hop / (tau * sampleRate));
    for (let f = 0; f < nBands; f++) {
      let [a, b] = [0, 0];
      for (let i = 0, k = 0; i < n; i++, k = (k + f) % n) {
        const [c, s] = [cos[k], cos[(k + (3 * n) / 4) % n]]; // and the sine, a quarter turn later
        a += re[i] * c + im[i] * s;
        b += im[i] * c - re[i] * s;
      }
      let size = Math.hypot(a, b) / 2;
      for (let k = 0; k < nFrames; k++, size *= fall) S[f * nFrames + k] = Math.log1p(size);
    }
    return S;
  }

  const start = { target: [0, 0], guess: [0.12, 0.3] };
  let { target, guess } = start;
  let [S, M, maps, waiting] = [];
  const error = (nu) => nu.map((value, j) => value - target[j]);
  const distance = (features) => {
    let sum = 0;
    for (let i = 0; i < S.length; i++) sum += (features[i] - S[i]) ** 2;
    return sum / 2;
  };
  const losses = {
    spectral: (nu) => distance(features(nu)),
    pnp: (nu) => {
      const [a, b] = error(nu);
      return (M[0] * a * a + 2 * M[1] * a * b + M[2] * b * b) / 2;
    },
    parameter: (nu) => error(nu).reduce((sum, e) => sum + e * e, 0) / 2,
  };
  const names = { spectral: "spectral loss", pnp: "PNP loss", parameter: "parameter loss" };
  const looks = { spectral: { color: 1 }, pnp: { color: 2, dash: "7 3" }, parameter: { color: 3, dash: "2 3" } };

  const [left, right] = [kit.panel(root), kit.panel(root)];
  const side = (label) => ({ label, low: -span, high: span });
  const axes = { x: side("pitch knob ν₁"), y: side("decay knob ν₂") };
  const plot = kit.plot(left, { label: "The plane of the toy's two knobs", ...axes, height: 330 });
  const grid = { shape: GRID, x: [-span, span], y: [-span, span] };
  const spots = Array.from({ length: GRID[0] * GRID[1] }, (_, i) => {
    const [row, column] = [Math.floor(i / GRID[1]), i % GRID[1]];
    return [(2 * column) / (GRID[1] - 1) - 1, (2 * row) / (GRID[0] - 1) - 1].map((u) => u * span);
  });
  const heard = spots.map((nu) => Float32Array.from(features(nu))); // once, for all targets

  function showTarget() {
    waiting = undefined;
    S = features(target);
    const h = 1e-4; // of the central differences, whose products are the metric
    const columns = [[h, 0], [0, h]].map(([a, b]) => {
      const [plus, minus] = [1, -1].map((sign) => features([target[0] + sign * a, target[1] + sign * b]));
      return plus.map((value, i) => (value - minus[i]) / (2 * h));
    });
    const dot = (i, j) => columns[i].reduce((sum, value, k) => sum + value * columns[j][k], 0);
    M = [dot(0, 0), dot(0, 1), dot(1, 1)];
    // Of the roots, which are nearly cones, straight lines between the points of the grid are nearly right.
    const map = (loss) => spots.map((nu, i) => Math.sqrt(loss(nu, i)));
    maps = { ...losses, spectral: (nu, i) => distance(heard[i]) };
    for (const [name, loss] of Object.entries(maps)) maps[name] = map(loss);
    const levels = Array.from({ length: 4 }, (_, k) => Math.SQRT2 * 2 ** (k + 1));
    plot.contours("map", { values: maps.spectral, ...grid }, levels, { color: 0, width: 0.4 });
    showGuess();
  }

  function showGuess() {
    const at = Object.fromEntries(Object.entries(losses).map(([name, loss]) => [name, loss(guess)]));
    for (const [name, look] of Object.entries(looks)) {
      plot.contours(name, { values: maps[name], ...grid }, [Math.sqrt(at[name])], { ...look, width: 2.2 });
    }
    for (const name of Object.keys(at)) at[name] = kit.number(at[name], 4);
    values.set(at);
  }

  const say = (pitch, sustain) => {
    const [f, tau] = tone([pitch, sustain]);
    return `ν₁ ${pitch.toFixed(2)}, ν₂ ${sustain.toFixed(2)}: ${kit.number(f)} hertz, decay ${kit.number(tau)} seconds`;
  };
  const sound = (nu) => {
    const [f, tau] = tone(nu);
    const t = (i) => i / sampleRate;
    const x = Array.from({ length: nSamples }, (_, i) => Math.exp(-t(i) / tau) * Math.sin(2 * Math.PI * f * t(i)));
    return { x, sampleRate };
  };

  kit.legend(right, Object.entries(names).map(([name, label]) => [label, looks[name].color, looks[name].dash]));
  kit.note(right, "Through the estimate: all estimates that a loss takes for as good. Thin: the spectral loss.");
  const values = kit.readout(right, names);
  const step = [span / 25, span / 25];
  const points = {
    guess: plot.point({ label: "estimate", at: guess, step, say, color: 2, onMove: (...at) => {
      guess = at;
      showGuess();
    } }),
    target: plot.point({ label: "target", at: target, step, say, color: 0, onMove: (...at) => {
      target = at;
      waiting ??= requestAnimationFrame(showTarget); // once a picture
    } }),
  };
  const sounds = { target: () => sound(target), estimate: () => sound(guess) };
  kit.sounds(right, sounds, "Both as the toy makes them, at the same volume.");
  kit.button(right, "Back to the start", () => {
    ({ target, guess } = start);
    for (const name of ["target", "guess"]) points[name].moveTo(...start[name]);
    showTarget();
  });
  showTarget();
});
