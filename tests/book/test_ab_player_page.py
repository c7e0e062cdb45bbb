"""The player of a recording and its match, in a real browser: in the page of the built book, and as a widget.

Not collected by plain `pytest`: `make test` runs it on what `make book` has built.
"""

from pathlib import Path

import numpy as np
import pytest

from pnp_tutorial.drum import SAMPLE_RATE
from pnp_tutorial.widgets import AB_MODULE, PEAK, ABPlayer

PAGE = Path(__file__).parents[2] / "_build/html/book/09_matching.html"

# The source of each sound that starts is noted with its gain and its time.
LISTEN = """() => {
  window.voices = [];
  const { connect } = AudioNode.prototype;
  AudioNode.prototype.connect = function (to) {
    if (this instanceof AudioBufferSourceNode) voices.push({ source: this, gain: to });
    return connect.call(this, to);
  };
  const { start } = AudioBufferSourceNode.prototype;
  AudioBufferSourceNode.prototype.start = function (when) {
    this.when = when;
    return start.call(this, when);
  };
}"""


@pytest.fixture
def open_player(open_page):
    """Function of options of the browser's context that opens the chapter: its first player."""

    def open_player(**options):
        assert PAGE.exists(), f"{PAGE} is missing: make book"
        page = open_page(PAGE.as_uri(), **options)
        page.evaluate(LISTEN)
        player = page.locator(".ab-player").first
        player.wait_for()
        player.scroll_into_view_if_needed()
        return player

    return open_player


@pytest.fixture
def player(open_player):
    return open_player()


def play_button(player):
    return player.locator("button").first


def pressed(player):
    """Which of the sounds' buttons are pressed."""
    buttons = player.locator("button").all()[1:]
    return [i for i, button in enumerate(buttons) if button.get_attribute("aria-pressed") == "true"]


def gains(page):
    return page.evaluate("voices.map(({ gain }) => gain.gain.value)")


def wait_until_only(page, n, chosen):
    """n sounds are running, and the chosen one is heard."""
    page.wait_for_function(
        """([n, chosen]) =>
             voices.length === n && voices.every(({ gain }, i) => gain.gain.value === (i === chosen ? 1 : 0))""",
        arg=[n, chosen],
    )


def test_it_starts_silent_with_a_name_on_everything(player):
    assert player.page.evaluate("sounds.length") == 0
    assert "recording" in player.get_attribute("aria-label")
    assert play_button(player).inner_text().endswith("Play")
    names = [button.inner_text() for button in player.get_by_role("button").all()]
    assert len(names) >= 3
    assert player.get_by_role("button", name="Play", exact=True).count() == 1
    assert player.get_by_role("button", name="recording", exact=True).count() == 1
    assert player.get_by_role("button", name="match", exact=True).count() == 1
    assert pressed(player) == [0]
    assert player.locator("audio").count() == 0, "the module has taken the sounds over"


def test_by_keyboard_alone(player):
    """Space plays and stops from any of its buttons, digits and letters switch, and the page does not scroll."""
    page = player.page
    n = player.locator("button").count() - 1
    play_button(player).focus()
    scrolled = page.evaluate("scrollY")
    page.keyboard.press("Space")
    wait_until_only(page, n, 0)
    assert play_button(player).inner_text().endswith("Stop")
    for key, chosen in (("2", 1), ("1", 0), ("b", 1), ("A", 0), ("9", 0), ("Control+2", 0), ("x", 0)):
        page.keyboard.press(key)
        wait_until_only(page, n, chosen)
        assert pressed(player) == [chosen]
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # the button of the second sound
    wait_until_only(page, n, 1)
    page.keyboard.press("Space")
    assert pressed(player) == [1], "space did not press the button that has the focus"
    assert play_button(player).inner_text().endswith("Play")
    page.wait_for_function("voices.every(({ gain }) => gain.gain.value === 0)")
    page.wait_for_timeout(50)
    assert page.evaluate("scrollY") == scrolled
    assert page.evaluate("voices.every(({ source }) => source.context.state === 'running')")
    page.keyboard.press("Space")
    page.wait_for_function("n => voices.length === 2 * n", arg=n)
    assert gains(page)[n:] == [float(i == 1) for i in range(n)], "it goes on with the chosen sound"


def test_keys_elsewhere_in_the_page_are_not_taken(player):
    for key in ("2", "b", "Space"):
        player.page.keyboard.press(key)
    assert player.page.evaluate("sounds.length") == 0
    assert pressed(player) == [0]


def test_the_focus_is_seen(player):
    play_button(player).focus()
    player.page.keyboard.press("Tab")
    focused = player.locator("button:focus-visible")
    assert focused.count() == 1
    assert focused.evaluate("button => getComputedStyle(button).outlineStyle") == "solid"


def test_sounds_are_equally_loud_and_start_together(player):
    play_button(player).click()
    page = player.page
    n = player.locator("button").count() - 1
    wait_until_only(page, n, 0)
    found = page.evaluate(
        """voices.map(({ source: { buffer, when, loop } }) => {
             const x = buffer.getChannelData(0);
             const first = x.subarray(0, buffer.sampleRate);
             const energy = first.reduce((sum, value) => sum + value ** 2, 0);
             const peak = x.reduce((largest, value) => Math.max(largest, Math.abs(value)), 0);
             return { when, loop, energy, peak, length: buffer.length, seconds: buffer.duration };
           })"""
    )
    assert len({(sound["when"], sound["length"], sound["loop"]) for sound in found}) == 1
    assert found[0]["loop"]
    assert 1 <= found[0]["seconds"] <= 65536 / SAMPLE_RATE + 0.01
    assert [s["energy"] for s in found] == pytest.approx([found[0]["energy"]] * n, rel=0.02)
    assert 0.8 * PEAK < max(s["peak"] for s in found) < 1


@pytest.mark.parametrize("width", [320, 380, 1280])
@pytest.mark.parametrize("color_scheme", ["light", "dark"])
def test_it_fits_the_window_and_can_be_read(open_player, width, color_scheme):
    player = open_player(formulas=True, viewport={"width": width, "height": 800}, color_scheme=color_scheme)
    parts = player.locator("button, p:not([hidden])").all()
    assert parts
    for part in parts:
        box = part.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
    colour, surface = player.evaluate(
        """player => {
             let surface = player;
             while (surface && getComputedStyle(surface).backgroundColor === "rgba(0, 0, 0, 0)")
               surface = surface.parentElement;
             const white = "rgb(255, 255, 255)";
             return [getComputedStyle(player).color, surface ? getComputedStyle(surface).backgroundColor : white];
           }"""
    )
    assert contrast(colour, surface) > 4.5


def contrast(*colours):
    """Contrast ratio of two CSS colours rgb(…), as WCAG has it."""
    values = [[float(c) / 255 for c in colour[colour.index("(") + 1 : -1].split(",")[:3]] for colour in colours]
    linear = [[c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in value] for value in values]
    dark, light = sorted(float(np.dot([0.2126, 0.7152, 0.0722], value)) for value in linear)
    return (light + 0.05) / (dark + 0.05)


def test_without_javascript_the_sounds_can_be_played(open_page):
    page = open_page(PAGE.as_uri(), java_script_enabled=False)
    players = page.locator("[data-ab-player]").first.locator("audio")
    assert players.count() >= 2
    assert all(audio.get_attribute("controls") is not None for audio in players.all())
    assert all(audio.get_attribute("autoplay") is None for audio in players.all())


WIDGETS = """
async ({ source, states }) => {
  const widget = (await import("data:text/javascript;charset=utf-8," + encodeURIComponent(source))).default;
  window.cleanups = states.map((state) => {
    const el = document.body.appendChild(document.createElement("div"));
    return widget.render({ model: { get: (name) => state[name] }, el });
  });
}
"""


def test_widgets_take_turns_and_can_be_removed(open_page):
    """What Jupyter shows: two of them, one heard at a time; a removed one is silent."""
    page = open_page("about:blank")
    page.evaluate(LISTEN)
    x = np.sin(np.arange(30_000) / 10)
    labels = ({"<b>one</b>": x, "two": 0.1 * x}, {"three": x})
    states = [ABPlayer(sounds, SAMPLE_RATE, "a & b").get_state(["sounds", "caption"]) for sounds in labels]
    page.evaluate(WIDGETS, {"source": AB_MODULE.read_text(encoding="utf-8"), "states": states})
    first, second = page.locator(".ab-player").all()
    assert first.get_by_role("button", name="<b>one</b>", exact=True).count() == 1, "labels are text, not mark-up"
    assert "a & b" in first.inner_text()
    assert "keys: space to play or stop, 1, 2 to switch" in first.inner_text().lower()

    play_button(first).click()
    wait_until_only(page, 2, 0)
    first.get_by_role("button", name="two").click()
    wait_until_only(page, 2, 1)
    play_button(second).click()
    page.wait_for_function("voices.length === 3 && voices[2].gain.gain.value === 1 && voices[1].gain.gain.value === 0")
    assert play_button(first).inner_text().endswith("Play")
    assert play_button(second).inner_text().endswith("Stop")

    page.evaluate("cleanups.forEach((remove) => remove())")
    page.wait_for_function("voices.every(({ source }) => source.context.state === 'closed')")
    assert page.locator(".ab-player").count() == 0


@pytest.mark.parametrize("n_clicks", [2, 3])
def test_clicks_faster_than_the_sounds_are_ready(open_page, n_clicks):
    page = open_page("about:blank")
    page.evaluate(LISTEN)
    state = ABPlayer({"one": np.ones(100), "two": np.ones(100)}, SAMPLE_RATE).get_state(["sounds", "caption"])
    page.evaluate(WIDGETS, {"source": AB_MODULE.read_text(encoding="utf-8"), "states": [state]})
    click = "(button, n) => { for (let i = 0; i < n; i++) button.click(); }"
    play_button(page.locator(".ab-player")).evaluate(click, n_clicks)
    page.wait_for_timeout(500)
    assert page.evaluate("voices.length") == (2 if n_clicks == 3 else 0), "none plays twice, nor after it was stopped"


def test_a_switch_leaves_no_gap(open_page):
    """Of two equal sounds nothing is heard of a switch: what is played, rendered sample by sample, goes on."""
    page = open_page("about:blank")
    x = np.sin(2 * np.pi * 441 * np.arange(SAMPLE_RATE) / SAMPLE_RATE)
    state = ABPlayer({"one": x, "two": x}, SAMPLE_RATE).get_state(["sounds", "caption"])
    # The player's context is one that records: a second of sound, with a switch at half of it.
    page.evaluate(
        """() => {
             window.recorded = undefined;
             window.AudioContext = class extends OfflineAudioContext {
               constructor() {
                 super(1, 44100, 44100);
                 window.context = this;
               }
               resume() {}
               close() {}
             };
           }"""
    )
    page.evaluate(WIDGETS, {"source": AB_MODULE.read_text(encoding="utf-8"), "states": [state]})
    page.evaluate(LISTEN)
    player = page.locator(".ab-player")
    play_button(player).click()
    page.wait_for_function("voices.length === 2")
    heard = page.evaluate(
        """async () => {
             context.suspend(0.5).then(() => {
               document.querySelectorAll(".ab-player button")[2].click();
               OfflineAudioContext.prototype.resume.call(context);
             });
             return Array.from((await context.startRendering()).getChannelData(0));
           }"""
    )
    assert pressed(player) == [1]
    assert page.evaluate("voices.map(({ gain }) => gain.gain.value)") == [0, 1]
    y = np.array(heard[4410:])  # from when it has started
    period = 100
    assert np.abs(y[period:] - y[:-period]).max() < 0.01
    assert np.abs(y).max() == pytest.approx(PEAK, abs=0.02)
