"""Moving a slider from Python changes what is seen and heard, with no kernel and no browser."""

import io

import numpy as np
import pytest
import soundfile
import torch

from pnp_tutorial import parameters, widgets
from pnp_tutorial.drum import SAMPLE_RATE, rectangular_drum

PNG = b"\x89PNG\r\n"


def test_drum_sliders_sound_like_their_theta():
    box = widgets.drum_sliders(duration_s=0.2)
    assert [slider.min for slider in box.sliders] == [p.low for p in parameters.PARAMETERS]
    assert [slider.max for slider in box.sliders] == [p.high for p in parameters.PARAMETERS]
    assert all(p.symbol in s.description for p, s in zip(parameters.PARAMETERS, box.sliders, strict=True))
    x, sample_rate = soundfile.read(io.BytesIO(box.audio.value))
    assert sample_rate == SAMPLE_RATE
    assert np.abs(x - rectangular_drum(box.theta, len(x)).numpy()).max() < 2**-14
    assert bytes(box.image.value).startswith(PNG)


@pytest.mark.parametrize("j", range(5))
def test_moving_any_slider_changes_sound_and_picture(j):
    box = widgets.drum_sliders(duration_s=0.2)
    audio, image = box.audio.value, box.image.value
    slider = box.sliders[j]
    slider.value = slider.min + 0.9 * (slider.max - slider.min)
    assert box.theta[j] == pytest.approx(slider.value)
    assert box.audio.value != audio
    assert box.image.value != image


def test_drum_sliders_start_where_told():
    nu = torch.tensor([-1.0, 1.0, 0.0, 0.5, 0.2], dtype=torch.float64)
    theta = widgets.drum_sliders(nu, duration_s=0.1).theta
    assert theta.numpy() == pytest.approx(parameters.to_theta(nu).numpy(), abs=1e-9)


def test_drum_sliders_reach_the_ends_of_the_ranges():
    box = widgets.drum_sliders(duration_s=0.1)
    for end in ("min", "max"):
        for slider in box.sliders:
            slider.value = getattr(slider, end)
        x, _ = soundfile.read(io.BytesIO(box.audio.value))
        assert np.isfinite(x).all()
        assert np.abs(x).max() > 0.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"nu": torch.zeros(4)}, "shape"),
        ({"nu": torch.full((5,), 2.0)}, "within"),
        ({"nu": torch.full((5,), torch.nan)}, "within"),
        ({"duration_s": 0.0}, "duration_s"),
    ],
)
def test_drum_sliders_refuse(arguments, message):
    with pytest.raises(ValueError, match=message):
        widgets.drum_sliders(**arguments)


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
