// One modulated sound: its scalogram, and its paths of the JTFS by rate and signed scale. data: kinds, each {name, unit,
// speeds}; scalograms (kinds, speeds, bands, frames) and maps (kinds, speeds, scales, rates), each at most 1; seconds;
// hz, the lowest and highest band; rates (Hz) and scales (cycles per octave, negative if falling); samples {nSamples,
// sampleRate} and recipes of the sounds, each a kind's {carrier, width, depth (octaves), slope (±1 or 0), swell}.

explorables.register("modulation", (root, data, kit) => {
  const { kinds, recipes, scalograms, maps, seconds, hz, rates, scales, samples } = data;
  let [kind, speed] = [0, 2];
  const [left, right] = [kit.panel(root), kit.panel(root)];
  const [n, m] = [rates.values.length, scales.values.length];
  const picture = kit.plot(left, {
    label: "Scalogram",
    x: { label: "time (s)", low: 0, high: seconds },
    y: { label: "frequency (Hz)", low: hz[0], high: hz[1], log: true, ticks: [500, 1000, 2000, 4000] },
    height: 200,
  });
  const paths = kit.plot(right, {
    label: "Paths of the JTFS",
    x: { label: "rate (Hz)", low: rates.values[0] / Math.SQRT2, high: rates.values[n - 1] * Math.SQRT2, log: true,
      ticks: Array.from(rates.values).filter((_, i) => i % 2 === 0) },
    y: { label: "fine falling … fine rising", low: -m / 2, high: m / 2, ticks: [0] },
    height: 200,
  });
  const part = ({ values, shape }) => {
    const size = shape[2] * shape[3];
    const first = (kind * shape[1] + speed) * size;
    return { values: values.subarray(first, first + size), shape: shape.slice(2) };
  };

  function sound() {
    const { nSamples, sampleRate } = samples;
    const { carrier, width, depth, slope, swell } = recipes[kind];
    const r = kinds[kind].speeds.values[speed];
    const x = new Float64Array(nSamples);
    let cycles = 0;
    for (let i = 0; i < nSamples; i++) {
      const t = (i - nSamples / 2) / sampleRate;
      const swing = Math.cos(2 * Math.PI * r * t);
      cycles += (carrier * 2 ** (slope ? slope * r * t : depth * swing)) / sampleRate;
      const window = slope ? Math.exp(-((r * t / width) ** 2)) : (1 - Math.cos((2 * Math.PI * i) / nSamples)) / 2;
      x[i] = window * (swell ? (1 + swing) / 2 : 1) * Math.sin(2 * Math.PI * cycles);
    }
    return { x, sampleRate };
  }

  const controls = kit.panel(root);
  const options = kinds.map(({ name }, i) => [i, name]);
  kit.select(controls, { label: "modulation", options, value: 0, onInput: (i) => {
    kind = Number(i);
    slider.say();
    show();
  } });
  const last = kinds[0].speeds.values.length - 1;
  const slider = kit.slider(controls, {
    label: "how fast", low: 0, high: last, value: speed, steps: last,
    say: (i) => `${kit.number(kinds[kind].speeds.values[Math.round(i)], 3)} ${kinds[kind].unit}`,
    onInput: (i) => {
      speed = Math.round(i);
      show();
    },
  });
  const names = { rate: "brightest rate (Hz)", scale: "its scale (cycles per octave)", spin: "its spin" };
  const values = kit.readout(controls, names);
  kit.sounds(controls, { sound }, "All at one gain.");

  function show() {
    const { values: levels, shape } = part(scalograms);
    picture.heat("levels", { values: levels, shape, x: [0, seconds], y: hz }, 0, 1);
    const map = part(maps);
    const [low, high] = [rates.values[0] / Math.SQRT2, rates.values[n - 1] * Math.SQRT2];
    paths.heat("paths", { ...map, x: [low, high], y: [-m / 2, m / 2] }, 0, 1);
    const brightest = map.values.indexOf(Math.max(...map.values));
    const [row, column] = [Math.floor(brightest / n), brightest % n];
    const scale = scales.values[row];
    const alike = map.values[(m - 1 - row) * n + column] > 0.8; // of the same scale, the other spin
    values.set({
      rate: kit.number(rates.values[column], 3),
      scale: kit.number(Math.abs(scale), 2),
      spin: alike ? "both alike" : scale > 0 ? "rising" : "falling",
    });
  }
  show();
});
