"""Moving a slider from Python changes what is seen, with no kernel and no browser. The drum: test_instrument.py."""

import pytest
import torch

from pnp_tutorial import widgets

PNG = b"\x89PNG\r\n"


def test_damping_slider_lowers_the_condition_number():
    box = widgets.damping_slider(torch.diag(torch.tensor([1e6, 1e3, 1.0, 1e-2, 1e-4])))
    box.slider.value = 1.0
    before, image = box.condition_number, box.image.value
    assert before == pytest.approx((1e6 + 1) / (1 + 1e-4), rel=1e-3)
    box.slider.value = 1e6
    assert box.condition_number == pytest.approx(2, rel=1e-3)
    assert bytes(box.image.value).startswith(PNG)
    assert box.image.value != image


@pytest.mark.parametrize("metric", [torch.zeros(5, 5), torch.zeros(2, 5, 5), torch.zeros(5)])
def test_damping_slider_refuses(metric):
    with pytest.raises(ValueError, match="metric"):
        widgets.damping_slider(metric)
