"""Names and words that hold mark-up, in a real browser: they are shown as they are, and nothing in them is executed."""

import numpy as np
import pytest
from test_matcher_page import PAGE, choose, recording, said, wait_for_result

from pnp_tutorial import drum_matcher
from pnp_tutorial.drum import DRUM, SAMPLE_RATE
from pnp_tutorial.explorables import explorable
from pnp_tutorial.sound_grid import SoundGrid
from pnp_tutorial.widgets import ABPlayer

EVIL = """"'><img src=x onerror="executed = 1"><script>executed = 1</script>&lt;b&gt;"""
FILE = "<img src=x onerror=executed=1>&amp;.wav"
SOUND = np.sin(np.arange(SAMPLE_RATE) / 10)


@pytest.fixture
def open_html(open_page, tmp_path):
    """Function of HTML that opens a page with it."""

    def open_html(*parts):
        (tmp_path / "page.html").write_text(PAGE.format(body="\n".join(parts)), encoding="utf-8")
        return open_page((tmp_path / "page.html").as_uri())

    return open_html


def html_of(widget):
    return widget._repr_mimebundle_()[0]["text/html"]


def assert_only_text(page):
    assert page.locator("img").count() == 0
    assert page.evaluate("window.executed") is None
    assert page.evaluate("document.querySelectorAll('[onerror]').length") == 0


def test_what_is_executed_would_be_seen(open_page):
    """The same mark-up where nobody escapes it."""
    page = open_page("about:blank")
    page.evaluate("html => document.body.innerHTML = html", EVIL.replace("src=x", "src=data:,"))
    page.wait_for_function("window.executed === 1")
    assert page.locator("img").count() == 1


def test_the_name_of_a_file_is_text(open_html, monkeypatch):
    """Of one that is matched, by a search that is cut short, and of one that cannot be read."""
    whole, few = "nSounds: 64, nGenerations: 30, nRuns: 2, nIterations: 20", "nSounds: 8, nGenerations: 1, nRuns: 1"
    assert whole in drum_matcher.MODULE
    monkeypatch.setattr(drum_matcher, "MODULE", drum_matcher.MODULE.replace(whole, f"{few}, nIterations: 1"))
    page = open_html(html_of(drum_matcher.DrumMatcher()))
    matcher = page.locator("[data-matcher]")
    matcher.locator(".drum-matcher").wait_for()
    choose(matcher, FILE, recording(DRUM.sample_uniform(1)[0]))
    wait_for_result(matcher)
    assert said(matcher).startswith(f"{FILE}: ")
    assert matcher.locator(".download").get_attribute("download") == f"{FILE.removesuffix('.wav')}_matched.wav"
    assert_only_text(page)
    choose(matcher, FILE, b"no sound")
    page.wait_for_function("document.querySelector('.said').textContent.includes('cannot be read')")
    assert said(matcher).startswith(f"{FILE} cannot be read as audio")
    assert_only_text(page)


def test_labels_and_captions_are_text(open_html):
    player = ABPlayer({EVIL: SOUND, "other": SOUND}, SAMPLE_RATE, caption=EVIL)
    grid = SoundGrid({EVIL: SOUND, "third": SOUND}, SAMPLE_RATE)
    metric = {"name": EVIL, "x": EVIL, "y": EVIL, "M": np.diag([1.0, 2.0])}
    scene = explorable("damping", {"metrics": [metric, metric]}, EVIL)
    page = open_html(*map(html_of, (player, grid, scene)))
    for place in (".ab-player", ".sound-grid", ".explorable"):
        page.locator(place).wait_for()
    assert page.locator(".ab-player p").first.text_content() == EVIL
    for place in (".ab-player", ".sound-grid"):
        texts = page.locator(f"{place} button span").all_text_contents()
        assert EVIL in texts
    assert page.locator(".explorable .said").text_content() == EVIL
    assert page.locator(".explorable option").first.text_content() == EVIL
    assert EVIL in page.locator(".explorable text").all_text_contents()
    assert_only_text(page)
