// From a recording to the drum that sounds like it, in the browser: recording.py, CoarseSpectra and the scan of
// search.py in JavaScript. drum.js comes before this module, and has its `rectangularDrum`.
//
//     prepare   x: one channel from its onset on, of one length, rate and peak; σ: the level of its noise
//     scan      v = argmin ‖C(h(v)) − C(x)‖ over the box     C: coarse spectra; differential evolution and descents
//
// where h hears a drum as it may be in the recording, v = (ν, l): θ scaled to [−1, 1]⁵, and the drum's level
//
//     h(v) = 10^(12 l / 20) g(ν) + σ n
//
// The noise n is white, and one for all drums. Drums are heard by workers, which hold this module too.

const SILENCE = 1e-4; // the constants of recording.py, which says why
const LOUDEST = 2 ** 32;
const ONSET = 0.02;
const CANCELLED = 0.01;
const PASSED = 0.9;
const LEAD = 64;
const QUIET = 2 ** 13;
const NOISE = 2 ** 18;

const LONGEST = 4096; // of CoarseSpectra: samples of a frame, lowest band in Hz, ε of the logarithm
const LOWEST = 35;
const EPS = 1e-3;

export const BUDGET = { nSounds: 64, nGenerations: 30, nRuns: 2, nIterations: 20 }; // of search.py, but runs
const LEVEL_DB = 12;
const MOST = 0.8;
const APART = 0.05;
const DESCENTS = 3;
const ZOOM = 0.1;
const NEAR = 1e-2; // of ‖C(x)‖: close enough
const ITSELF = 1.25; // times the distance of a drum from itself through another noise: close enough, too
const FAR = 10; // times as far as NEAR: where the wrong valleys of drums end, and what is no drum
const PRIOR = 1 / 3;
const UNSURE = Math.sqrt(PRIOR / 2);

const STEP = 1e-6; // of v, for derivatives
const TINY = 1e-12; // so that a v_j that moves nothing can be solved for
const DAMPINGS = [0.03, 0.3, 3, 30]; // times the last one: tried side by side
const ZEROS = 64; // of the sinc that converts rates, on either side of its peak
const PER_ZERO = 512; // values of it in its table

/** Σ_i x[i] y[first + i], in two sums that do not wait for each other. */
export function product(x, y, first = 0) {
  let [even, odd] = [0, 0];
  for (let i = 1; i < x.length; i += 2) {
    even += x[i - 1] * y[first + i - 1];
    odd += x[i] * y[first + i];
  }
  return even + odd + (x.length % 2 ? x[x.length - 1] * y[first + x.length - 1] : 0);
}
const norm = (x) => Math.sqrt(product(x, x));
const difference = (x, y) => x.map((value, i) => value - y[i]);
const largest = (x) => x.reduce((most, value) => Math.max(most, Math.abs(value)), 0);

// Spectra.

const tables = new Map(); // of each length: cos and sin of 2π k/n, and the order of the bits, if n is a power of four

function table(n) {
  if (!tables.has(n)) {
    const cos = Float64Array.from({ length: n }, (_, k) => Math.cos((2 * Math.PI * k) / n));
    const sin = Float64Array.from({ length: n }, (_, k) => Math.sin((2 * Math.PI * k) / n));
    const window = cos.map((c) => 0.5 - 0.5 * c); // Hann's
    const order = new Uint32Array(n);
    for (let k = 1; k < n; k++) order[k] = (order[k >> 1] >> 1) | (k & 1 ? n >> 1 : 0);
    tables.set(n, { cos, sin, window, order });
  }
  return tables.get(n);
}

/** Fourier transform of complex numbers in place, X[k] = Σ_i x[i] exp(−2πi k i/n), n a power of four. */
export function fft(re, im) {
  const n = re.length;
  const { cos, sin, order } = table(n);
  for (const part of [re, im]) {
    const original = part.slice();
    for (let k = 0; k < n; k++) part[k] = original[order[k]];
  }
  for (let size = 1; size < n; size *= 4) {
    const turn = n / (4 * size); // of 2π/n, from one k to the next
    for (let block = 0; block < n; block += 4 * size) {
      for (let k = 0; k < size; k++) {
        // Two steps of radix 2 in one: p with q and r with s by twice the angle, then p with r and q with s.
        const p = block + k;
        const q = p + size;
        const r = q + size;
        const s = r + size;
        const c1 = cos[k * turn];
        const s1 = sin[k * turn];
        const c2 = cos[2 * k * turn];
        const s2 = sin[2 * k * turn];
        const qRe = c2 * re[q] + s2 * im[q];
        const qIm = c2 * im[q] - s2 * re[q];
        const sRe = c2 * re[s] + s2 * im[s];
        const sIm = c2 * im[s] - s2 * re[s];
        const pRe = re[p] + qRe;
        const pIm = im[p] + qIm;
        const dRe = re[p] - qRe;
        const dIm = im[p] - qIm;
        const rRe = c1 * (re[r] + sRe) + s1 * (im[r] + sIm);
        const rIm = c1 * (im[r] + sIm) - s1 * (re[r] + sRe);
        const eRe = c1 * (re[r] - sRe) + s1 * (im[r] - sIm);
        const eIm = c1 * (im[r] - sIm) - s1 * (re[r] - sRe);
        re[p] = pRe + rRe;
        im[p] = pIm + rIm;
        re[r] = pRe - rRe;
        im[r] = pIm - rIm;
        re[q] = dRe + eIm;
        im[q] = dIm - eRe;
        re[s] = dRe - eIm;
        im[s] = dIm + eRe;
      }
    }
  }
}

/** |X[k]|² for k = 0 … n/2 of two real frames of n samples: one transform of a complex frame, or plain sums. */
function powers(a, b) {
  const n = a.length;
  const nBins = Math.floor(n / 2) + 1;
  const results = [new Float64Array(nBins), new Float64Array(nBins)];
  if (Number.isInteger(Math.log2(n) / 2)) {
    fft(a, b);
    for (let k = 0; k < nBins; k++) {
      const j = (n - k) % n;
      results[0][k] = ((a[k] + a[j]) ** 2 + (b[k] - b[j]) ** 2) / 4;
      results[1][k] = ((b[k] + b[j]) ** 2 + (a[j] - a[k]) ** 2) / 4;
    }
    return results;
  }
  const { cos, sin } = table(n);
  [a, b].forEach((frame, which) => {
    for (let k = 0; k < nBins; k++) {
      let re = 0;
      let im = 0;
      for (let i = 0, at = 0; i < n; i++, at = (at + k) % n) {
        re += frame[i] * cos[at];
        im += frame[i] * sin[at];
      }
      results[which][k] = re * re + im * im;
    }
  });
  return results;
}

/** |X_t|² of frames of n samples under a Hann window, one every `hop` samples from `first` on; x is 0 elsewhere. */
export function spectrogram(x, n, hop, first, nFrames) {
  const { window } = table(n);
  const frame = (t) => {
    const windowed = new Float64Array(n);
    if (t === nFrames) return windowed;
    const from = first + t * hop;
    for (let i = Math.max(0, -from); i < Math.min(n, x.length - from); i++) windowed[i] = window[i] * x[from + i];
    return windowed;
  };
  const frames = [];
  for (let t = 0; t < nFrames; t += 2) frames.push(...powers(frame(t), frame(t + 1)));
  return frames.slice(0, nFrames);
}

/**
 * C(x) of mss.py, as a function of x (at least 4 × 4096 samples): how loud each semitone is, frame by frame.
 *
 *     C(k, t) = log(1 + √(Σ_f w_k(f) |X_t(f)|²) / ε)
 */
export function coarseSpectra(sampleRate) {
  const semitone = 2 ** (1 / 12);
  const nBands = Math.floor(Math.log(sampleRate / 2 / LOWEST) / Math.log(semitone));
  const bands = Array.from({ length: nBands }, (_, k) => {
    const center = LOWEST * semitone ** k;
    const width = Math.max(center * (semitone - 1), sampleRate / LONGEST);
    const weight = (_, f) => Math.exp(-(((f * sampleRate) / LONGEST - center) ** 2) / (2 * width ** 2));
    return Float64Array.from({ length: LONGEST / 2 + 1 }, weight);
  });
  for (let k = 0; k < nBands; k += 12) {
    // Octave by octave, only the bins from the first to the last that one of its bands weighs.
    const octave = bands.slice(k, k + 12);
    const weighed = Array.from(bands[k].keys()).filter((f) => octave.some((w) => w[f] > 1e-8));
    const [first, last] = [weighed[0], weighed.at(-1)];
    octave.forEach((w, j) => (bands[k + j] = { first, weights: w.slice(first, last + 1) }));
  }
  const unit = (LONGEST / 4) ** 2; // the power of a sinusoid of amplitude 1
  return (x) => {
    const nFrames = 1 + Math.floor((2 * x.length) / LONGEST);
    const C = new Float64Array(nBands * nFrames);
    spectrogram(x, LONGEST, LONGEST / 2, -LONGEST / 2, nFrames).forEach((power, t) => {
      bands.forEach(({ first, weights }, k) => {
        C[k * nFrames + t] = Math.log1p(Math.sqrt(product(weights, power, first) / unit + 1e-30) / EPS);
      });
    });
    return C;
  };
}

// The recording.

/** Where the content of a chunk of a WAV file begins, and how many bytes it has; undefined if there is none. */
function chunk(bytes, name) {
  const letters = (at) => String.fromCharCode(...bytes.subarray(at, at + 4));
  if (letters(0) !== "RIFF" || letters(8) !== "WAVE") return undefined;
  for (let at = 12; at + 8 <= bytes.length; ) {
    const size = littleEndian(bytes, at + 4);
    if (letters(at) === name) return { at: at + 8, size };
    at += 8 + size + (size % 2);
  }
  return undefined;
}

const littleEndian = (bytes, at) => [3, 2, 1, 0].reduce((number, i) => 256 * number + bytes[at + i], 0);

/** Sample rate in Hz of a file of these bytes, if its beginning tells it as WAV and FLAC do. */
export function fileRate(bytes) {
  const isFlac = String.fromCharCode(...bytes.subarray(0, 4)) === "fLaC";
  if (isFlac) return (bytes[18] << 12) | (bytes[19] << 4) | (bytes[20] >> 4);
  const format = chunk(bytes, "fmt ");
  return format && littleEndian(bytes, format.at + 4);
}

/** Whether these are a WAV file without samples, which browsers do not decode. */
export const isEmpty = (bytes) => chunk(bytes, "data")?.size === 0;

/** Standard deviation of white noise like that in a sound, in the lowest part `band` of its spectrum: recording.py. */
export function noiseLevel(x, band = 1) {
  if (x.length < 64) return 0;
  const n = Math.min(4096, Math.floor(x.length / 4));
  const hop = Math.floor(n / 2);
  const energy = table(n).window.reduce((sum, w) => sum + w * w, 0);
  const nBins = Math.ceil(band * (Math.floor(n / 2) - 1));
  const frames = spectrogram(x, n, hop, 0, 1 + Math.floor((x.length - n) / hop));
  const power = new Float64Array(nBins * frames.length);
  frames.forEach((frame, t) => power.set(frame.subarray(1, 1 + nBins), t * nBins));
  power.sort();
  const at = 0.1 * (power.length - 1);
  const below = Math.floor(at);
  const quantile = power[below] + (at - below) * ((power[below + 1] ?? 0) - power[below]);
  return Math.sqrt(quantile / energy / Math.log(10 / 9));
}

/** x at another rate, by a windowed sinc that passes the lowest nine tenths of the lower band. */
export function resample(x, from, to) {
  if (from === to) return x;
  const cutoff = PASSED * Math.min(1, to / from); // half the amplitude passes, where the noise of h ends
  const sinc = Float64Array.from({ length: ZEROS * PER_ZERO + 2 }, (_, i) => {
    const u = i / PER_ZERO;
    const blackman = 0.42 + 0.5 * Math.cos((Math.PI * u) / ZEROS) + 0.08 * Math.cos((2 * Math.PI * u) / ZEROS);
    return u < ZEROS ? (u ? (blackman * Math.sin(Math.PI * u)) / (Math.PI * u) : 1) : 0;
  });
  return Float64Array.from({ length: Math.round((x.length * to) / from) }, (_, k) => {
    const center = (k * from) / to;
    const last = Math.min(x.length - 1, Math.floor(center + ZEROS / cutoff));
    let sum = 0;
    for (let n = Math.max(0, Math.ceil(center - ZEROS / cutoff)); n <= last; n++) {
      const u = Math.abs(n - center) * cutoff * PER_ZERO;
      const i = Math.floor(u);
      sum += x[n] * (sinc[i] + (u - i) * (sinc[i + 1] - sinc[i]));
    }
    return cutoff * sum;
  });
}

/** Mean of a stretch through Hann windows over its halves, as in `_zero`; 0 if the halves disagree. */
function zeroOf(part) {
  const n = Math.max(1, Math.floor(part.length / 2));
  const window = Float64Array.from({ length: n }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * (i + 1)) / (n + 1)));
  const weight = window.reduce((a, b) => a + b);
  const [first, last] = [0, part.length - n].map(
    (start) => window.reduce((sum, w, i) => sum + w * part[start + i], 0) / weight,
  );
  return Math.abs(first - last) <= Math.abs(first + last) / 4 ? (first + last) / 2 : 0;
}

/** What is heard, as in `_survey`, around its zero: the mean of the channels or, if they cancel, the loudest. */
function survey(channels) {
  const mean = Float64Array.from(channels[0], (_, n) => channels.reduce((sum, x) => sum + x[n], 0) / channels.length);
  const rows = [mean, ...channels].map((x) => {
    const [low, high] = x.reduce(([a, b], value) => [Math.min(a, value), Math.max(b, value)], [Infinity, -Infinity]);
    let quietest = Infinity;
    let offset = 0;
    const average = (part, of) => part.reduce((sum, value) => sum + of(value), 0) / part.length;
    for (let n = 0; n + QUIET <= x.length || !n; n += QUIET) {
      const part = x.subarray(n, n + QUIET);
      const level = average(part, (value) => value);
      const spread = average(part, (value) => (value - level) ** 2);
      if (spread < quietest) [quietest, offset] = [spread, zeroOf(part)];
    }
    return { x, offset, span: high - low, peak: Math.max(high - offset, offset - low) };
  });
  const loudest = rows.slice(1).reduce((a, b) => (b.span > a.span ? b : a));
  const { x, offset, peak } = rows[0].peak < CANCELLED * loudest.peak ? loudest : rows[0];
  return { x: Float64Array.from(x, (value) => value - offset), peak };
}

/** Index of the first sample above a fiftieth of the peak and six times the noise of the first seconds. */
export function findOnset(x, peak) {
  const noise = noiseLevel(x.subarray(0, NOISE));
  const threshold = Math.min(Math.max(ONSET * peak, 6 * noise), 0.5 * peak);
  return x.findIndex((value) => Math.abs(value) > threshold);
}

/**
 * `load_recording` of what a browser has decoded: channels of samples at `rate`, of a file of `ownRate`.
 *
 * Returns x: nSamples doubles at sampleRate, of peak 1, from the onset on; end, after which there is nothing; band, the
 * part of the spectrum that the file can fill. Throws an Error with the sentence that Python has for it.
 */
export function prepare(name, channels, rate, ownRate, nSamples, sampleRate) {
  if (!channels.length || !channels[0].length) throw new Error(`${name} is empty: it holds no samples`);
  if (!channels.every((x) => x.every(Number.isFinite))) throw new Error(`${name} holds NaN or infinite samples`);
  const { x, peak } = survey(channels);
  if (peak < SILENCE) {
    const shown = Number(peak.toPrecision(1));
    const text = shown && shown < 1e-4 ? shown.toExponential().replace(/-(\d)$/, "-0$1") : shown;
    throw new Error(`${name} is silent: its peak is ${text} of full scale, expected at least ${SILENCE}`);
  }
  if (peak > LOUDEST) {
    const [shown, most] = [peak, LOUDEST].map((value) => value.toExponential(0).replace(/\+(\d)$/, "+0$1"));
    throw new Error(`${name} is no sound: its peak is ${shown} of full scale, expected at most ${most}`);
  }
  const onset = findOnset(x, peak);
  const lead = Math.min(LEAD, onset);
  const part = x.subarray(onset - lead, onset + Math.ceil(((nSamples + 1) * rate) / sampleRate));
  const early = Math.max(0, Math.floor((lead * sampleRate) / rate) - 1);
  const y = resample(part, rate, sampleRate).subarray(early, early + nSamples);
  const after = part.length - lead;
  const gain = largest(y);
  if (!gain || after * sampleRate < rate) {
    throw new Error(`${name} ends ${after} samples after its onset at ${rate} Hz: too few to be a sound`);
  }
  const whole = new Float64Array(nSamples);
  whole.set(y.map((value) => value / gain));
  const band = ownRate === sampleRate ? 1 : PASSED * Math.min(ownRate / sampleRate, 1);
  return { x: whole, end: whole.findLastIndex((value) => value !== 0) + 1, band };
}

/** Numbers in [0, 1), the same for the same seed everywhere (mulberry32). */
export function randomNumbers(seed) {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** White noise of standard deviation 1 up to `end`; of it, the lowest part `band` of the spectrum. */
export function noiseLike(nSamples, end, band, seed) {
  const random = randomNumbers(seed);
  const normal = () => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
  const re = Float64Array.from({ length: nSamples }, normal);
  if (band < 1) {
    const im = new Float64Array(nSamples);
    fft(re, im);
    const cut = Math.ceil((band * nSamples) / 2);
    for (const part of [re, im]) part.fill(0, cut, nSamples - cut + 1);
    fft(im, re); // with real and imaginary part exchanged, it is the inverse, n times as large
    for (let n = 0; n < nSamples; n++) re[n] /= nSamples;
  }
  return re.fill(0, end);
}

// The search.

/**
 * What hears drums: a function of a list of v that returns their distances from x or, on request, their C; of the first
 * nSamples, and through the first noise or the second.
 */
export function listener({ x, noises, parameters, sampleRate }) {
  const C = coarseSpectra(sampleRate);
  const targets = new Map(); // C of the first samples of x
  return (vs, { nSamples = x.length, spectra = false, noise = 0 } = {}) => {
    if (!targets.has(nSamples)) targets.set(nSamples, C(x.subarray(0, nSamples)));
    return vs.map((v) => {
      const gain = 10 ** ((LEVEL_DB * v[parameters.length]) / 20);
      const sound = rectangularDrum(toTheta(v, parameters), nSamples, sampleRate);
      for (let n = 0; n < nSamples; n++) sound[n] = gain * sound[n] + noises[noise][n];
      const heard = C(sound);
      return spectra ? heard : norm(difference(heard, targets.get(nSamples)));
    });
  };
}

/** θ of v = (ν, l), along the range of each parameter. */
export function toTheta(v, parameters) {
  return parameters.map(({ low, high }, j) => low + ((v[j] + 1) / 2) * (high - low));
}

/**
 * What a population becomes by differential evolution, the closest first: each sound gets a rival, the best plus a
 * random difference of two others in most coordinates, and stays if it is closer. `distances` hears a list of v;
 * `tell` is called after every generation, with the best and its distance.
 */
export async function evolve(population, distances, random, nGenerations, tell) {
  let energies = await distances(population);
  const n = population.length;
  for (let generation = 0; generation < nGenerations; generation++) {
    const best = population[energies.indexOf(Math.min(...energies))];
    const scale = 0.4 + 0.5 * random();
    const rivals = population.map((v, i) => {
      const others = [i];
      while (others.length < 3) {
        const other = Math.floor(n * random());
        if (!others.includes(other)) others.push(other);
      }
      const [a, b] = others.slice(1).map((other) => population[other]);
      const always = Math.floor(v.length * random());
      const moved = v.map((value, j) => {
        return j === always || random() < 0.9 ? best[j] + scale * (a[j] - b[j]) : value;
      });
      return moved.map((value) => (Math.abs(value) > 1 ? 2 * random() - 1 : value));
    });
    const rivalEnergies = await distances(rivals);
    population = population.map((v, i) => (rivalEnergies[i] <= energies[i] ? rivals[i] : v));
    energies = energies.map((energy, i) => Math.min(energy, rivalEnergies[i]));
    const first = energies.indexOf(Math.min(...energies));
    tell(population[first], energies[first]);
  }
  const order = Array.from(population.keys()).sort((i, j) => energies[i] - energies[j]);
  return order.map((i) => population[i]);
}

/** The solution of A x = b, A symmetric and positive definite: Gauss's elimination. */
export function solve(A, b) {
  const rows = A.map((row, i) => [...row, b[i]]);
  const n = rows.length;
  for (let i = 0; i < n; i++) {
    for (let k = i + 1; k < n; k++) {
      const factor = rows[k][i] / rows[i][i];
      for (let j = i; j <= n; j++) rows[k][j] -= factor * rows[i][j];
    }
  }
  const x = new Array(n).fill(0);
  for (let i = n - 1; i >= 0; i--) {
    const known = x.reduce((sum, value, j) => sum + rows[i][j] * value, 0); // those after i: the others are still 0
    x[i] = (rows[i][n] - known) / rows[i][i];
  }
  return x;
}

/** JᵀJ and Jᵀr of r(v) = C(h(v)) − C(x) at v, J by small steps towards the middle of the box. */
export async function curvature(v, residual, residuals) {
  const steps = v.map((value) => (value > 0 ? -STEP : STEP));
  const moved = await residuals(v.map((_, j) => v.map((value, i) => (i === j ? value + steps[j] : value))));
  const J = moved.map((r, j) => difference(r, residual).map((value) => value / steps[j]));
  return { M: J.map((a) => J.map((b) => product(a, b))), gradient: J.map((a) => product(a, residual)) };
}

/**
 * Levenberg and Marquardt's steps from v in the box, until a distance is below `alike`, a step gains less than a
 * thousandth, or there were nIterations: {v, distance}.
 */
export async function descend(v, residuals, nIterations, alike, tell) {
  let [residual] = await residuals([v]);
  let distance = norm(residual);
  let damping = 0.01;
  for (let iteration = 0; iteration < nIterations && distance > alike; iteration++) {
    const { M, gradient } = await curvature(v, residual, residuals);
    const free = Array.from(v.keys()).filter((j) => Math.abs(v[j]) < 1 || v[j] * gradient[j] > 0);
    const tried = DAMPINGS.map((factor) => {
      const damped = (i) => M[i][i] * (1 + factor * damping) + TINY;
      const A = free.map((i) => free.map((j) => (i === j ? damped(i) : M[i][j])));
      const step = solve(A, free.map((j) => -gradient[j]));
      const moved = v.slice();
      free.forEach((j, i) => (moved[j] = Math.max(-1, Math.min(1, v[j] + step[i]))));
      return moved;
    });
    const heard = await residuals(tried);
    const distances = heard.map(norm);
    const best = distances.indexOf(Math.min(...distances));
    const gain = 1 - (distances[best] / distance) ** 2;
    if (gain > 0) [v, residual, distance] = [tried[best], heard[best], distances[best]];
    damping *= gain > 0 ? DAMPINGS[best] : 100;
    tell(v, distance);
    if (gain > 0 ? gain < 1e-3 : damping > 1e6) break;
  }
  return { v, distance };
}

/** Samples at the beginning of x that have most of its energy: a quarter, a half or all of them. */
export function openingOf(x, noise) {
  const energy = (n) => x.subarray(0, n).reduce((sum, value, i) => sum + value ** 2 - noise[i] ** 2, 0);
  const all = energy(x.length);
  return [x.length / 4, x.length / 2].find((n) => n >= 4 * LONGEST && energy(n) > MOST * all) ?? x.length;
}

/** The first few v that are apart from one another. */
function apart(population) {
  const few = [];
  for (const v of population) {
    const differs = few.every((other) => largest(difference(v, other)) > APART);
    if (few.length < DESCENTS && differs) few.push(v);
  }
  return few;
}

/**
 * The v whose drum is closest to x in coarse spectra, as `search.scan` seeks it for sounds that no drum can match
 * exactly, but in less time: {v, distance, nHeard, near}.
 *
 * `hear` is a `listener`, or as many in workers: it returns a promise. `tell` gets {run, share of the run, nHeard, v,
 * distance} now and then: of the opening, while only that is heard.
 */
export async function scan({ x, noises, hear, sampleRate, nParameters, seed = 0, tell = () => {} }) {
  const { nSounds, nGenerations, nRuns, nIterations } = BUDGET;
  const target = coarseSpectra(sampleRate)(x);
  const near = NEAR * norm(target);
  const opening = openingOf(x, noises[0]);
  const closest = { v: undefined, distance: Infinity, nHeard: 0, near };
  let run = 0;
  let share = 0;

  const listen = (vs, options) => {
    closest.nHeard += vs.length;
    return hear(vs, options);
  };
  const residuals = async (vs) => (await listen(vs, { spectra: true })).map((C) => difference(C, target));
  const note = (v, distance, more, isWhole = true) => {
    if (isWhole && distance < closest.distance) Object.assign(closest, { v, distance });
    share += more;
    tell({ run, share, nHeard: closest.nHeard, v, distance });
  };
  const evolved = (population, random, nSamples, part) => {
    const onGeneration = (v, distance) => note(v, distance, part / nGenerations, nSamples === x.length);
    return evolve(population, (vs) => listen(vs, { nSamples }), random, nGenerations, onGeneration);
  };
  const descended = async (v) => {
    const before = share;
    const end = await descend(v, residuals, nIterations, near / 100, (...best) => note(...best, 0.1 / nIterations));
    share = before + 0.1;
    return end;
  };
  const isItself = async () => {
    const [C] = await listen([closest.v], { spectra: true });
    const [again] = await listen([closest.v], { spectra: true, noise: 1 });
    return closest.distance < ITSELF * norm(difference(C, again));
  };

  const ends = [];
  for (run = 0; run < nRuns; run++) {
    share = 0;
    const random = randomNumbers(1000 * seed + run);
    const randomV = (center, width) =>
      Array.from({ length: nParameters + 1 }, (_, j) => {
        return Math.max(-1, Math.min(1, (center?.[j] ?? 0) + width * (2 * random() - 1)));
      });
    let population = Array.from({ length: nSounds }, () => randomV(null, 1));
    population = await evolved(population, random, opening, 0.4);
    ends.push(Infinity);
    const candidates = [];
    for (const candidate of apart(population)) {
      const end = await descended(candidate);
      candidates.push(end.v);
      ends[run] = Math.min(ends[run], end.distance);
      if (closest.distance < near) return closest;
    }
    const agreed = ends.filter((end) => end < 1.05 * closest.distance).length > 1;
    if (agreed || (await isItself())) return closest;
    if (run) {
      const few = Math.max(5, Math.floor(nSounds / 4));
      const best = [closest.v, ...candidates, ...population].slice(0, few);
      const around = Array.from({ length: few }, () => randomV(closest.v, ZOOM));
      population = await evolved([...best, ...around], random, x.length, 0.2);
      ends[run] = Math.min(ends[run], (await descended(population[0])).distance);
      if (closest.distance < near || (await isItself())) return closest;
    }
  }
  return closest;
}

/**
 * How sure each ν_j is, whatever the others are: √Σ_jj of Σ = (M/d² + 3 I)⁻¹, as at the head of uncertainty.py, but with M
 * the metric of coarse spectra, and d at least that distance at which the scan stops. At most 1/√3.
 */
export async function uncertainty({ v, distance, near }, target, hear) {
  const residuals = async (vs) => (await hear(vs, { spectra: true })).map((C) => difference(C, target));
  const [residual] = await residuals([v]);
  const { M } = await curvature(v, residual, residuals);
  const d = Math.max(distance, near);
  const inverse = M.map((row, i) => row.map((value, j) => value / d ** 2 + (i === j ? 1 / PRIOR : 0)));
  return v.map((_, i) => Math.sqrt(solve(inverse, v.map((_, j) => (i === j ? 1 : 0)))[i]));
}

/** A recording as `prepare` has it, with σ and the two noises through which drums are heard. */
export function throughNoise({ x, end, band }) {
  const level = noiseLevel(x.subarray(0, end), band);
  const noises = [0, 1].map((seed) => noiseLike(x.length, end, band, seed).map((value) => level * value));
  return { x, noises, level };
}

/** The drum that is closest to a recording: θ and its uncertainty, both in units, what is undetermined, and effort. */
export async function match({ x, noises, level, parameters, sampleRate }, hear, tell) {
  const nParameters = parameters.length;
  const closest = await scan({ x, noises, hear, sampleRate, nParameters, tell });
  const spread = await uncertainty(closest, coarseSpectra(sampleRate)(x), hear);
  const theta = toTheta(closest.v, parameters);
  return {
    theta,
    uncertainty: parameters.map(({ low, high }, j) => (spread[j] * (high - low)) / 2),
    isUnsure: parameters.map((_, j) => spread[j] > UNSURE),
    distance: closest.distance,
    isFar: closest.distance > FAR * closest.near,
    nHeard: closest.nHeard,
    levelDb: LEVEL_DB * closest.v[nParameters],
    noiseDb: 20 * Math.log10(Math.max(level, 1e-9)),
    sound: rectangularDrum(theta, x.length, sampleRate),
  };
}

// In a worker, the first message tells the recording, and each other asks for drums to be heard.
if (typeof DedicatedWorkerGlobalScope !== "undefined") {
  let hear;
  self.addEventListener("message", ({ data }) => {
    if (data.setting) hear = listener(data.setting);
    else self.postMessage(hear(data.vs, data.options));
  });
}
