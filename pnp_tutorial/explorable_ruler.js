// The metric over two parameters of the drum, as the ellipse of one distance; and a step along each of its axes.
// data: theta, low, high (5), θ of the drum and its ranges; pair, which two parameters move; labels of them; inside, the
// range of their ν; logs (n, n, 3), of log M at a grid of ν the entries 11, 12 and 22, rows along the second parameter;
// radius of the ellipse in features, step in ν; nSamples and sampleRate of the sounds.

explorables.register("ruler", (root, { theta, low, high, pair, labels, inside, logs, radius, step, ...sounds }, kit) => {
  const [left, right] = [kit.panel(root), kit.panel(root)];
  const ends = pair.map((j) => [low.values[j], high.values[j]]);
  const toTheta = (nu) => nu.map((v, i) => ends[i][0] + ((v + 1) / 2) * (ends[i][1] - ends[i][0]));
  const toNu = (pairOf) => pairOf.map((v, i) => (2 * (v - ends[i][0])) / (ends[i][1] - ends[i][0]) - 1);
  const [x, y] = labels.map((label, i) => ({ label, low: ends[i][0], high: ends[i][1] }));
  const plot = kit.plot(left, { label: "Ellipse of equal distance, and a step along each axis", x, y });
  let nu = toNu(pair.map((j) => theta.values[j]));

  /** Between the points of the grid log M is interpolated, entry by entry: its exponential has positive eigenvalues. */
  function metric() {
    const [n] = logs.shape;
    const place = nu.map((v) => ((v - inside[0]) / (inside[1] - inside[0])) * (n - 1));
    const [c, r] = place.map((u) => Math.min(n - 2, Math.floor(u)));
    const [s, t] = [place[0] - c, place[1] - r];
    const [a, b, d] = [0, 1, 2].map((k) => {
      const at = (i, j) => logs.values[3 * ((r + j) * n + c + i) + k];
      return (1 - t) * ((1 - s) * at(0, 0) + s * at(1, 0)) + t * ((1 - s) * at(0, 1) + s * at(1, 1));
    });
    const [mean, spread, angle] = [(a + d) / 2, Math.hypot((a - d) / 2, b), Math.atan2(2 * b, a - d) / 2];
    return {
      roots: [spread, -spread].map((sign) => Math.exp((mean + sign) / 2)), // √μ
      directions: [[Math.cos(angle), Math.sin(angle)], [Math.sin(angle), -Math.cos(angle)]],
    };
  }

  const moved = (k) => metric().directions[k].map((v, i) => nu[i] + step * (metric().directions[k][1] < 0 ? -v : v));
  const sound = (nuOf) => {
    const { nSamples, sampleRate } = sounds;
    const all = Array.from(theta.values);
    toTheta(nuOf).forEach((value, i) => (all[pair[i]] = value));
    return { x: kit.fadedDrum(all, nSamples, sampleRate), sampleRate };
  };

  kit.legend(right, [[`ellipse of distance ${radius}`, 1], [`stiffest, ${step} in ν`, 2], [`sloppiest, ${step} in ν`, 3]]);
  const values = kit.readout(right, {
    stiff: "distance of the stiffest step",
    sloppy: "distance of the sloppiest step",
    condition: "condition number",
  });
  kit.sounds(right, { drum: () => sound(nu), stiffest: () => sound(moved(0)), sloppiest: () => sound(moved(1)) },
    "Each peaks at the same level.");

  function show() {
    const { roots, directions } = metric();
    const turns = Array.from({ length: 73 }, (_, k) => (Math.PI * k) / 36);
    const rim = turns.map((t) => toTheta([0, 1].map((i) => nu[i] + radius *
      ((Math.cos(t) * directions[0][i]) / roots[0] + (Math.sin(t) * directions[1][i]) / roots[1]))));
    plot.line("ellipse", rim.map(([u]) => u), rim.map(([, v]) => v), { color: 1 });
    [0, 1].forEach((k) => {
      const [from, to] = [toTheta(nu), toTheta(moved(k))];
      plot.line(k, [from[0], to[0]], [from[1], to[1]], { color: 2 + k, width: 3 });
    });
    const [stiff, sloppy] = roots.map((root) => kit.number(step * root, 4));
    values.set({ stiff, sloppy, condition: kit.number((roots[0] / roots[1]) ** 2, 4) });
  }

  plot.point({
    label: "drum",
    at: toTheta(nu),
    color: 0,
    snap: (u, v) => toTheta(toNu([u, v]).map((w) => Math.min(inside[1], Math.max(inside[0], w)))),
    nudge: (u, v, i, j) => toTheta(toNu([u, v]).map((w, k) => w + 0.05 * [i, j][k])),
    say: (u, v) => `${labels[0]} ${u.toFixed(2)}, ${labels[1]} ${v.toFixed(2)}`,
    onMove: (u, v) => {
      nu = toNu([u, v]);
      show();
    },
  });
  show();
});
