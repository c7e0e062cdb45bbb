"""Sliders change what is seen and compared sounds are equally loud, with no kernel and no browser.

The drum: test_instrument.py. The player in a browser: book/test_ab_player_page.py.
"""

import base64
import io

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pytest
import soundfile
import torch
from bs4 import BeautifulSoup
from test_instrument import in_node

from pnp_tutorial import plots, widgets
from pnp_tutorial.drum import SAMPLE_RATE, rectangular_drum
from pnp_tutorial.widgets import AB_MODULE, ABPlayer, equally_loud

PNG = b"\x89PNG\r\n"


def test_moving_a_control_draws_anew():
    drawn = []

    def draw(height, name):
        drawn.append((height, name))
        return plots.curves([0, 1], {name: [0, height]}, "x", "y")

    slider = ipywidgets.FloatSlider(1.0, min=0, max=2)
    menu = ipywidgets.Dropdown(options=["one", "two"])
    box = widgets.live(draw, height=slider, name=menu)
    assert box.children[:-1] == (slider, menu)
    image = box.children[-1]
    first = bytes(image.value)
    assert first.startswith(PNG)
    slider.value = 0.5
    second = bytes(image.value)
    menu.value = "two"
    assert len({first, second, bytes(image.value)}) == 3
    assert drawn == [(1.0, "one"), (0.5, "one"), (0.5, "two")]
    assert plt.get_fignums() == []


THETA = torch.tensor([3.0, 0.4, -2.0, -2.0, 0.6], dtype=torch.float64)
DRUM = rectangular_drum(THETA, 65536)
NOISE = 0.01 * np.random.default_rng(0).normal(size=40_000).astype(np.float32)
CLICK = [0.0, 1.0, -0.5]


def decoded(url):
    """Samples and rate of a data URL."""
    kind, data = url.split(",")
    assert kind == "data:audio/wav;base64"
    return soundfile.read(io.BytesIO(base64.b64decode(data)))


def loudness(x):
    return np.sqrt((x[:SAMPLE_RATE] ** 2).mean())


def test_sounds_are_equally_loud_and_none_clips():
    """Whatever their levels, lengths and types; what is sent to the browser is measured."""
    sounds = {"drum": DRUM.requires_grad_(), "quiet": 1e-3 * DRUM.float(), "noise": NOISE, "click": CLICK}
    player = ABPlayer(sounds, SAMPLE_RATE)
    assert [s["label"] for s in player.sounds] == list(sounds)
    files = [decoded(s["url"]) for s in player.sounds]
    assert {rate for _, rate in files} == {SAMPLE_RATE}
    assert len({len(x) for x, _ in files}) == 1
    levels = [loudness(x) for x, _ in files]
    assert levels == pytest.approx([levels[0]] * len(levels), rel=0.01)  # of 16 bits
    assert max(np.abs(x).max() for x, _ in files) == pytest.approx(widgets.PEAK, abs=2**-15)
    for x, _ in files[:2]:
        assert np.corrcoef(x, DRUM.detach()[: len(x)])[0, 1] > 0.999


def test_sounds_are_cut_together_when_the_last_has_faded():
    short = rectangular_drum(torch.tensor([3.0, 0.07, -2.0, -2.0, 0.6], dtype=torch.float64), 65536)
    both = equally_loud({"short": short, "long": DRUM.detach()}, SAMPLE_RATE)
    (n,) = {len(x) for x in both.values()}
    assert SAMPLE_RATE < n < 65536, "60 dB down before the end"
    uncut = DRUM.detach().numpy() * both["long"].max() / float(DRUM.detach().max())
    assert np.allclose(both["long"], uncut[:n])
    assert np.abs(uncut[n:]).max() < 1e-3
    assert len(equally_loud({"short": short}, SAMPLE_RATE)["short"]) == SAMPLE_RATE, "none is shorter than a second"
    assert len(equally_loud({"click": CLICK}, SAMPLE_RATE)["click"]) == SAMPLE_RATE


@pytest.mark.parametrize(
    ("sounds", "message"),
    [
        ({}, "at least one sound"),
        ({"a": DRUM.detach(), "b": torch.zeros(2, 100)}, r"'b' of shape \(n_samples,\), got \(2, 100\)"),
        ({"a": 1.0}, r"'a' of shape \(n_samples,\), got \(\)"),
        ({"a": [0.1, np.nan]}, "'a' holds NaN or infinite"),
        ({"a": [0.1, -np.inf]}, "'a' holds NaN or infinite"),
        ({"a": torch.zeros(100)}, "'a' is silent"),
        ({"a": []}, "'a' is silent"),
    ],
)
def test_what_cannot_be_compared(sounds, message):
    with pytest.raises(ValueError, match=message):
        ABPlayer(sounds, SAMPLE_RATE)


def test_a_static_page_holds_sounds_caption_and_module_once():
    label, caption = 'tom "low" <1>', "distance 3.2 & more"
    player = ABPlayer({label: DRUM.detach(), "match": NOISE}, SAMPLE_RATE, caption)
    bundle = player._repr_mimebundle_()[0]
    assert "application/vnd.jupyter.widget-view+json" in bundle
    page = BeautifulSoup(bundle["text/html"], "html.parser")
    (script,) = page.find_all("script")
    assert script["type"] == "module"
    assert script.string.count(AB_MODULE.read_text(encoding="utf-8")) == 1
    assert page.find(attrs={"data-ab-player": True})["data-ab-player"] == caption
    held = [(audio["title"], audio["src"]) for audio in page.find_all("audio")]
    assert held == [(s["label"], s["url"]) for s in player.sounds]
    assert held[0][0] == label
    assert not page.find_all(attrs={"autoplay": True})
    assert "http" not in bundle["text/html"]


def test_bytes_and_keys_of_the_module():
    url = ABPlayer({"noise": NOISE}, SAMPLE_RATE).sounds[0]["url"]
    calls = [["bytes", [url]]]
    expected = [list(base64.b64decode(url.split(",")[1]))]
    keys = {"1": 0, "3": 2, "4": None, "a": 0, "C": 2, "d": None, "0": None, " ": None, "Enter": None, "12": None}
    calls += [["keyed", [key, 3]] for key in keys]
    assert in_node(calls, AB_MODULE.read_text(encoding="utf-8")) == [*expected, *keys.values()]


def test_the_loudest_second_counts_wherever_it_is():
    """Some sounds do not begin at once."""
    t = np.arange(4 * SAMPLE_RATE) / SAMPLE_RATE
    early, late = (np.exp(-8 * (t - centre) ** 2) * np.sin(2000 * t) for centre in (0.5, 2.5))
    sounds = equally_loud({"early": early, "late": 0.01 * late}, SAMPLE_RATE)
    assert np.abs(sounds["late"]).max() == pytest.approx(np.abs(sounds["early"]).max(), rel=0.05)
