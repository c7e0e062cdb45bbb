"""The drum to play, in a real browser: in the page of the built book, and as the front end of the widget.

Not collected by plain `pytest`: `make test` runs it on what `make book` has built.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from pnp_tutorial.drum import DRUM, POSITION, SAMPLE_RATE, rectangular_drum
from pnp_tutorial.drum_instrument import SOURCE, START, DrumInstrument

PAGE = Path(__file__).parents[2] / "_build/html/book/01_drum.html"
SLIDERS = [p.meaning for p in DRUM.parameters]
MIDDLE = DRUM.to_theta(torch.tensor(START, dtype=torch.float64)).tolist()


@pytest.fixture
def instrument(open_page):
    """The only instrument of the first chapter."""
    assert PAGE.exists(), f"{PAGE} is missing: make book"
    instrument = open_page(PAGE.as_uri()).locator(".drum-instrument")
    instrument.wait_for()
    assert instrument.count() == 1
    return instrument


def n_sounds(instrument):
    """How many sounds were sent to the loudspeaker so far."""
    return instrument.page.evaluate("sounds.length")


DESCRIBE = """
(n) => {
  const { buffer } = sounds.at(-1);
  const x = buffer.getChannelData(0);
  const peak = x.reduce((largest, value) => Math.max(largest, Math.abs(value)), 0);
  const { sampleRate, numberOfChannels, length } = buffer;
  return { sampleRate, numberOfChannels, length, peak, beginning: Array.from(x.subarray(0, n)) };
}
"""


def check_last_sound(instrument, theta, strike=POSITION):
    """It is the drum of drum.py, peak at full scale, until the first mode is 60 dB down."""
    n = 4000
    sound = instrument.page.evaluate(DESCRIBE, n)
    assert sound["sampleRate"] == SAMPLE_RATE
    assert sound["numberOfChannels"] == 1
    assert sound["length"] == pytest.approx(np.log(1000) * theta[1] * SAMPLE_RATE, abs=2)
    assert sound["peak"] == 1
    expected = rectangular_drum(torch.tensor(theta, dtype=torch.float64), sound["length"], strike=strike).numpy()
    assert np.abs(sound["beginning"] - expected[:n]).max() < 1e-6


def values(instrument):
    """What each slider tells a screen reader."""
    return [slider.get_attribute("aria-valuetext") for slider in instrument.get_by_role("slider").all()]


def test_it_starts_silent_with_a_label_on_everything(instrument):
    assert n_sounds(instrument) == 0
    for meaning, parameter in zip(SLIDERS, DRUM.parameters, strict=True):
        slider = instrument.get_by_label(meaning, exact=True)
        assert slider.count() == 1
        assert parameter.symbol in slider.get_attribute("aria-valuetext")
    assert "145 Hz" in values(instrument)[0]
    assert instrument.get_by_role("img", name="Spectrum").count() == 1
    assert instrument.get_by_role("button", name="Membrane").count() == 1
    assert "frequency (Hz)" in instrument.inner_text()
    assert "level (dB below peak)" in instrument.inner_text()


@pytest.mark.parametrize("j", range(5), ids=[p.name for p in DRUM.parameters])
def test_a_slider_moved_by_keyboard_is_seen_and_heard(instrument, j):
    slider = instrument.get_by_label(SLIDERS[j], exact=True)
    before, spectrum = values(instrument), instrument.locator("polyline").get_attribute("points")
    slider.focus()
    theta = list(MIDDLE)
    for key, value in (("Home", DRUM.parameters[j].low), ("End", DRUM.parameters[j].high), ("ArrowLeft", None)):
        slider.press(key)
        theta[j] = DRUM.parameters[j].low / 200 + DRUM.parameters[j].high * 199 / 200 if value is None else value
        after = values(instrument)
        assert after[j] != before[j]
        numbers = [[text.split(":")[0] for text in texts] for texts in (before, after)]
        assert [i for i in range(5) if numbers[0][i] != numbers[1][i]] == [j], "no other parameter moves"
        assert instrument.locator("polyline").get_attribute("points") != spectrum
        slider.press("Space")  # strikes, and leaves slider and page where they are
        assert values(instrument) == after
        check_last_sound(instrument, theta)
    assert n_sounds(instrument) == 3


def test_space_strikes_and_does_not_scroll(instrument):
    page = instrument.page
    for role in ("slider", "button"):
        controls = instrument.get_by_role(role).all()
        assert controls
        for control in controls:
            control.focus()
            before, scrolled = n_sounds(instrument), page.evaluate("scrollY")
            page.keyboard.press("Space")
            assert n_sounds(instrument) == before + 1
            page.wait_for_timeout(50)
            assert page.evaluate("scrollY") == scrolled
    check_last_sound(instrument, MIDDLE)
    page.wait_for_function("sounds.every(({ context }) => context.state === 'running')")
    assert "145 Hz" in instrument.get_by_role("status").inner_text()


OTHER_STARTS = """
() => new Promise((resolve) => {
  sounds.at(-1).source.onended = () => resolve("ended");
  setTimeout(() => resolve("goes on"), 1500);
  document.dispatchEvent(new CustomEvent("ab-player-started"));
})
"""


def test_it_takes_turns_with_the_players_of_the_page(instrument):
    page = instrument.page
    page.evaluate("window.turns = 0; document.addEventListener('ab-player-started', () => turns++)")
    instrument.get_by_role("button", name="Strike").first.click()
    assert page.evaluate("turns") == 1
    page.wait_for_function("sounds.at(-1).context.state === 'running'")
    assert page.evaluate(OTHER_STARTS) == "ended"


def test_space_elsewhere_in_the_page_is_not_taken(instrument):
    instrument.page.keyboard.press("Space")
    assert n_sounds(instrument) == 0


def test_a_click_strikes_where_it_falls(instrument):
    membrane = instrument.locator("canvas")
    membrane.scroll_into_view_if_needed()
    box = membrane.bounding_box()
    before = membrane.screenshot()
    membrane.click(position={"x": 0.25 * box["width"], "y": 0.7 * box["height"]})
    said = re.search(r"Struck at \((\S+), (\S+)\) of the sides", instrument.get_by_role("status").inner_text())
    strike = (float(said[1]), float(said[2]))
    assert strike == pytest.approx((0.25, 0.3), abs=0.015), "a mouse falls on whole pixels"
    assert n_sounds(instrument) == 1
    x = np.array(instrument.page.evaluate(DESCRIBE, 2000)["beginning"])
    expected = rectangular_drum(torch.tensor(MIDDLE, dtype=torch.float64), 2000, strike=strike, normalize=False)
    assert np.corrcoef(x, expected.numpy())[0, 1] > 0.98
    at_home = rectangular_drum(torch.tensor(MIDDLE, dtype=torch.float64), 2000, normalize=False)
    assert np.corrcoef(x, at_home.numpy())[0, 1] < 0.9
    instrument.page.wait_for_timeout(300)
    assert membrane.screenshot() != before
    assert "slowed down 290 ×" in instrument.inner_text()


def test_arrow_keys_move_the_spot_that_space_strikes(instrument):
    membrane = instrument.locator("canvas")
    membrane.focus()
    for key in 3 * ["ArrowRight"] + ["ArrowUp"]:
        membrane.press(key)
    assert n_sounds(instrument) == 0
    assert "The next strike: at (0.55, 0.45) of the sides." in instrument.get_by_role("status").inner_text()
    membrane.press("Control+ArrowRight")  # the browser's own
    membrane.press("Space")
    assert "Struck at (0.55, 0.45) of the sides" in instrument.get_by_role("status").inner_text()
    for _ in range(12):
        membrane.press("ArrowLeft")
    membrane.press("Enter")
    assert "Struck at (0.01, 0.45) of the sides" in instrument.get_by_role("status").inner_text(), "not on the rim"
    assert n_sounds(instrument) == 2


def test_a_click_on_the_rim_sounds(instrument):
    membrane = instrument.locator("canvas")
    box = membrane.bounding_box()
    for x, y in ((0, 0), (box["width"] - 1, box["height"] - 1), (0, box["height"] / 2)):
        membrane.click(position={"x": x, "y": y})
        sound = instrument.page.evaluate(DESCRIBE, 4000)
        assert np.isfinite(sound["beginning"]).all()
        assert sound["peak"] == 1
    assert n_sounds(instrument) == 3


def test_the_membrane_has_the_shape_of_the_drum_or_says_so(instrument):
    slider = instrument.get_by_label(SLIDERS[4], exact=True)
    slider.focus()
    for key in ("End", "PageDown", "Home"):
        slider.press(key)
        alpha = float(slider.evaluate("slider => slider.value / 200"))
        box = instrument.locator("canvas").bounding_box()
        is_true = box["height"] / box["width"] == pytest.approx(alpha, abs=0.01)
        assert is_true == (alpha > 0.1)
        assert ("drawn wider than it is" in instrument.inner_text()) == (not is_true)


def test_reduced_motion_stands_still(open_page):
    instrument = open_page(PAGE.as_uri(), reduced_motion="reduce").locator(".drum-instrument")
    instrument.get_by_role("button", name="Strike", exact=True).click()
    membrane = instrument.locator("canvas")
    assert "standing still" in instrument.inner_text()
    first = membrane.screenshot()
    instrument.page.wait_for_timeout(300)
    assert membrane.screenshot() == first
    assert n_sounds(instrument) == 1


@pytest.mark.parametrize("width", [320, 400, 1280])
def test_it_fits_the_window(open_page, width):
    page = open_page(PAGE.as_uri(), formulas=True, viewport={"width": width, "height": 800})
    parts = page.locator(".drum-instrument :is(input, canvas, svg, p)").all()
    assert parts
    for part in parts:
        box = part.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width


FAKE_MODEL = """
async ({ source, state }) => {
  const widget = (await import("data:text/javascript;charset=utf-8," + encodeURIComponent(source))).default;
  const followers = new Set();
  window.model = {
    saved: [],
    get: (name) => state[name],
    set(name, value) { state[name] = value; followers.forEach((follow) => follow()); },
    save_changes() { this.saved.push(state.theta); },
    on: (event, follow) => event === "change:theta" && followers.add(follow),
    off: (event, follow) => followers.delete(follow),
    followers,
  };
  const el = document.body.appendChild(document.createElement("div"));
  window.cleanup = widget.render({ model, el });
}
"""


def test_sliders_and_traitlet_follow_each_other(open_page):
    page = open_page("about:blank")
    state = DrumInstrument().get_state()
    state = {name: state[name] for name in ("theta", "parameters", "sample_rate")}
    page.evaluate(FAKE_MODEL, {"source": SOURCE, "state": state})
    instrument = page.locator(".drum-instrument")
    assert page.evaluate("model.saved") == []

    instrument.get_by_label(SLIDERS[1], exact=True).focus()
    page.keyboard.press("End")
    (theta,) = page.evaluate("model.saved")
    assert theta == [MIDDLE[0], DRUM.parameters[1].high, *MIDDLE[2:]]
    assert DrumInstrument(theta=theta).theta == theta, "Python takes what the slider sends"

    theta = [3.0, 0.1, -1.0, -1.0, 0.3]
    page.evaluate(f"model.set('theta', {json.dumps(theta)})")
    assert "159 Hz" in values(instrument)[0]
    instrument.get_by_role("button", name="Strike", exact=True).click()
    check_last_sound(instrument, theta)

    page.evaluate("cleanup()")
    page.wait_for_function("sounds[0].context.state === 'closed'")
    assert instrument.count() == 0
    assert page.evaluate("model.followers.size") == 0
