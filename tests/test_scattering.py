import copy
import io
import json
import math
import pickle
from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.func import jvp, vmap

from pnp_tutorial import drum, path_sums, scattering
from pnp_tutorial.scalogram import Scalogram
from pnp_tutorial.scattering import JTFS, LogScattering

DATA = Path(__file__).parent / "data"
SMALL = np.load(DATA / "jtfs_small.npz")
SMALL_META = json.loads((DATA / "jtfs_small.json").read_text(encoding="utf-8"))
SIGNALS = torch.from_numpy(SMALL["signals"])


@cache
def small_jtfs(name: str, padding: str = "zero") -> JTFS:
    config = dict(SMALL_META[name]["config"])
    config["Q"] = tuple(config["Q"])
    return JTFS(SIGNALS.shape[-1], padding=padding, sample_rate=22050, dtype=torch.float64, **config)


def reference_order(jtfs: JTFS, paths: list[dict]) -> list[int]:
    """Rows of `jtfs.paths` in the order of the reference's own."""
    rows = {(row.n1, row.n2, row.n_fr): i for i, row in enumerate(jtfs.paths.itertuples())}
    indices = []
    for path in paths:
        n = path["n"]
        n1, n2, n_fr = {0: (-1, -1, -1), 1: (n[0], -1, n[-1]) if n else None, 2: tuple(n)}[path["order"]]
        indices.append(rows[n1, n2, n_fr])
    return indices


@pytest.mark.parametrize("padding", ["reflect", "zero"])
@pytest.mark.parametrize("name", list(SMALL_META))
def test_every_coefficient_equals_the_reference(name, padding):
    jtfs = small_jtfs(name, padding)
    expected = torch.from_numpy(SMALL[f"{name}_{padding}"])
    paths = SMALL_META[name]["paths"]
    assert len(jtfs.paths) == len(paths)
    S = jtfs(SIGNALS)
    S = S[..., None] if jtfs.T == "global" else S
    S = S[:, reference_order(jtfs, paths)]
    assert S.shape == expected.shape
    assert (S - expected).abs().max() < 1e-12 * expected.max()


def test_path_table_agrees_with_the_reference():
    jtfs = small_jtfs("a")
    paths = SMALL_META["a"]["paths"]
    table = jtfs.paths.iloc[reference_order(jtfs, paths)]
    expected = {key: [np.nan if p[key] is None else p[key] for p in paths] for key in ("order", "xi1", "xi2", "xi_fr")}
    np.testing.assert_array_equal(table.order, expected["order"])
    np.testing.assert_allclose(table.carrier / 22050, expected["xi1"])
    np.testing.assert_allclose(table.rate / 22050, expected["xi2"])
    np.testing.assert_allclose(table.scale / 8, np.abs(expected["xi_fr"]), atol=1e-12)
    second = table.order == 2
    np.testing.assert_array_equal(table.spin[second].fillna(0), [p["spin"] for p in paths if p["order"] == 2])


@cache
def paper(dtype: torch.dtype) -> scattering.LogScattering:
    return scattering.paper_features(dtype)


def test_paper_configuration_equals_the_reference():
    reference = np.load(DATA / "paper.npz")
    paths = json.loads((DATA / "paper.json").read_text(encoding="utf-8"))["paths"]
    coef = torch.from_numpy(reference["coef"])
    x = drum.rectangular_drum(torch.from_numpy(reference["theta"]))
    features = paper(torch.float64)
    order = reference_order(features.transform, paths)
    assert (features.transform(x)[:, order] - coef).abs().max() < 1e-9 * coef.max()
    torch.testing.assert_close(features(x)[:, order], torch.log1p(coef / 1e-3), rtol=1e-6, atol=1e-6)
    single = paper(torch.float32)
    assert single(x).dtype == torch.float32
    assert (single(x)[:, order] - torch.log1p(coef / 1e-3)).abs().max() < 1e-3


def test_rising_and_falling_chirps_light_opposite_spins():
    jtfs = small_jtfs("a")
    t = torch.arange(8192, dtype=torch.float64) / 22050
    rising = torch.sin(2 * torch.pi * 400 / 6 * torch.exp(6 * t)) * torch.hann_window(8192, dtype=torch.float64)
    energy = torch.stack([jtfs(rising), jtfs(rising.flip(-1))])
    spin = torch.tensor(jtfs.paths.spin.to_numpy())
    fast = torch.tensor((jtfs.paths.rate > 10).to_numpy())
    up, down = energy[:, (spin == 1) & fast].sum(-1), energy[:, (spin == -1) & fast].sum(-1)
    assert up[0] > 1.5 * down[0]
    assert down[1] > 1.5 * up[1]


def test_a_tremolo_lights_the_path_of_its_rate():
    jtfs = JTFS(2**14, J=11, Q=(8, 1), J_fr=3, F=4, sample_rate=22050, dtype=torch.float64)
    t = torch.arange(2**14, dtype=torch.float64) / 22050
    xi_2 = sorted(set(jtfs.paths.rate.dropna()))
    for rate in xi_2[1:4]:
        x = (1 + torch.cos(2 * torch.pi * rate * t)) * torch.sin(2 * torch.pi * 2000 * t)
        carrier = jtfs.paths.carrier.sub(2000).abs().idxmin()
        near = jtfs.paths[(jtfs.paths.order == 2) & (jtfs.paths.n1 == jtfs.paths.n1[carrier])]
        S = jtfs(x)[near.index.tolist()]
        # A path sums over the frames of its own rate: divide by their number to compare rates.
        by_rate = {r: S[torch.tensor((near.rate == r).tolist())].max().item() / r for r in near.rate.unique()}
        assert max(by_rate, key=by_rate.get) == rate


def test_a_silent_sound_is_zero_with_a_finite_gradient():
    jtfs = small_jtfs("a")
    x = torch.zeros(8192, dtype=torch.float64, requires_grad=True)
    S = jtfs(x)
    S.sum().backward()
    assert (S == 0).all()
    assert x.grad.isfinite().all()


def test_log_features_are_finite_where_the_mean_of_a_sound_is_negative():
    features = scattering.LogScattering(small_jtfs("a"))
    x = -SIGNALS[:1].abs()
    assert (small_jtfs("a")(x)[0, 0] < 0).all()
    assert features(x).isfinite().all()
    torch.testing.assert_close(features(x), features(-x))


def test_shift_invariance_up_to_T():
    jtfs = small_jtfs("c")
    x = torch.zeros(8192, dtype=torch.float64)
    x[2048:4096] = SIGNALS[0, :2048]
    S = jtfs(torch.stack([x, x.roll(64)]))
    assert (S[0] - S[1]).norm() < 0.02 * S[0].norm()
    assert (x - x.roll(64)).norm() > x.norm()


@pytest.mark.parametrize("name", ["a", "b"])
def test_derivatives_agree_with_finite_differences(name):
    jtfs = small_jtfs(name)
    generator = torch.Generator().manual_seed(0)
    # No silence: where a modulus is far smaller than the step, a finite difference sees the kink of |·| at 0.
    x = SIGNALS[:2] + torch.randn(2, SIGNALS.shape[-1], generator=generator, dtype=torch.float64)
    dx = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    S, dS = jvp(jtfs, (x,), (dx,))
    torch.testing.assert_close(S, jtfs(x))
    h = 1e-6
    central = (jtfs(x + h * dx) - jtfs(x - h * dx)) / (2 * h)
    assert (dS - central).norm() < 1e-6 * central.norm()
    weights = torch.randn(S.shape, generator=generator, dtype=torch.float64)
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((jtfs(x) * weights).sum(), x)
    torch.testing.assert_close((gradient * dx).sum(), (dS * weights).sum())


def test_vmap_and_batch_axes_agree():
    jtfs = small_jtfs("a")
    x = SIGNALS[:6].reshape(2, 3, -1)
    S = jtfs(x)
    assert S.shape == (2, 3, len(jtfs.paths))
    torch.testing.assert_close(vmap(jtfs)(x), S)
    torch.testing.assert_close(jtfs(x[1, 2]), S[1, 2])
    tangents = torch.stack([x[0], x[1]])
    many = vmap(lambda t: jvp(jtfs, (x[0],), (t,))[1])(tangents)
    one = jvp(jtfs, (x[0],), (tangents[1],))[1]
    torch.testing.assert_close(many[1], one)


def restored(transform: JTFS | Scalogram) -> JTFS | Scalogram:
    """Another transform of the same configuration, with the state of this one, which is small."""
    other = copy.deepcopy(transform)
    state = transform.state_dict()
    assert sum(value.nbytes for value in state.values()) < 1e6
    other.load_state_dict(state)
    return other


def saved(transform: JTFS | Scalogram) -> JTFS | Scalogram:
    file = io.BytesIO()
    torch.save(transform, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda transform: pickle.loads(pickle.dumps(transform)),
    "torch.save": saved,
    "state_dict": restored,
    "to": lambda transform: copy.deepcopy(transform).to("cpu", torch.float32),
    "there and back": lambda transform: copy.deepcopy(transform).double().float(),
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("T", ["global", 256])
@pytest.mark.parametrize("kind", [JTFS, Scalogram])
def test_a_copy_is_the_same_to_the_bit(kind, T, how):
    """Values, and tangents, which have filters of their own."""
    transform = kind(8192, J=8, Q=(8, 1) if kind is JTFS else 8, T=T, dtype=torch.float32)
    other = COPIES[how](transform)
    x, dx = SIGNALS[:1].float(), SIGNALS[1:3, None].float()
    assert torch.equal(other(x), transform(x))
    for one, same in zip(other.push(x, dx), transform.push(x, dx), strict=True):
        assert torch.equal(one, same)


def tensors(value: object) -> Iterator[torch.Tensor]:
    """All filters of a transform, in its records, too."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, torch.nn.Module):
        yield from tensors(tuple(vars(value).values()))
    elif is_dataclass(value):
        yield from tensors(tuple(vars(value).values()))
    elif isinstance(value, tuple | list | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from tensors(each)


@pytest.mark.parametrize("transform", [JTFS(8192, J=8), LogScattering(Scalogram(8192, J=8))])
def test_filters_follow_the_module(transform):
    """Every tensor that there is: to another dtype, and to another device."""
    transform = copy.deepcopy(transform).double()
    kinds = {each.dtype for each in tensors(transform)}
    assert kinds == {torch.float64}
    assert {each.device.type for each in tensors(transform.to("meta"))} == {"meta"}


def test_scalogram_puts_a_sine_into_its_band_and_frames():
    scalogram = Scalogram(2**14, J=10, Q=12, T=256, sample_rate=22050, dtype=torch.float64)
    t = torch.arange(2**14, dtype=torch.float64) / 22050
    frequency = scalogram.frequencies[30]
    x = torch.sin(2 * torch.pi * frequency * t) * (t > t[8192])
    S = scalogram(x)
    assert S.shape == (len(scalogram.frequencies), 64)
    assert S.sum(-1).argmax() == 30
    # A filter has unit gain at its centre and is analytic: half of a sine's amplitude passes.
    assert S[30, 48] == pytest.approx(0.5, rel=0.02)
    assert S[30, :24].max() < 0.01
    total = Scalogram(2**14, J=10, Q=12, T="global", dtype=torch.float64)
    assert total(torch.stack([x, x])).shape == (2, len(scalogram.frequencies))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_samples", 0),
        ("J", 8.5),
        ("J", 14),
        ("Q", 8),
        ("Q", (8,)),
        ("Q", (0, 1)),
        ("Q", (8, 0)),
        ("J_fr", 0),
        ("J_fr", 9),
        ("Q_fr", 0),
        ("T", None),
        ("T", 256.0),
        ("F", None),
        ("sample_rate", 0),
        ("dtype", torch.float16),
    ],
)
def test_settings_out_of_range_are_named(name, value):
    settings = {"n_samples": 8192, "J": 8, "Q": (8, 1), "J_fr": 3} | {name: value}
    with pytest.raises(ValueError, match=rf"{name}.*got"):
        JTFS(**settings)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_audio_that_is_not_finite_is_refused(value):
    x = torch.zeros(2, 8192)
    x[1, 7] = value
    with pytest.raises(ValueError, match="finite"):
        small_jtfs("a")(x)


def test_bad_input_is_named():
    jtfs = small_jtfs("a")
    with pytest.raises(ValueError, match=r"shape \(\.\.\., 8192\), got \(100,\)"):
        jtfs(torch.zeros(100))
    with pytest.raises(ValueError, match="int64"):
        jtfs(torch.zeros(8192, dtype=torch.long))
    with pytest.raises(ValueError, match="padding"):
        JTFS(8192, J=8, padding="circular")
    with pytest.raises(ValueError, match="T must"):
        JTFS(8192, J=8, T=9000)
    with pytest.raises(ValueError, match="F must"):
        JTFS(8192, J=8, F=0)
    with pytest.raises(ValueError, match="J must"):
        Scalogram(8192, J=14)


@pytest.mark.parametrize(("T", "F"), [("global", 2), (1024, 2), ("global", "global")])
def test_push_is_forward_mode_differentiation(T, F):
    """Value and derivatives along tangents of the stacked pass, against `torch.func` through the plain one."""
    jtfs = JTFS(4096, J=8, Q=(8, 1), J_fr=3, T=T, F=F, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4096, dtype=torch.float64, generator=generator)
    dx = torch.randn(3, 2, 4096, dtype=torch.float64, generator=generator)
    scalogram = Scalogram(4096, J=8, Q=8, T=T, dtype=torch.float64)
    for features in (jtfs, scattering.LogScattering(jtfs), scattering.LogScattering(scalogram)):
        S, dS = features.push(x, dx)
        expected, d_expected = vmap(lambda tangent, f=features: jvp(f, (x,), (tangent,)), out_dims=(None, 0))(dx)
        torch.testing.assert_close(S, expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(dS, d_expected, rtol=1e-7, atol=1e-10)
        one, d_one = features.push(x[0], dx[:, 0])
        torch.testing.assert_close((one, d_one), (S[0], dS[:, 0]))
        assert features.push(x, dx[:0])[1].shape == (0, *S.shape)


def test_tangents_that_are_not_finite_are_not_taken_for_the_sound():
    x = torch.ones(2, 4096)
    dx = torch.zeros(3, 2, 4096)
    dx[1, 0, 7] = torch.nan
    jtfs = JTFS(4096, J=8)
    with pytest.raises(ValueError, match="expected finite tangents, got NaN"):
        jtfs.push(x, dx)
    with pytest.raises(ValueError, match="expected finite audio, got NaN"):
        jtfs.push(dx[1], dx)


def test_tangents_at_half_the_rate_lose_nothing():
    """Bands cut at float32's rounding, but computed in float64: what differs is what the halving filter lets pass."""
    jtfs = JTFS(8192, J=10, Q=(8, 1), J_fr=3, dtype=torch.float32).double()
    assert all(rate.half_psi is not None for rate in jtfs.rates)
    # some circles are reached in part, some from end to end
    whole = {rate.sounding.stop - rate.sounding.start == rate.circle.length >> rate.level for rate in jtfs.rates}
    assert whole == {True, False}
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 8192, dtype=torch.float64, generator=generator)
    dx = torch.randn(3, 2, 8192, dtype=torch.float64, generator=generator)
    S, dS = jtfs.push(x, dx)
    expected, d_expected = vmap(lambda tangent: jvp(jtfs, (x,), (tangent,)), out_dims=(None, 0))(dx)
    torch.testing.assert_close(S, expected, rtol=1e-12, atol=0)
    assert (dS - d_expected).abs().max() < 1e-7 * d_expected.abs().max()
    for n2 in (rate.n2 for rate in jtfs.rates):
        of_rate = torch.tensor((jtfs.paths.n2 == n2).to_numpy())
        error = (dS - d_expected)[..., of_rate].norm() / d_expected[..., of_rate].norm()
        assert error < 1e-7, f"rate {n2}"
    alone = jtfs.push(x, dx[:1])[1]  # it is taken at half the rate, too
    torch.testing.assert_close(alone, dS[:1], rtol=1e-12, atol=1e-12 * float(dS.abs().max()))


def test_push_of_silence_is_finite():
    S, dS = scattering.LogScattering(small_jtfs("a")).push(torch.zeros(8192), torch.ones(2, 8192))
    assert (S == 0).all()
    assert dS.isfinite().all()


def test_push_names_tangents_of_another_shape():
    with pytest.raises(ValueError, match=r"tangents of shape \(K, 8192,\), got \(8192,\)"):
        small_jtfs("a").push(torch.zeros(8192), torch.zeros(8192))


@pytest.mark.parametrize("padding", ["zero", "reflect"])
def test_frames_left_out_are_silent(padding, monkeypatch):
    """Frames in the padding that no wavelet reaches make no difference, for sounds loud up to both their ends."""
    x = torch.randn(2, 4096, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    config = {"J": 8, "Q": (8, 1), "J_fr": 3, "padding": padding, "dtype": torch.float64}
    jtfs = JTFS(4096, **config)
    left_out = any(rate.sounding.start > 0 for rate in jtfs.rates)
    assert left_out == (padding == "zero")
    S = jtfs(x)
    monkeypatch.setattr(JTFS, "_frames_near", lambda self, reach, level, circle: slice(0, circle.length >> level))
    assert (JTFS(4096, **config)(x) - S).abs().max() < 1e-12 * S.max()


@pytest.mark.parametrize("chunk", [4, 16])  # frames at once: fewer than inputs, and more
def test_path_sums_of_a_gpu_are_those_of_a_cpu(chunk):
    """Both ways to sum |W Y| and its derivatives, on the CPU; a Y of zeros has none."""
    torch.manual_seed(0)
    B, K, n, R, n_alone, t = 2, 3, 5, 7, 3, 50
    W = torch.randn(R, n, dtype=torch.complex128)
    stacked = torch.cat([W.real, W.imag])
    Y = list(torch.randn(1 + K, B, n, t, dtype=torch.complex128))
    Y[0][1, :, :9] = 0
    expected = path_sums.path_sums(stacked, Y, n_alone, chunk=chunk, H=torch.empty(0))
    found = path_sums.complex_path_sums(stacked, Y, n_alone, chunk=chunk, H=torch.empty(0))
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
    W = torch.cat([W, W[n_alone:].conj()])
    assert torch.allclose(expected[:, 0], (W @ Y[0]).abs().sum(-1))


def test_tangents_of_half_the_rate_are_alike_on_a_gpu(monkeypatch):
    """Its way through M, on the CPU: all tangents at once, and complex sums."""
    x = torch.randn(2, 2**14, generator=torch.Generator().manual_seed(1))
    jtfs = JTFS(2**14, J=11, Q=(8, 1), J_fr=3)
    assert any(rate.half_psi is not None for rate in jtfs.rates)
    dx = torch.randn(3, *x.shape, generator=torch.Generator().manual_seed(2))
    S, dS = jtfs.push(x, dx)

    class OnGPU(torch.Tensor):
        is_cuda = True

    halved = []
    second_order, sounding = JTFS._second_order, JTFS._sounding

    def on_gpu(self, bands, rate):
        return sounding(self, [band._replace(values=band.values.as_subclass(OnGPU)) for band in bands], rate)

    def watched(self, bands, rate, half=False):
        plain = [band._replace(values=band.values.as_subclass(torch.Tensor)) for band in bands]
        halved.append((half, plain[0].values.shape[1]))
        return second_order(self, plain, rate, half)

    monkeypatch.setattr(JTFS, "_sounding", on_gpu)
    monkeypatch.setattr(JTFS, "_second_order", watched)
    monkeypatch.setattr("pnp_tutorial.scattering.path_sums", path_sums.complex_path_sums)
    found, d_found = jtfs.push(x, dx)
    assert (True, 3) in halved, "all tangents of a sound at once, at half the rate"
    assert torch.allclose(found, S, rtol=1e-4, atol=1e-6 * float(S.max()))
    assert (d_found - dS).norm() < 1e-5 * dS.norm()


def test_a_shorter_circle_changes_nothing(monkeypatch):
    """Fast rates are filtered with less silence around the sound; value and tangents are those of the long circle."""
    generator = torch.Generator().manual_seed(1)
    x, *dx = torch.randn(3, 2**14, dtype=torch.float64, generator=generator)
    config = {"J": 11, "Q": (8, 1), "J_fr": 3, "dtype": torch.float64}
    jtfs = JTFS(2**14, **config)
    lengths = [rate.circle.length for rate in jtfs.rates]
    assert lengths[0] < 0.9 * jtfs.N
    assert lengths[-1] == jtfs.N
    monkeypatch.setattr(JTFS, "_short_circle", lambda self, n_inputs: (0, self.circle))
    whole = JTFS(2**14, **config)
    assert {rate.circle.length for rate in whole.rates} == {jtfs.N}
    for short, long in zip(jtfs.push(x, torch.stack(dx)), whole.push(x, torch.stack(dx)), strict=True):
        assert (short - long).abs().max() < 1e-12 * long.abs().max()


def test_threads_change_no_byte():
    """Of several sounds, each of which is one thread's."""
    features = LogScattering(JTFS(4096, J=8, Q=(8, 1), J_fr=3, dtype=torch.float32))
    x, *dx = torch.randn(4, 3, 4096, generator=torch.Generator().manual_seed(1))
    before, found = torch.get_num_threads(), []
    try:
        for n_threads in (1, 2, 4):
            torch.set_num_threads(n_threads)
            with torch.no_grad():
                found.append((features(x), *features.push(x, torch.stack(dx))))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for some in found[1:] for one, other in zip(found[0], some, strict=True))


def test_any_module_can_be_compressed_and_differentiated():
    features = LogScattering(torch.nn.Linear(8, 3, dtype=torch.float64))
    x, dx = torch.ones(2, 8, dtype=torch.float64), torch.eye(8, dtype=torch.float64)[:, None].expand(8, 2, 8)
    S, dS = features.push(x, dx)
    expected = torch.stack([jvp(features, (x,), (d,))[1] for d in dx])
    torch.testing.assert_close((S, dS), (features(x), expected))
    with pytest.raises(ValueError, match="expected eps > 0, got 0"):
        LogScattering(JTFS(2**14), eps=0)
