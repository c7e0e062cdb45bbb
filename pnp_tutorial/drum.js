// The rectangular drum: drum.py in double precision, for the drum to play and for the drum of a reader's sound.
//
//     σ_m  = (1 + p (s − β)) / τ₁
//     ω_m² = ω₁² (s/β) (1 + D² β (s − β)) + (s − β) (1 − p β)² / (β τ₁²)
//     x[n] = Σ_m a_m exp(−σ_m n/sr) sin(ω_m n/sr),  divided by max |x|
//
// with β = α + 1/α and s = α m₁² + m₂²/α; a test compares the two sample by sample. Python puts this module before
// those that use it: a page that is opened as a file may not load modules from other files.

export const POSITION = [0.4, 0.4]; // of the sides, for strike and ear
const N_MODES = 10; // along each side
const INAUDIBLE = 1e-13; // of the loudest mode's amplitude at the strike: a mode that is fainter is not heard any more

/** Mode pattern m along one side, at a fraction u of it. */
const pattern = (m, u) => Math.sin(Math.PI * u * m);

/** Frequencies (rad/s), decay rates (1/s) and amplitudes (s) of the modes of θ; m₂ varies fastest. */
export function modes(theta, { nModes = N_MODES, strike = POSITION, ear = POSITION } = {}) {
  const [logOmega, tau, logP, logD, alpha] = theta;
  const p = 10 ** logP;
  const D = 10 ** logD;
  const beta = alpha + 1 / alpha;
  const omega = new Float64Array(nModes * nModes);
  const sigma = new Float64Array(nModes * nModes);
  const amplitude = new Float64Array(nModes * nModes);
  let k = 0;
  for (let m1 = 1; m1 <= nModes; m1++) {
    for (let m2 = 1; m2 <= nModes; m2++, k++) {
      const s = alpha * m1 ** 2 + m2 ** 2 / alpha;
      const excess = alpha * (m1 ** 2 - 1) + (m2 ** 2 - 1) / alpha; // s − β, without cancellation
      sigma[k] = (1 + p * excess) / tau;
      omega[k] = Math.sqrt(
        10 ** (2 * logOmega) * (s / beta) * (1 + D ** 2 * beta * excess) +
          (excess * (1 - p * beta) ** 2) / (beta * tau ** 2),
      );
      amplitude[k] =
        (pattern(m1, strike[0]) * pattern(m2, strike[1]) * pattern(m1, ear[0]) * pattern(m2, ear[1])) / omega[k];
    }
  }
  return { omega, sigma, amplitude };
}

/** The sound of the drum, x = g(θ): nSamples doubles. Modes at or above half the sample rate are left out. */
export function rectangularDrum(theta, nSamples, sampleRate, { normalize = true, ...options } = {}) {
  const { omega, sigma, amplitude } = modes(theta, options);
  const loudest = amplitude.reduce((most, a) => Math.max(most, Math.abs(a)), 0);
  const heard = [];
  omega.forEach((w, m) => {
    if (w >= Math.PI * sampleRate) return;
    const decay = Math.exp(-sigma[m] / sampleRate);
    const [zRe, zIm] = [decay * Math.cos(w / sampleRate), decay * Math.sin(w / sampleRate)];
    const end = (sampleRate / sigma[m]) * Math.log(Math.abs(amplitude[m]) / (INAUDIBLE * loudest));
    if (end > 0) heard.push({ zRe, zIm, amplitude: amplitude[m], end: Math.min(nSamples, end) });
  });
  heard.sort((mode, other) => other.end - mode.end);
  if (heard.length % 2) heard.push({ zRe: 0, zIm: 0, amplitude: 0 });
  const x = new Float64Array(nSamples);
  for (let m = 0; m < heard.length; m += 2) addPair(x, heard[m], heard[m + 1]);
  if (!normalize) return x;
  let peak = 0;
  for (const value of x) peak = Math.max(peak, Math.abs(value));
  for (let n = 0; n < nSamples; n++) x[n] /= peak;
  return x;
}

/**
 * Add x_m[n] = Im(a_m zⁿ), log z = (−σ_m + i ω_m)/sr, of two modes up to the end of the first: a complex multiplication
 * a sample. A processor has the two done in the time of one, for neither waits for the other.
 */
function addPair(x, { zRe: cRe, zIm: cIm, amplitude: a, end }, { zRe: dRe, zIm: dIm, amplitude: b }) {
  let [aRe, aIm, bRe, bIm] = [a, 0, b, 0];
  for (let n = 0; n < end; n++) {
    x[n] += aIm + bIm;
    [aRe, aIm] = [cRe * aRe - cIm * aIm, cIm * aRe + cRe * aIm];
    [bRe, bIm] = [dRe * bRe - dIm * bIm, dIm * bRe + dRe * bIm];
  }
}

/**
 * Magnitude |X(f)| of the unnormalized sound of some modes, in s: the Fourier transform of its damped sinusoids, in
 * closed form, X(f) = Σ_m a_m ω_m / ((σ_m + i 2πf)² + ω_m²).
 */
export function magnitude(hz, { omega, sigma, amplitude }, sampleRate) {
  const w = 2 * Math.PI * hz;
  let re = 0;
  let im = 0;
  for (let m = 0; m < omega.length; m++) {
    if (omega[m] >= Math.PI * sampleRate) continue;
    const a = sigma[m] ** 2 - w ** 2 + omega[m] ** 2;
    const b = 2 * sigma[m] * w;
    const scale = (amplitude[m] * omega[m]) / (a ** 2 + b ** 2);
    re += scale * a;
    im -= scale * b;
  }
  return Math.hypot(re, im);
}

/**
 * The moving membrane: a function of time t in s that returns the displacement at every (row, column), row by row,
 * unnormalized; what an ear hears there. `columns` and `rows` are fractions of the sides.
 */
export function membrane(theta, columns, rows, sampleRate, { nModes = N_MODES, strike = POSITION } = {}) {
  const { omega, sigma } = modes(theta, { nModes });
  const alongColumns = columns.map((u) => Array.from({ length: nModes }, (_, j) => pattern(j + 1, u)));
  const alongRows = rows.map((u) => Array.from({ length: nModes }, (_, j) => pattern(j + 1, u)));
  const struck = omega.map((w, k) => {
    const m1 = Math.floor(k / nModes) + 1;
    const m2 = (k % nModes) + 1;
    return w < Math.PI * sampleRate ? (pattern(m1, strike[0]) * pattern(m2, strike[1])) / w : 0;
  });
  return (t) => {
    const motion = struck.map((a, k) => a * Math.exp(-sigma[k] * t) * Math.sin(omega[k] * t));
    const u = new Float64Array(rows.length * columns.length);
    alongRows.forEach((row, r) => {
      // First the sum over m₂, which all columns of this row share, then the sum over m₁.
      const profile = new Float64Array(nModes);
      motion.forEach((value, k) => (profile[Math.floor(k / nModes)] += value * row[k % nModes]));
      alongColumns.forEach((column, c) => {
        for (let j = 0; j < nModes; j++) u[r * columns.length + c] += profile[j] * column[j];
      });
    });
    return u;
  };
}

/** A number with that many significant digits and a true minus sign. */
function digits(x, n) {
  const options = { minimumSignificantDigits: n, maximumSignificantDigits: n, useGrouping: false };
  return x.toLocaleString("en", options).replace("-", "−");
}

/** What each of the five numbers means to a listener. */
export function inWords(theta) {
  const { omega, sigma } = modes(theta, { nModes: 2 });
  return [
    `${digits(omega[0] / (2 * Math.PI), 3)} Hz`,
    `60 dB down after ${digits(Math.log(1000) / sigma[0], 2)} s`,
    `mode (2, 2) dies ${digits(sigma[3] / sigma[0], 3)} × as fast as (1, 1)`,
    `mode (2, 2) at ${digits(omega[3] / omega[0], 3)} × the pitch (ideal membrane: 2)`,
    `sides 1 : ${digits(theta[4], 2)}`,
  ];
}
