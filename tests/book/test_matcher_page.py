"""The drum of a reader's own sound, found in a real browser without a network, in a page that is opened as a file.

Two drums in a minute; MATCHER_DRUMS=10 tries ten.
"""

import io
import json
import os
import time

import numpy as np
import pytest
import soundfile
import soxr
import torch

from pnp_tutorial.drum import DRUM, SAMPLE_RATE
from pnp_tutorial.drum_matcher import MODULE, DrumMatcher
from pnp_tutorial.recording import load_recording

N_DRUMS = int(os.environ.get("MATCHER_DRUMS", "2"))
DRUMS = DRUM.sample_uniform(10, seed=22)  # no encoder was trained on them, and the search knows of none
MISSES = N_DRUMS // 10
CLOSE = 0.01  # of the range
PATIENCE_MS = 300_000  # on a machine that does much else
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>matcher</title>
<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark"></head>
<body>{body}</body></html>"""


@pytest.fixture
def open_matcher(open_page, tmp_path):
    """Function of options of the browser's context that opens a page with the element, and returns its outer part."""

    def open_matcher(**options):
        path = tmp_path / "page.html"
        path.write_text(PAGE.format(body=DrumMatcher()._repr_mimebundle_()[0]["text/html"]), encoding="utf-8")
        matcher = open_page(path.as_uri(), **options).locator("[data-matcher]")
        matcher.locator(".drum-matcher").wait_for()
        return matcher

    return open_matcher


@pytest.fixture
def matcher(open_matcher):
    return open_matcher()


def recording(nu):
    """A drum as WAV: at half level, 0.15 s late, 24 bits."""
    file = io.BytesIO()
    x = 0.5 * np.concatenate([np.zeros(3307), DRUM(nu).numpy()])
    soundfile.write(file, x, SAMPLE_RATE, format="WAV", subtype="PCM_24")
    return file.getvalue()


def phone_recording(nu):
    """A drum as FLAC: two channels at 48 kHz, 0.15 s late, with noise 50 dB below its peak."""
    file = io.BytesIO()
    x = 0.5 * soxr.resample(np.concatenate([np.zeros(3307), DRUM(nu).numpy()]), SAMPLE_RATE, 48_000)
    stereo = x[:, None] * [1.0, 0.8] + 1.5e-3 * np.random.default_rng(0).normal(size=(len(x), 2))
    soundfile.write(file, stereo, 48_000, format="FLAC")
    return file.getvalue()


def choose(matcher, name, content):
    file = {"name": name, "mimeType": "audio/wav", "buffer": content}
    matcher.locator("input[type=file]").set_input_files(file)


def said(matcher):
    return matcher.locator(".said").inner_text()


def wait_for_result(matcher):
    matcher.page.wait_for_function("document.querySelector('.stop').hidden", timeout=PATIENCE_MS)
    assert matcher.get_attribute("data-result"), said(matcher)
    return json.loads(matcher.get_attribute("data-result"))


def errors(result, nu):
    """Of each parameter by name, as a share of its range."""
    theta = torch.tensor([[result["theta"][name] for name in DRUM.names]], dtype=torch.float64)
    return dict(zip(DRUM.names, ((DRUM.to_nu(theta)[0] - nu).abs() / 2).tolist(), strict=True))


def test_held_out_drums_are_found(matcher):
    missed = []
    for i, nu in enumerate(DRUMS[-N_DRUMS:]):
        began = time.monotonic()
        choose(matcher, f"drum {i}.wav", recording(nu))
        result = wait_for_result(matcher)
        error = errors(result, nu)
        print(f"{i}: {time.monotonic() - began:.1f} s, {result['n_heard']} drums heard, errors {error}")
        if max(error["log_omega"], error["tau"]) > CLOSE:
            missed.append(i)
    assert len(missed) <= MISSES, missed


def test_a_noisy_recording_is_shown_and_heard(open_matcher):
    nu = DRUMS[0]
    matcher = open_matcher(viewport={"width": 320, "height": 700})
    page = matcher.page
    choose(matcher, "my drum.flac", phone_recording(nu))
    page.wait_for_function("document.querySelector('.now').textContent.includes('drums heard')", timeout=PATIENCE_MS)
    assert "run 1 of at most" in matcher.locator(".now").inner_text()
    assert 0 < page.locator("progress").evaluate("bar => bar.value") <= 1
    result = wait_for_result(matcher)
    error = errors(result, nu)
    assert max(error["log_omega"], error["tau"]) < CLOSE
    assert -60 < result["noise_db"] < -50, "the mean of two channels, below the drum's peak"
    assert result["uncertainty"].keys() == result["theta"].keys()
    assert f"{result['n_heard']} drums heard" in said(matcher)

    theta = result["theta"]
    text = matcher.locator("dl").inner_text()
    for p in DRUM.parameters:
        assert p.meaning in text
        assert f"{p.symbol} = " in text
    assert f"{10 ** theta['log_omega'] / (2 * np.pi):.0f} Hz" in text
    words = matcher.locator(".unsure").inner_text()
    for p in DRUM.parameters:
        assert (p.symbol in words) == (p.name in result["undetermined"])

    assert matcher.get_by_role("img", name="Spectrogram of the recording, 0 to 5 kHz: strongest near").count() == 1
    assert matcher.get_by_role("img", name="Spectrogram of the drum, 0 to 5 kHz: strongest near").count() == 1
    matcher.get_by_role("button", name="Play").click()
    page.wait_for_function("sounds.length === 2")

    with page.expect_download() as download:
        matcher.get_by_role("link", name="Download the drum").click()
    assert download.value.suggested_filename == "my drum_matched.wav"
    x, rate = soundfile.read(download.value.path())
    assert rate == SAMPLE_RATE
    expected = DRUM.function(torch.tensor([*theta.values()], dtype=torch.float64), len(x), SAMPLE_RATE)
    assert np.abs(x - expected.numpy()).max() < 1e-4, "the drum of θ, in 16 bits"

    parts = matcher.locator(":is(input, button, progress, p, dl, svg, figure, a)").all()
    boxes = [part.bounding_box() for part in parts if part.is_visible()]
    assert boxes
    for box in boxes:
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 320
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    assert page.evaluate("document.getAnimations().length") == 0


def test_it_can_be_stopped_and_started_again(matcher):
    page = matcher.page
    stop = matcher.get_by_role("button", name="Stop")
    assert stop.count() == 0, "nothing to stop"
    for n in (1, 2):
        choose(matcher, f"drum {n}.wav", recording(DRUMS[n]))
        page.wait_for_function("document.querySelector('.now').textContent.includes('drums')", timeout=PATIENCE_MS)
        stop.focus()
        page.keyboard.press("Enter")
        page.wait_for_function("document.querySelector('.stop').hidden")
        assert said(matcher) == f"drum {n}.wav: stopped"
        assert matcher.locator(".now").inner_text() == ""
        assert matcher.get_attribute("data-result") is None
        assert page.evaluate("document.activeElement.type") == "file"


def test_another_sound_takes_the_place_of_the_first(matcher):
    choose(matcher, "first.wav", recording(DRUMS[1]))
    matcher.page.wait_for_function("document.querySelector('.now').textContent.includes('drums')", timeout=PATIENCE_MS)
    choose(matcher, "second.wav", b"no sound")
    matcher.page.wait_for_function("document.querySelector('.stop').hidden")
    matcher.page.wait_for_timeout(500)
    assert said(matcher).startswith("second.wav cannot be read as audio")
    assert matcher.get_attribute("data-result") is None


def wav(x, rate=SAMPLE_RATE):
    file = io.BytesIO()
    soundfile.write(file, x, rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


BAD = {
    "text": b"This is no sound.",
    "zero bytes": b"",
    "empty": wav(np.zeros(0)),
    "silent": wav(np.full(5000, 2e-5) * np.sin(np.arange(5000))),
    "nan": wav(np.array([0.1, np.nan] * 1000)),
    "too short": wav(np.concatenate([np.zeros(5000), [0.5, 0.5]]), 96000),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_the_sentence_of_the_command_line(matcher, tmp_path, name):
    path = tmp_path / f"{name}.wav"
    path.write_bytes(BAD[name])
    with pytest.raises(ValueError, match=path.stem) as error:
        load_recording(path, DRUM)
    choose(matcher, path.name, BAD[name])
    matcher.page.wait_for_function(
        "document.querySelector('.stop').hidden && !/reading|leaves/.test(document.body.innerText)"
    )
    expected = str(error.value).replace(str(path), path.name)
    if "cannot be read as audio" in expected:  # why, each decoder says in its own words
        assert said(matcher) == f"{path.name} cannot be read as audio (this browser cannot decode it)"
    else:
        assert said(matcher) == expected
    assert matcher.get_attribute("data-result") is None


def test_a_large_file_is_refused(matcher, tmp_path):
    with open(tmp_path / "long.wav", "wb") as file:
        file.truncate(31_000_000)
    matcher.locator("input[type=file]").set_input_files(tmp_path / "long.wav")
    matcher.page.wait_for_function("document.querySelector('.said').textContent.includes('MB')")
    assert said(matcher) == "long.wav has 31 MB: expected at most 30 MB in this page"


def test_a_stroke_can_be_recorded(open_matcher):
    matcher = open_matcher(permissions=["microphone"])
    button = matcher.get_by_role("button", name="Record")
    button.focus()
    matcher.page.keyboard.press("Enter")
    matcher.page.wait_for_function("document.querySelector('.microphone').textContent.includes('strike now')")
    matcher.page.wait_for_timeout(1500)
    matcher.page.keyboard.press("Enter")
    matcher.page.wait_for_function("document.querySelector('.now').textContent.includes('drums')", timeout=PATIENCE_MS)
    assert said(matcher) == "recording: searching"
    matcher.get_by_role("button", name="Stop").last.click()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_takes_the_colours_of_the_page(open_matcher, scheme):
    matcher = open_matcher(color_scheme=scheme)
    colours = matcher.locator(".drum-matcher :is(p, .stop, label)").evaluate_all(
        "parts => parts.map((part) => getComputedStyle(part).color)"
    )
    assert set(colours) == {"rgb(0, 0, 0)" if scheme == "light" else "rgb(255, 255, 255)"}


WIDGET = """
async ({ source, options }) => {
  const widget = (await import("data:text/javascript;charset=utf-8," + encodeURIComponent(source))).default;
  const set = (name, value) => (model[name] = value);
  window.model = { get: () => options, set, save_changes: () => set("saved", true) };
  window.cleanup = await widget.render({ model, el: document.body });
}
"""


def test_in_a_notebook_it_is_a_widget(open_page, tmp_path):
    (tmp_path / "page.html").write_text(PAGE.format(body=""), encoding="utf-8")
    page = open_page((tmp_path / "page.html").as_uri())
    page.evaluate(WIDGET, {"source": MODULE, "options": DrumMatcher().options})
    choose(page.locator("body"), "drum.wav", recording(DRUMS[7]))
    page.wait_for_function("model.saved", timeout=PATIENCE_MS)
    result = page.evaluate("model.result")
    assert errors(result, DRUMS[7])["log_omega"] < CLOSE
    matcher = DrumMatcher()
    matcher.set_state({"result": result})
    assert matcher.result == result, "Python takes what the browser sends"
    page.evaluate("cleanup()")
    assert page.locator(".drum-matcher").count() == 0
