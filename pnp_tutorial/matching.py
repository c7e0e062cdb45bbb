"""From a recording to parameters: predicted by the encoder, sought in the whole box, refined on the metric's Jacobian.

    load      x: one channel, of the synthesizer's length and rate; σ: the level of its noise (`recording`)
    predict   ν⁰ = f_W(x)
    scan      v¹ = argmin ‖C(h(v)) − C(x)‖ over the box     C: coarse spectra; differential evolution and descents
    refine    ṽ = argmin ½ ‖Φ(h(v)) − Φ(x)‖² from v¹        Levenberg–Marquardt in the box, J of `metric.jacobian`
    settle    what stands at an end of its range and is not needed there, moves inside

where h hears a sound as it may be in the recording:

    h(v) = 10^(12 l / 20) g(ν) + σ n,    v = (ν, l) in [−1, 1]ⁿ⁺¹

If the synthesizer's sounds all have a peak of 1, recordings are scaled to that peak. But what has the peak may be no
such sound (a click, noise), or its own peak be missing: l is its level, 12 dB up or down. For other synthesizers l = 0,
and v = ν. The noise n is white, and one for all sounds; it ends where the recording ends, in time and, for files of
another sample rate, in frequency.

Refinement alone seldom helps: along pitch, the distance in JTFS has a dent at every semitone, which is how far its
filters are apart. The distance in C has none, and is so cheap that thousands of sounds can be tried.

A descent drives what a sound hardly determines to the walls of the box, for the last thousandth of the distance. Of a
sound that is no drum of the model, that means nothing. So each v_j at a wall moves as near to the middle of its range
as leaves the distance within a hundredth of what it was.

What a sound does not determine is told by the metric M = JᵀJ at ṽ. Let the features move by d, the distance that is
left or 1 if that is more, and let [−1, 1] have its own variance, 1/3. Then v has the covariance Σ, and v_j is uncertain
by u_j,

    Σ = (M / d² + 3 I)⁻¹,    u_j = √Σ_jj,  at most 1/√3, where nothing is known of v_j.

Of drums in coloured noise, in rooms or struck where no drum of the model is, about half of the errors are smaller than
u_j/3, four of five than 1.3 u_j, and one in twenty is larger than 6 u_j (chapter 9): the tails are those of a wrong
model.

Where one parameter can make up for another, both are unsure, but not what they do together. That is told by the
eigenvectors of Σ, or rather of its n × n block for ν: directions, each with a spread of its own.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import OptimizeResult, differential_evolution, least_squares
from torch import Tensor
from tqdm.auto import tqdm

from .dataset import MOST_SEED, ear
from .encoder import AudioEncoder
from .metric import Map, eigen, gram, jacobian
from .mss import CoarseSpectra
from .recording import Recording, load_recording, noise_level, noise_like
from .runtime import float64_device
from .scalogram import check_whole
from .synthesizer import Synthesizer

ALIKE = 0.1  # distance in features at which a refinement has come close enough
UNIT = 1.0  # the same for a recording that no sound matches exactly; what is less does not tell sounds apart
PRIOR = 1 / 3  # variance of a number drawn from [−1, 1]
UNSURE = (PRIOR / 2) ** 0.5  # spread of a direction above which the box says more of it than the sound
MINOR = 0.3  # component of a unit vector that is not worth a word: less than a tenth of its square
DESCENTS = 3  # in a run of the scan, from sounds that are at least APART in a parameter
APART = 0.05
ZOOM = 0.1  # around the closest sound, on either side
AROUND = 0.4  # the same, around a start
ITSELF = 1.1  # times the distance of a sound from itself through another noise: as close as noise allows
FAR = 3.0  # distance in features above which, if noise does not explain it, both ears choose
REFINEMENTS = 3  # of sounds that are apart, where both ears choose
EDGE = 0.98  # |v_j| from which on a parameter stands at an end of its range
INSIDE = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95)  # where it may stand as well,
AS_CLOSE = 1.01  # if the distance is no more than so many times that of the refinement
MOST = 0.8  # of a sound's energy that is in its opening
LEVEL_DB = 12  # of the sound in the recording, up or down


class Step(NamedTuple):
    """One line of the story of a match."""

    stage: str  # "predict", "scan" or "refine"
    n_heard: int  # sounds that were heard up to here
    distance: float  # of the best of them: of coarse spectra in "scan", else of Φ
    v: list[float]  # where that is


Listener = Callable[[Step], None]  # is told of every step as it is made


@dataclass(frozen=True)
class Budget:
    """How long a search may take. The default finds two hundred of two hundred drums (chapter 9).

    Raises ValueError unless all are whole numbers, n_sounds at least 5 and the others at least 1.
    """

    n_sounds: int = 64  # of a generation of the scan; differential evolution needs 5
    n_generations: int = 30  # of each of the two evolutions in a run of the scan
    n_runs: int = 5  # of the scan, at most
    n_iterations: int = 20  # of a descent, in the scan or as the refinement: so many sounds are tried at most

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            check_whole(f"{name} of a search's budget", value, 5 if name == "n_sounds" else 1)


BUDGET = Budget()


@dataclass(frozen=True)
class Match:
    """A recording and the sound that was found for it.

    Attributes
    ----------
    synthesizer : Synthesizer
    x, x_hat : Tensors (n_samples,), the recording as it was heard and the matched sound, both of peak 1 if all of the
        synthesizer's are
    nu, theta : Tensors (n,), the parameters found
    level_db : float, of the sound in the recording, above that of the synthesizer
    covariance : Tensor (n, n), of ν, as at the head of this module
    nu_encoder, nu_constant : Tensors (n,), what the encoder predicted, and the best constant that it knows
    distance : dict of floats
        Distance in features from the recording of the sounds "constant", "encoder", "scan" and "match", all heard
        through its noise, the first two at the synthesizer's level. That of "match" is the least of the last three, or
        up to a hundredth more, if that took a parameter from an end of its range.
    noise : Tensor (n_samples,), σ n, through which sounds were heard
    noise_db : float, level of that noise, in decibels above 1
    history : tuple of Steps
    """

    synthesizer: Synthesizer
    x: Tensor
    x_hat: Tensor
    nu: Tensor
    theta: Tensor
    level_db: float
    covariance: Tensor
    nu_encoder: Tensor
    nu_constant: Tensor
    distance: dict[str, float]
    noise: Tensor
    noise_db: float
    history: tuple[Step, ...]

    @property
    def uncertainty(self) -> Tensor:
        """Of each ν_j (n,), whatever the others are."""
        return self.covariance.diagonal().sqrt()

    @property
    def directions(self) -> tuple[Tensor, Tensor]:
        """Spreads (n,) of ν, the largest first, and the unit vectors (n, n) along which it has them, as columns."""
        variances, directions = eigen(self.covariance)
        return variances.clamp_min(0).sqrt().flip(0), directions.flip(1)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: synthesizer; parameters with name, symbol, unit, value, uncertainty; directions; distances, noise,
        effort.
        """
        synthesizer, names = self.synthesizer, self.synthesizer.names
        spread = self.uncertainty * synthesizer.slope(self.nu)
        parameters = [
            {"name": p.name, "symbol": p.symbol, "unit": p.unit, "meaning": p.meaning, "value": value, "uncertainty": u}
            for p, value, u in zip(synthesizer.parameters, self.theta.tolist(), spread.tolist(), strict=True)
        ]
        spreads, vectors = self.directions
        directions = [
            {"spread": spread, **dict(zip(names, vector, strict=True))}
            for spread, vector in zip(spreads.tolist(), vectors.T.tolist(), strict=True)
        ]
        named = {"encoder": self.nu_encoder, "constant": self.nu_constant}
        others = {name: dict(zip(names, synthesizer.to_theta(nu).tolist(), strict=True)) for name, nu in named.items()}
        effort = {"n_heard": self.history[-1].n_heard, "n_iterations": sum(s.stage == "refine" for s in self.history)}
        return {
            "synthesizer": synthesizer.name,
            "theta": parameters,
            "nu": self.nu.tolist(),
            "directions": directions,
            "undetermined": undetermined(spreads, vectors, names),
            "distance": self.distance,
            "level_db": self.level_db,
            "noise_db": self.noise_db,
            **effort,
            **others,
        }


def scan(
    x: Tensor,
    synthesizer: Map,
    start: Tensor,
    sample_rate: float,
    seed: int = 0,
    budget: Budget = BUDGET,
    tell: Listener = lambda step: None,
    opening: Map | None = None,
    again: Map | None = None,
    exact: bool = True,
) -> Tensor:
    """The v whose sound is closest to x in coarse spectra, sought in the whole box [−1, 1]ⁿ.

    A population of sounds evolves by differential evolution. While it does, only their openings are made and heard, if
    those will do. From the three closest that differ, `refine` descends in coarse spectra. If none ends close enough,
    the closest evolve further at full length, among others around the best of all, which descends once more. All that
    now and then ends in a wrong valley. So it is run again, from other sounds, until one comes close enough or the
    budget is spent. Where a sound may be just that of x, a quarter of them are then around `start`.

    Close enough is a thousandth of ‖C(x)‖, or as close as the sound is to itself through another noise. Of a recording
    that no sound of the synthesizer can match exactly, three thousandths will do, or two runs that end at one distance,
    to a twentieth of it.

    Parameters
    ----------
    x : Tensor, shape (n_samples,)
    synthesizer : callable
        v (B, n), float64, to sounds (B, n_samples).
    start : Tensor, shape (n,)
        One of those at the beginning of the first run, such as the encoder's. All others of it are random.
    sample_rate : float, Hz
    seed : int
    budget : Budget
    tell : callable
        Told of every generation, and of every step of a descent.
    opening : callable, optional
        Makes the first samples of the synthesizer's sounds, in less time.
    again : callable, optional
        The synthesizer, heard through another noise.
    exact : bool
        Whether a sound of the synthesizer may be just that of x.

    Returns
    -------
    v : Tensor, shape (K, n), float64, on the CPU
        The closest of all; then where the descents ended, the closest first.
    """
    start = start.cpu().double()
    closest = _Closest(x, synthesizer, start, sample_rate, budget, tell, 1e-3 if exact else 3e-3)
    ends: list[float] = []  # distances in which the runs have ended
    for run in range(budget.n_runs):
        random = np.random.default_rng([seed, run])
        population = torch.from_numpy(random.uniform(-1, 1, (budget.n_sounds, len(start))))
        if run == 0:
            population[0] = start  # in one run only: that two agree should say something
        elif exact:
            population[::4] = (start + AROUND * population[::4]).clamp(-1, 1)
        population = closest.evolve(population, opening or synthesizer, random)
        ends.append(math.inf)

        candidates = _apart(population)
        for i, candidate in enumerate(candidates):
            candidates[i], distance = closest.descend(candidate)
            ends[-1] = min(ends[-1], distance)
            if closest.distance < closest.near:
                return closest.survivors()
        agreed = not exact and sum(end < 1.05 * closest.distance for end in ends) > 1
        if agreed or closest.is_itself(again):
            return closest.survivors()
        if exact or run:
            few = max(5, budget.n_sounds // 4)
            best = torch.stack([closest.v, *candidates, *population])[:few]
            around = closest.v + ZOOM * torch.from_numpy(random.uniform(-1, 1, (few, len(start))))
            population = closest.evolve(torch.cat([best, around.clamp(-1, 1)]), synthesizer, random)
            ends[-1] = min(ends[-1], closest.descend(population[0])[1])
            if closest.distance < closest.near or closest.is_itself(again):
                return closest.survivors()
    return closest.survivors()


class _Closest:
    """The closest v so far in coarse spectra, and two ways to come closer. Every step is told."""

    def __init__(
        self,
        x: Tensor,
        synthesizer: Map,
        start: Tensor,
        sample_rate: float,
        budget: Budget,
        tell: Listener,
        near: float,
    ) -> None:
        self.x, self.synthesizer, self.budget, self.tell = x, synthesizer, budget, tell
        self.coarse = CoarseSpectra(len(x), sample_rate).to(x.device)
        self.target = self.coarse(x)
        self.near = near * float(self.target.norm())
        self.v, self.distance, self.n_heard = start, math.inf, 0
        self.ends: list[tuple[Tensor, float]] = []  # of descents

    def _hear(self, v: Tensor, h: Map) -> Tensor:
        """Distances (B,) of v (B, n), as far as h makes sounds."""
        self.n_heard += len(v)
        with torch.no_grad():
            sounds = h(v)
            n = sounds.shape[-1]
            target = self.target if n == len(self.x) else self.coarse(self.x[:n])
            return (self.coarse(sounds) - target).norm(dim=-1).cpu().double()

    def _note(self, v: Tensor, distance: float) -> None:
        if distance < self.distance:
            self.v, self.distance = v, distance
        self.tell(Step("scan", self.n_heard, self.distance, self.v.tolist()))

    def is_itself(self, again: Map | None) -> bool:
        """Whether the closest is as close to x as to itself through another noise."""
        if again is None:
            return False
        with torch.no_grad():
            one, other = self.coarse(torch.cat([self.synthesizer(self.v[None]), again(self.v[None])]))
        return self.distance < ITSELF * float((one - other).norm())

    def evolve(self, population: Tensor, h: Map, random: np.random.Generator) -> Tensor:
        """What a population (B, n) becomes by differential evolution in the sounds of h, the closest first."""

        def generation(intermediate_result: OptimizeResult) -> None:
            v = torch.from_numpy(intermediate_result.x.copy())
            self._note(v, float(self._hear(v[None], self.synthesizer)))

        result = differential_evolution(
            lambda v: self._hear(torch.from_numpy(v.T.copy()), h).numpy(),
            [(-1, 1)] * population.shape[1],
            init=population.numpy(),
            maxiter=self.budget.n_generations,
            mutation=(0.4, 0.9),
            recombination=0.9,
            tol=0,  # through noise, all distances are much alike long before the sounds are
            rng=random,
            vectorized=True,
            updating="deferred",
            polish=False,
            callback=generation,
        )
        return torch.from_numpy(result.population[np.argsort(result.population_energies)])

    def descend(self, v: Tensor) -> tuple[Tensor, float]:
        """Where `refine` ends in coarse spectra, and at which distance."""
        before = self.n_heard

        def iteration(step: Step) -> None:
            self.n_heard = before + step.n_heard
            self._note(torch.tensor(step.v, dtype=torch.float64), step.distance)

        alike = 1e-2 * self.near
        v, distance, _ = refine(self.target, v, self.coarse, self.synthesizer, self.budget, iteration, alike, 1e-3)
        self.ends.append((v, distance))
        return v, distance

    def survivors(self) -> Tensor:
        """The closest, and the ends of the descents, the closest first (K, n)."""
        return torch.stack([self.v, *(v for v, _ in sorted(self.ends, key=itemgetter(1)))])


def _apart(population: Tensor, most: int = DESCENTS) -> list[Tensor]:
    """The first few v of a population (B, n) that are apart from one another."""
    few: list[Tensor] = []
    for v in population:
        if len(few) < most and all((v - other).abs().max() > APART for other in few):
            few.append(v)
    return few


def refine(
    S: Tensor,
    v: Tensor,
    features: Map,
    synthesizer: Map,
    budget: Budget = BUDGET,
    tell: Listener = lambda step: None,
    alike: float = ALIKE,
    gain: float = 3e-3,
) -> tuple[Tensor, float, Tensor]:
    """Damped Gauss–Newton steps on ½ ‖Φ(h(v)) − S‖² from v, kept in the box [−1, 1]ⁿ.

    SciPy's trust-region reflective method: Levenberg and Marquardt's with the damping that the gain ratio allows,
    each step the solution of the stacked system [J; √λ D].

    Parameters
    ----------
    S : Tensor, shape (P,), features of the recording
    v : Tensor, shape (n,), float64
    features, synthesizer : callables
        As in `metric.jacobian`, but that the synthesizer takes v.
    budget : Budget
    tell : callable
        Told of every iteration.
    alike, gain : floats
        Distance at which it ends, and share of the loss that a step must gain, or it ends.

    Returns
    -------
    v : Tensor, shape (n,), float64, on the CPU: never farther from S than where it began
    distance : float, ‖Φ(h(v)) − S‖
    M : Tensor, shape (n, n), float64, the metric there
    """
    start = v.cpu().double().numpy()

    def jacobian_at(v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        S_v, J = jacobian(torch.from_numpy(v)[None], features, synthesizer)
        return (S_v[0] - S).cpu().double().numpy(), J[0].cpu().double().numpy()

    first, J_first = jacobian_at(start)
    count, before = 1, float(np.linalg.norm(first))

    def residual(v: np.ndarray) -> np.ndarray:
        nonlocal count
        if np.array_equal(v, start):
            return first
        count += 1
        with torch.no_grad():
            return (features(synthesizer(torch.from_numpy(v)[None]))[0] - S).cpu().double().numpy()

    def J(v: np.ndarray) -> np.ndarray:
        return J_first if np.array_equal(v, start) else jacobian_at(v)[1]

    def iteration(intermediate_result: OptimizeResult) -> None:
        distance = math.sqrt(2 * intermediate_result.cost)
        tell(Step("refine", count, distance, intermediate_result.x.tolist()))
        if distance < alike:
            raise StopIteration

    if before >= alike:
        result = least_squares(
            residual,
            start,
            J,
            bounds=(-1, 1),
            x_scale="jac",
            ftol=gain,
            max_nfev=budget.n_iterations,
            callback=iteration,
        )
        if 2 * result.cost < before**2:  # SciPy moves a start on the box's edge inwards, and may not get back
            return torch.from_numpy(result.x), math.sqrt(2 * result.cost), gram(torch.from_numpy(result.jac))
    tell(Step("refine", count, before, start.tolist()))
    return torch.from_numpy(start), before, gram(torch.from_numpy(J_first))


def covariance(metric: Tensor, distance: float) -> Tensor:
    """Of v (n, n), from the metric (n, n) at the match and its distance: as at the head of this module."""
    values, directions = eigen(metric)  # M spans ten decades: so rounding lets no variance be above that of the box
    variances = 1 / (values.clamp_min(0) / max(distance, UNIT) ** 2 + 1 / PRIOR)
    return directions * variances @ directions.mT


def undetermined(spreads: Tensor, directions: Tensor, names: Sequence[str]) -> list[str]:
    """In words, that of which the box says more than the sound: "attack", or combinations like "0.8 decay + 0.6 index".

    It is the span of those `Match.directions` whose spread is above `UNSURE`. First come the parameters that lie in it,
    up to `MINOR`, then the directions that are left of it, least determined first.
    """
    is_unsure = spreads > UNSURE
    span = directions[:, is_unsure]  # (n, K)
    alone = span.square().sum(1) > 1 - MINOR**2  # (n,)
    rest = span * spreads[is_unsure] * ~alone[:, None]
    _, combinations = eigen(rest @ rest.mT)
    words = [name for name, is_alone in zip(names, alone.tolist(), strict=True) if is_alone]
    for vector in combinations.T.flip(0)[: max(0, span.shape[1] - len(words))].tolist():
        terms = sorted(zip(vector, names, strict=True), key=lambda term: -abs(term[0]))
        terms = [term for term in terms if abs(term[0]) > MINOR] or terms[:3]
        signed = " ".join(f"{'−' if component < 0 else '+'} {abs(component):.1f} {name}" for component, name in terms)
        words.append(signed.removeprefix("+ ") if len(terms) > 1 else terms[0][1])
    return words


def verdict(words: str) -> str:
    """A line that tells what is `undetermined`, in words that semicolons join, or none."""
    return f"not determined by the sound: {words}" if words else "the sound determines all parameters"


def heard_through(noise: Tensor, synthesizer: Synthesizer, where: torch.device) -> Map:
    """h: v (B, n + 1), or ν (B, n), → sounds (B, n_samples) as they may be in a recording of this noise (n_samples,).

    ν is taken on the device `where`.
    """
    n = len(synthesizer.parameters)

    def h(v: Tensor) -> Tensor:
        sounds = synthesizer(v[..., :n].to(where), noise.dtype).to(noise.device)
        if v.shape[-1] > n:
            sounds = 10 ** (LEVEL_DB / 20 * v[..., n:]).to(noise) * sounds
        return sounds + noise

    return h


def at_own_level(nu: Tensor, synthesizer: Synthesizer) -> Tensor:
    """v of ν (..., n): with a level l = 0 at its end, if a level is to be sought."""
    return torch.cat([nu, torch.zeros_like(nu[..., :1])], -1) if synthesizer.peak_normalized else nu


def match(
    audio: Tensor | Recording | str | Path,
    model: AudioEncoder,
    features: Map | None = None,
    seed: int = 0,
    progress: bool = False,
    tell: Listener = lambda step: None,
    budget: Budget = BUDGET,
) -> Match:
    """Find the parameters that sound like a recording.

    Parameters
    ----------
    audio : Tensor, shape (n_samples,), from its onset on, or path of a sound file, or what `load_recording` made of it
        Scaled to a peak of 1, if all sounds of the synthesizer have that: the result does not depend on the gain. Zeros
        at its end are taken for what comes after the recording, where there is no noise. Noise is held to be white up
        to the Nyquist frequency; in a file of another sample rate, up to nine tenths of the lower one.
    model : AudioEncoder
        Such as `load_encoder()`. If `evaluation.report` has written its best constant into it, "constant" is the
        distance of that, else of the centre of the ranges, ν = 0.
    features : callable, optional
        Φ; that which the encoder was trained for, `ear(model.config)`, if not given.
    seed : int
        Of the scan and of the noise through which sounds are heard: the same seed, the same match.
    progress : bool
        Show a bar.
    tell : callable
        Called with a `Step` for every generation of the scan and every iteration of the refinement.
    budget : Budget

    Raises
    ------
    ValueError
        If the file is not usable (see `load_recording`), the sound has another length, is not finite or nothing but
        zeros in float32, the seed is no whole number from 0 to 2⁵³, or the encoder needs a known parameter.
    """
    check_whole("seed", seed, 0, MOST_SEED)
    if model.known:
        raise ValueError(f"this encoder was trained with known {', '.join(model.known)}: it cannot match a sound alone")
    device, synthesizer = next(model.parameters()).device, model.config.synthesizer
    x, band = _recording(audio, synthesizer)
    x = x.to(torch.float32).to(device)
    features = features or ear(model.config, device)
    end = int(x.nonzero()[-1]) + 1
    noise_std = noise_level(x[:end], band)
    noises = [noise_std * noise_like(len(x), end, band, each).to(device) for each in (seed, seed + 1)]
    with _Story(progress, tell) as story:
        v, M, nu_encoder, nu_constant, distance = _search(x, noises, band == 1, model, features, seed, budget, story)
    n = len(synthesizer.parameters)
    nu = v[:n]
    return Match(
        synthesizer=synthesizer,
        x=x.cpu(),
        x_hat=synthesizer(nu, torch.float32),
        nu=nu,
        theta=synthesizer.to_theta(nu),
        level_db=LEVEL_DB * float(v[n:].sum()),
        covariance=covariance(M, distance["match"])[:n, :n],
        nu_encoder=nu_encoder,
        nu_constant=nu_constant,
        distance=distance,
        noise=noises[0].cpu(),
        noise_db=20 * math.log10(max(noise_std, 1e-9)),
        history=tuple(story.steps),
    )


def _search(
    x: Tensor,
    noises: list[Tensor],
    exact: bool,
    model: AudioEncoder,
    features: Map,
    seed: int,
    budget: Budget,
    story: "_Story",
) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, float]]:
    """Predict, scan, refine: v, its metric, what the encoder predicted, its best constant, and their distances."""
    synthesizer, where = model.config.synthesizer, float64_device(x.device)
    h, again = (heard_through(noise, synthesizer, where) for noise in noises)
    with torch.no_grad():
        S, nu_encoder = features(x), model(x).cpu()
    constant = model.metadata.get("evaluation", {}).get("nu_constant", [0.0] * len(nu_encoder))
    nu_constant = torch.tensor(constant, dtype=torch.float64)

    def distances(v: Tensor, target: Tensor = S) -> Tensor:
        with torch.no_grad():
            return torch.cat([(features(h(some)) - target).norm(dim=-1).cpu().double() for some in v.split(8)])

    start = at_own_level(nu_encoder, synthesizer)
    far, predicted = distances(torch.stack([at_own_level(nu_constant, synthesizer), start])).tolist()
    story.note(Step("predict", 1, predicted, start.tolist()))
    n = _opening(x, noises[0], synthesizer, nu_encoder)
    opening = heard_through(noises[0][:n], replace(synthesizer, n_samples=n), where) if n < len(x) else None
    found = scan(x, h, start, synthesizer.sample_rate, seed, budget, story.chapter(), opening, again, exact)

    heard, n_starts = distances(found[:1]), 1
    with torch.no_grad():
        if not exact and heard > FAR and heard > ITSELF * distances(found[:1], features(again(found[:1]))):
            heard, n_starts = distances(found), REFINEMENTS
    candidates = torch.cat([found[: len(heard)], start[None]])
    order = torch.cat([heard, heard.new_tensor([predicted])]).argsort(stable=True)
    starts = _apart(candidates[order], n_starts)
    alike = ALIKE if exact else UNIT
    v, refined, M = _refine_best(S, starts, features, h, budget, story.chapter(), alike)
    settled = _settle(v, distances, AS_CLOSE * refined) if refined > alike else v
    if not torch.equal(settled, v):
        S_v, J = jacobian(settled[None], features, h)
        v, refined, M = settled, float((S_v[0] - S).norm()), gram(J[0]).cpu()
        story.note(Step("refine", story.steps[-1].n_heard + 1, refined, v.tolist()))
    distance = {"constant": far, "encoder": predicted, "scan": float(heard.min()), "match": refined}
    return v, M, nu_encoder, nu_constant, distance


def _refine_best(
    S: Tensor, starts: list[Tensor], features: Map, h: Map, budget: Budget, tell: Listener, alike: float
) -> tuple[Tensor, float, Tensor]:
    """What `refine` returns, of the start from which it ends closest; the best of all so far is told."""
    ends, best, n_heard = [], Step("refine", 0, math.inf, []), 0
    for start in starts:

        def iteration(step: Step, before: int = n_heard) -> None:
            nonlocal best, n_heard
            n_heard = before + step.n_heard
            best = min(best, step, key=attrgetter("distance"))
            tell(best._replace(n_heard=n_heard))

        ends.append(refine(S, start, features, h, budget, iteration, alike))
        if best.distance < alike:
            break
    return min(ends, key=itemgetter(1))


def _settle(v: Tensor, distances: Map, limit: float) -> Tensor:
    """v (n,), but with what stands at an end of its range as far inside as keeps the distance below a limit."""
    for j in (v.abs() > EDGE).nonzero().flatten().tolist():
        others = v.repeat(len(INSIDE), 1)
        others[:, j] = v[j].sign() * v.new_tensor(INSIDE) + 0.0  # which makes 0 of −0
        will_do = others[distances(others) <= limit]
        v = will_do[0] if len(will_do) else v
    return v


def _opening(x: Tensor, noise: Tensor, synthesizer: Synthesizer, nu: Tensor) -> int:
    """Samples at the beginning of x (n_samples,) that have most of its energy: a quarter, a half or all of them.

    All, if a synthesizer of short sounds does not make what others begin with.
    """
    energy = (x.square() - noise.square()).cpu().double().cumsum(0)  # mps has no float64
    for n in (len(x) // 4, len(x) // 2):
        if n >= 4 * CoarseSpectra.LONGEST and energy[n - 1] > MOST * energy[-1]:
            short, whole = replace(synthesizer, n_samples=n)(nu), synthesizer(nu)
            return n if torch.allclose(short, whole[:n], atol=1e-3) else len(x)
    return len(x)


def _recording(audio: Tensor | Recording | str | Path, synthesizer: Synthesizer) -> Recording:
    if not isinstance(audio, Tensor | Recording):
        audio = load_recording(audio, synthesizer)
    is_scaled = isinstance(audio, Recording)
    audio, band = audio if isinstance(audio, Recording) else (audio, 1.0)
    n_samples = synthesizer.n_samples
    if audio.shape != (n_samples,) or not audio.is_floating_point():
        raise ValueError(f"expected audio of shape ({n_samples},), got {audio.dtype} of shape {tuple(audio.shape)}")
    audio = audio.detach()
    if synthesizer.peak_normalized and not is_scaled and audio.any():  # before it is rounded: whatever its gain
        audio = audio / audio.abs().max()
    audio = audio.to(torch.float32)
    if not audio.isfinite().all():
        raise ValueError("expected finite audio, got NaN or infinite samples")
    if not audio.any():
        raise ValueError("expected a sound, got nothing but zeros in float32")
    return Recording(audio, band)


class _Story:
    """Keeps the steps of a match, shows them in a bar, and passes them on."""

    def __init__(self, progress: bool, tell: Listener) -> None:
        self.steps: list[Step] = []
        self.tell = tell
        self.bar = tqdm(
            desc="match", unit=" sounds", leave=False, disable=None if progress else True
        )  # None: terminals

    def __enter__(self) -> "_Story":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def note(self, step: Step) -> None:
        self.bar.update(step.n_heard - (self.steps[-1].n_heard if self.steps else 0))
        self.bar.set_postfix_str(f"{step.stage}, distance {step.distance:.3g}")
        self.steps.append(step)
        self.tell(step)

    def chapter(self) -> Listener:
        """A listener whose sounds are counted from here on."""
        before = self.steps[-1].n_heard
        return lambda step: self.note(step._replace(n_heard=before + step.n_heard))
