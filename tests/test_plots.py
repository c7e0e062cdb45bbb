"""Pictures show what they are given: values, units, and colours that the colour-blind can tell apart."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from pnp_tutorial import plots
from pnp_tutorial.scattering import JTFS

SAMPLE_RATE = 8000


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def tone(hz, n=4000):
    return np.sin(2 * np.pi * hz * np.arange(n) / SAMPLE_RATE)


@pytest.mark.parametrize("hz", [500, 2000])
def test_spectrogram_peaks_at_the_tone(hz):
    ax = plots.spectrogram(tone(hz), SAMPLE_RATE)
    level = ax.images[0].get_array()
    bottom, top = ax.images[0].get_extent()[2:]
    kHz = bottom + (level.mean(1).argmax() + 0.5) / len(level) * (top - bottom)
    assert kHz == pytest.approx(hz / 1000, abs=0.03)
    assert level.max() == 0
    assert level.min() >= -70
    assert ax.get_xlabel() == "time (s)"
    assert ax.get_ylabel() == "frequency (kHz)"


def test_spectrogram_of_silence_warns_of_nothing(recwarn):
    ax = plots.spectrogram(np.zeros(4000), SAMPLE_RATE)
    ax.figure.canvas.draw()
    assert not recwarn.list


@pytest.mark.parametrize("x", [np.zeros((2, 4000)), np.zeros(1)])
def test_spectrogram_wants_one_sound(x):
    with pytest.raises(ValueError, match="one sound"):
        plots.spectrogram(x, SAMPLE_RATE)


def test_scalogram_puts_a_row_at_its_frequency():
    frequencies = 4000 * 2 ** (-np.arange(24) / 6)
    S = np.zeros((24, 10))
    S[6] = 1  # an octave below the top
    ax = plots.scalogram(torch.tensor(S), frequencies, duration_s=0.5)
    mesh = ax.collections[0]
    edges = mesh.get_coordinates()[:, 0, 1]
    row = mesh.get_array().reshape(24, 10)[:, 0].argmax()
    assert edges[row + 1] < 2000 < edges[row]
    assert mesh.get_coordinates()[0, -1, 0] == 0.5
    assert ax.get_yscale() == "log"
    with pytest.raises(ValueError, match=r"\(24, n_frames\)"):
        plots.scalogram(S[:5], frequencies, 0.5)


def test_jtfs_paths_puts_rising_spin_above():
    transform = JTFS(n_samples=2**12, J=8, Q=(4, 1), J_fr=3, F=2)
    S = (transform.paths.spin == 1).to_numpy(float)
    ax = plots.jtfs_paths(S, transform.paths)
    table = ax.images[0].get_array()
    half = len(table) // 2
    assert ax.images[0].origin == "lower"
    np.testing.assert_array_equal(table[half:], 1)
    np.testing.assert_array_equal(table[:half], 0)
    assert ax.get_xlabel() == "rate (Hz)"
    with pytest.raises(ValueError, match="one for each path"):
        plots.jtfs_paths(S[:-1], transform.paths)


def test_curves_differ_in_more_than_colour():
    x = torch.arange(5.0)
    ax = plots.curves(x, {"a": x, "b": 2 * x}, "step", "loss")
    a, b = ax.lines
    np.testing.assert_array_equal(b.get_ydata(), [0, 2, 4, 6, 8])
    assert a.get_linestyle() != b.get_linestyle()
    assert a.get_color() != b.get_color()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b"]


def test_bars_have_the_heights_given():
    ax = plots.bars({"u": [1, 2, 3, 4, 5], "v": torch.arange(5.0)}, "abcde")
    heights = [bar.get_height() for bar in ax.patches]
    assert heights == [1, 2, 3, 4, 5, 0, 1, 2, 3, 4]
    assert [label.get_text() for label in ax.get_xticklabels()] == list("abcde")
    with pytest.raises(ValueError, match="5 values"):
        plots.bars({"u": [1, 2]}, "abcde")


def test_eigenvalues_are_sorted_and_the_floor_is_kept():
    ax = plots.eigenvalues([[1.0, 1e-30, 3.0], [10.0, 5.0, 2.0]], floor=1e-12)
    largest, middle, smallest = (line.get_ydata() for line in ax.lines)
    np.testing.assert_array_equal(largest, [3, 10])
    np.testing.assert_array_equal(middle, [1, 5])
    np.testing.assert_array_equal(smallest, [1e-12, 2])
    assert ax.get_yscale() == "log"
    with pytest.raises(ValueError, match=r"\(B, n\)"):
        plots.eigenvalues([1.0, 2.0])


def test_nothing_global_changes():
    before = dict(mpl.rcParams)
    plots.curves([0, 1], {"a": [0, 1]}, "x", "y")
    plots.grid(1, 2, (4, 2))
    assert dict(mpl.rcParams) == before


def test_functions_draw_into_the_axes_given():
    ax = plots.grid(1, 1, (4, 2))[0, 0]
    assert plots.curves([0, 1], {"a": [0, 1]}, "x", "y", ax) is ax
    assert plots.bars({"u": range(5)}, "abcde", ax=ax) is ax
    assert plots.spectrogram(tone(500), SAMPLE_RATE, ax) is ax
    assert plt.get_fignums() == [ax.figure.number]


def test_a_spectrogram_at_a_low_rate():
    assert plots.spectrogram(np.sin(np.arange(100.0)), 10.0).images


def test_a_scalogram_of_one_filter_is_refused():
    with pytest.raises(ValueError, match="of two filters or more"):
        plots.scalogram(np.zeros((1, 4)), [100.0], 1.0)
