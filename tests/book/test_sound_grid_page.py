"""The grid of sounds in a real browser: in a page as it stands in the book, and as a widget.

Not collected by plain `pytest`, which needs no browser.
"""

import json

import numpy as np
import pytest

from pnp_tutorial.drum import SAMPLE_RATE
from pnp_tutorial.sound_grid import GRID_MODULE, LOUDNESS, SoundGrid

LABELS = ["reference", "<b>low</b>", "mid", "high", "low, long", "mid, long", "high, long"]
SECONDS = [0.6] * 4 + [6.0] * 3  # long enough to be seen pressed on a busy machine
SOUNDS = {
    label: 0.1 * (1 + i) * np.sin(2 * np.pi * 220 * (1 + i) * np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE)
    for i, (label, seconds) in enumerate(zip(LABELS, SECONDS, strict=True))
}
HEAD = '<meta charset="utf-8"><title>grids</title>'
PAGE = f'<!doctype html><html lang="en">{HEAD}<body style="margin: 0">{{body}}</body></html>'


@pytest.fixture
def open_grids(open_page, tmp_path):
    """Function of options of the browser's context that opens a page with two grids."""

    def open_grids(**options):
        grids = SoundGrid(SOUNDS, SAMPLE_RATE, columns=3), SoundGrid({"another": SOUNDS["mid, long"]}, SAMPLE_RATE)
        body = "\n".join(grid._repr_mimebundle_()[0]["text/html"] for grid in grids)
        (tmp_path / "page.html").write_text(PAGE.format(body=body), encoding="utf-8")
        return open_page((tmp_path / "page.html").as_uri(), **options)

    return open_grids


@pytest.fixture
def page(open_grids):
    return open_grids()


def pressed(page):
    """Labels of the buttons that are pressed."""
    on = page.locator('.sound-grid [aria-pressed="true"]').all_inner_texts()
    return [text.strip().removeprefix("■").strip() for text in on]


def focused(page):
    return page.evaluate("document.activeElement.innerText").strip().strip("▶■").strip()


def wait_for_sounds(page, n):
    page.wait_for_function("n => sounds.length === n", arg=n)


def test_every_sound_has_a_button_with_its_name(page):
    first, second = page.locator(".sound-grid").all()
    assert first.get_by_role("button").count() == len(LABELS)
    for label in LABELS:
        assert first.get_by_role("button", name=label, exact=True).count() == 1, "labels are text, not mark-up"
    assert first.get_by_role("toolbar", name="Sounds to compare").count() == 1
    assert second.get_by_role("button", name="another", exact=True).count() == 1
    assert LOUDNESS in first.inner_text()
    assert "6 s to the right" in first.inner_text()
    assert page.locator("audio").count() == 0, "the module has taken the sounds over"
    assert page.evaluate("sounds.length") == 0
    assert pressed(page) == []


def test_by_keyboard_alone(page):
    """One stop of the tab key a grid; arrows move, space and Enter play and stop, and the page does not scroll."""
    page.keyboard.press("Tab")
    assert focused(page) == "reference"
    for key, label in [
        ("End", "high, long"),
        ("ArrowUp", "high"),
        ("ArrowLeft", "mid"),
        ("Home", "reference"),
        ("ArrowDown", "<b>low</b>"),
        ("ArrowRight", "mid"),
        ("ArrowDown", "mid, long"),
    ]:
        page.keyboard.press(key)
        assert focused(page) == label
    page.keyboard.press("Space")
    wait_for_sounds(page, 1)
    assert pressed(page) == ["mid, long"]
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    wait_for_sounds(page, 2)
    assert pressed(page) == ["high, long"], "one at a time"
    page.keyboard.press("Enter")
    assert pressed(page) == []
    page.keyboard.press("Tab")
    assert focused(page) == "another"
    page.keyboard.press("Shift+Tab")
    assert focused(page) == "high, long", "where it was left"
    outline = page.locator("button:focus-visible").evaluate("button => getComputedStyle(button).outlineStyle")
    assert outline == "solid"


def test_what_is_played_is_the_sound_at_its_own_level(page):
    for label, x in SOUNDS.items():
        n = page.evaluate("sounds.length")
        page.get_by_role("button", name=label, exact=True).click()
        wait_for_sounds(page, n + 1)
        rate, played = page.evaluate("[sounds.at(-1).buffer.sampleRate, [...sounds.at(-1).buffer.getChannelData(0)]]")
        played = np.array(played)
        assert len(played) / rate == pytest.approx(len(x) / SAMPLE_RATE, abs=0.01)
        assert np.abs(played).max() == pytest.approx(0.9 * np.abs(x).max() / 0.7, rel=0.02)


def test_a_sound_ends_by_itself(page):
    page.get_by_role("button", name="mid", exact=True).click()
    wait_for_sounds(page, 1)
    page.wait_for_function("!document.querySelector('[aria-pressed=true]')", timeout=10_000)
    page.wait_for_function("document.getAnimations().length === 0")


@pytest.mark.parametrize(("reduced_motion", "n"), [("no-preference", 1), ("reduce", 0)])
def test_a_line_follows_the_sound_unless_nothing_may_move(open_grids, reduced_motion, n):
    page = open_grids(reduced_motion=reduced_motion)
    page.get_by_role("button", name="high, long").click()
    wait_for_sounds(page, 1)
    page.wait_for_function("n => document.getAnimations().length === n", arg=n)


def test_players_take_turns(page):
    page.get_by_role("button", name="high, long").click()
    wait_for_sounds(page, 1)
    page.get_by_role("button", name="another").click()
    wait_for_sounds(page, 2)
    assert pressed(page) == ["another"]


@pytest.mark.parametrize("n_clicks", [2, 3])
def test_clicks_faster_than_the_sounds_are_ready(page, n_clicks):
    click = "(button, n) => { for (let i = 0; i < n; i++) button.click(); }"
    page.get_by_role("button", name="mid", exact=True).evaluate(click, n_clicks)
    page.wait_for_timeout(400)
    assert page.evaluate("sounds.length") == (1 if n_clicks == 3 else 0), "none plays twice, nor after it was stopped"


@pytest.mark.parametrize(("width", "columns"), [(320, 2), (400, 3), (1280, 3)])
def test_it_fits_the_window(open_grids, width, columns):
    page = open_grids(viewport={"width": width, "height": 800})
    boxes = [button.bounding_box() for button in page.locator(".sound-grid").first.get_by_role("button").all()]
    assert all(0 <= box["x"] and box["x"] + box["width"] <= width for box in boxes)
    assert all(box["height"] >= 44 for box in boxes), "for a finger"
    assert len({box["x"] for box in boxes}) == columns
    assert boxes[1]["x"] == boxes[0]["x"], "the first has a row to itself"
    assert boxes[1]["y"] > boxes[0]["y"]


def test_by_touch(open_grids):
    page = open_grids(has_touch=True)
    page.get_by_role("button", name="high, long").tap()
    wait_for_sounds(page, 1)
    assert pressed(page) == ["high, long"]


def test_without_javascript_the_sounds_can_be_played(open_grids):
    page = open_grids(java_script_enabled=False)
    players = page.locator("audio").all()
    assert [player.get_attribute("title") for player in players] == [*LABELS, "another"]
    assert all(player.get_attribute("controls") is not None for player in players)
    text = page.locator("body").inner_text()
    assert all(label in text for label in LABELS)
    assert LOUDNESS in text


def test_a_sound_that_cannot_be_decoded_says_so(open_page):
    page = open_page("about:blank")
    url = "data:audio/wav;base64,AAAA"
    page.evaluate(WIDGET, {"sounds": [{"label": "one", "url": url, "picture": ""}], "columns": 1, "caption": "c"})
    for _ in range(2):
        page.get_by_role("button").click()
        page.wait_for_function("document.querySelector('[role=status]').textContent.includes('cannot be played')")
        assert pressed(page) == []


WIDGET = f"""
async (state) => {{
  const source = {json.dumps(GRID_MODULE.read_text(encoding="utf-8"))};
  const widget = (await import("data:text/javascript;charset=utf-8," + encodeURIComponent(source))).default;
  window.remove = widget.render({{ model: {{ get: (name) => state[name] }}, el: document.body }});
}}
"""


def test_in_a_notebook_it_is_a_widget_that_can_be_removed(open_page):
    page = open_page("about:blank")
    grid = SoundGrid(SOUNDS, SAMPLE_RATE)
    page.evaluate(WIDGET, grid.get_state(["sounds", "columns", "caption"]))
    page.get_by_role("button", name="high, long").click()
    wait_for_sounds(page, 1)
    page.evaluate("remove()")
    page.wait_for_function("sounds[0].context.state === 'closed'")
    assert page.locator(".sound-grid").count() == 0
