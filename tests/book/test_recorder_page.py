"""The recorder in a real browser, with a microphone that beeps, one that is refused, and none."""

import base64

import numpy as np
import pytest

from pnp_tutorial.match_maker import RECORDER_MODULE, Recorder

WIDGET = """
async (source) => {
  const widget = (await import("data:text/javascript;charset=utf-8," + encodeURIComponent(source))).default;
  window.state = {};
  window.saved = 0;
  const model = { set: (name, value) => (state[name] = value), save_changes: () => saved++ };
  window.cleanup = widget.render({ model, el: document.body });
}
"""


@pytest.fixture
def open_recorder(open_page, tmp_path):
    """Function of a URL and options of the browser's context that opens a page with a recorder in it."""

    def open_recorder(url=None, **options):
        (tmp_path / "page.html").write_text("<!doctype html><title>recorder</title><body></body>", encoding="utf-8")
        page = open_page(url or (tmp_path / "page.html").as_uri(), **options)
        page.evaluate(WIDGET, RECORDER_MODULE.read_text(encoding="utf-8"))
        return page

    return open_recorder


def said(page):
    return page.get_by_role("status").inner_text()


def recorded(page):
    """What Python's traitlets make of it: a Recorder."""
    pcm = base64.b64decode(
        page.evaluate(
            """() => {
                 const bytes = new Uint8Array(state.pcm.buffer, state.pcm.byteOffset, state.pcm.byteLength);
                 return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
               }"""
        )
    )
    recorder = Recorder()
    recorder.set_state({"pcm": memoryview(pcm), "sample_rate": page.evaluate("state.sample_rate")})
    return np.frombuffer(recorder.pcm, "<f4"), recorder.sample_rate


def test_it_records_until_it_is_stopped(open_recorder):
    page = open_recorder(permissions=["microphone"])
    button = page.get_by_role("button")
    assert button.inner_text() == "● Record"
    page.evaluate("window.turns = 0; document.addEventListener('ab-player-started', () => turns++)")
    for n in (1, 2):
        button.focus()
        page.keyboard.press("Enter")
        page.wait_for_function("document.querySelector('[role=status]').textContent.startsWith('Recording')")
        assert button.inner_text() == "■ Stop"
        page.wait_for_timeout(1500)
        page.keyboard.press("Enter")
        page.wait_for_function("n => saved === n", arg=n)
        assert button.inner_text() == "● Record"
        x, rate = recorded(page)
        assert 1 < len(x) / rate < 2.5
        assert said(page) == f"{len(x) / rate:.1f} s recorded."
        assert np.isfinite(x).all()
        assert np.abs(x).max() > 0.01, "the beep"
        assert page.evaluate("turns") == n, "the players of the page are told to stop: they would be recorded"


def test_it_stops_by_itself(open_recorder):
    page = open_recorder(permissions=["microphone"])
    page.get_by_role("button").click()
    page.wait_for_function("saved === 1", timeout=15_000)
    x, rate = recorded(page)
    assert 3.5 < len(x) / rate < 4.5


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [(None, {"permissions": []}, "may not be used"), ("about:blank", {}, "upload a sound instead")],
    ids=["refused", "none"],
)
def test_without_a_microphone_it_says_so(open_recorder, url, options, message):
    page = open_recorder(url, **options)
    button = page.get_by_role("button")
    button.click()
    page.wait_for_function("text => document.querySelector('[role=status]').textContent.includes(text)", arg=message)
    assert button.is_enabled()
    assert button.inner_text() == "● Record"
    assert page.evaluate("saved") == 0


def test_a_removed_recorder_is_off(open_recorder):
    page = open_recorder(permissions=["microphone"])
    page.evaluate(
        """() => {
             const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
             navigator.mediaDevices.getUserMedia = async (options) => (window.stream = await ask(options));
           }"""
    )
    page.get_by_role("button").click()
    page.wait_for_function("document.querySelector('[role=status]').textContent.startsWith('Recording')")
    page.evaluate("cleanup()")
    page.wait_for_function("stream.getTracks().every((track) => track.readyState === 'ended')")
    assert page.get_by_role("button").count() == 0
    page.wait_for_timeout(200)
    assert page.evaluate("saved") == 0
