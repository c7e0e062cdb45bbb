"""What a reader moves, in a real browser: in the pages of the built book, opened as files, and as a widget's front end.

Not collected by plain `pytest`: `make test` runs it on what `make book` has built.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup
from execute import code_cells, source
from test_accessibility import AXE, NAMES, RUN, STILL

from pnp_tutorial import metric
from pnp_tutorial.drum import DRUM, rectangular_drum
from pnp_tutorial.explorables import decode, explorable, scenes
from pnp_tutorial.scattering import JTFS, LogScattering

SITE = Path(__file__).parents[2] / "_build/html/book"


def found():
    """(name of scene, page) of everything in the built book that a reader moves."""
    return [
        (element["data-explorable"], page.stem)
        for page in sorted(SITE.glob("*.html"))
        for element in BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser").select("[data-explorable]")
    ]


FOUND = found()
# Formulas and fonts that come late move the rest of the page.
STANDS = """async () => {
  if (!window.MathJax?.startup?.promise) return false;
  await Promise.all([MathJax.startup.promise, document.fonts.ready]);
  const tops = [];
  for (let i = 0; i < 20; i++) {
    await new Promise((done) => setTimeout(done, 20));
    tops.push(document.querySelector(".explorable").getBoundingClientRect().top);
  }
  return new Set(tops).size === 1;
}"""


@pytest.fixture
def scene(open_page):
    """Function of a name that opens its page: the scene's element."""

    def scene(name, **options):
        (stem,) = [page for each, page in FOUND if each == name]
        element = open_page((SITE / f"{stem}.html").as_uri(), **options).locator(f"[data-explorable={name}]")
        element.locator(".explorable").wait_for()
        element.scroll_into_view_if_needed()
        return element

    return scene


def data_of(name):
    (stem,) = [page for each, page in FOUND if each == name]
    page = BeautifulSoup((SITE / f"{stem}.html").read_text(encoding="utf-8"), "html.parser")
    return decode(json.loads(page.select_one(f"[data-explorable={name}] script").string))


def value(element, name):
    """A number that the scene shows."""
    text = element.locator(f"[data-value={name}]").inner_text().replace("−", "-")
    mantissa, _, power = text.rstrip(" %°").partition(" · 10")
    return float(mantissa) * 10.0 ** int(power.translate(str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")) or 0)


def last_sound(element):
    samples, rate = element.page.evaluate(
        "() => { const { buffer } = sounds.at(-1); return [Array.from(buffer.getChannelData(0)), buffer.sampleRate]; }"
    )
    return np.array(samples), rate


def test_every_scene_stands_once_in_the_book():
    assert sorted(name for name, _ in FOUND) == scenes(), "make book"


@pytest.mark.parametrize("name", scenes())
def test_a_reader_without_scripts_has_words(scene, open_page, name):
    (stem,) = [page for each, page in FOUND if each == name]
    page = open_page((SITE / f"{stem}.html").as_uri(), java_script_enabled=False)
    said = page.locator(f"[data-explorable={name}] p").inner_text()
    assert len(said.split()) > 25
    assert scene(name, formulas=True).locator(".said").inner_text() == said, "and so has a screen reader"


@pytest.mark.parametrize("name", scenes())
@pytest.mark.parametrize("color_scheme", ["light", "dark"])
def test_no_rule_of_accessibility_is_violated(scene, name, color_scheme):
    element = scene(name, color_scheme=color_scheme)
    page = element.page
    page.add_style_tag(content=STILL)
    page.wait_for_selector(f"html[data-theme={color_scheme}]")
    page.evaluate(AXE)
    run = RUN.replace("document", f"'[data-explorable={name}]'").replace("{ result", "{ preload: false, result")
    for width in (320, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate(run, NAMES) == []


@pytest.mark.parametrize("name", scenes())
@pytest.mark.parametrize("width", [320, 400, 1280])
def test_it_fits_the_window(scene, name, width):
    element = scene(name, formulas=True, viewport={"width": width, "height": 800})
    parts = element.locator(":is(input, select, button, .plot, p, dl):not(.said)").all()
    assert parts
    for part in parts:
        box = part.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width


@pytest.mark.parametrize("name", scenes())
def test_every_control_has_a_name_and_answers_to_keys(scene, name):
    element = scene(name)
    page = element.page
    sliders = element.get_by_role("slider").all()
    assert sliders
    for slider in sliders:
        assert slider.get_attribute("aria-label") or slider.evaluate("each => each.labels[0].textContent.trim()")
        before, scrolled = slider.get_attribute("aria-valuetext"), page.evaluate("scrollY")
        assert before
        slider.focus()
        scrolled = page.evaluate("scrollY")
        for key in ("ArrowRight", "ArrowUp", "ArrowLeft", "ArrowLeft"):  # whichever way it can go
            slider.press(key)
            if slider.get_attribute("aria-valuetext") != before:
                break
        assert slider.get_attribute("aria-valuetext") != before
        assert page.evaluate("scrollY") == scrolled


def test_it_takes_the_colours_of_the_theme(scene):
    element = scene("damping", color_scheme="light")
    stroke = "each => getComputedStyle(each.querySelector('.curve')).stroke"
    light = element.evaluate(stroke)
    element.page.evaluate("document.documentElement.dataset.theme = 'dark'")
    assert element.evaluate(stroke) != light


def test_a_point_is_dragged_by_mouse_and_touch(scene):
    element = scene("damping", formulas=True, has_touch=True)
    page, point = element.page, element.get_by_role("slider", name="first error")
    heard = [point.get_attribute("aria-valuetext")]

    def centre():
        box = point.locator(".dot").bounding_box()
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    page.wait_for_function(STANDS)
    x, y = centre()
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - 40, y + 30, steps=4)
    page.mouse.up()
    heard.append(point.get_attribute("aria-valuetext"))
    assert centre() == pytest.approx((x - 40, y + 30), abs=1.5)

    touch = page.context.new_cdp_session(page)
    x, y = centre()
    for kind, move in (("touchStart", 0), ("touchMove", 10), ("touchMove", 25), ("touchEnd", None)):
        points = [] if move is None else [{"x": x - move, "y": y - move}]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    heard.append(point.get_attribute("aria-valuetext"))
    assert centre() == pytest.approx((x - 25, y - 25), abs=1.5)
    assert len(set(heard)) == 3


FAKE_MODEL = """
async ({ esm, name, data, text }) => {
  const widget = (await import("data:text/javascript;charset=utf-8," + encodeURIComponent(esm))).default;
  const state = { name, data, text };
  const el = document.body.appendChild(document.createElement("div"));
  window.cleanup = widget.render({ model: { get: (key) => state[key] }, el });
}
"""


def test_the_widget_shows_the_same_and_goes(open_page):
    page = open_page("about:blank")
    for name in ("damping", "landscape"):  # two at a time
        made = explorable(name, data_of(name), "What moving it shows.")
        state = {key: made.get_state()[key] for key in ("name", "data", "text")}
        page.evaluate(FAKE_MODEL, {"esm": made._esm, **state})
    assert page.locator("[data-explorable] .explorable").count() == 2
    assert value(page.locator("[data-explorable=damping]"), "kappa") > 10
    page.get_by_role("button", name="target").click()
    page.wait_for_function("sounds.at(-1).context.state === 'running'")
    page.evaluate("cleanup()")
    page.wait_for_function("sounds.at(-1).context.state === 'closed'")
    assert page.locator("[data-explorable] .explorable").count() == 1


# What the three scenes show is what Python says.


@pytest.fixture(scope="module")
def toy():
    """The introduction's g and phi, as its cells define them, in float64."""
    cells = [cell.source for cell in code_cells(source("introduction"))]
    (window,) = [line for cell in cells for line in cell.splitlines() if line.startswith("window =")]
    (definitions,) = [cell for cell in cells if "def phi(" in cell]
    names = {"torch": torch}
    exec(f"{window}\n{definitions}", names)
    torch.set_default_dtype(torch.float64)
    yield lambda *nu: names["phi"](names["g"](torch.tensor(nu))), names["g"]
    torch.set_default_dtype(torch.float32)


def toy_metric(features, nu, h=1e-4):
    columns = [features(*(nu + h * e)) - features(*(nu - h * e)) for e in np.eye(2)]
    J = torch.stack([column.flatten() / (2 * h) for column in columns], -1)
    return (J.T @ J).numpy()


def test_the_three_losses_are_those_of_the_introduction(scene, toy):
    features, g = toy
    element = scene("losses")
    points = {name: element.get_by_role("slider", name=name) for name in ("target", "estimate")}
    at = {"target": np.array([0.0, 0.0]), "estimate": np.array([0.12, 0.3])}
    step, ways = 0.02, {"ArrowRight": (1, 0), "ArrowLeft": (-1, 0), "ArrowUp": (0, 1), "ArrowDown": (0, -1)}
    keys = [("estimate", "ArrowLeft"), ("estimate", "Shift+ArrowDown"), ("estimate", "Shift+ArrowRight")]
    keys += [("target", "ArrowLeft"), ("target", "Shift+ArrowUp"), ("target", "ArrowUp")]
    seen = []
    for name, key in keys:
        points[name].focus()
        points[name].press(key)
        at[name] += step * (10 if "Shift" in key else 1) * np.array(ways[key.removeprefix("Shift+")])
        element.page.wait_for_timeout(100)  # the target's map is drawn with the next picture
        element.page.wait_for_function("new Promise((done) => requestAnimationFrame(() => done(true)))")
        error = at["estimate"] - at["target"]
        M = toy_metric(features, at["target"])
        expected = {
            "spectral": (features(*at["estimate"]) - features(*at["target"])).square().sum().item() / 2,
            "pnp": error @ M @ error / 2,
            "parameter": (error**2).mean(),
        }
        for loss, number in expected.items():
            assert value(element, loss) == pytest.approx(number, rel=1e-3), (name, key, loss)
        hz, decay = 440 * 2 ** at[name][0], 0.1 * 2 ** at[name][1]
        assert f"{hz:.0f} hertz, decay {decay:.3g}" in points[name].get_attribute("aria-valuetext")
        seen.append(tuple(expected.values()))
    assert len(set(seen)) == len(keys)
    for name in points:
        element.get_by_role("button", name=name).click()
        x, rate = last_sound(element)
        assert rate == 8192
        assert np.abs(x - g(torch.tensor(at[name])).numpy()).max() < 1e-6


def test_the_landscape_is_the_one_of_the_library(scene):
    element, data = scene("landscape"), data_of("landscape")
    short = {"n_samples": 2**13, "sample_rate": 11025}
    fade = torch.from_numpy(data["fade"].astype(float))
    ear = LogScattering(JTFS(J=10, **short))
    nu = DRUM.to_nu(torch.tensor([3.0, 0.25, -1.7, -1.7, 0.6], dtype=torch.float64))

    def g(nu):
        return fade * rectangular_drum(DRUM.to_theta(nu), **short)

    M = metric.riemannian_metric(nu, ear, g)
    scale = M.diag().log().mean().exp().item()
    point = element.get_by_role("slider", name="step from the target")
    for j in (0, 1):
        element.get_by_label("direction").select_option(str(j))
        point.focus()
        for keys in (["ArrowRight"], ["Shift+ArrowLeft", "Shift+ArrowLeft"]):
            for key in keys:
                point.press(key)
            at = float(point.get_attribute("aria-valuenow"))
            steps = data["directions"][j]["t"].astype(float)
            t = steps[np.abs(steps * data["directions"][j]["unit"] - at).argmin()]
            moved = nu.clone()
            moved[j] += t
            true = (ear(g(moved)) - ear(g(nu))).double().square().sum().item() / 2
            pnp = t**2 * M[j, j].item() / 2
            expected = {"true": true, "pnp": pnp, "parameter": t**2 * scale / 2}
            for loss, number in expected.items():
                assert value(element, loss) == pytest.approx(number, rel=1e-3), (j, at, loss)
            is_right = 0.5 <= pnp / true <= 2
            verdict = element.locator("[data-value=verdict]").inner_text()
            assert verdict.startswith("right" if is_right else "wrong")
            element.get_by_role("button", name="this step").click()
            x, rate = last_sound(element)
            assert rate == 11025
            assert np.abs(x - g(moved).numpy()).max() < 1e-4, "ν came as float32"
    assert not math.isclose(true, pnp, rel_tol=0.01), "the last step is far enough to tell the two apart"


@pytest.mark.parametrize("which", [0, 1])
def test_damping_does_to_a_metric_what_numpy_says(scene, toy, which):
    element, data = scene("damping"), data_of("damping")
    M = data["metrics"][which]["M"].astype(float)
    if which == 0:
        np.testing.assert_allclose(M, toy_metric(toy[0], np.zeros(2)), rtol=1e-3, atol=1e-3 * M.max())
    element.get_by_label("metric").select_option(str(which))
    slider, point = element.locator("input"), element.get_by_role("slider", name="first error")
    point.focus()
    point.press("ArrowDown")
    start = np.array([0.8, 0.45])
    mu = np.linalg.eigvalsh(M)
    seen = []
    for n_pages in (0, 3, 3, 4):
        slider.focus()
        for _ in range(n_pages):
            slider.press("PageUp")
        share = slider.evaluate("each => each.value / each.max")
        damping = mu[1] * 1e-4 ** (1 - share) * 100**share
        A = M + damping * np.eye(2)
        left = np.linalg.matrix_power(np.eye(2) - A / (mu[1] + damping), 60) @ start
        cosines = [
            A @ start @ other / np.linalg.norm(A @ start) / np.linalg.norm(other) for other in (start, M @ start)
        ]
        kappa = np.linalg.cond(A)
        assert value(element, "kappa") == pytest.approx(kappa, rel=1e-3)
        n_steps = value(element, "tenth")
        assert (1 - 1 / kappa) ** n_steps <= 0.1001 < 0.0999 + (1 - 1 / kappa) ** (n_steps - 1)
        for name, cosine in zip(("truth", "ear"), cosines, strict=True):
            assert value(element, name) == pytest.approx(np.degrees(np.arccos(min(1, cosine))), abs=0.06)
        percent = 100 * np.linalg.norm(left) / np.linalg.norm(start)
        if percent > 0.01:
            assert value(element, "left") == pytest.approx(percent, rel=0.06), "two digits"
        else:
            assert "less than" in element.locator("[data-value=left]").inner_text()
        seen.append(kappa)
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] < 1.2
