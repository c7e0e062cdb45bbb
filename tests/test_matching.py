"""A sound becomes the drum that made it, and what it does not determine is told."""

import json
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import soundfile
import torch

from pnp_tutorial import matching, search
from pnp_tutorial.arpeggiator import ARPEGGIATOR
from pnp_tutorial.dataset import ear
from pnp_tutorial.drum import DRUM, rectangular_drum
from pnp_tutorial.ears import find_ear
from pnp_tutorial.encoder import AudioEncoder, Encoder, load_encoder
from pnp_tutorial.matching import (
    LEVEL_DB,
    Budget,
    Step,
    _opening,
    _recording,
    _settle,
    heard_through,
    match,
)
from pnp_tutorial.metric import eigen, riemannian_metric
from pnp_tutorial.mss import CoarseSpectra
from pnp_tutorial.recording import Recording, noise_like
from pnp_tutorial.round_drum import ROUND_DRUM
from pnp_tutorial.runtime import as_stored
from pnp_tutorial.scattering import JTFS, LogScattering
from pnp_tutorial.search import refine, scan
from pnp_tutorial.uncertainty import UNSURE, covariance, undetermined

QUICK = Budget(n_sounds=16, n_generations=8, n_runs=1, n_iterations=4)
N_SHORT = 8192  # samples of the drums that are sought
DRUM_OPENING = replace(DRUM, n_samples=2**14)
THETA = torch.tensor([3.0, 0.4, -2.0, -2.0, 0.6], dtype=torch.float64)


@pytest.fixture(scope="module")
def model(tiny_training):
    return load_encoder(f"{tiny_training.output_folder}/encoder.safetensors")


def drum(sample_rate=22050, seconds=3.0):
    # Modes above 8 kHz are weak, and resampling must not be blamed for those near Nyquist.
    return rectangular_drum(THETA, int(seconds * sample_rate), sample_rate).numpy()


def drums(nu):
    return rectangular_drum(DRUM.to_theta(nu), N_SHORT, dtype=torch.float32)


def test_coarse_spectra_know_loudness_and_pitch():
    """A sinusoid of amplitude 1 has log(1 + 1/ε) in its own semitone, and the picture moves with it."""
    t = torch.arange(65536) / 22050
    coarse = CoarseSpectra(65536, 22050)
    C = {hz: coarse(torch.sin(2 * np.pi * hz * t)).reshape(len(coarse.weights), -1) for hz in (1120.0, 2240.0)}
    middle = C[1120.0].shape[1] // 2
    peaks = {hz: int(values[:, middle].argmax()) for hz, values in C.items()}
    assert peaks == {1120.0: 60, 2240.0: 72}  # 35 Hz · 2^(60/12) = 1120 Hz
    # A Hann window spreads the sinusoid over neighbouring bins, all of which lie in its band.
    for hz, values in C.items():
        amplitude = 1e-3 * torch.expm1(values[peaks[hz], middle])
        assert 1 <= amplitude < 1.3


@pytest.mark.parametrize("nu", [[0.2, -0.3, 0.4, 0.1, 0.5], [-0.7, 0.6, -0.5, 0.8, -0.4]])
def test_scan_finds_a_drum(nu):
    """From nothing but the box to within hundredths in pitch, sustain and shape."""
    nu = torch.tensor(nu, dtype=torch.float64)
    steps = []
    found, *_ = scan(drums(nu[None])[0], drums, 0 * nu, 22050, seed=1, tell=steps.append)
    assert (found - nu)[[0, 1, 4]].abs().max() < 0.02
    distances = [step.distance for step in steps]
    assert distances == sorted(distances, reverse=True)
    assert steps[-1].n_heard <= 3 * 61 * 64


def test_scan_is_reproducible():
    nu = torch.zeros(5, dtype=torch.float64)
    x = drums(nu[None] + 0.3)[0]
    assert torch.equal(scan(x, drums, nu, 22050, budget=QUICK), scan(x, drums, nu, 22050, budget=QUICK))


def test_the_opening_is_what_has_most_of_the_energy():
    """A quarter of a drum that fades, half or all if it is late, all of a sound that short ones do not begin like."""
    fades = torch.tensor([0.0, -0.8, 0, 0, 0], dtype=torch.float64)
    silence = torch.zeros(DRUM.n_samples)
    opening = partial(_opening, noise=silence)
    assert opening(DRUM(fades, torch.float32), synthesizer=DRUM, nu=fades) == DRUM.n_samples // 4
    for late, n in ((17_000, DRUM.n_samples // 2), (33_000, DRUM.n_samples)):
        x = torch.cat([silence[:late], DRUM(fades, torch.float32)[:-late]])
        assert opening(x, synthesizer=DRUM, nu=fades) == n
        assert _opening(x.as_subclass(OnMPS), silence.as_subclass(OnMPS), DRUM, fades) == n
    arpeggiator = replace(ARPEGGIATOR, n_samples=2**16)
    nu = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    x = torch.cat([arpeggiator(nu).float()[2**15 :], torch.zeros(2**15)])
    assert _opening(x, torch.zeros(2**16), arpeggiator, nu) == 2**16
    short = replace(DRUM, n_samples=2**13)
    assert _opening(short(fades, torch.float32), torch.zeros(2**13), short, fades) == 2**13


def test_an_opening_finds_the_same_drum():
    nu = torch.tensor([0.2, -0.3, 0.4, 0.1, 0.5], dtype=torch.float64)
    lengths = []

    def opening(v):
        sounds = DRUM_OPENING(v, torch.float32)
        lengths.append(sounds.shape[-1])
        return sounds

    def whole(v):
        return DRUM(v, torch.float32)

    found, *_ = scan(whole(nu[None])[0], whole, 0 * nu, 22050, seed=1, opening=opening)
    assert (found - nu)[[0, 1, 4]].abs().max() < 0.005
    assert set(lengths) == {2**14}


def test_a_scan_of_what_no_drum_can_be_ends_where_two_runs_agree():
    """Clipped: nothing comes close enough."""
    nu = torch.tensor([0.2, -0.3, 0.4, 0.1, 0.5], dtype=torch.float64)
    x = drums(nu[None])[0].clamp(-0.2, 0.2)
    heard, coarse = {}, CoarseSpectra(N_SHORT, 22050)
    for exact in (True, False):
        steps = []
        survivors = scan(x / 0.2, drums, 0 * nu, 22050, tell=steps.append, exact=exact)
        heard[exact] = steps[-1].n_heard
        distances = (coarse(drums(survivors)) - coarse(x / 0.2)).norm(dim=-1)
        assert steps[-1].distance == pytest.approx(float(distances[0]), rel=1e-4)
        assert (distances.diff() > -1e-3).all(), "the closest first"
        assert len(survivors) > 3, "those of all runs"
    assert heard[False] < 0.75 * heard[True]


class NeverClose:
    """In place of what searches: all descents end further off than the closest that was heard on the way."""

    def __init__(self, *given):
        self.v, self.distance, self.near, self.evolved = given[2], 1.0, 0.0, 0

    def evolve(self, population, h, random):
        self.evolved += 1
        return population

    def descend(self, v):
        return v, 2.0

    def is_itself(self, again):
        return False

    def survivors(self):
        return self.evolved


@pytest.mark.parametrize(("exact", "n_runs", "evolved"), [(True, 1, 2), (False, 1, 1), (False, 2, 3), (True, 2, 4)])
def test_runs_evolve_further_unless_two_may_still_agree(monkeypatch, exact, n_runs, evolved):
    """The first run of a sound that is none of the synthesizer waits for the second; that no end is near is no reason
    to stop."""
    monkeypatch.setattr(search, "_Closest", NeverClose)
    budget = replace(QUICK, n_runs=n_runs)
    x, start = torch.ones(N_SHORT), torch.zeros(5, dtype=torch.float64)
    assert scan(x, drums, start, 22050, budget=budget, exact=exact) == evolved


def test_the_bar_of_a_match_counts_the_sounds_that_were_heard():
    class Bar:
        n = 0

        def update(self, n):
            self.n += n

        def set_postfix_str(self, text):
            assert text == "scan, distance 3"

    story = search.Story(False, lambda step: None)
    story.bar = Bar()
    for n_heard in (5, 12, 30):
        story.note(Step("scan", n_heard, 3.0, []))
        assert story.bar.n == n_heard


def test_a_noisy_sound_need_not_be_closer_than_to_itself():
    """Through another noise: one run will do, where without it all are made."""
    nu = torch.tensor([0.2, -0.3, 0.4, 0.1, 0.5], dtype=torch.float64)
    noises = 0.03 * torch.randn(3, N_SHORT, generator=torch.Generator().manual_seed(0))
    x = drums(nu[None])[0] + noises[0]
    steps = []
    scan(x, lambda v: drums(v) + noises[1], 0 * nu, 22050, tell=steps.append, again=lambda v: drums(v) + noises[2])
    once = len(steps)
    steps.clear()
    scan(x, lambda v: drums(v) + noises[1], 0 * nu, 22050, tell=steps.append)
    assert once < len(steps) / 2


def test_refinement_ends_at_the_drum_and_tells_what_is_unsure():
    """Within its reach, the refinement finds the drum exactly, and M there is that of the metric."""
    nu = torch.tensor([0.2, -0.3, 0.4, 0.1, 0.5], dtype=torch.float64)
    features = LogScattering(JTFS(N_SHORT, J=9, J_fr=3, Q=(8, 1)))
    with torch.no_grad():
        S = features(drums(nu[None]))[0]
    away = nu + torch.tensor([0.0, 0.02, 0.03, -0.02, 0.0])
    found, distance, M = refine(S, away, features, drums)
    with torch.no_grad():
        before = float((features(drums(away[None]))[0] - S).norm())
    assert distance < 0.1 < before
    expected = riemannian_metric(found[None], features, drums)[0]
    assert torch.allclose(M, expected, rtol=1e-3, atol=1e-3 * float(M.abs().max()))
    assert distance == pytest.approx(float((features(drums(found[None]))[0] - S).norm()), rel=1e-3, abs=1e-4)


def test_refinement_never_ends_farther_and_never_leaves_the_box():
    features = LogScattering(JTFS(N_SHORT, J=9, J_fr=3, Q=(8, 1)))
    for start, target in DRUM.sample_uniform(12, seed=3).split(6)[0].reshape(3, 2, 5):
        start = start.sign()  # a corner
        with torch.no_grad():
            S = features(drums(target[None]))[0]
            before = float((features(drums(start[None]))[0] - S).norm())
        found, after, _ = refine(S, start, features, drums, Budget(n_iterations=5))
        assert after <= before * (1 + 1e-4)
        assert found.abs().max() <= 1


@pytest.mark.parametrize(
    ("name", "value", "least"),
    [("n_sounds", 4, 5), ("n_generations", 0, 1), ("n_runs", 0, 1), ("n_iterations", 2.5, 1)],
)
def test_a_budget_too_small_is_refused(name, value, least):
    expected = rf"{name} of a search's budget must be a whole number in \[{least}, inf\], got {value}"
    with pytest.raises(ValueError, match=expected):
        Budget(**{name: value})


@pytest.mark.parametrize(
    ("audio", "model", "message"),
    [
        (np.zeros(8), DRUM, "expected a path, or a sound as a tensor, got ndarray"),
        (torch.zeros(8), "encoder.safetensors", r"expected an encoder, as load_encoder\(path\) .*, got str"),
    ],
)
def test_what_is_of_another_type_is_named(audio, model, message):
    with pytest.raises(ValueError, match=message):
        match(audio, model)


def test_whole_numbers_of_numpy_are_taken():
    """And become Python's, which JSON can hold."""
    budget = Budget(*np.arange(5, 9))
    assert json.loads(json.dumps(as_stored(budget))) == {
        "n_sounds": 5,
        "n_generations": 6,
        "n_runs": 7,
        "n_iterations": 8,
    }


def identity(v):
    return v


def test_refinement_keeps_a_perfect_start_on_the_edge():
    """SciPy would move it inwards."""
    corner = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0], dtype=torch.float64)
    steps = []
    found, distance, M = refine(corner, corner, identity, identity, tell=steps.append)
    assert torch.equal(found, corner)
    assert distance == 0
    assert torch.equal(M, torch.eye(5, dtype=torch.float64))
    assert steps[-1].v == corner.tolist()


class OnMPS(torch.Tensor):
    """Of a device without float64, where it has no computing to do."""

    def double(self):
        raise TypeError("MPS has no float64")

    def cpu(self):
        return self.as_subclass(torch.Tensor)


def test_refinement_needs_no_float64_on_the_device(monkeypatch):
    J = torch.eye(5)[None].as_subclass(OnMPS)
    monkeypatch.setattr(search, "jacobian", lambda v, features, synthesizer: (features(synthesizer(v)), J))
    nu = torch.full((5,), 0.3, dtype=torch.float64)
    found, _, _ = refine(nu.float(), 0 * nu, lambda x: x.float().as_subclass(OnMPS), identity)
    assert torch.allclose(found, nu, atol=0.05)


@pytest.mark.parametrize("synthesizer", [DRUM, ROUND_DRUM])
def test_a_match_by_a_synthesizer_alone_begins_in_the_centre(synthesizer):
    synthesizer = replace(synthesizer, n_samples=N_SHORT)
    x = synthesizer(synthesizer.sample_uniform(1, seed=1)[0])
    found = match(x, synthesizer, budget=QUICK)
    n = len(synthesizer.parameters)
    assert torch.equal(found.nu_encoder, torch.zeros(n, dtype=torch.float64))
    assert torch.equal(found.nu_constant, found.nu_encoder)
    assert found.distance["encoder"] == found.distance["constant"] > found.distance["match"]
    assert found.history[0].v == (n + 1) * [0.0], "a level is sought, too"
    again = match(x, synthesizer, find_ear("jtfs", N_SHORT, DRUM.sample_rate), budget=QUICK)
    assert torch.equal(again.nu, found.nu), "JTFS if no ear is given"


def test_many_parameters_take_more_generations():
    few, many = search.usual_budget(8), search.usual_budget(9)
    assert few == Budget()
    assert many.n_generations * many.n_sounds > 2 * few.n_generations * few.n_sounds


def test_covariance():
    """What M does not see has the box's variance; what it sees, d²/M."""
    M = torch.diag(torch.tensor([1e6, 0.0, 4e4], dtype=torch.float64))
    for distance, spreads in ((0.0, [1e-3, 3**-0.5, 5e-3]), (10.0, [1e-2, 3**-0.5, 5e-2])):
        assert covariance(M, distance).diagonal().sqrt().tolist() == pytest.approx(spreads, rel=1e-2)


def test_no_variance_is_above_that_of_the_box():
    """Of metrics over sixteen decades, too: rounding may have made their least eigenvalue negative."""
    generator = torch.Generator().manual_seed(0)
    Q = torch.linalg.qr(torch.randn(100, 6, 6, generator=generator, dtype=torch.float64))[0]
    M = Q * torch.logspace(-6, 10, 6, dtype=torch.float64) @ Q.mT
    variances, _ = eigen(torch.stack([covariance(metric, 0.0) for metric in M])[:, :5, :5])
    assert variances.max() <= 1 / 3 + 1e-12
    assert variances.min() > 0


def turned(degrees):
    """Unit vectors (5, 5), as columns: those of ν, but of τ and log p turned in their plane."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    Q = torch.eye(5, dtype=torch.float64)
    Q[1:3, 1:3] = torch.tensor([[cos, sin], [-sin, cos]])
    return Q


@pytest.mark.parametrize(
    ("degrees", "words"), [(0, "tau"), (10, "tau"), (30, "0.9 tau − 0.5 log_p"), (60, "0.9 log_p − 0.5 tau")]
)
def test_directions_of_a_turned_metric(result, degrees, words):
    """M sees next to nothing of log D, nor of a combination of τ and log p: those are the directions."""
    Q = turned(degrees)
    M = Q * torch.tensor([1e6, 1.0, 1e4, 1e-3, 1e8], dtype=torch.float64) @ Q.T
    found = replace(result, covariance=covariance(M, 1.0))
    spreads, directions = found.directions
    assert spreads.tolist() == pytest.approx([3**-0.5, 0.5, 1e-2, 1e-3, 1e-4], rel=1e-3)
    assert directions[:, 0].tolist() == pytest.approx([0, 0, 0, 1, 0], abs=1e-6)
    assert torch.allclose(directions[:, 1], Q[:, 1] * Q[:, 1].sum().sign(), atol=1e-6)
    assert found.to_dict()["undetermined"] == (["tau", "log_D"] if degrees <= 10 else ["log_D", words])


def test_parameters_in_the_span_of_unsure_directions_are_named():
    """Of a plane of which nothing is known, all directions are alike."""
    spreads = torch.tensor([0.57, 0.5, 0.1, 0.1, 0.1], dtype=torch.float64)
    assert undetermined(spreads, turned(40)[:, [1, 2, 0, 3, 4]], DRUM.names) == ["tau", "log_p"]
    assert undetermined(spreads / 2, turned(40), DRUM.names) == []
    assert undetermined(spreads + 0.4, turned(40), list("abcde")) == list("abcde")
    Q = torch.zeros(5, 2, dtype=torch.float64)
    Q[3] = 0.5**0.5  # log D is in both, and between them is τ with α
    Q[[1, 4]] = torch.tensor([[0.8], [0.6]]).double() * torch.tensor([0.5**0.5, -(0.5**0.5)])
    assert undetermined(spreads, torch.linalg.qr(Q, "complete")[0], DRUM.names) == ["log_D", "0.8 tau + 0.6 alpha"]
    nearly = torch.tensor([[0.9], *[[(0.19 / 4) ** 0.5]] * 4]).double()  # but for a few that are minor, one each
    assert undetermined(spreads[:1], nearly, DRUM.names) == ["log_omega"]


def test_no_parameter_is_named_twice():
    """Of many, more may lie in the span, up to a tenth each, than it has dimensions."""
    n = 12
    left_out = torch.full((n, 1), n**-0.5, dtype=torch.float64)
    Q = torch.linalg.qr(torch.cat([left_out, torch.eye(n, dtype=torch.float64)[:, 1:]], 1))[0].roll(-1, 1)
    spreads = torch.tensor([0.57] * (n - 1) + [0.1], dtype=torch.float64)
    names = [f"p{j}" for j in range(n)]
    assert undetermined(spreads, Q, names) == names


@pytest.fixture(scope="module")
def result(model):
    return match(rectangular_drum(THETA, 2048), model)


def test_a_sound_without_any_noise_has_a_level_of_it(model):
    """Two clicks, between which there is nothing at all."""
    x = torch.zeros(2048)
    x[[0, 1500]] = 1.0
    assert match(x, model, budget=QUICK).noise_db == -180


def test_match_is_consistent(model, result):
    """Every number of the result follows from the drum that it names."""
    x = rectangular_drum(THETA, 2048)
    features = ear(model.config)
    assert torch.equal(result.nu_encoder, model(x.float()))
    assert torch.equal(result.theta, DRUM.to_theta(result.nu))
    noise = 10 ** (result.noise_db / 20) * torch.randn(2048, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(result.noise, noise)
    for name, nu in (("encoder", result.nu_encoder), ("match", result.nu), ("constant", result.nu_constant)):
        level = 10 ** (result.level_db / 20) if name == "match" else 1
        heard = level * rectangular_drum(DRUM.to_theta(nu), 2048, dtype=torch.float32) + noise
        distance = (features(heard) - features(x.float())).norm()
        assert result.distance[name] == pytest.approx(float(distance), rel=1e-4, abs=1e-3), name
    assert torch.equal(result.x_hat, rectangular_drum(result.theta, 2048, dtype=torch.float32))


def test_match_is_better_than_the_encoder_alone(result):
    assert result.distance["match"] <= min(result.distance["encoder"], result.distance["scan"]) * (1 + 1e-4)
    assert result.distance["match"] < 0.1 * result.distance["encoder"]
    assert (result.theta - THETA)[[0, 1]].abs().max() < 0.01


CORNER = [0.9, 0.9, -0.9, 0.9, 0.9, 0.9]  # far from THETA


@pytest.fixture
def misled(model, monkeypatch):
    """A match of THETA and what it refines, if the encoder predicts ν, the scan ends in these v, and `refine` stays."""

    def starts(nu, *ends, band=1.0):
        begun = []

        def stay(S, v, features, h, budget, tell, alike):
            begun.append(v.tolist())
            with torch.no_grad():
                distance = float((features(h(v[None]))[0] - S).norm())
            tell(Step("refine", 1, distance, v.tolist()))
            return v, distance, torch.eye(len(v), dtype=torch.float64)

        monkeypatch.setattr(AudioEncoder, "forward", lambda self, x: torch.as_tensor(nu, dtype=torch.float64))
        monkeypatch.setattr(matching, "scan", lambda *args: torch.tensor([*ends], dtype=torch.float64))
        monkeypatch.setattr(matching, "refine", stay)
        return match(Recording(rectangular_drum(THETA, 2048), band), model), begun

    return starts


def moved(*steps):
    """v of THETA at its level, with its first numbers moved by these steps."""
    v = [*DRUM.to_nu(THETA).tolist(), 0.0]
    return [value + step for value, step in zip(v, [*steps, *[0.0] * (6 - len(steps))], strict=True)]


def test_a_match_never_ends_behind_the_encoder(misled):
    """Wherever the scan has ended."""
    near = moved(0.02)
    found, begun = misled(near[:5], CORNER)
    assert begun[0] == near
    assert found.distance["match"] == pytest.approx(found.distance["encoder"], rel=1e-4)
    assert found.distance["match"] < found.distance["scan"]


def test_both_ears_choose_among_the_survivors_of_a_scan(misled):
    """Of a file at another rate: the nearest by the finer ear comes first; three that differ are refined."""
    ends = [[*CORNER[:5], 0.0], moved(0.5, 0.3), moved(0.02), moved(0.003), moved(-0.4)]
    found, begun = misled(CORNER[:5], *ends, band=0.9)
    assert begun[0] == ends[2]
    assert len(begun) == 3
    assert ends[3] not in begun, "hardly another one"
    assert found.nu.tolist() == ends[2][:5]


def test_what_is_not_needed_at_an_end_of_its_range_moves_inside(misled):
    """Of this drum, stiffness is not heard until it is a hundred times the least."""
    end = [*CORNER[:3], -1.0, *CORNER[4:5], 0.0]
    found, begun = misled(CORNER[:5], end, band=0.9)
    assert end in begun
    assert -0.6 < found.nu[3] <= 0
    assert found.nu[[0, 1, 2, 4]].tolist() == [end[j] for j in (0, 1, 2, 4)]
    assert found.history[-1].v[:5] == found.nu.tolist()
    assert found.distance["match"] <= 1.01 * found.distance["scan"]


def test_settling_hears_each_parameter_where_the_others_have_settled():
    """The first is of no account while the second stands at its end; then the second is not while the first is 0."""

    def distances(v):
        return 1 + 0.1 * (v[:, 0].abs() - 0.3).clamp_min(0) * (v[:, 1] + 1) + (v[:, 2] - 1).abs()

    v = torch.tensor([-1.0, -1.0, 1.0, 0.5])
    settled = _settle(v, distances, 1.005)
    assert list(map(str, settled.tolist())) == ["0.0", "0.0", "1.0", "0.5"]  # not −0
    assert v.tolist() == [-1.0, -1.0, 1.0, 0.5]
    assert torch.equal(_settle(v, lambda v: v.new_full((len(v),), 2.0), 1.0), v)


def test_a_drum_that_is_found_is_refined_once(misled):
    """And no survivor is heard but the closest."""
    ends = [moved(1e-5), moved(1e-6), CORNER]
    found, begun = misled(CORNER[:5], *ends)
    assert begun == ends[:1]
    assert found.distance["scan"] < 1


def test_covariance_of_a_match(model, result):
    """It is that of the metric at the match, level included; uncertainties and directions are two views of it."""
    features = ear(model.config)
    v = torch.cat([result.nu, torch.tensor([result.level_db / 12])])

    def heard(v):
        level = 10 ** (12 / 20 * v[..., 5:]).float()
        return level * rectangular_drum(DRUM.to_theta(v[..., :5]), 2048, dtype=torch.float32) + result.noise

    M = riemannian_metric(v[None], features, heard)[0]
    precision = M / max(result.distance["match"], 1) ** 2 + 3 * torch.eye(6)
    expected = torch.linalg.inv(precision)[:5, :5]
    assert torch.allclose(result.covariance, expected, rtol=1e-2, atol=1e-3 * float(expected.abs().max()))
    spreads, directions = result.directions
    assert torch.equal(spreads, spreads.sort(descending=True).values)
    assert torch.allclose(directions * spreads**2 @ directions.T, result.covariance, atol=1e-12)
    assert torch.allclose((directions * spreads).norm(dim=1), result.uncertainty)


def test_a_sine_determines_pitch_and_sustain_only(model, monkeypatch):
    """A single partial does not say how others decay, nor how stiff the drum is.

    (The shape it may tell: in a drum so long that its first partials are one.) Where among them the search ends depends
    on where it began: at the centre, and not where a moment of training led.
    """
    monkeypatch.setattr(AudioEncoder, "forward", lambda self, x: torch.zeros(5))
    t = torch.arange(2048, dtype=torch.float64) / 22050
    found = match(torch.exp(-t / 0.08) * torch.sin(2 * torch.pi * 440 * t), model)
    assert found.theta[0] == pytest.approx(np.log10(2 * np.pi * 440), abs=0.003)
    assert (found.uncertainty > UNSURE).tolist()[:4] == [False, False, True, True]
    spreads, directions = found.directions
    assert (spreads > UNSURE).tolist()[1:] in ([True, False, False, False], [True, True, False, False])
    assert directions[0, :2].abs().max() < 0.02, "the pitch has no part in them"


def test_stiffness_that_is_not_heard_is_undetermined(model, result):
    theta = THETA + torch.tensor([0, 0, 0, -2.5, 0])
    found = match(rectangular_drum(theta, 2048), model)
    assert "log_D" in found.to_dict()["undetermined"]
    assert "log_D" not in result.to_dict()["undetermined"], "THETA's is heard"
    spreads, directions = found.directions
    assert spreads[0] == pytest.approx(3**-0.5, rel=1e-3)
    assert directions[:, 0].tolist() == pytest.approx([0, 0, 0, 1, 0], abs=0.01)


def test_history_tells_the_story(result):
    stages = [step.stage for step in result.history]
    assert stages == sorted(stages, key=["predict", "scan", "refine"].index)
    assert set(stages) == {"predict", "scan", "refine"}
    counts = [step.n_heard for step in result.history]
    assert counts == sorted(counts)
    assert result.history[-1].v[:5] == pytest.approx(result.nu.tolist())


def test_the_same_seed_gives_the_same_match(model, result):
    again = match(rectangular_drum(THETA, 2048), model)
    assert torch.equal(again.nu, result.nu)
    assert again.distance == result.distance


def test_constant_is_the_best_that_the_encoder_knows(model):
    constant = [0.1, -0.2, 0.3, -0.4, 0.5]
    stamped = AudioEncoder(model.encoder, model.config, metadata={"evaluation": {"nu_constant": constant}}).eval()
    x = rectangular_drum(DRUM.to_theta(torch.tensor(constant, dtype=torch.float64)), 2048)
    found = match(x, stamped, budget=QUICK)
    assert found.nu_constant.tolist() == constant
    noise = 10 ** (found.noise_db / 20) * torch.randn(2048, generator=torch.Generator().manual_seed(0))
    heard = rectangular_drum(DRUM.to_theta(found.nu_constant), 2048, dtype=torch.float32) + noise
    features = ear(model.config)
    own = float((features(heard) - features(x.float())).norm())  # what that drum's noise alone does
    assert found.distance["constant"] == pytest.approx(own, abs=1e-3)
    assert own < 1e-2
    assert found.distance["encoder"] > 1


def test_the_level_of_a_drum_is_found(model):
    """Of a drum that is half as loud as something else in the recording was, and of one whose peak was doubled."""
    features, h = ear(model.config), heard_through(torch.zeros(2048), model.config.synthesizer, torch.device("cpu"))
    v = torch.cat([DRUM.to_nu(THETA), torch.tensor([-6.02 / LEVEL_DB], dtype=torch.float64)])
    with torch.no_grad():
        S = features(h(v))
    assert h(v).abs().max() == pytest.approx(0.5, rel=1e-3)
    found, _, _ = refine(S, v + torch.tensor([0.0, 0.02, 0.0, 0.0, 0.0, 0.3]), features, h)
    assert LEVEL_DB * found[-1] == pytest.approx(-6.02, abs=0.1)
    x = rectangular_drum(THETA, 2048)
    x[x.abs().argmax()] *= 2
    whole = match(x, model)
    assert -7 < whole.level_db < -3
    assert (whole.theta - THETA)[0].abs() < 0.01
    assert whole.x_hat.abs().max() == pytest.approx(1)


@pytest.mark.parametrize("level", [0.0, 0.02])
def test_clipped_and_noisy_drums_are_matched(model, level):
    x = rectangular_drum(THETA, 2048)
    x = (1.5 * x).clamp(-1, 1) + level * torch.randn(2048, generator=torch.Generator().manual_seed(1))
    found = match(x / x.abs().max(), model)
    assert found.distance["match"] < found.distance["encoder"]
    assert (found.theta - THETA)[0].abs() < 0.03, "the pitch survives"


def test_noise_ends_where_the_recording_ends(model):
    """A drum of full length is heard through the same noise as ever; a short one has its noise to itself."""
    noise = 0.02 * torch.randn(2048, generator=torch.Generator().manual_seed(1))
    x = torch.nn.functional.pad((rectangular_drum(THETA, 2048) + noise)[:1200], (0, 848))
    found = match(x / x.abs().max(), model, budget=QUICK)
    assert found.noise_db == pytest.approx(20 * np.log10(0.02 / float(x.abs().max())), abs=2)
    noise = noise_like(2048, 1200, 1.0, 0)
    assert torch.equal(noise[:1200], torch.randn(2048, generator=torch.Generator().manual_seed(0))[:1200])
    assert (noise[1200:] == 0).all()
    heard = rectangular_drum(DRUM.to_theta(found.nu_encoder), 2048, dtype=torch.float32)
    heard = heard + 10 ** (found.noise_db / 20) * noise
    features = ear(model.config)
    distance = float((features(heard) - features(found.x)).norm())
    assert found.distance["encoder"] == pytest.approx(distance, rel=1e-4)


@pytest.mark.parametrize("rate", [22050, 44100])
def test_noise_of_a_file_of_a_high_rate(model, tmp_path, rate):
    """Of one whose rate is converted, none is heard in the tenth of the band where that fades out."""
    n = math.ceil(2048 * rate / 22050)
    x = drum(rate)[:n] + 0.02 * np.random.default_rng(0).normal(size=n)
    soundfile.write(tmp_path / "x.wav", 0.5 * x, rate, subtype="FLOAT")
    found = match(tmp_path / "x.wav", model, budget=QUICK)
    assert found.noise_db == pytest.approx(20 * np.log10(0.02 / np.abs(x).max() * (22050 / rate) ** 0.5), abs=1)
    power = torch.fft.rfft(found.noise).abs() ** 2 / 2048 / 10 ** (found.noise_db / 10)
    assert power[:920].mean() == pytest.approx(1, abs=0.2)
    assert power[924:].mean() == pytest.approx(0 if rate > 22050 else 1, abs=0.2)


def test_noise_of_a_file_of_a_low_rate(model, tmp_path):
    """It is heard where the file has any, and nowhere above."""
    x = drum(8000)[:743] + 0.02 * np.random.default_rng(0).normal(size=743)  # 2048 samples at 22 050 Hz
    soundfile.write(tmp_path / "x.wav", 0.5 * x, 8000, subtype="FLOAT")
    found = match(tmp_path / "x.wav", model, budget=QUICK)
    level = 0.02 / np.abs(x).max() * (22050 / 8000) ** 0.5
    assert found.noise_db == pytest.approx(20 * np.log10(level), abs=3)
    power = torch.fft.rfft(noise_like(2048, 2048, 0.9 * 8000 / 22050, 0)).abs() ** 2 / 2048
    assert power[:334].mean() == pytest.approx(1, abs=0.2)
    assert power[336:].max() < 1e-9


@pytest.mark.parametrize("gain", [2.0**-20, 0.01, 1e6])
def test_the_gain_makes_no_difference(model, gain):
    x = rectangular_drum(THETA, 2048)
    expected, found = (match(scale * x, model, budget=QUICK) for scale in (1.0, gain))
    assert found.x.abs().max() == 1
    torch.testing.assert_close(found.x, expected.x)
    assert found.distance["encoder"] == pytest.approx(expected.distance["encoder"], rel=1e-4)
    if gain == 2.0**-20:
        assert torch.equal(found.nu, expected.nu)


def test_a_gain_beyond_float32_makes_no_difference_either(model):
    """And a sound that is part of a graph is matched as one that is not."""
    x = rectangular_drum(THETA, 2048)
    expected, *found = (
        match(sound, model, budget=QUICK).nu for sound in (x, 1e-60 * x, 1e60 * x, x.clone().requires_grad_())
    )
    for nu in found:
        torch.testing.assert_close(nu, expected)


@pytest.mark.parametrize(("gain", "message"), [(1e-60, "nothing but zeros"), (1e60, "finite audio")])
def test_sounds_with_a_level_that_float32_lacks(gain, message):
    synthesizer = replace(DRUM, n_samples=2048, peak_normalized=False)
    with pytest.raises(ValueError, match=message):
        _recording(gain * rectangular_drum(THETA, 2048), synthesizer)


@pytest.mark.parametrize("seed", [-1, 10**20, 0.5])
def test_seeds_that_cannot_be(model, seed):
    with pytest.raises(ValueError, match=r"seed must be a whole number in \[0, .*, got"):
        match(torch.ones(2048), model, seed=seed)


def test_audio_of_integers(model):
    with pytest.raises(ValueError, match=r"expected audio of shape \(2048,\), got torch.int16"):
        match(torch.ones(2048, dtype=torch.int16), model)


def test_known_pitch_cannot_match(model):
    with pytest.raises(ValueError, match="known log_omega"):
        match(torch.ones(2048), AudioEncoder(Encoder(4, "test_efficientnet"), model.config, ("log_omega",)))


def test_wrong_length(model):
    with pytest.raises(ValueError, match=r"shape \(2048,\), got torch.float32 of shape \(100,\)"):
        match(torch.ones(100), model)


def test_audio_of_zeros(model):
    with pytest.raises(ValueError, match="nothing but zeros"):
        match(torch.zeros(2048), model)


def test_audio_that_is_not_finite(model):
    with pytest.raises(ValueError, match="finite"):
        match(torch.full((2048,), torch.nan), model)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2048), "nothing but zeros"),
        (torch.ones(100), r"of shape \(100,\)"),
        (torch.full((2048,), math.nan), "finite"),
    ],
)
def test_a_recording_is_tried_as_a_tensor_is(model, x, message):
    with pytest.raises(ValueError, match=message):
        match(Recording(x, 1.0), model)


def test_features_may_be_named_and_must_be_an_ear():
    short = replace(DRUM, n_samples=2048)
    x = short(torch.zeros(5, dtype=torch.float64)).float()
    budget = Budget(n_sounds=5, n_generations=1, n_runs=1, n_iterations=1)
    assert match(x, short, "coarse", budget=budget).distance["match"] >= 0
    with pytest.raises(ValueError, match="expected an ear as a name or a callable, got 3"):
        match(x, short, 3, budget=budget)
    with pytest.raises(ValueError, match=r"a vector for each sound, got \(1, 64, 32\)"):
        match(x, short, lambda x: x.unflatten(-1, (64, 32)), budget=budget)


@pytest.mark.parametrize(
    ("target", "start", "message"),
    [
        (torch.full((2048,), torch.nan), torch.zeros(5), "in finite numbers, got NaN or infinity"),
        (torch.zeros(1, 2048), torch.zeros(5), r"sought, .* as a tensor with one axis, got shape \(1, 2048\)"),
        (np.zeros(2048), torch.zeros(5), "sought, .* as a tensor with one axis, got ndarray"),
        (torch.zeros(2048), torch.zeros(1, 5), r"expected a start as a tensor with one axis, got shape \(1, 5\)"),
        (torch.zeros(2048), [0.0] * 5, "expected a start as a tensor with one axis, got list"),
        (torch.zeros(2048), torch.tensor([0, 0, 0, 0, 1.5]), r"expected a start .*, got \[0.0, 0.0, 0.0, 0.0, 1.5\]"),
        (torch.zeros(2048), torch.full((5,), torch.nan), r"expected a start .*, got \[nan, "),
    ],
)
def test_a_search_for_what_is_no_vector_or_from_outside_the_box_is_refused(target, start, message):
    short = replace(DRUM, n_samples=2048)
    with pytest.raises(ValueError, match=message):
        scan(target, short, start, DRUM.sample_rate)
    with pytest.raises(ValueError, match=message):
        refine(target, start, lambda x: x, short)


def test_a_refinement_by_an_ear_with_weights_of_its_own():
    short, ear = replace(DRUM, n_samples=512), torch.nn.Linear(512, 16)
    hear = lambda x: ear(x.float())  # noqa: E731
    target = hear(short(torch.zeros(5).double())).detach()
    v, distance, M = refine(target, torch.full((5,), 0.01).double(), hear, short)
    assert distance < (hear(short(torch.full((1, 5), 0.01).double()))[0] - target).norm()
    assert M.shape == (5, 5)
    assert not M.requires_grad
