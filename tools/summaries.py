"""What figures and sounds hold, in a few numbers: their text form while chapters are executed, to be compared.

A picture is too coarse for that: the digits in its titles and the course of its lines hardly change its greys.
"""

import base64
import io
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import soundfile
from anywidget import AnyWidget
from IPython import get_ipython
from IPython.display import Audio
from matplotlib.axes import Axes
from matplotlib.collections import Collection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

N_PARTS = 8  # of a sound
FINEST = 1e-4  # share of the largest value of an array that is told apart


def numbers(values: Any) -> str:
    """How many there are, their mean, least and largest value."""
    values = np.ma.filled(np.ma.asarray(values, dtype=float), np.nan).ravel()
    values = values[np.isfinite(values)]
    if not len(values):
        return "0"
    step = FINEST * np.abs(values).max() or 1.0
    told = np.round(np.array([values.mean(), values.min(), values.max()]) / step) * step + 0.0
    return " ".join([str(len(values)), *(f"{value:#.4g}" for value in told)])


def of_axes(axes: Axes) -> Iterator[str]:
    """Everything that is drawn, a line each."""
    for artist in axes.get_children():
        if isinstance(artist, Line2D):
            yield f"line {numbers(artist.get_xdata())}, {numbers(artist.get_ydata())}"
        elif isinstance(artist, AxesImage | Collection) and artist.get_array() is not None:
            yield f"colours {numbers(artist.get_array())}"
        elif isinstance(artist, Collection):
            paths = [path.vertices for path in artist.get_paths()]
            points = np.concatenate([artist.get_offsets(), *paths]) if paths else artist.get_offsets()
            yield f"points {numbers(points[:, 0])}, {numbers(points[:, 1])}"
    bars = [patch.get_height() for patch in axes.patches if isinstance(patch, Rectangle)]
    if bars:
        yield f"bars {numbers(bars)}"


def words(figure: Figure) -> Iterator[str]:
    """Titles, labels of axes, legends and notes, but not the numbers along the axes."""
    yield figure.get_suptitle()
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes)]
    for axes in figure.axes:
        yield from (axes.get_title(place) for place in ("left", "center", "right"))
        yield from (axes.get_xlabel(), axes.get_ylabel(), *(text.get_text() for text in axes.texts))
    for legend in filter(None, legends):
        yield from (text.get_text() for text in legend.get_texts())


def of_figure(figure: Figure) -> str:
    """Words and numbers of a figure."""
    lines = ["figure: " + " | ".join(" ".join(text.split()) for text in words(figure) if text.strip())]
    for axes in figure.axes:
        lines += of_axes(axes)
    return "\n".join(lines)


def of_sound(x: np.ndarray, rate: int) -> str:
    """Length, level over time, and the centre of the spectrum."""
    parts = [np.sqrt(np.mean(part**2)) for part in np.array_split(x, N_PARTS)]
    power = np.abs(np.fft.rfft(x)) ** 2
    centre = np.fft.rfftfreq(len(x), 1 / rate) @ power / power.sum()
    levels = " ".join(f"{20 * np.log10(max(part, 1e-6)):.1f}" for part in parts)
    return f"sound: {len(x) / rate:.3f} s, {levels} dB, {centre:.1f} Hz"


def of_wav(data: bytes) -> str:
    x, rate = soundfile.read(io.BytesIO(data), always_2d=True)
    return of_sound(x.mean(1), rate)


def of_widget(widget: AnyWidget) -> str:
    """Caption and sounds of a widget that plays some, such as an `ABPlayer`; of another, what it calls itself."""
    if not hasattr(widget, "sounds"):
        return repr(widget)
    sounds = [(each["label"], base64.b64decode(re.sub("^data:.*?,", "", each["url"]))) for each in widget.sounds]
    return "\n".join([widget.caption, *(f"{label}: {of_wav(data)}" for label, data in sounds)])


def register() -> None:
    """Let them be the text form of what a notebook shows."""
    # As a method, for matplotlib's backend in notebooks takes away what is registered for figures.
    Figure._repr_pretty_ = lambda figure, printer, cycle: printer.text(of_figure(figure))
    plain = get_ipython().display_formatter.formatters["text/plain"]
    plain.for_type(Audio, lambda audio, printer, cycle: printer.text(of_wav(audio.data)))
    # For their common base, since each widget is of a class of its own: a name would be found for the first alone.
    plain.for_type(AnyWidget, lambda widget, printer, cycle: printer.text(of_widget(widget)))
