"""Sliders for Jupyter and Colab that compute live. In the book's static pages they have no Python behind them.

Each function returns a box of ipywidgets; its sliders, picture and sound are plain attributes, so that code can
move a slider and read what came of it, as the tests do.
"""

import io
import math

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import soundfile
import torch
from matplotlib.axes import Axes
from torch import Tensor

from . import plots
from .drum import SAMPLE_RATE, rectangular_drum
from .parameters import N_PARAMETERS, PARAMETERS, to_theta

START = (-0.2, 0.0, -0.3, -0.2, 0.4)  # ν of the first drum: near the middle, so that every slider is heard


def _png(ax: Axes) -> bytes:
    figure = ax.get_figure(root=True)
    assert figure is not None, "axes are drawn in a figure"
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    return buffer.getvalue()


def _wav(x: np.ndarray, sample_rate: int) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, x, sample_rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


class DrumSliders(widgets.VBox):
    """Five sliders, the sound of their drum and its spectrogram.

    Attributes
    ----------
    sliders : tuple of FloatSlider, in the order and units of θ
    audio : widgets.Audio, a WAV
    image : widgets.Image, a PNG
    """

    def __init__(self, theta: Tensor, duration_s: float) -> None:
        self.n_samples = round(duration_s * SAMPLE_RATE)
        self.sliders = tuple(
            widgets.FloatSlider(
                value=value,
                min=p.low,
                max=p.high,
                step=(p.high - p.low) / 200,
                description=f"{p.meaning}, {p.symbol}" + (f" ({p.unit})" if p.unit != "1" else ""),
                readout_format=".3f",
                continuous_update=False,
                style={"description_width": "20em"},
                layout={"width": "40em"},
            )
            for p, value in zip(PARAMETERS, theta.tolist(), strict=True)
        )
        self.audio = widgets.Audio(format="wav", autoplay=False, loop=False)
        self.image = widgets.Image(format="png")
        for slider in self.sliders:
            slider.observe(self._update, names="value")
        super().__init__([*self.sliders, self.audio, self.image])
        self._update()

    @property
    def theta(self) -> Tensor:
        """θ (5,) of the sliders, float64."""
        return torch.tensor([slider.value for slider in self.sliders], dtype=torch.float64)

    def _update(self, change: object = None) -> None:
        x = rectangular_drum(self.theta, self.n_samples).numpy()
        self.audio.value = _wav(x, SAMPLE_RATE)
        self.image.value = _png(plots.spectrogram(x, max_hz=8000))


def drum_sliders(nu: Tensor | None = None, duration_s: float = 0.6) -> DrumSliders:
    """Sliders over the five parameters: move one, see and play the drum.

    Parameters
    ----------
    nu : Tensor, shape (5,), optional
        Where the sliders start.
    duration_s : float, s
        Length of the sound.

    Raises
    ------
    ValueError
        If ν has another shape or leaves [−1, 1], or the duration is not positive.
    """
    nu = torch.tensor(START, dtype=torch.float64) if nu is None else nu
    if nu.shape != (N_PARAMETERS,) or not nu.abs().max() <= 1:
        raise ValueError(f"expected nu of shape ({N_PARAMETERS},) within [-1, 1], got {nu.tolist()}")
    if not duration_s > 0:
        raise ValueError(f"expected duration_s > 0, got {duration_s}")
    return DrumSliders(to_theta(nu), duration_s)


class DampingSlider(widgets.VBox):
    """A slider of λ, and the damped step against the eigenvalues of a metric.

    Attributes
    ----------
    slider : FloatLogSlider, λ
    image : widgets.Image, a PNG
    """

    def __init__(self, metric: Tensor) -> None:
        self.eigenvalues = torch.linalg.eigvalsh(metric.to(torch.float64)).clamp_min(0).flip(-1)
        top = math.log10(self.eigenvalues[0])
        self.slider = widgets.FloatLogSlider(
            value=10 ** (top - 3),
            min=top - 10,
            max=top + 1,
            step=0.25,
            description="λ",
            readout_format=".2e",
            continuous_update=False,
            layout={"width": "28em"},
        )
        self.image = widgets.Image(format="png")
        self.slider.observe(self._update, names="value")
        super().__init__([self.slider, self.image])
        self._update()

    @property
    def condition_number(self) -> float:
        """Largest over smallest eigenvalue of M + λI."""
        return float((self.eigenvalues[0] + self.slider.value) / (self.eigenvalues[-1] + self.slider.value))

    def _update(self, change: object = None) -> None:
        damping = self.slider.value
        kept = self.eigenvalues / (self.eigenvalues + damping)
        with plots.style():
            ax = plots.bars({"kept": kept}, [f"{value:.1e}" for value in self.eigenvalues], "share of a full step")
            ax.set(ylim=(0, 1.05), xlabel="eigenvalue of M")
            ax.set_title(f"λ = {damping:.2e}: condition number {self.condition_number:.2e}")
        self.image.value = _png(ax)


def damping_slider(metric: Tensor) -> DampingSlider:
    """Slider of λ: which share of a Gauss–Newton step (M + λI)⁻¹M survives along each eigenvector of M (5, 5).

    Raises ValueError if the metric is not one square matrix or has no positive eigenvalue.
    """
    if metric.ndim != 2 or metric.shape[0] != metric.shape[1]:
        raise ValueError(f"expected one metric of shape (n, n), got {tuple(metric.shape)}")
    if not torch.linalg.eigvalsh(metric).max() > 0:
        raise ValueError("expected a metric with a positive eigenvalue")
    return DampingSlider(metric)
