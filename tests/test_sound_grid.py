"""Sounds of a grid keep their levels, its pictures show them, and each is summarized; in node, where its keys lead.

The grid in a browser: book/test_sound_grid_page.py.
"""

import base64
import io

import matplotlib.image
import numpy as np
import pytest
import soundfile
import summaries
import torch
from bs4 import BeautifulSoup
from IPython.core.interactiveshell import InteractiveShell
from test_instrument import in_node

from pnp_tutorial.drum import SAMPLE_RATE, rectangular_drum
from pnp_tutorial.drum_instrument import DrumInstrument
from pnp_tutorial.sound_grid import BANDS, FRAMES, GRID_MODULE, LOUDNESS, LOWEST_HZ, SoundGrid, spectrograms
from pnp_tutorial.widgets import PEAK, ABPlayer

THETA = torch.tensor([3.0, 0.2, -1.7, -1.7, 0.6], dtype=torch.float64)
DRUM = rectangular_drum(THETA, 8192)
NOISE = 0.1 * np.random.default_rng(0).normal(size=5_000).astype(np.float32)
SOUNDS = {"drum": DRUM.requires_grad_(), "noise": NOISE, "faint": 0.01 * DRUM.float(), "click": [0.0, 0.3]}


def content(url, kind):
    head, data = url.split(",")
    assert head == f"data:{kind};base64"
    return io.BytesIO(base64.b64decode(data))


def test_one_gain_for_all_sounds_and_none_clips():
    """Whatever their lengths and types: what is sent to the browser is measured."""
    grid = SoundGrid(SOUNDS, SAMPLE_RATE)
    assert [s["label"] for s in grid.sounds] == list(SOUNDS)
    files = [soundfile.read(content(s["url"], "audio/wav")) for s in grid.sounds]
    assert {rate for _, rate in files} == {SAMPLE_RATE}
    gain = PEAK / DRUM.detach().abs().max().item()
    for (x, _), sound in zip(files, SOUNDS.values(), strict=True):
        expected = gain * torch.as_tensor(sound).detach().double().numpy()
        assert np.abs(x - expected).max() <= 2**-15


@pytest.mark.parametrize(
    ("sounds", "options", "message"),
    [
        ({}, {}, "at least one sound"),
        ({"a": torch.zeros(2, 100)}, {}, r"'a' of shape \(n_samples,\), got \(2, 100\)"),
        ({"a": [1.0], "b": [0.1, np.nan]}, {}, "'b' holds NaN or infinite"),
        ({"a": [1.0], "b": []}, {}, "'b' is empty"),
        ({"a": [0.0], "b": [0.0]}, {}, "all sounds are silent"),
        ({"a": [1.0]}, {"columns": 0}, "at least 1 column, got 0"),
    ],
)
def test_what_makes_no_grid(sounds, options, message):
    with pytest.raises(ValueError, match=message):
        SoundGrid(sounds, SAMPLE_RATE, **options)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100])
def test_a_picture_is_brightest_where_the_sound_is(rate):
    """A tone of half the length, as loud as nothing else: its band, its half, and 20 dB less for a tenth of it."""
    hz = 440.0
    tone = np.sin(2 * np.pi * hz * np.arange(rate // 2) / rate)
    pictures = spectrograms({"tone": tone, "longer": np.zeros(rate), "faint": 0.1 * tone}, rate)
    assert pictures.shape == (3, BANDS, FRAMES)
    assert pictures.max() == 1
    edges = np.geomspace(LOWEST_HZ, rate / 2, BANDS + 1)
    band = BANDS - np.searchsorted(edges, hz)  # from the top
    quarter, three_quarters = FRAMES // 4, 3 * FRAMES // 4
    assert pictures[0, :, quarter].argmax() == band
    assert (pictures[0, :, three_quarters] == 0).all()
    assert (pictures[1] == 0).all()
    assert pictures[0, band, quarter] - pictures[2, band, quarter] == pytest.approx(20 / 60)


def test_the_picture_in_the_page_is_as_opaque_as_the_levels():
    grid = SoundGrid(SOUNDS, SAMPLE_RATE)
    levels = spectrograms({label: np.asarray(torch.as_tensor(x).detach()) for label, x in SOUNDS.items()}, SAMPLE_RATE)
    for held, expected in zip(grid.sounds, levels, strict=True):
        picture = matplotlib.image.imread(content(held["picture"], "image/png"))
        assert picture.shape == (BANDS, FRAMES, 4)
        assert np.abs(picture[..., 3] - expected).max() < 1 / 15
        assert len(held["picture"]) < 5_000


def test_a_static_page_holds_sounds_and_module_once():
    label = 'tom "low" <1>'
    grid = SoundGrid({label: DRUM, "noise": NOISE}, SAMPLE_RATE, columns=5)
    bundle = grid._repr_mimebundle_()[0]
    assert "application/vnd.jupyter.widget-view+json" in bundle
    page = BeautifulSoup(bundle["text/html"], "html.parser")
    (script,) = page.find_all("script")
    assert script["type"] == "module"
    assert script.string.count(GRID_MODULE.read_text(encoding="utf-8")) == 1
    held = [
        {"label": audio["title"], "url": audio["src"], "picture": audio["data-picture"]}
        for audio in page.find_all("audio", controls=True)
    ]
    assert held == grid.sounds
    assert held[0]["label"] == label
    assert LOUDNESS in page.get_text()
    assert LOUDNESS in grid.caption
    assert grid.columns == 2, "no more than there are sounds"
    assert "http" not in bundle["text/html"]


def test_the_same_sounds_make_the_same_page():
    first, second = (SoundGrid(SOUNDS, SAMPLE_RATE)._repr_mimebundle_()[0]["text/html"] for _ in range(2))
    assert first == second


def test_bytes_and_where_keys_lead():
    """Rows of 1, 3 and 2 buttons, 100 apart."""
    url = SoundGrid({"noise": NOISE}, SAMPLE_RATE).sounds[0]["url"]
    boxes = [{"left": 100 * x, "top": 80 * y} for x, y in [(0, 0), (0, 1), (1, 1), (2, 1), (0, 2), (1, 2)]]
    cases = {
        ("ArrowRight", 0): 1,
        ("ArrowRight", 5): 5,
        ("ArrowLeft", 0): 0,
        ("ArrowLeft", 4): 3,
        ("ArrowDown", 0): 1,
        ("ArrowDown", 2): 5,
        ("ArrowDown", 3): 5,
        ("ArrowDown", 4): 4,
        ("ArrowUp", 5): 2,
        ("ArrowUp", 3): 0,
        ("ArrowUp", 0): 0,
        ("Home", 4): 0,
        ("End", 1): 5,
        ("Enter", 1): None,
        (" ", 1): None,
        ("x", 1): None,
    }
    calls = [["bytes", [url]], *(["target", [key, at, boxes]] for key, at in cases)]
    decoded = list(base64.b64decode(url.split(",")[1]))
    assert in_node(calls, GRID_MODULE.read_text(encoding="utf-8")) == [decoded, *cases.values()]


def test_every_sound_of_every_player_is_summarized(monkeypatch):
    """Not those of the first player alone; a widget without sounds says what it is."""
    shell = InteractiveShell()
    monkeypatch.setattr(summaries, "get_ipython", lambda: shell)
    summaries.register()
    x = np.sin(2 * np.pi * 440 * np.arange(SAMPLE_RATE) / SAMPLE_RATE)
    labels = [("one", "two"), ("three", "four")]
    for make in (SoundGrid, lambda sounds, rate: ABPlayer(sounds, rate, "a caption")):
        for pair in labels:
            player = make(dict.fromkeys(pair, x), SAMPLE_RATE)
            text = shell.display_formatter.format(player)[0]["text/plain"]
            caption, *lines = text.splitlines()
            assert caption == player.caption
            assert [line.split(": ")[0] for line in lines] == list(pair)
            assert all("1.000 s" in line and line.endswith("440.0 Hz") for line in lines)
    assert "DrumInstrument" in shell.display_formatter.format(DrumInstrument())[0]["text/plain"]


def test_a_rate_without_bands_is_refused():
    with pytest.raises(ValueError, match="expected sample_rate > 120 Hz, got 100"):
        SoundGrid({"slow": np.ones(50)}, 100)
