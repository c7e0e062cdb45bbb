"""What a reader moves: a drum to play, in notebooks and in the book's static page, and a slider of the damping.

The drum computes in the browser (drum_instrument.js). The slider of λ computes in Python, so that only a notebook
shows it. Both keep what they show in plain attributes, so that code can move a slider and read what came of it.
"""

import html
import io
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as widgets
import matplotlib.pyplot as plt
import torch
import traitlets
from matplotlib.axes import Axes
from torch import Tensor

from . import plots
from .drum import SAMPLE_RATE
from .parameters import N_PARAMETERS, NAMES, PARAMETERS, to_theta

START = (-0.2, 0.0, -0.3, -0.2, 0.4)  # ν of the first drum: near the middle, so that every slider is heard
MODULE = Path(__file__).with_name("drum_instrument.js")


class DrumInstrument(anywidget.AnyWidget):
    """A drum to strike: five sliders, the membrane, its sound and its spectrum, all made in the browser.

    Attributes
    ----------
    theta : list of 5 floats, in the order, units and ranges of `parameters.PARAMETERS`
        Follows the sliders, and moves them when it is set. A value of another shape or out of range raises
        `traitlets.TraitError`.
    """

    _esm = MODULE
    theta = traitlets.List(traitlets.Float()).tag(sync=True)
    # The ranges of the sliders and the sample rate: known to the browser from here only.
    parameters = traitlets.List([asdict(p) for p in PARAMETERS], read_only=True).tag(sync=True)
    sample_rate = traitlets.Int(SAMPLE_RATE, read_only=True).tag(sync=True)

    @traitlets.default("theta")
    def _start(self) -> list[float]:
        return to_theta(torch.tensor(START, dtype=torch.float64)).tolist()

    @traitlets.validate("theta")
    def _check_theta(self, proposal: dict[str, Any]) -> list[float]:
        theta = proposal["value"]
        if len(theta) != N_PARAMETERS:
            raise traitlets.TraitError(f"expected theta of {N_PARAMETERS} numbers for {NAMES}, got {len(theta)}")
        for p, value in zip(PARAMETERS, theta, strict=True):
            if not p.low <= value <= p.high:
                raise traitlets.TraitError(f"expected {p.name} in [{p.low:g}, {p.high:g}] {p.unit}, got {value:g}")
        return theta

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict, dict]:
        """The live widget for Jupyter and Colab, and for static pages the same instrument without Python behind it."""
        bundle = super()._repr_mimebundle_(**kwargs)
        assert bundle is not None, "the widget has a view"
        options = {"theta": self.theta, "parameters": self.parameters, "sampleRate": self.sample_rate}
        bundle[0]["text/html"] = STATIC_PAGE.format(
            options=html.escape(json.dumps(options, ensure_ascii=False)), module=MODULE.read_text(encoding="utf-8")
        )
        return bundle


# The module is inlined: a page that is opened as a file may not load modules from other files.
STATIC_PAGE = """<div data-drum="{options}">The drum to play here needs JavaScript.</div>
<script type="module">
{module}
for (const element of document.querySelectorAll("[data-drum]")) {{
  mount(element, JSON.parse(element.dataset.drum));
  element.removeAttribute("data-drum");
}}
</script>"""


def _png(ax: Axes) -> bytes:
    figure = ax.get_figure(root=True)
    assert figure is not None, "axes are drawn in a figure"
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    return buffer.getvalue()


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
