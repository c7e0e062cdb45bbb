"""What a reader moves: a drum to play, in notebooks and in the book's static page, and pictures with sliders.

The drum computes in the browser (drum_instrument.js). Pictures are drawn by Python, so that only a notebook shows
their sliders. (ipywidgets' own `interact` draws into an output area, at which runners of notebooks can wait for ever.)
"""

import html
import io
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as widgets
import matplotlib.pyplot as plt
import torch
import traitlets
from matplotlib.axes import Axes

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
            figure = draw(**{name: control.value for name, control in controls.items()}).get_figure(root=True)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png")  # type: ignore[union-attr]
            plt.close(figure)
        image.value = buffer.getvalue()

    for control in controls.values():
        control.observe(update, names="value")
    update()
    return widgets.VBox([*controls.values(), image])
