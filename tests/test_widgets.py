"""Moving a slider from Python changes what is seen, with no kernel and no browser. The drum: test_instrument.py."""

import ipywidgets
import matplotlib.pyplot as plt

from pnp_tutorial import plots, widgets

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
