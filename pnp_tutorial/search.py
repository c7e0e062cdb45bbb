"""The search for a sound: in the whole box by coarse spectra, then down the slope of any features.

    scan      argmin ‖C(h(v)) − C(x)‖ over [−1, 1]ⁿ         C: coarse spectra; differential evolution and descents
    refine    argmin ½ ‖Φ(h(v)) − Φ(x)‖² from a start       Levenberg–Marquardt in the box, J of `metric.jacobian`

Refinement alone seldom helps: along pitch, the distance in JTFS has a dent at every semitone, which is how far its
filters are apart. The distance in C has none, and is so cheap that thousands of sounds can be tried.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import OptimizeResult, differential_evolution, least_squares
from torch import Tensor
from tqdm.auto import tqdm

from .metric import Map, gram, jacobian
from .mss import CoarseSpectra
from .runtime import check_whole

ALIKE = 0.1  # distance in features at which a refinement has come close enough
DESCENTS = 3  # in a run of the scan, from sounds that are at least APART in a parameter
APART = 0.05
FEW = 8  # parameters: between a drum's five and a round drum's twelve; none in between were tried
ZOOM = 0.1  # around the closest sound, on either side
AROUND = 0.4  # the same, around a start
ITSELF = 1.1  # times the distance of a sound from itself through another noise: as close as noise allows


class Step(NamedTuple):
    """One line of the story of a match."""

    stage: str  # "predict", "scan" or "refine"
    n_heard: int  # sounds that were heard up to here
    distance: float  # of the best of them: of coarse spectra in "scan", else of Φ
    v: list[float]  # where that is


Listener = Callable[[Step], None]  # is told of every step as it is made


class Story:
    """Keeps the steps of a match, shows them in a bar, and passes them on."""

    def __init__(self, progress: bool, tell: Listener) -> None:
        self.steps: list[Step] = []
        self.tell = tell
        self.bar = tqdm(
            desc="match", unit=" sounds", leave=False, disable=None if progress else True
        )  # None: terminals

    def __enter__(self) -> "Story":
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


@dataclass(frozen=True)
class Budget:
    """How long a search may take. The default is for few parameters; what else is usual, `usual_budget` says.

    Raises ValueError unless all are whole numbers, n_sounds at least 5 and the others at least 1.
    """

    n_sounds: int = 64  # of a generation of the scan; differential evolution needs 5
    n_generations: int = 30  # of each of the two evolutions in a run of the scan
    n_runs: int = 5  # of the scan, at most
    n_iterations: int = 20  # of a descent, in the scan or as the refinement: so many sounds are tried at most

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            whole = check_whole(f"{name} of a search's budget", value, 5 if name == "n_sounds" else 1)
            object.__setattr__(self, name, whole)


BUDGET = Budget()


def usual_budget(n: int) -> Budget:
    """Of n parameters, with an encoder or without: `BUDGET` finds drums, which have five. For many, as for the twelve
    of a round drum, fewer sounds evolve for longer (chapter 9).
    """
    return BUDGET if n <= FEW else Budget(n_sounds=32, n_generations=150, n_runs=2, n_iterations=8)


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
    """The v whose sounds are closest to x in coarse spectra, sought in the whole box [−1, 1]ⁿ.

    A population of sounds evolves by differential evolution. While it does, only their openings are made and heard, if
    those will do. From the three closest that differ, `refine` descends in coarse spectra. If none ends close enough,
    the closest evolve further at full length, among others around the best of all, which descends once more. (Of a
    recording, from the second run on only: two runs may agree.) All that now and then ends in a wrong valley. So it
    is run again, from other sounds, until one comes close enough or the budget is spent. Where a sound may be just that
    of x, a quarter of them are then around `start`.

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

    Raises
    ------
    ValueError
        If x is no vector of finite numbers, or the start is none in the box.
    """
    start = _start(x, start)
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

        candidates = apart(population)
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
        self.sample_rate = sample_rate
        self.beginnings: dict[int, tuple[CoarseSpectra, Tensor]] = {}
        self.coarse, self.target = self._beginning(len(x))
        self.near = near * float(self.target.norm())
        self.v, self.distance, self.n_heard = start, math.inf, 0
        self.ends: list[tuple[Tensor, float]] = []  # of descents

    def _hear(self, v: Tensor, h: Map) -> Tensor:
        """Distances (B,) of v (B, n), as far as h makes sounds."""
        self.n_heard += len(v)
        with torch.no_grad():
            sounds = h(v)
            coarse, target = self._beginning(sounds.shape[-1])
            return (coarse(sounds) - target).norm(dim=-1).cpu().double()

    def _beginning(self, n: int) -> tuple[CoarseSpectra, Tensor]:
        """Coarse spectra of n samples, and what they are of the first n of x."""
        if n not in self.beginnings:
            coarse = CoarseSpectra(n, self.sample_rate).to(self.x.device)
            self.beginnings[n] = coarse, coarse(self.x[:n])
        return self.beginnings[n]

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


def apart(population: Tensor, most: int = DESCENTS) -> list[Tensor]:
    """The first few v of a population (B, n) that are apart from one another."""
    few: list[Tensor] = []
    for v in population:
        if len(few) < most and all((v - other).abs().max() > APART for other in few):
            few.append(v)
    return few


def _start(target: Tensor, v: Tensor) -> Tensor:
    """v (n,) in float64 on the CPU; ValueError unless it lies in the box, and the target is a finite vector."""
    for values, what in ((target, "what is sought, a sound or its features"), (v, "a start")):
        if not isinstance(values, Tensor) or values.ndim != 1:
            got = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(f"expected {what} as a tensor with one axis, got {got}")
    if not target.isfinite().all():
        raise ValueError("expected what is sought, a sound or its features, in finite numbers, got NaN or infinity")
    if not (v.abs() <= 1).all():
        raise ValueError(f"expected a start in [−1, 1], got {v.tolist()}")
    return v.cpu().double()


@torch.no_grad()
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

    Raises
    ------
    ValueError
        If S is no vector of finite numbers, v is none in the box, or as `metric.jacobian` does.
    """
    start = _start(S, v).numpy()

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
