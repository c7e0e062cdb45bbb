import math
import re
from dataclasses import replace

import pytest
import torch
from auraloss.freq import MultiResolutionSTFTLoss
from torch.func import jvp, vmap

from pnp_tutorial import losses, metric
from pnp_tutorial.drum import DRUM, rectangular_drum
from pnp_tutorial.mss import MSS, CoarseSpectra, mss_distance

N = 4096
SOUNDS = rectangular_drum(DRUM.to_theta(DRUM.sample_uniform(6, seed=3)), N)
OTHERS = rectangular_drum(DRUM.to_theta(DRUM.sample_uniform(6, seed=4)), N)


def test_distance_equals_auralosss_pair_by_pair():
    loss = MultiResolutionSTFTLoss()
    x_hat, x = SOUNDS.float().reshape(2, 3, N), OTHERS.float().reshape(2, 3, N)
    distance = mss_distance(x_hat, x)
    assert distance.shape == (2, 3)
    expected = [loss(a[None, None], b[None, None]) for a, b in zip(x_hat.flatten(0, 1), x.flatten(0, 1), strict=True)]
    torch.testing.assert_close(distance.flatten(), torch.stack(expected))
    torch.testing.assert_close(mss_distance(SOUNDS, OTHERS).float(), distance.flatten(), rtol=1e-3, atol=1e-3)


def test_gradient_equals_auralosss():
    loss = MultiResolutionSTFTLoss()
    x_hat, x = SOUNDS.float(), OTHERS.float()
    leaves = [x_hat.clone().requires_grad_() for _ in range(2)]
    weights = torch.arange(1.0, 7.0)
    (mss_distance(leaves[0], x) * weights).sum().backward()
    sum(w * loss(a[None, None], b[None, None]) for w, a, b in zip(weights, leaves[1], x, strict=True)).backward()
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad, rtol=1e-3, atol=1e-5 * leaves[1].grad.abs().max())
    target = x.clone().requires_grad_()
    assert not mss_distance(x_hat, target).requires_grad


def test_distance_of_a_sound_to_itself_is_zero():
    assert (mss_distance(SOUNDS, SOUNDS) == 0).all()
    assert (mss_distance(SOUNDS, OTHERS) > 0.1).all()


def test_feature_distance_is_the_mean_square_of_log_magnitudes():
    features = MSS(torch.float64)
    distance = (features(SOUNDS) - features(OTHERS)).square().sum(-1)
    total = 0
    for n_fft, hop, window in zip((1024, 2048, 512), (120, 240, 50), (600, 1200, 240), strict=True):
        logs = [
            torch.stft(x, n_fft, hop, window, torch.hann_window(window).double(), return_complex=True)
            .abs()
            .clamp(min=1e-4)
            .log()
            for x in (SOUNDS, OTHERS)
        ]
        total = total + (logs[0] - logs[1]).square().mean((-2, -1)) / 3
    torch.testing.assert_close(distance, total)


def test_a_change_of_level_is_its_logarithm():
    """Where nothing is near the floor: noise, twice as loud, is log 2 away at every resolution."""
    x = torch.randn(N, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    features = MSS(torch.float64)
    assert (features(2 * x) - features(x)).norm().item() == pytest.approx(math.log(2), rel=1e-6)


def test_features_are_differentiable_in_both_modes():
    features = MSS(torch.float64)
    generator = torch.Generator().manual_seed(0)
    x, dx = torch.randn(2, 2, N, dtype=torch.float64, generator=generator)
    S, dS = jvp(features, (x,), (dx,))
    h = 1e-7
    central = (features(x + h * dx) - features(x - h * dx)) / (2 * h)
    assert (dS - central).norm() < 1e-4 * dS.norm()  # where a magnitude nearly vanishes, its logarithm is steep
    weights = torch.randn(S.shape, dtype=torch.float64, generator=generator)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad((features(x) * weights).sum(), x)
    torch.testing.assert_close((gradient * dx).sum(), (dS * weights).sum())
    silence = torch.zeros(N, dtype=torch.float64, requires_grad=True)
    features(silence).sum().backward()
    assert (silence.grad == 0).all()


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # torch has no batched stft
def test_batch_axes_vmap_and_dtypes_agree():
    features = MSS(torch.float64)
    S = features(SOUNDS.reshape(2, 3, N))
    torch.testing.assert_close(vmap(features)(SOUNDS), S.flatten(0, 1))
    torch.testing.assert_close(features(SOUNDS[4]), S[1, 1])
    single = MSS(torch.float32)
    assert single(SOUNDS).dtype == torch.float32
    assert torch.equal(single.to(torch.float64)(SOUNDS), features(SOUNDS))
    assert single.state_dict() == {}


def test_serves_as_features_of_metric_and_spectral_loss():
    features = MSS(torch.float64)

    drum = replace(DRUM, n_samples=2048)
    nu = 0.5 * DRUM.sample_uniform(1, seed=1)[0]
    M = metric.riemannian_metric(nu, features, drum)
    step = 1e-7 * torch.tensor([0.2, 1, 1, 1, 1], dtype=torch.float64)
    loss = losses.spectral_loss((nu + step)[None], nu[None], features, drum)
    assert losses.pnp_loss((nu + step)[None], nu[None], M[None]).item() == pytest.approx(loss.item(), rel=1e-2)


def test_linear_magnitudes_are_those_whose_logarithm_mss_takes():
    mss, x = MSS(), SOUNDS.float()
    scale = torch.cat(
        [torch.full((n,), (3 * n) ** 0.5) for n in (mss.spectrum(x, r)[0].numel() for r in mss.resolutions)]
    )
    torch.testing.assert_close(MSS(log=False)(x) * scale, (mss(x) * scale).exp(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("function", [MSS(), lambda x: mss_distance(x, x)])
def test_bad_audio_is_named(function):
    with pytest.raises(ValueError, match=r"n_samples ≥ 1025, got \(2, 1024\)"):
        function(torch.zeros(2, 1024))
    with pytest.raises(ValueError, match="int64"):
        function(torch.zeros(4096, dtype=torch.long))
    with pytest.raises(ValueError, match=r"got \(\)"):
        function(torch.tensor(0.0))


@pytest.mark.parametrize("features", [MSS(), CoarseSpectra(N, 22050)])
def test_audio_is_taken_to_where_the_windows_are(features):
    """As sounds in float64 on a CPU are to an Apple GPU, which has none."""
    assert features.to("meta")(SOUNDS).device.type == "meta"


@pytest.mark.parametrize("n_samples", [0, 4, 7, 100.0])
def test_sounds_too_short_for_coarse_spectra(n_samples):
    with pytest.raises(ValueError, match=r"n_samples must be a whole number in \[8, inf\], got"):
        CoarseSpectra(n_samples, 22050)
    for shortest in (8, 9, 12):
        assert CoarseSpectra(shortest, 22050)(torch.ones(shortest)).isfinite().all()


def test_pairs_of_two_shapes_are_named():
    with pytest.raises(ValueError, match=r"one shape, got \(1, 4096\) and \(6, 4096\)"):
        mss_distance(SOUNDS[:1], OTHERS)


def test_second_derivatives_of_the_distance_are_refused():
    x = torch.randn(2, 4096, generator=torch.Generator().manual_seed(0))
    x_hat = (0.5 * x).requires_grad_()
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        torch.autograd.grad(mss_distance(x_hat, x).sum(), x_hat, create_graph=True)


@pytest.mark.parametrize("sample_rate", [0, 60, 71])
def test_rates_that_leave_no_band_for_coarse_spectra(sample_rate):
    with pytest.raises(ValueError, match="expected sample_rate > 74.2 Hz"):
        CoarseSpectra(2048, sample_rate)


@pytest.mark.parametrize(
    ("x", "got"),
    [(torch.zeros(3, 2000), "(3, 2000)"), (torch.zeros(2048).int(), "torch.int32"), (torch.zeros(()), "()")],
)
def test_coarse_spectra_of_other_sounds_are_refused(x, got):
    with pytest.raises(ValueError, match=rf"expected audio \(..., 2048\) in floating point, got .*{re.escape(got)}"):
        CoarseSpectra(2048, 22050)(x)
