"""What makes a scattering transform one: invariance, stability, energy, equivariance, and modulations in their place.

Equality with the reference is in test_scattering.py. Here a small transform listens to 0.37 s: rates 30 to 965 Hz,
scales 0.35 to 2.8 cycles per octave, two of each an octave apart.
"""

import copy
import math
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from pnp_tutorial.arpeggiator import arpeggiator
from pnp_tutorial.drum import SAMPLE_RATE, rectangular_drum
from pnp_tutorial.scattering import JTFS

N = 2**13
TIME = (torch.arange(N, dtype=torch.float64) - N // 2) / SAMPLE_RATE  # s
HANN = torch.hann_window(N, dtype=torch.float64)


@cache
def jtfs(T: int | str = "global", F: int | str = 2) -> JTFS:
    return JTFS(N, J=8, Q=(8, 1), J_fr=3, F=F, T=T, sample_rate=SAMPLE_RATE, dtype=torch.float64)


def mask(condition: pd.Series) -> Tensor:
    return torch.tensor(condition.to_numpy(copy=True))


def noise(seed: int, n: int = N) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def burst() -> Tensor:
    """Noise of 93 ms in the middle, with silence all around."""
    return torch.nn.functional.pad(noise(0, 2048) * torch.hann_window(2048, dtype=torch.float64), (3072, 3072))


def distance(transform: JTFS, x: Tensor, y: Tensor) -> float:
    """‖S(x) − S(y)‖ / ‖S(x)‖."""
    S_x, S_y = transform(torch.stack([x, y]))
    return ((S_x - S_y).norm() / S_x.norm()).item()


@pytest.mark.parametrize("T", [64, 256, 1024])
def test_a_shift_moves_the_features_by_its_share_of_T(T):
    x = burst()
    distances = [distance(jtfs(T), x, x.roll(shift)) for shift in (T // 16, T // 8, T // 4)]
    assert distances[2] < 0.15
    np.testing.assert_allclose(distances, distances[2] * np.array([0.25, 0.5, 1]), rtol=0.1)  # in proportion
    assert (x - x.roll(T // 16)).norm() > x.norm()


def test_with_global_T_no_shift_moves_the_features():
    x = burst()
    assert max(distance(jtfs(), x, x.roll(shift)) for shift in (1, 100, 2500)) < 5e-5  # the modulus is sampled


def test_global_T_sums_over_the_frames_of_each_rate():
    """As the reference does: a path at step 2ʲ is 2^(log2_T − j) times the sum over the frames of a local T."""
    x, local, total = burst(), jtfs(256), jtfs()
    steps = [
        0 if order == 0 else 8 if order == 1 else total.levels_2[n2]
        for order, n2 in total.paths[["order", "n2"]].values
    ]
    expected = local(x).sum(-1) * 2.0 ** (8 - torch.tensor(steps))
    torch.testing.assert_close(total(x), expected, rtol=1e-6, atol=1e-6 * total(x).abs().max().item())


def warped_tone(hz: float, warp: float) -> Tensor:
    """A Gaussian tone of 50 ms, played (1 − warp) times as fast."""
    t = (1 - warp) * TIME
    return torch.sin(2 * math.pi * hz * t) * torch.exp(-((t / 0.05) ** 2))


def warp_slopes(features, hz: float) -> np.ndarray:
    """Relative distance over size of small time warps, which is a Lipschitz constant if it is bounded."""
    S = features(warped_tone(hz, 0.0))
    warps = (1e-3, 3e-3, 1e-2, 3e-2)
    return np.array([((features(warped_tone(hz, w)) - S).norm() / (w * S.norm())).item() for w in warps])


@pytest.mark.parametrize("hz", [500.0, 2000.0, 5000.0, 8000.0])
def test_stable_to_time_warps_at_any_frequency(hz):
    slopes = warp_slopes(jtfs(), hz)
    assert slopes.max() < 3
    assert slopes.max() < 1.3 * slopes.min()  # of the first order in the warp
    spectrum = warp_slopes(lambda x: torch.fft.rfft(x).abs(), hz)
    assert spectrum[0] > 20 * slopes[0]


def test_the_spectrum_in_contrast_is_the_less_stable_the_higher_the_tone():
    low, high = (warp_slopes(lambda x: torch.fft.rfft(x).abs(), hz)[0] for hz in (500.0, 8000.0))
    assert high > 10 * low


def energy_weights(transform: JTFS) -> Tensor:
    """Weights by which Σ weight S² is an energy, comparable to Σ x².

    2^log2_T samples of time a frame; the bins of log-frequency a row stands for; and 2 for each wavelet that takes
    the positive half of the spectrum of a real signal: first order, rate, and scale in the first order.
    """
    paths = transform.paths
    bins = np.select([paths.n_fr == 0, paths.n_fr > 0], [transform.low_step, 2**transform.log2_F], 1)
    halves = np.select([paths.order == 0, (paths.order == 1) & (paths.n_fr == 0)], [1, 2], 4)
    return torch.tensor(2**transform.log2_T * bins * halves, dtype=torch.float64)[:, None]


TREMOLO = (1 + torch.cos(2 * math.pi * 60 * TIME)) * torch.sin(2 * math.pi * 3000 * TIME) * HANN
DRUM = rectangular_drum(torch.tensor([3.2, 0.1, -1.7, -1.7, 0.6], dtype=torch.float64), N)


@pytest.mark.parametrize("x", [noise(1) * HANN, DRUM, TREMOLO], ids=["noise", "drum", "tremolo"])
def test_two_orders_hold_more_than_half_of_the_energy_and_never_more_than_all(x):
    transform = jtfs(256)
    share = (energy_weights(transform) * transform(x) ** 2).sum() / x.square().sum()
    assert 0.5 < share < 1


def test_second_order_holds_the_modulation():
    """A sine has next to none; a tremolo of it has."""
    transform = jtfs(256)
    second = mask(transform.paths.order == 2)
    sine = torch.sin(2 * math.pi * 3000 * TIME) * HANN
    shares = [
        ((energy_weights(transform) * transform(x) ** 2)[second].sum() / x.square().sum()).item()
        for x in (sine, TREMOLO)
    ]
    assert shares[0] < 0.01 < 0.1 < shares[1]


@pytest.mark.parametrize("size", [1.0, 1e-2, 1e-4])
def test_features_of_two_sounds_are_no_further_apart_than_the_sounds(size):
    x, dx = noise(1) * HANN, size * noise(2) * HANN
    difference = jtfs(256)(x + dx) - jtfs(256)(x)
    apart = (energy_weights(jtfs(256)) * difference**2).sum().sqrt() / dx.norm()
    assert 0.01 < apart < 1


@pytest.mark.parametrize("bins", [1, 4, 8])
def test_transposition_shifts_every_path_along_the_carriers(bins):
    """With F = 1, one row a bin, eight bins an octave: S(n₁ + bins) of the lower sound is S(n₁) of the higher."""

    def tremolo(hz):
        return (1 + torch.cos(2 * math.pi * 60 * TIME)) * torch.sin(2 * math.pi * hz * TIME) * HANN

    transform = jtfs(F=1)
    S, S_low = transform(torch.stack([tremolo(4000.0), tremolo(4000.0 * 2 ** (-bins / 8))])).numpy()
    paths = transform.paths
    errors = norm = 0.0
    for _, path in paths[paths.n_fr > 0].groupby(["n2", "n_fr"]):
        if len(path) < 30:  # of rates so fast that few carriers have them
            continue
        a, b = S[path.index], S_low[path.index]
        assert np.argmax(b) - np.argmax(a) == bins
        errors += np.sum((b[bins:] - a[: len(a) - bins]) ** 2)
        norm += np.sum(a**2)
    assert errors < 0.1**2 * norm  # the tremolo keeps its rate in Hz, so that a little differs


def test_time_reversal_exchanges_the_spins():
    x = arpeggiator(torch.tensor([3000.0, 30.0, 20.0], dtype=torch.float64), N, SAMPLE_RATE)
    S, S_reversed = jtfs()(torch.stack([x, x.flip(-1).roll(1)]))  # −n of n, as a sample's place is counted from 0
    paths = jtfs().paths.reset_index()
    keys = ["n1", "n2", "scale"]
    pairs = paths[paths.spin == 1].merge(paths[paths.spin == -1], on=keys, validate="1:1")
    rising, falling = (torch.tensor(pairs[name].to_numpy(copy=True)) for name in ("index_x", "index_y"))
    assert 2 * len(pairs) == paths.spin.notna().sum()
    tolerance = {"rtol": 0, "atol": 5e-5 * S.max().item()}  # the modulus is sampled
    torch.testing.assert_close(S_reversed[rising], S[falling], **tolerance)
    torch.testing.assert_close(S_reversed[falling], S[rising], **tolerance)
    first = mask(jtfs().paths.order == 1)
    torch.testing.assert_close(S_reversed[first], S[first])
    assert S[rising].sum() > 1.5 * S[falling].sum()


def by_path(x: Tensor) -> pd.Series:
    """Mean over time and carriers above 1 kHz, by rate, scale and spin (NaN: scale 0)."""
    transform = jtfs()
    frames = [transform.N >> transform.levels_2[n2] if n2 >= 0 else 1 for n2 in transform.paths.n2]
    paths = transform.paths.assign(S=transform(x).numpy() / frames)
    second = paths[(paths.order == 2) & (paths.carrier > 1000)]
    return second.groupby(["rate", "scale", "spin"], dropna=False).S.mean()


def ripple(rate: float, scale: float, spin: int) -> Tensor:
    """Noise-like sound of 1 to 8 kHz, its spectrum modulated by a wave that moves `spin` up or down the octaves."""
    octave = torch.linspace(math.log2(1000), math.log2(8000), 128, dtype=torch.float64)[:, None]
    phase = 2 * math.pi * torch.rand(128, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    envelope = 1 + torch.cos(2 * math.pi * (rate * TIME - spin * scale * octave))
    return (envelope * torch.sin(2 * math.pi * 2**octave * TIME + phase)).sum(0) / 12 * HANN


@pytest.mark.parametrize("spin", [1, -1])
@pytest.mark.parametrize("scale", [0.35, 0.7, 1.4])
@pytest.mark.parametrize("rate", [60.3, 120.6])
def test_a_ripple_lights_the_path_of_its_rate_scale_and_spin(rate, scale, spin):
    paths = by_path(ripple(rate, scale, spin)).drop(index=0.0, level="scale").sort_values()
    brightest = paths.index[-1]
    assert brightest == pytest.approx((rate, scale, spin), rel=0.01)
    assert paths.iloc[-1] > 1.3 * paths.iloc[-2]


@pytest.mark.parametrize("gamma", [-100.0, 50.0, 100.0])
def test_a_glide_lights_rates_of_chirp_rate_times_scale(gamma):
    """octaves/s × cycles/octave = cycles/s: at each scale the brightest rate is within one filter of |γ| scale."""
    paths = by_path(arpeggiator(torch.tensor([3000.0, 30.0, gamma], dtype=torch.float64), N, SAMPLE_RATE))
    assert paths.groupby("spin").sum().idxmax() == np.sign(gamma)
    for scale in (0.35, 0.7, 1.4):
        rate, spin = paths.xs(scale, level="scale").idxmax()
        assert spin == np.sign(gamma)
        assert abs(math.log2(rate / (abs(gamma) * scale))) < 1


@pytest.mark.parametrize("rate", [60.3, 120.6, 241.2])
def test_a_slow_arpeggio_lights_the_rate_of_its_events(rate):
    """Two events a period of f_m, at scale 0, that is, alike at neighbouring carriers."""
    events = by_path(arpeggiator(torch.tensor([3000.0, rate / 2, 1.0], dtype=torch.float64), N, SAMPLE_RATE)).xs(
        0.0, level="scale"
    )
    assert events.droplevel("spin").idxmax() == pytest.approx(rate, rel=0.01)


def test_a_transform_that_is_cast_computes_in_the_new_dtype():
    transform = copy.deepcopy(jtfs()).to(torch.float32)
    assert transform(DRUM).dtype == torch.float32
    torch.testing.assert_close(transform(DRUM), jtfs()(DRUM).float(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("padding", ["wrap", None])
def test_wrong_padding_is_named(padding):
    with pytest.raises(ValueError, match=rf'"zero" or "reflect", got {padding!r}'):
        JTFS(N, J=8, Q=(8, 1), J_fr=3, padding=padding)


@pytest.mark.parametrize("T", [0, -1, N + 1, "all"])
def test_wrong_T_is_named(T):
    with pytest.raises(ValueError, match=rf'T must be "global" or a whole number in \[1, {N}\], got {T!r}'):
        JTFS(N, J=8, Q=(8, 1), J_fr=3, T=T)


@pytest.mark.parametrize("F", [0, 73, "all"])
def test_wrong_F_is_named(F):
    with pytest.raises(ValueError, match=rf'F must be "global" or a whole number in \[1, 72\], got {F!r}'):
        JTFS(N, J=8, Q=(8, 1), J_fr=3, F=F)


@pytest.mark.parametrize("shape", [(N + 1,), (2, N - 1), (N, 2)])
def test_audio_of_another_length_is_named(shape):
    with pytest.raises(ValueError, match=rf"shape \(\.\.\., {N}\), got \({', '.join(map(str, shape))}"):
        jtfs()(torch.zeros(shape))
