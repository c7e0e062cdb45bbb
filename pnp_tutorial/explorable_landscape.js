// A line through a target: the true loss along it, PNP and the scaled P-loss, and where the quadratic form ends.
// data: directions, each {name, label, unit, v, t, loss, curvature}: v a direction in ν; t the steps along it at which
// the true loss was computed, the middle one at the target; unit what a step of 1 is in the unit of the label;
// curvature vᵀMv. scale, of the P-loss; nu, the target; low and high, of θ; sampleRate; fade, which multiplies a sound.

explorables.register("landscape", (root, { directions, scale, nu, low, high, sampleRate, fade }, kit) => {
  const looks = { true: { color: 1 }, pnp: { color: 2, dash: "7 3" }, parameter: { color: 3, dash: "2 3" } };
  const names = { true: "true (spectral) loss", pnp: "PNP loss", parameter: "P-loss, scaled" };
  const [left, right] = [kit.panel(root), kit.panel(root)];
  const any = { label: "", low: 0, high: 1 };
  const above = kit.plot(left, { label: "The three losses along the line", x: any, y: any, height: 250 });
  const below = kit.plot(left, { label: "Each loss over the true one", x: any, y: any, height: 200 });
  let line; // the direction, with its losses {true, pnp, parameter} at the steps x, in the unit of the label
  let at; // the number of the step that is looked at

  const middle = () => (line.x.length - 1) / 2;
  const place = (i) => [line.x[i], line.losses.true[i]];
  const nearest = (x) => line.x.reduce((best, each, i) => (Math.abs(each - x) < Math.abs(line.x[best] - x) ? i : best), 0);
  const ratio = (i) => line.losses.pnp[i] / line.losses.true[i];
  const isRight = (i) => i === middle() || (ratio(i) >= 0.5 && ratio(i) <= 2);

  /** From the target to either side, the last steps up to which PNP is right to a factor of two. */
  function reach() {
    let [from, to] = [middle(), middle()];
    while (from > 0 && isRight(from - 1)) from--;
    while (to < line.x.length - 1 && isRight(to + 1)) to++;
    return [line.x[from], line.x[to]];
  }

  function load(number) {
    const { t, loss, curvature, unit } = directions[number];
    const steps = Array.from(t.values);
    const x = steps.map((step) => step * unit);
    const losses = {
      true: Array.from(loss.values),
      pnp: steps.map((step) => (curvature * step ** 2) / 2),
      parameter: steps.map((step) => (scale * step ** 2) / 2),
    };
    line = { ...directions[number], steps, x, losses };
  }

  function show() {
    const { x, losses, label } = line;
    const along = { label, low: x[0], high: x.at(-1) };
    above.axes({ ...along, label: "" }, { label: "loss", low: 0, high: 1.6 * Math.max(...losses.true) });
    below.axes(along, { label: "over the true loss", low: 0.05, high: 20, log: true, ticks: [0.1, 0.5, 1, 2, 10] });
    const [from, to] = reach();
    above.band("reach", { x: [from, to] });
    below.band("factor", { y: [0.5, 2] });
    const sides = [[0, middle()], [middle() + 1, x.length]];
    for (const [name, look] of Object.entries(looks)) {
      above.line(name, x, losses[name], { ...look, width: 2 });
      if (name === "true") above.dots("computed", x, losses.true, look);
      sides.forEach(([first, last], side) => {
        const ratios = losses[name].map((each, i) => each / losses.true[i]);
        below.line(`${name} ${side}`, x.slice(first, last), ratios.slice(first, last), { ...look, width: 2 });
      });
    }
    look(at);
  }

  function look(i) {
    at = i;
    const [top, bottom] = [1.6 * Math.max(...line.losses.true), 0];
    above.line("here", [line.x[at], line.x[at]], [bottom, top], { color: 0, width: 0.7 });
    below.line("here", [line.x[at], line.x[at]], [0.05, 20], { color: 0, width: 0.7 });
    const shown = Object.fromEntries(Object.keys(looks).map((name) => [name, kit.number(line.losses[name][at], 4)]));
    const isTarget = at === middle();
    const verdict = isRight(at) ? "right to a factor of two" : "wrong by more than a factor of two";
    values.set({ ...shown, ratio: isTarget ? "both 0" : kit.number(ratio(at)), verdict });
    point.moveTo(...place(at));
  }

  const theta = (i) => Array.from(low.values, (least, j) => {
    const moved = nu.values[j] + line.steps[i] * line.v.values[j];
    return least + ((high.values[j] - least) * (moved + 1)) / 2;
  });
  const sound = (i) => {
    const x = kit.rectangularDrum(theta(i), fade.values.length, sampleRate);
    return { x: x.map((value, n) => value * fade.values[n]), sampleRate };
  };

  kit.select(right, {
    label: "direction", value: 0, options: directions.map(({ name }, i) => [i, name]),
    onInput: (i) => {
      load(Number(i));
      show();
    },
  });
  kit.legend(right, Object.entries(names).map(([name, label]) => [label, looks[name].color, looks[name].dash]));
  kit.note(right, "Grey: where PNP is right to a factor of two.");
  const values = kit.readout(right, { ...names, ratio: "PNP / true", verdict: "PNP is" });
  const sounds = { target: () => sound(middle()), "this step": () => sound(at) };
  kit.sounds(right, sounds, "Each drum as the chapter makes it, its loudest sample at the same level.");
  load(0);
  at = Math.round(1.5 * middle());
  const point = above.point({
    label: "step from the target",
    at: place(at),
    say: (x) => {
      const verdict = isRight(at) ? "right" : "wrong";
      return `${line.label} ${kit.number(x)}: true loss ${kit.number(line.losses.true[at])}, PNP ${verdict}`;
    },
    nudge: (x, y, i, j) => place(Math.min(line.x.length - 1, Math.max(0, at + i + j))),
    snap: (x) => place(nearest(x)),
    onMove: (x) => look(nearest(x)),
  });
  show();
});
