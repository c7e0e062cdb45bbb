"""From a file that a reader chooses to a match that is seen and heard, with no kernel and no browser.

The recorder in a browser: book/test_recorder_page.py.
"""

import base64
import io
import json
import re
from dataclasses import replace

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pytest
import soundfile
import torch
from test_instrument import in_node

from pnp_tutorial import match_maker
from pnp_tutorial.drum import DRUM, rectangular_drum
from pnp_tutorial.ears import ear_name
from pnp_tutorial.encoder import load_encoder
from pnp_tutorial.match_maker import RECORDER_MODULE, MatchMaker, Recorder, in_units, unsure, uploaded
from pnp_tutorial.matching import Match
from pnp_tutorial.mss import CoarseSpectra
from pnp_tutorial.widgets import AB_MODULE, ABPlayer

THETA = torch.tensor([3.0, 0.4, -2.0, -2.0, 0.6], dtype=torch.float64)
PNG = b"\x89PNG\r\n"


@pytest.fixture(scope="module")
def model(tiny_training):
    return load_encoder(f"{tiny_training.output_folder}/encoder.safetensors")


@pytest.fixture
def maker(model):
    return MatchMaker(model)


@pytest.fixture(scope="module")
def wav():
    buffer = io.BytesIO()
    soundfile.write(buffer, rectangular_drum(THETA, 2048).numpy() / 2, 22050, format="WAV")
    return buffer.getvalue()


def status(maker):
    """The lines of text that are shown, as HTML."""
    return re.fullmatch("<div[^>]*>(.*)</div>", maker._status.value)[1].split("<br>")


def give(maker, name, content):
    """What the browser does after an upload: it sets the value, in the form of the ipywidgets that is installed."""
    file = {"name": name, "type": "audio/wav", "size": len(content), "last_modified": 0}
    if ipywidgets.__version__ < "8":  # Colab's: the browser's parts are put together like this
        maker._upload.set_trait("value", {name: {"metadata": file, "content": content}})
    else:
        maker._upload.set_state({"value": [{**file, "content": memoryview(content)}]})


def test_without_an_encoder_it_says_so(wav, tmp_path):
    (tmp_path / "x.wav").write_bytes(wav)
    maker = MatchMaker(replace(DRUM, n_samples=2048), CoarseSpectra(2048, DRUM.sample_rate))
    result = maker.run(tmp_path / "x.wav")
    assert result.distance["encoder"] == result.distance["constant"], "both are the centre's"
    expected = f"distance of {ear_name(maker._features)} {result.distance['match']:.3g}; in the middle of the ranges "
    assert expected in status(maker)[0]


def check_match(maker, name):
    """What is shown at the end is what was found."""
    result = maker.result
    assert isinstance(result, Match)
    line, *theta, words = status(maker)
    assert line.startswith(f"{name}: match, sounds heard: {result.history[-1].n_heard}, ")
    assert (
        f"distance of jtfs {result.distance['match']:.3g}; by the encoder alone {result.distance['encoder']:.3g}"
        in line
    )
    assert theta == in_units(result.nu, DRUM, result.uncertainty)
    assert words == unsure(result)
    _, _, player, image = maker.children
    assert isinstance(player, ABPlayer)
    assert [s["label"] for s in player.sounds] == ["recording", "match"]
    assert f"distance of jtfs {result.distance['match']:.3g}" in player.caption
    assert bytes(image.value).startswith(PNG)
    for sound, expected in zip(player.sounds, (result.x, result.x_hat), strict=True):
        x = soundfile.read(io.BytesIO(base64.b64decode(sound["url"].split(",")[1])))[0][:2048]
        assert np.corrcoef(x, expected)[0, 1] > 0.999
    assert plt.get_fignums() == []


def test_a_file_becomes_a_match(maker, wav, tmp_path, monkeypatch):
    monkeypatch.setattr(match_maker.time, "monotonic", lambda: 0.0)  # it is too early for a second drum
    said, drawn = [], []
    maker._status.observe(lambda change: said.append(status(maker)[0]), "value")
    maker._image.observe(lambda change: drawn.append(change["new"]), "value")
    (tmp_path / "kick.wav").write_bytes(wav)
    assert maker.run(tmp_path / "kick.wav") is maker.result
    check_match(maker, "kick.wav")
    stages = [text.split(":")[1].split(",")[0].strip() for text in said]
    assert list(dict.fromkeys(stages)) == ["reading", "predict", "scan", "refine", "match"]
    assert "distance of coarse spectra" in next(text for text in said if ": scan," in text)
    assert len(drawn) == 2, "the encoder's drum, and the match"
    assert (maker.result.theta - THETA)[0].abs() < 0.01


def test_uploaded_sounds_are_matched_when_the_button_is_pressed(maker, wav):
    """A good one, then a silent one, of which nothing but the reason is shown."""
    assert maker._button.disabled
    give(maker, "snare <1>.wav", wav)
    assert not maker._button.disabled
    assert maker.result is None, "not before"
    assert status(maker) == ["snare &lt;1&gt;.wav, 4 kB: press Match"]
    maker._button.click()
    assert not maker._button.disabled
    check_match(maker, "snare &lt;1&gt;.wav")
    player = maker.children[2]
    give(maker, "silence.wav", wav[:44] + bytes(len(wav) - 44))
    maker._button.click()
    (line,) = status(maker)
    assert line.startswith("silence.wav is silent")
    assert player.comm is None, "closed, with its sounds"
    assert maker.children == (maker._controls, maker._status)
    assert maker.result is None
    assert not maker._button.disabled


def test_a_recorded_sound_is_matched_after_a_bad_file(maker):
    give(maker, "bad.wav", b"no sound")
    maker._button.click()
    samples = rectangular_drum(THETA, 4458, 48_000).numpy().astype("<f4")
    maker._recorder.set_state({"sample_rate": 48_000, "pcm": memoryview(samples.tobytes())})
    assert not maker._upload.value, "else the same file could not be uploaded again"
    heard, rate = soundfile.read(io.BytesIO(maker._recorder.wav()), dtype="float32")
    assert rate == 48_000
    assert np.array_equal(heard, samples)
    maker._button.click()
    check_match(maker, "recording.wav")
    assert (maker.result.theta - THETA)[0].abs() < 0.01


@pytest.mark.parametrize("content", [b"", b"no sound"])
def test_a_bad_file_is_one_line(maker, content):
    give(maker, "bad.wav", content)
    maker._button.click()
    (line,) = status(maker)
    assert line.startswith("bad.wav cannot be read as audio")
    assert "Traceback" not in line
    assert "/" not in line, "no path of a temporary folder"
    assert maker.result is None
    assert maker.children == (maker._controls, maker._status)
    assert not maker._button.disabled


def test_a_missing_file_is_one_line(maker, tmp_path):
    assert maker.run(tmp_path / "none.wav") is None
    assert status(maker) == ["none.wav does not exist"]


def test_an_interrupted_match_leaves_the_widget_usable(maker, wav, monkeypatch):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(match_maker, "match", interrupt)
    give(maker, "kick.wav", wav)
    with pytest.raises(KeyboardInterrupt):
        maker._match()
    assert not maker._button.disabled
    assert status(maker) == ["kick.wav: interrupted"]


def test_both_forms_of_an_upload():
    content = b"RIFF"
    file = {"name": "x.wav", "type": "audio/wav", "size": 4}
    eight = ({**file, "content": memoryview(content)},)
    seven = {"x.wav": {"metadata": file, "content": content}}
    assert uploaded(eight) == uploaded(seven) == ("x.wav", content)
    assert uploaded(()) is uploaded({}) is None


def test_parameters_in_units():
    lines = in_units(DRUM.to_nu(THETA), DRUM, torch.tensor([0.01, 0.1, 0.2, 0.3, 0.4]))
    assert lines[0] == "pitch: log₁₀ ω₁ = 3.000 ± 0.007 log₁₀ rad/s"
    assert lines[1] == "sustain of the first mode: τ₁ = 0.4000 ± 0.037 s"
    assert lines[2].endswith("log₁₀ p = −2.000 ± 0.43")
    assert in_units(DRUM.to_nu(THETA), DRUM)[4] == "shape: ratio of the sides: α = 0.6000"


def test_what_is_unsure_in_symbols(maker, wav, tmp_path):
    (tmp_path / "kick.wav").write_bytes(wav)
    result = maker.run(tmp_path / "kick.wav")
    box = torch.eye(5, dtype=torch.float64) / 3
    assert unsure(replace(result, covariance=1e-4 * box)) == "the sound determines all parameters"
    sure = torch.diag(torch.tensor([1e-4, 1e-4, 1, 1, 1e-4], dtype=torch.float64))
    assert unsure(replace(result, covariance=sure @ box)) == "not determined by the sound: log₁₀ p; log₁₀ D"


def test_recorder_module():
    source = RECORDER_MODULE.read_text(encoding="utf-8")
    mean, refused, other = in_node(
        [["mono", [[[1, 0, -1], [0, 0.5, -1]]]], ["inWords", ["NotAllowedError"]], ["inWords", ["Odd"]]], source
    )
    assert mean == [0.5, 0.25, -1]
    assert "allow it" in refused
    assert other == "Recording failed (Odd)."


REFUSED = """
const tracks = [{ stopped: false, stop() { this.stopped = true; } }];
const mediaDevices = { getUserMedia: async () => ({ getTracks: () => tracks }) };
Object.defineProperty(globalThis, "navigator", { value: { mediaDevices }, configurable: true });
globalThis.MediaRecorder = class {
  constructor() { if (WHEN === "new") throw new DOMException("", "NotSupportedError"); }
  addEventListener() {}
  start() { throw new DOMException("", "NotSupportedError"); }
};
const thrown = await record().catch((error) => error.name);
export const outcome = () => [thrown, tracks[0].stopped];
"""


@pytest.mark.parametrize("when", ["new", "start"])
def test_a_recorder_that_does_not_start_leaves_the_microphone_off(when):
    source = RECORDER_MODULE.read_text(encoding="utf-8") + REFUSED.replace("WHEN", f'"{when}"')
    assert in_node([["outcome", []]], source) == [["NotSupportedError", True]]


# As much of a page as the player needs, and a browser that decodes nothing.
UNDECODED = """
const made = [];
function fake() {
  const element = {
    listeners: {}, firstChild: {}, lastChild: {}, paragraphs: [{ setAttribute() {} }, { setAttribute() {} }],
    setAttribute() {}, append() {}, replaceChildren() {}, focus() {},
    addEventListener(type, listener) { this.listeners[type] = listener; },
    querySelector: () => ({ append() {} }),
    querySelectorAll() { return this.paragraphs; },
  };
  made.push(element);
  return element;
}
globalThis.document = { createElement: fake, addEventListener() {}, dispatchEvent() {} };
globalThis.CustomEvent = class {};
let decoded = 0;
globalThis.AudioContext = class {
  resume() {}
  async decodeAudioData() { decoded++; throw new DOMException("", "EncodingError"); }
};
mount(fake(), { sounds: [{ label: "one", url: "data:audio/flac;base64,AAAA" }] });
const [, root, play] = made;
const seen = [];
for (const press of [1, 2]) {
  play.listeners.click();
  seen.push(play.lastChild.textContent);
  await new Promise((resolve) => setTimeout(resolve, 10));
  seen.push(play.lastChild.textContent, root.paragraphs[1].textContent);
}
export const outcome = () => [seen, decoded];
"""


def test_a_player_whose_sounds_cannot_be_decoded_says_so():
    """And a second press tries again."""
    source = AB_MODULE.read_text(encoding="utf-8") + UNDECODED
    ((seen, decoded),) = in_node([["outcome", []]], source)
    assert seen == 2 * ["Stop", "Play", "The sounds cannot be played (EncodingError)."]
    assert decoded == 2


def test_recorder_state_is_small_before_the_first_recording():
    state = Recorder().get_state()
    assert state["pcm"] == b""
    assert json.dumps(state["sample_rate"]) == "48000"


def test_errors_that_nobody_expected_are_shown_and_raised(wav, tmp_path):
    def ear(x):
        raise RuntimeError("out of order")

    (tmp_path / "x.wav").write_bytes(wav)
    maker = MatchMaker(replace(DRUM, n_samples=2048), ear)
    with pytest.raises(RuntimeError, match="out of order"):
        maker.run(tmp_path / "x.wav")
    assert status(maker) == ["x.wav: cannot be matched (RuntimeError: out of order)"]
