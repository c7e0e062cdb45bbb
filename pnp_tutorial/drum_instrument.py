"""A drum to strike, in notebooks and in the book's static page: made in the browser, by drum_instrument.js."""

import html
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import anywidget
import torch
import traitlets

from .drum import DRUM
from .synthesizer import with_unit

START = (-0.2, 0.0, -0.3, -0.2, 0.4)  # ν of the first drum: near the middle, so that every slider is heard
SOURCE = "".join(
    Path(__file__).with_name(name).read_text(encoding="utf-8")
    for name in ("drum.js", "speaker.js", "drum_instrument.js")
)


class DrumInstrument(anywidget.AnyWidget):
    """A drum to strike: five sliders, the membrane, its sound and its spectrum, all made in the browser.

    Attributes
    ----------
    theta : list of 5 floats, in the order, units and ranges of `DRUM.parameters`
        Follows the sliders, and moves them when it is set. A value of another shape or out of range raises
        `traitlets.TraitError`.
    """

    _esm = SOURCE
    theta = traitlets.List(traitlets.Float()).tag(sync=True)
    # The ranges of the sliders and the sample rate: known to the browser from here only.
    parameters = traitlets.List([asdict(p) for p in DRUM.parameters], read_only=True).tag(sync=True)
    sample_rate = traitlets.Float(DRUM.sample_rate, read_only=True).tag(sync=True)

    @traitlets.default("theta")
    def _start(self) -> list[float]:
        return DRUM.to_theta(torch.tensor(START, dtype=torch.float64)).tolist()

    @traitlets.validate("theta")
    def _check_theta(self, proposal: dict[str, Any]) -> list[float]:
        theta = proposal["value"]
        if len(theta) != len(DRUM.names):
            raise traitlets.TraitError(
                f"expected theta of {len(DRUM.names)} numbers for {DRUM.names}, got {len(theta)}"
            )
        for p, value in zip(DRUM.parameters, theta, strict=True):
            if not p.low <= value <= p.high:
                raise traitlets.TraitError(
                    f"expected {p.name} in {with_unit(f'[{p.low:g}, {p.high:g}]', p.unit)}, got {value:g}"
                )
        return theta

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict, dict]:
        """The live widget for Jupyter and Colab, and for static pages the same instrument without Python behind it."""
        bundle = super()._repr_mimebundle_(**kwargs)
        assert bundle is not None, "the widget has a view"
        options = {"theta": self.theta, "parameters": self.parameters, "sampleRate": self.sample_rate}
        bundle[0]["text/html"] = STATIC_PAGE.format(
            options=html.escape(json.dumps(options, ensure_ascii=False)), module=SOURCE
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
