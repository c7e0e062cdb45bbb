// Paths from one drum to another on a map of the ruler, and the steps of each, to be heard. data: pair, which two of θ
// the map has; axes of these, {label, low, high}; radius in features, centres (n, 2) and rims (n, 4) of the ellipses
// of equal distance, a rim being the 2 × 2 matrix, row by row, that takes the unit circle to it; names of the paths,
// drums (paths, steps + 1, 5), θ, and distance (paths, steps), of each step; nSamples and sampleRate of the sounds.

explorables.register("geodesic", (root, data, kit) => {
  const { pair, axes, radius, centres, rims, names, drums, distance, nSamples, sampleRate } = data;
  const [left, right] = [kit.panel(root), kit.panel(root)];
  const row = ({ values, shape }, i) => Array.from(values.subarray(i * shape.at(-1), (i + 1) * shape.at(-1)));
  const n = distance.shape[1];
  let [path, step] = [0, 1]; // the step leads from drum step − 1 to drum step
  const theta = (k, of = path) => row(drums, of * (n + 1) + k);
  const place = (k, of) => pair.map((j) => theta(k, of)[j]);
  const numbers = Array.from({ length: n }, (_, i) => i + 1);

  const map = kit.plot(left, {
    label: "Ellipses of equal distance, and the paths", x: axes[0], y: axes[1], height: 340,
  });
  const turns = Array.from({ length: 49 }, (_, i) => (Math.PI * i) / 24);
  for (let i = 0; i < centres.shape[0]; i++) {
    const [[u, v], [a, b, c, d]] = [row(centres, i), row(rims, i)];
    const [xs, ys] = [[u, a, b], [v, c, d]].map(([at, p, q]) =>
      turns.map((t) => at + p * Math.cos(t) + q * Math.sin(t)));
    map.line(`ellipse ${i}`, xs, ys, { color: 0, width: 0.8 });
  }
  names.forEach((name, k) => {
    const [xs, ys] = [0, 1].map((i) => [0, ...numbers].map((number) => place(number, k)[i]));
    map.line(name, xs, ys, { color: k + 1 });
    map.dots(`drums, ${name}`, xs, ys, { color: k + 1 });
  });

  const options = names.map((name, k) => [k, name]);
  kit.select(right, { label: "path", options, value: path, onInput: (k) => {
    path = Number(k);
    go(step);
  } });
  const steps = kit.plot(right, {
    label: "Distance of each step",
    x: { label: "step", low: 0.5, high: n + 0.5, ticks: numbers },
    y: { label: "distance of the step", low: 0, high: 1.1 * Math.max(...distance.values) },
    height: 190,
  });
  names.forEach((name, k) => {
    steps.line(name, numbers, row(distance, k), { color: k + 1 });
    steps.dots(`steps, ${name}`, numbers, row(distance, k), { color: k + 1 });
  });
  kit.legend(right, [...names.map((name, k) => [name, k + 1]), [`ellipse of distance ${radius}`, 0]]);
  const values = kit.readout(right, {
    distance: "distance of this step",
    spread: "largest step over smallest",
    length: "all steps together",
    shape: "shape α of the drum it leads to",
  });
  const play = (...ks) => (
    { x: ks.flatMap((k) => Array.from(kit.fadedDrum(theta(k), nSamples, sampleRate))), sampleRate }
  );
  kit.sounds(right, {
    "this step": () => play(step - 1, step),
    "next step": () => {
      go((step % n) + 1);
      return play(step - 1, step);
    },
    "whole path": () => play(0, ...numbers),
  }, "A step is two drums. Each drum peaks at the same level.");

  function show() {
    const distances = row(distance, path);
    const [from, to] = [place(step - 1), place(step)];
    map.line("step", [from[0], to[0]], [from[1], to[1]], { color: path + 1, width: 5 });
    steps.band("step", { x: [step - 0.25, step + 0.25] });
    values.set({
      distance: kit.number(distances[step - 1], 4),
      spread: kit.number(Math.max(...distances) / Math.min(...distances), 4),
      length: kit.number(distances.reduce((sum, each) => sum + each, 0), 4),
      shape: kit.number(theta(step)[4], 3),
    });
  }

  /** The step of the chosen path whose end is nearest in the picture. */
  function nearest(...at) {
    const far = numbers.map((k) => Math.hypot(...place(k).map((v, i) => (v - at[i]) / (axes[i].high - axes[i].low))));
    return 1 + far.indexOf(Math.min(...far));
  }

  const point = map.point({
    label: "step",
    at: place(step),
    color: 0,
    snap: (u, v) => place(nearest(u, v)),
    nudge: (u, v, i, j) => place(Math.min(n, Math.max(1, step + i + j))),
    say: (u, v) => `${step} of ${n}, distance ${kit.number(row(distance, path)[step - 1], 3)}, ` +
      `to ${axes[0].label} ${u.toFixed(2)}, ${axes[1].label} ${v.toFixed(2)}`,
    onMove: (u, v) => {
      step = nearest(u, v);
      show();
    },
  });
  const go = (k) => point.moveTo(...place(k), true);
  show();
});
