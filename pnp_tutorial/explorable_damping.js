// λ from the spectral to the parameter regime: level sets of ½ eᵀ(M + λI)e, the path of gradient descent on them, and
// how many steps it takes. data: metrics, each {name, x, y, M}, M a 2 × 2 matrix, x and y what its two errors are.

const STEPS = 60; // that the path has
const LEAST = 1e-4; // λ, of the largest eigenvalue
const MOST = 100;

explorables.register("damping", (root, { metrics }, kit) => {
  let [chosen, lambda, start] = [0, 0, [0.8, 0.5]];
  const [left, right] = [kit.panel(root), kit.panel(root)];
  const side = (label) => ({ label, low: -1, high: 1 });
  const axes = ({ x, y }) => [side(x), side(y)];
  const [x, y] = axes(metrics[0]);
  const plot = kit.plot(left, { label: "Level sets of the damped loss, and the path of descent", x, y, height: 320 });
  const degrees = (a, b) => {
    const cosine = (a[0] * b[0] + a[1] * b[1]) / (Math.hypot(...a) * Math.hypot(...b));
    return (180 / Math.PI) * Math.acos(Math.min(1, Math.max(-1, cosine)));
  };

  function state() {
    const [a, b, , d] = metrics[chosen].M.values;
    const [mean, spread] = [(a + d) / 2, Math.hypot((a - d) / 2, b)];
    const [mu1, mu2] = [mean - spread, mean + spread];
    const damping = lambda * mu2;
    const times = (e, l) => [a * e[0] + b * e[1] + l * e[0], b * e[0] + d * e[1] + l * e[1]];
    const path = [start];
    for (let k = 0; k < STEPS; k++) {
      const e = path[k];
      const force = times(e, damping);
      path.push(e.map((value, i) => value - force[i] / (mu2 + damping)));
    }
    return { times, damping, path, mu2, kappa: (mu2 + damping) / (mu1 + damping) };
  }

  function show() {
    const { times, damping, path, mu2, kappa } = state();
    const n = 81;
    // Of the roots, which are cones, straight lines between the points of the grid are nearly right.
    const heights = Float64Array.from({ length: n * n }, (_, i) => {
      const e = [-1 + (2 * (i % n)) / (n - 1), -1 + (2 * Math.floor(i / n)) / (n - 1)];
      const force = times(e, damping);
      return Math.sqrt((e[0] * force[0] + e[1] * force[1]) / 2);
    });
    const levels = Array.from({ length: 9 }, (_, k) => Math.sqrt((mu2 + damping) * 0.5 ** (k + 1)));
    plot.contours("loss", { values: heights, shape: [n, n], x: [-1, 1], y: [-1, 1] }, levels, { color: 1 });
    const [e1, e2] = [0, 1].map((i) => path.map((e) => e[i]));
    plot.line("path", e1, e2, { color: 2 });
    plot.dots("steps", e1, e2, { color: 2 });
    plot.cross("truth", 0, 0, { color: 0 });
    const down = times(start, damping);
    const share = (100 * Math.hypot(...path[STEPS])) / Math.hypot(...start);
    values.set({
      kappa: kit.number(kappa, 4),
      tenth: String(Math.ceil(Math.log(10) / -Math.log1p(-1 / kappa))),
      left: share < 0.01 ? "less than 0.01 %" : `${kit.number(share, 2)} %`,
      truth: `${degrees(down, start).toFixed(1)}°`,
      ear: `${degrees(down, times(start, 0)).toFixed(1)}°`,
    });
  }

  const options = metrics.map(({ name }, i) => [i, name]);
  if (metrics.length > 1) {
    kit.select(right, { label: "metric", options, value: 0, onInput: (i) => {
      chosen = Number(i);
      plot.axes(...axes(metrics[chosen]));
      show();
    } });
  }
  kit.slider(right, {
    label: "damping λ, in units of the largest eigenvalue μ₂",
    low: LEAST, high: MOST, value: LEAST, log: true, steps: 60,
    say: (value) => `λ = ${kit.number(value, 2)} μ₂`,
    onInput: (value) => {
      lambda = value;
      show();
    },
  });
  kit.legend(right, [["level sets; the loss halves from each to the next", 1], ["path of descent", 2]]);
  const values = kit.readout(right, {
    kappa: "condition number κ",
    tenth: "steps to a tenth of the error, at worst",
    left: `error left after ${STEPS} steps`,
    truth: "angle of the first step to the truth",
    ear: "and to the ear's gradient",
  });
  lambda = LEAST;
  const point = plot.point({
    label: "first error, the start of the path",
    at: start,
    step: [0.05, 0.05],
    color: 2,
    say: (e1, e2) => `${metrics[chosen].x} ${e1.toFixed(2)}, ${metrics[chosen].y} ${e2.toFixed(2)}`,
    onMove: (e1, e2) => {
      start = e1 || e2 ? [e1, e2] : start; // at the truth there is nothing to descend
      show();
    },
  });
  show();
  point.say();
});
