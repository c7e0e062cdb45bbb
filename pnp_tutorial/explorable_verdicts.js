// Test drums, and what each loss made of them. data: losses (names), target (drums, 5) and found (losses, drums, 5), θ;
// distance (losses, drums), to the ear; seconds and sampleRate of the sounds.

explorables.register("verdicts", (root, { losses, target, found, distance, seconds, sampleRate }, kit) => {
  const [left, right] = [kit.panel(root), kit.panel(root)];
  const [n] = target.shape;
  const row = ({ values, shape }, i) => Array.from(values.subarray(i * shape.at(-1), (i + 1) * shape.at(-1)));
  const numbers = Array.from({ length: n }, (_, i) => i + 1);
  const round = (low, high) => [1, 2, 5, 10, 20, 50, 100, 200, 500].filter((d) => d >= low && d <= high);
  const curves = losses.map((_, k) => row(distance, k));
  const [least, most] = [Math.min(...distance.values) / 1.3, Math.max(...distance.values) * 1.3];
  const plot = kit.plot(left, {
    label: "Distance of each answer, drum by drum",
    x: { label: "test drum", low: 0.5, high: n + 0.5, ticks: numbers.filter((i) => i === 1 || i % 5 === 0) },
    y: { label: "distance to the ear", low: least, high: most, log: true, ticks: round(least, most) },
  });
  curves.forEach((curve, k) => plot.line(losses[k], numbers, curve, { color: k + 1 }));
  kit.legend(right, losses.map((name, k) => [name, k + 1]));
  const labels = { drum: "target", ...Object.fromEntries(losses.map((name, k) => [`loss${k}`, `distance of ${name}`])) };
  const values = kit.readout(right, labels);
  let chosen = Math.floor(n / 2);
  const sound = (theta) => {
    const x = kit.rectangularDrum(theta, Math.round(seconds * sampleRate), sampleRate);
    const level = Math.sqrt(x.reduce((sum, value) => sum + value ** 2, 0) / x.length);
    return { x: x.map((value) => (0.1 * value) / level), sampleRate };
  };
  const answers = losses.map((name, k) => [name, () => sound(row(found, k * n + chosen))]);
  kit.sounds(right, { target: () => sound(row(target, chosen)), ...Object.fromEntries(answers) },
    `The first ${seconds} s of each, equally loud.`);
  const words = () => {
    const [logOmega, tau] = row(target, chosen);
    return `${kit.number(10 ** logOmega / (2 * Math.PI), 3)} Hz, sustain ${kit.number(tau, 2)} s`;
  };
  const show = () => {
    plot.band("chosen", { x: [chosen + 0.75, chosen + 1.25] });
    values.set({ drum: words(), ...Object.fromEntries(curves.map((c, k) => [`loss${k}`, c[chosen].toFixed(1)])) });
  };
  const point = plot.point({
    label: "test drum",
    at: [chosen + 1, curves[0][chosen]],
    step: [1, 0],
    color: 0,
    snap: (x) => {
      const i = Math.min(n, Math.max(1, Math.round(x)));
      return [i, curves[0][i - 1]];
    },
    nudge: (x, y, i, j) => [x + i + j, y],
    say: (x) => `drum ${x}, ${losses.map((name, k) => `${name} ${curves[k][x - 1].toFixed(1)}`).join(", ")}`,
    onMove: (x) => {
      chosen = x - 1;
      show();
    },
  });
  show();
  point.say();
});
