"""Whoever breaks a promise is told which, in words."""

import re
from dataclasses import replace

import pytest
import torch

from pnp_tutorial.arpeggiator import ARPEGGIATOR
from pnp_tutorial.checks import check_synthesizer
from pnp_tutorial.dataset import DatasetConfig, build
from pnp_tutorial.drum import DRUM
from pnp_tutorial.synthesizer import Parameter, Synthesizer


def tone(theta, n_samples, sample_rate, *, dtype):
    hz, decay = theta.unsqueeze(-2).unbind(-1)
    t = torch.arange(n_samples, dtype=theta.dtype, device=theta.device) / sample_rate
    return (torch.exp(-decay * t) * torch.sin(2 * torch.pi * hz * t)).to(dtype)


TONE = Synthesizer(
    "tone",
    (Parameter("hz", "f", "Hz", 200.0, 2000.0, "pitch", "log"), Parameter("decay", "d", "1/s", 1.0, 20.0, "decay")),
    tone,
    n_samples=2000,
    sample_rate=16000.0,
)


@pytest.mark.parametrize("synthesizer", [replace(DRUM, n_samples=4096), replace(ARPEGGIATOR, n_samples=4096), TONE])
def test_good_ones_keep_their_promises(synthesizer):
    assert check_synthesizer(synthesizer) == []


def stateful(calls):
    def play(theta, *options, dtype):
        calls.append(theta)
        return tone(theta, *options, dtype=dtype) * (1 + 0.1 * len(calls))

    return play


def changes(change):
    """The tone of a θ that is changed before it is played."""
    return lambda theta, *options, dtype: tone(change(theta), *options, dtype=dtype)


def detached_decay(theta):
    return torch.stack([theta[..., 0], theta[..., 1].detach()], -1)


def stepwise_hz(theta):
    return torch.stack([theta[..., 0].detach().round(), theta[..., 1]], -1)


def normalized(theta, *options, dtype):
    """A gain that is taken out again, but for rounding."""
    gain = theta[..., 1:]
    x = gain * tone(torch.cat([theta[..., :1], torch.ones_like(gain)], -1), *options, dtype=theta.dtype)
    return (x / x.abs().amax(-1, keepdim=True)).to(dtype)


def alone(theta):
    return theta if theta.ndim == 1 else 1 / 0


def no_batch_of_batches(theta):
    return theta if theta.ndim < 3 else 1 / 0


def mixed(theta, *options, dtype):
    x = tone(theta, *options, dtype=dtype)
    return x + 0.01 * x.sum(-2, keepdim=True) if x.ndim > 1 else x


def in_place(theta, *options, dtype):
    x = tone(theta, *options, dtype=dtype)
    theta.detach().add_(1)
    return x


def root(theta, *options, dtype):
    x = tone(theta, *options, dtype=dtype)
    return (x - x.detach()).abs().sqrt() + x


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda theta, n, rate: tone(theta, n, rate, dtype=theta.dtype), "raises TypeError.*dtype"),
        (changes(alone), r"with θ of shape \(17, 2\) on the CPU it raises ZeroDivisionError"),
        (changes(no_batch_of_batches), r"θ of shape \(2, 3, 2\) raises ZeroDivisionError"),
        (
            lambda theta, n, rate, *, dtype: tone(theta, n, rate, dtype=dtype)[..., :-1],
            r"\(17, 1999\): expected \(17, 2000\)",
        ),
        (lambda theta, n, rate, *, dtype: 1.0, "gives float: expected"),
        (
            lambda theta, n, rate, *, dtype: tone(theta, 2000, rate, dtype=dtype),
            r"asked for 1000 samples, it gives \(17, 2000\): expected \(17, 1000\)",
        ),
        (
            lambda theta, n, rate, *, dtype: tone(theta, n, rate, dtype=theta.dtype),
            "torch.float32, it gives torch.float64",
        ),
        (lambda *options, dtype: tone(*options, dtype=dtype) / 0, "sounds are not finite at θ = hz = "),
        (stateful([]), "the same θ gives another sound when called again: it has a state, or draws random numbers"),
        (lambda *options, dtype: torch.rand_like(tone(*options, dtype=dtype)), "the same θ gives another sound"),
        (in_place, "it changes the θ that it is given"),
        (mixed, "a row's sound depends on the other rows of its batch"),
        (changes(detached_decay), "derivatives with respect to decay are zero, but the sound changes"),
        (changes(stepwise_hz), "derivatives with respect to hz are zero, but the sound changes"),
        (changes(lambda theta: theta * torch.tensor([1.0, 0.0]).double() + 1), "the sound does not depend on decay"),
        (
            changes(lambda theta: theta.float().double()),
            "with respect to hz are not those of the sound: is θ rounded",
        ),
        (normalized, "the sound does not depend on decay"),
        (root, "derivatives are not finite at θ = hz = "),
        (
            lambda *options, dtype: 1e-9 * tone(*options, dtype=dtype),
            "it is silent at θ = hz = .*, where nothing tells",
        ),
    ],
)
def test_each_broken_promise_is_named(function, message):
    broken = check_synthesizer(replace(TONE, function=function))
    assert any(re.search(message, each) for each in broken), broken


@pytest.mark.parametrize("given", ["drum", tone])
def test_what_is_no_synthesizer_is_named(given):
    with pytest.raises(ValueError, match="expected a Synthesizer, got .*: `find_synthesizer` makes one of a name"):
        check_synthesizer(given)


def test_a_peak_that_is_not_1_is_named():
    assert check_synthesizer(replace(TONE, peak_normalized=True))[0].startswith(
        "it says that its sounds have a peak of 1"
    )


def test_a_data_set_of_a_broken_one_is_refused_before_anything_is_written(tmp_path):
    broken = replace(TONE, function=changes(detached_decay))
    config = DatasetConfig(data=str(tmp_path / "x.zarr"), synthesizer=broken, ear="coarse", n_sounds=10, J=5, T=64)
    with pytest.raises(ValueError, match="tone breaks its promises: derivatives with respect to decay are zero"):
        build(config, progress=False)
    assert list(tmp_path.iterdir()) == []


def of_a_rare_pitch(x):
    """An ear that fails between 660 and 688 Hz, by the zeros of a sound of an eighth of a second."""
    n_zeros = (x[..., 1:] * x[..., :-1] < 0).sum(-1, keepdim=True)
    rare = (n_zeros >= 165) & (n_zeros <= 171)
    return torch.where(rare, torch.nan * x[..., :64], x[..., :64])


@pytest.mark.parametrize(
    ("function", "named", "ear"),
    [
        (lambda x: x / 0, "sound", "mss"),
        (lambda x: x + (x - x.detach()).abs().sqrt(), "derivative", "mss"),
        (lambda x: x, "metric", of_a_rare_pitch),
    ],
)
def test_where_no_trial_has_been_what_is_not_finite_is_named_with_its_parameters(tmp_path, function, named, ear):
    def play(theta, *options, dtype):
        x = tone(theta, *options, dtype=dtype)
        hz = theta[..., :1]
        return torch.where((hz > 660) & (hz < 688), function(x), x)

    some = replace(TONE, function=play)
    assert check_synthesizer(some) == []
    config = DatasetConfig(data=str(tmp_path / "x.zarr"), synthesizer=some, ear=ear, n_sounds=200, J=5, T=64)
    with pytest.raises(ValueError, match=rf"tone: its {named} is not finite at θ = hz = 6[678]\d[.\d]*, decay = "):
        build(replace(config, device="cpu"), progress=False)


def test_lack_of_memory_breaks_no_promise():
    def greedy(theta, *options, dtype):
        raise MemoryError

    with pytest.raises(MemoryError):
        check_synthesizer(replace(TONE, function=greedy))
