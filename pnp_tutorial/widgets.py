"""What a reader moves: sounds to compare, and pictures with sliders.

The sounds (ab_player.js) play in the browser, in notebooks and in the book's static page. Pictures are drawn by Python,
so that only a notebook shows their sliders. (ipywidgets' own `interact` draws into an output area, at which runners of
notebooks can wait for ever.)
"""

import base64
import html
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import soundfile
import traitlets
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from torch import Tensor

from . import plots

AB_MODULE = Path(__file__).with_name("ab_player.js")
PEAK = 0.9  # of full scale, of the loudest sample among sounds that are compared: −1 dB
FADED = 1e-3  # of that sample: −60 dB


class ABPlayer(anywidget.AnyWidget):
    """Sounds to compare at equal loudness: they run together in a loop, and a button or a key says which is heard.

    Parameters
    ----------
    sounds : mapping of labels to arrays or Tensors, each (n_samples,)
        Such as {"recording": x, "match": x_hat}; scaled and cut as in `equally_loud`, which raises the errors.
    sample_rate : float, Hz
    caption : str
        A line below the buttons, such as the distances. Plain text.

    A sample is 2.7 bytes of HTML, as 16-bit WAV: every browser plays it.
    """

    _esm = AB_MODULE
    # {"label", "url"} of each sound: the URL holds the sound itself.
    sounds = traitlets.List(traitlets.Dict(), read_only=True).tag(sync=True)
    caption = traitlets.Unicode(read_only=True).tag(sync=True)

    def __init__(self, sounds: Mapping[str, ArrayLike | Tensor], sample_rate: float, caption: str = "") -> None:
        super().__init__()
        loud = equally_loud(sounds, sample_rate)
        self.set_trait("sounds", [{"label": label, "url": wav_url(x, sample_rate)} for label, x in loud.items()])
        self.set_trait("caption", caption)

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict, dict]:
        """The live widget for Jupyter and Colab, and for static pages the same player without Python behind it."""
        bundle = super()._repr_mimebundle_(**kwargs)
        assert bundle is not None, "the widget has a view"
        bundle[0]["text/html"] = AB_PAGE.format(
            caption=html.escape(self.caption),
            players="\n".join(AUDIO.format(label=html.escape(s["label"]), url=s["url"]) for s in self.sounds),
            module=AB_MODULE.read_text(encoding="utf-8"),
        )
        return bundle


# The browser's own players are for readers without JavaScript; the module takes the sounds out of them.
AUDIO = '<p>{label}: <audio controls preload="none" title="{label}" src="{url}"></audio></p>'
AB_PAGE = """<div data-ab-player="{caption}">
{players}
</div>
<script type="module">
{module}
for (const element of document.querySelectorAll("[data-ab-player]")) {{
  const sounds = Array.from(element.querySelectorAll("audio"), (audio) => ({{ label: audio.title, url: audio.src }}));
  mount(element, {{ sounds, caption: element.dataset.abPlayer }});
  element.removeAttribute("data-ab-player");
}}
</script>"""


def equally_loud(sounds: Mapping[str, ArrayLike | Tensor], sample_rate: float) -> dict[str, np.ndarray]:
    """Scale sounds to the same RMS over the loudest second of each; the loudest sample among them becomes 0.9.

    All get the same length: they are cut where the last of them has fallen 60 dB below that sample, but none to less
    than a second, and shorter ones are filled with zeros.

    Parameters
    ----------
    sounds : mapping of labels to arrays or Tensors, each (n_samples,)
    sample_rate : float, Hz

    Returns
    -------
    sounds : dict of arrays (n_samples,), float64

    Raises
    ------
    ValueError
        If there is no sound, or one is not of shape (n_samples,), not finite, or silent.
    """
    second, arrays = round(sample_rate), {}
    for label, x in as_arrays(sounds).items():
        power = np.pad(np.cumsum(x**2), (1, 0))
        starts = np.arange(0, max(1, len(x) - second + 1), max(1, second // 10))
        energy = (power[np.minimum(starts + second, len(x))] - power[starts]).max()
        if energy == 0:
            raise ValueError(f"sound {label!r} is silent")
        arrays[label] = x / np.sqrt(energy)
    longest = max(second, *(len(x) for x in arrays.values()))
    stack = np.stack([np.pad(x, (0, longest - len(x))) for x in arrays.values()])  # (sounds, samples)
    stack *= PEAK / np.abs(stack).max()
    end = np.flatnonzero((np.abs(stack) > FADED * PEAK).any(0))[-1] + 1
    return dict(zip(arrays, stack[:, : max(second, end)], strict=True))


def as_arrays(sounds: Mapping[str, ArrayLike | Tensor]) -> dict[str, np.ndarray]:
    """The sounds as arrays (n_samples,), float64. Raises ValueError if there is none, or one is not a finite row."""
    if not sounds:
        raise ValueError("expected at least one sound, got none")
    arrays = {}
    for label, sound in sounds.items():
        x = np.asarray(sound.detach().cpu() if isinstance(sound, Tensor) else sound, dtype=np.float64)
        if x.ndim != 1:
            raise ValueError(f"expected sound {label!r} of shape (n_samples,), got {x.shape}")
        if not np.isfinite(x).all():
            raise ValueError(f"sound {label!r} holds NaN or infinite samples")
        arrays[label] = x
    return arrays


def wav_url(x: np.ndarray, sample_rate: float) -> str:
    """Data URL of a sound (n_samples,) as 16-bit WAV."""
    wav = io.BytesIO()
    soundfile.write(wav, x, round(sample_rate), format="WAV", subtype="PCM_16")
    return f"data:audio/wav;base64,{base64.b64encode(wav.getvalue()).decode()}"


def live(draw: Callable[..., Axes], **controls: widgets.ValueWidget) -> widgets.VBox:
    """Controls, and below them the picture that `draw` makes of their values, anew whenever one is moved.

    Parameters
    ----------
    draw : callable
        Called with the value of each control under its name; returns the axes that it drew, in a figure of its own.
    controls : widgets
        Any that have a value, such as `ipywidgets.FloatSlider(0.1, min=0, max=1, description="step")`.

    Returns
    -------
    box : VBox, whose last child is the picture, a PNG in a `widgets.Image`
    """
    image = widgets.Image(format="png")

    def update(change: object = None) -> None:
        with plots.style():
            image.value = png(draw(**{name: control.value for name, control in controls.items()}))

    for control in controls.values():
        control.observe(update, names="value")
    update()
    return widgets.VBox([*controls.values(), image])


def png(ax: Axes) -> bytes:
    """The figure that these axes are in, as PNG; it is closed."""
    figure = ax.get_figure(root=True)
    assert isinstance(figure, Figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    return buffer.getvalue()
