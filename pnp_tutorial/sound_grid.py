"""Several sounds to compare: a grid of small pictures that play, in notebooks and in the book's static page."""

import base64
import html
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anywidget
import matplotlib.image
import numpy as np
import traitlets
from numpy.typing import ArrayLike
from torch import Tensor

from .widgets import PEAK, as_arrays, wav_url

GRID_MODULE = Path(__file__).with_name("sound_grid.js")
LOUDNESS = "One gain for all sounds: what is louder here is louder as computed."
FRAMES, BANDS = 120, 40  # of a picture
FRAME_S = 0.04
LOWEST_HZ = 60
LOWEST_DB = -60  # of the loudest part of all pictures
SHADES = 15  # of a picture, so that it takes 2 kB


class SoundGrid(anywidget.AnyWidget):
    """Sounds to compare one after another, all under one gain: a button each, with a small spectrogram.

    Parameters
    ----------
    sounds : mapping of labels to arrays or Tensors, each (n_samples,)
        Scaled by one factor for all, which takes the loudest sample among them to 0.9.
    sample_rate : float, Hz
    columns : int
        At most so many sounds stand in a row. If one sound is left over, the first has a row to itself.

    Raises
    ------
    ValueError
        If there is no sound, one is empty, not of shape (n_samples,) or not finite, or all are silent; or if columns is
        below 1.

    A sample is 2.7 bytes of HTML, as 16-bit WAV: every browser plays it.
    """

    _esm = GRID_MODULE
    # {"label", "url", "picture"} of each sound: the URLs hold the sound and the picture themselves.
    sounds = traitlets.List(traitlets.Dict(), read_only=True).tag(sync=True)
    columns = traitlets.Int(read_only=True).tag(sync=True)
    caption = traitlets.Unicode(read_only=True).tag(sync=True)

    def __init__(self, sounds: Mapping[str, ArrayLike | Tensor], sample_rate: float, columns: int = 4) -> None:
        super().__init__()
        if columns < 1:
            raise ValueError(f"expected at least 1 column, got {columns}")
        arrays = equal_gain(sounds)
        seconds = max(map(len, arrays.values())) / sample_rate
        pictures = spectrograms(arrays, sample_rate)
        held = [
            {"label": label, "url": wav_url(x, sample_rate), "picture": _mask_url(levels)}
            for (label, x), levels in zip(arrays.items(), pictures, strict=True)
        ]
        axes = f"Pictures: {LOWEST_HZ} Hz to {sample_rate / 2000:.2g} kHz upwards, {seconds:.2g} s to the right."
        self.set_trait("sounds", held)
        self.set_trait("columns", min(columns, len(held)))
        self.set_trait("caption", f"{LOUDNESS} {axes}")

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict, dict]:
        """The live widget for Jupyter and Colab, and for static pages the same grid without Python behind it."""
        bundle = super()._repr_mimebundle_(**kwargs)
        assert bundle is not None, "the widget has a view"
        bundle[0]["text/html"] = GRID_PAGE.format(
            options=html.escape(json.dumps({"columns": self.columns, "caption": self.caption})),
            players="\n".join(
                AUDIO.format(label=html.escape(s["label"]), url=s["url"], picture=s["picture"]) for s in self.sounds
            ),
            loudness=LOUDNESS,
            module=GRID_MODULE.read_text(encoding="utf-8"),
        )
        return bundle


# The browser's own players are for readers without JavaScript; the module takes the sounds out of them.
AUDIO = '<p>{label}: <audio controls preload="none" title="{label}" src="{url}" data-picture="{picture}"></audio></p>'
GRID_PAGE = """<div data-sound-grid="{options}">
{players}
<p>{loudness}</p>
</div>
<script type="module">
{module}
for (const element of document.querySelectorAll("[data-sound-grid]")) {{
  const held = ({{ title, src, dataset }}) => ({{ label: title, url: src, picture: dataset.picture }});
  const sounds = Array.from(element.querySelectorAll("audio"), held);
  mount(element, {{ sounds, ...JSON.parse(element.dataset.soundGrid) }});
  element.removeAttribute("data-sound-grid");
}}
</script>"""


def equal_gain(sounds: Mapping[str, ArrayLike | Tensor]) -> dict[str, np.ndarray]:
    """Scale sounds by one factor, which takes the loudest sample among them to 0.9: their levels stay as they are.

    Parameters, errors: as of `SoundGrid`.

    Returns
    -------
    sounds : dict of arrays (n_samples,), float64
    """
    arrays = as_arrays(sounds)
    for label, x in arrays.items():
        if not len(x):
            raise ValueError(f"sound {label!r} is empty")
    peak = max(np.abs(x).max() for x in arrays.values())
    if peak == 0:
        raise ValueError("all sounds are silent")
    return {label: x * (PEAK / peak) for label, x in arrays.items()}


def spectrograms(sounds: Mapping[str, np.ndarray], sample_rate: float) -> np.ndarray:
    """Small spectrograms on common axes: time from 0 to the end of the longest sound, frequency from 60 Hz on.

    Parameters
    ----------
    sounds : mapping of labels to arrays (n_samples,), not all silent
    sample_rate : float, Hz

    Returns
    -------
    levels : array (sounds, bands, frames), the highest band first
        0 at −60 dB or below, 1 at the loudest part of all.

    Raises ValueError unless half of sample_rate is above 60 Hz.
    """
    if not sample_rate > 2 * LOWEST_HZ:
        raise ValueError(f"expected sample_rate > {2 * LOWEST_HZ} Hz, got {sample_rate}")
    n = round(FRAME_S * sample_rate)
    n_fft = 4 * n  # so that even the lowest bands have a bin each
    centres = np.linspace(0, max(map(len, sounds.values())), FRAMES, endpoint=False).astype(int)
    edges = np.geomspace(LOWEST_HZ, sample_rate / 2, BANDS + 1)[:-1]
    bins = np.ceil(edges * n_fft / sample_rate).astype(int)
    levels = []
    for x in sounds.values():
        padded = np.pad(x, (n // 2, centres[-1] + n))
        frames = padded[centres[:, None] + np.arange(n)] * np.hanning(n)  # (frames, n)
        power = np.abs(np.fft.rfft(frames, n_fft)) ** 2
        levels.append(np.maximum.reduceat(power, bins, axis=1).T[::-1])
    power = np.stack(levels)
    db = 10 * np.log10(np.maximum(power / power.max(), 1e-20))
    return np.maximum(0, 1 - db / LOWEST_DB)


def _mask_url(levels: np.ndarray) -> str:
    """Data URL of a PNG as opaque as the levels (bands, frames) are high: the page gives it the colour of its text."""
    opacity = np.round(levels * SHADES) / SHADES
    png = io.BytesIO()
    matplotlib.image.imsave(png, np.stack([0 * opacity] * 3 + [opacity], axis=-1), format="png")
    return f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"
