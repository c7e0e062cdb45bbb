"""From a recording to parameters: predicted by the encoder, sought in the whole box, refined on the metric's Jacobian.

    load      x: one channel, of the synthesizer's length and rate; σ: the level of its noise (`recording`)
    predict   ν⁰ = f_W(x); without an encoder ν⁰ = 0, the centre of the ranges
    scan      v¹ = argmin ‖C(h(v)) − C(x)‖ over the box          (`search`)
    refine    ṽ = argmin ½ ‖Φ(h(v)) − Φ(x)‖² from v¹             (`search`)
    settle    what stands at an end of its range and is not needed there, moves inside

where h hears a sound as it may be in the recording:

    h(v) = 10^(12 l / 20) g(ν) + σ n,    v = (ν, l) in [−1, 1]ⁿ⁺¹

If the synthesizer's sounds all have a peak of 1, recordings are scaled to that peak. But what has the peak may be no
such sound (a click, noise), or its own peak be missing: l is its level, 12 dB up or down. For other synthesizers l = 0,
and v = ν. The noise n is white, and one for all sounds; it ends where the recording ends, in time and, for files of
another sample rate, in frequency.

A descent drives what a sound hardly determines to the walls of the box, for the last thousandth of the distance. Of a
sound that is no drum of the model, that means nothing. So each v_j at a wall moves as near to the middle of its range
as leaves the distance within a hundredth of what it was. How sure a match is: `uncertainty`.
"""

import math
from dataclasses import dataclass, replace
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .dataset_config import MOST_SEED
from .ears import find_ear
from .encoder import AudioEncoder
from .metric import Map, check_vectors, eigen, gram, jacobian
from .mss import CoarseSpectra
from .recording import Recording, load_recording, noise_level, noise_like
from .runtime import check_whole, float64_device
from .search import ALIKE, ITSELF, Budget, Listener, Step, Story, apart, refine, scan, usual_budget
from .synthesizer import Synthesizer
from .uncertainty import UNIT, covariance, undetermined

__all__ = ["Budget", "Match", "Step", "match"]

FAR = 3.0  # distance in features above which, if noise does not explain it, both ears choose
REFINEMENTS = 3  # of sounds that are apart, where both ears choose
EDGE = 0.98  # |v_j| from which on a parameter stands at an end of its range
INSIDE = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95)  # where it may stand as well,
AS_CLOSE = 1.01  # if the distance is no more than so many times that of the refinement
MOST = 0.8  # of a sound's energy that is in its opening
LEVEL_DB = 12  # of the sound in the recording, up or down


@dataclass(frozen=True)
class Match:
    """A recording and the sound that was found for it.

    Attributes
    ----------
    synthesizer : Synthesizer
    x, x_hat : Tensors (n_samples,), the recording as it was heard and the matched sound, both of peak 1 if all of the
        synthesizer's are
    nu, theta : Tensors (n,), float64, the parameters found, scaled and in the units of `synthesizer.parameters`
    level_db : float, of the sound in the recording, above that of the synthesizer
    covariance : Tensor (n, n), of ν, as at the head of `uncertainty`
    nu_encoder, nu_constant : Tensors (n,), what the encoder predicted, and the best constant that it knows; without an
        encoder, the centre of the ranges for both
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
        """For JSON, and what `pnp match` writes.

        Returns
        -------
        dict
            synthesizer: its name. theta: of each parameter name, symbol, unit, meaning, value and uncertainty, the
            last two in that unit. nu: list of n. directions: of each, the largest spread first, the spread in ν, and
            the component of its unit vector along each parameter, by name. undetermined: list of words. distance: in
            features, as `Match.distance`. level_db, noise_db: dB. n_heard: sounds; n_iterations: steps of all
            refinements. encoder, constant: θ by name, of what the encoder predicted and of the best constant; without
            an encoder, of the centre of the ranges.
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


@torch.no_grad()  # an ear or a synthesizer may have weights of its own
def match(
    audio: Tensor | Recording | str | Path,
    model: AudioEncoder | Synthesizer,
    ear: str | Map | None = None,
    seed: int = 0,
    progress: bool = False,
    tell: Listener = lambda step: None,
    budget: Budget | None = None,
    device: torch.device | str = "cpu",
) -> Match:
    """Find the parameters that sound like a recording.

    Parameters
    ----------
    audio : Tensor, shape (n_samples,), from its onset on, or path of a sound file, or what `load_recording` made of it
        Scaled to a peak of 1, if all sounds of the synthesizer have that: the result does not depend on the gain. Zeros
        at its end are taken for what comes after the recording, where there is no noise. Noise is held to be white up
        to the Nyquist frequency; in a file of another sample rate, up to nine tenths of the lower one.
    model : AudioEncoder or Synthesizer
        Such as `load_encoder()`. If `evaluation.report` has written its best constant into it, "constant" is the
        distance of that, else of the centre of the ranges, ν = 0. Of a synthesizer alone, that centre also takes the
        place of what an encoder would predict. (Whether a synthesizer will do, `check_synthesizer` tells.)
    ear : callable or str, optional
        Φ, or its name in `ears.EARS`; if not given, that which the encoder was trained for, or JTFS without an encoder.
    seed : int
        Of the scan and of the noise through which sounds are heard: the same seed, the same match.
    progress : bool
        Show a bar, in a terminal.
    tell : callable
        Called with a `Step` for every generation of the scan and every iteration of the refinement.
    budget : Budget, optional
        `search.usual_budget` of as many parameters, if not given.
    device : device
        On which sounds of a synthesizer alone are heard; an encoder has one of its own.

    Returns
    -------
    match : Match, all of its tensors on the CPU

    Raises
    ------
    ValueError
        If the file is not usable (see `load_recording`), model, sound or ear are of another type, the sound has
        another length, is not finite or nothing but zeros in float32, the seed is no whole number from 0 to 2⁵³, or the
        encoder needs a known parameter.
    """
    seed = check_whole("seed", seed, 0, MOST_SEED)
    synthesizer, own_ear, where = parts_of(model, device)
    x, band = _recording(audio, synthesizer)
    x = x.to(where)
    features = find_ear(own_ear if ear is None else ear, len(x), synthesizer.sample_rate, where)
    n = len(synthesizer.parameters)
    nu_encoder, nu_constant = _predict(x, model)
    end = int(x.nonzero()[-1]) + 1
    noise_std = noise_level(x[:end], band)
    noises = [noise_std * noise_like(len(x), end, band, each).to(where) for each in (seed, seed + 1)]
    with Story(progress, tell) as story:
        guesses, budget = torch.stack([nu_constant, nu_encoder]), budget or usual_budget(n)
        v, M, distance = _search(x, noises, band == 1, synthesizer, guesses, features, seed, budget, story)
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


def parts_of(
    model: AudioEncoder | Synthesizer, device: torch.device | str
) -> tuple[Synthesizer, str | Map, torch.device]:
    """Synthesizer, ear and device of an encoder; of a synthesizer alone JTFS, and the device that is given.

    Raises ValueError if it is neither, or an encoder that is given a parameter.
    """
    if isinstance(model, Synthesizer):
        return model, "jtfs", torch.device(device)
    if not isinstance(model, AudioEncoder):
        raise ValueError(
            f"expected an encoder, as load_encoder(path) reads it, or a Synthesizer, got {type(model).__name__}"
        )
    if model.known:
        raise ValueError(f"this encoder was trained with known {', '.join(model.known)}: it cannot match a sound alone")
    return model.config.synthesizer, model.config.ear, next(model.parameters()).device


def _predict(x: Tensor, model: AudioEncoder | Synthesizer) -> tuple[Tensor, Tensor]:
    """What the encoder predicts, and the best constant that it knows; without an encoder, the centre for both."""
    if isinstance(model, Synthesizer):
        centre = torch.zeros(len(model.parameters), dtype=torch.float64)
        return centre, centre
    nu_encoder = model(x).cpu()
    constant = model.metadata.get("evaluation", {}).get("nu_constant", [0.0] * len(nu_encoder))
    return nu_encoder, torch.tensor(constant, dtype=torch.float64)


def _search(
    x: Tensor,
    noises: list[Tensor],
    exact: bool,
    synthesizer: Synthesizer,
    guesses: Tensor,
    features: Map,
    seed: int,
    budget: Budget,
    story: Story,
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Scan and refine: v, its metric, and the distances of it, of the scan and of the guesses (constant, encoder)."""
    where = float64_device(x.device)
    h, again = (heard_through(noise, synthesizer, where) for noise in noises)
    S = check_vectors(features(x[None]), x[None])[0]

    def distances(v: Tensor, target: Tensor = S) -> Tensor:
        return torch.cat([(features(h(some)) - target).norm(dim=-1).cpu().double() for some in v.split(8)])

    start = at_own_level(guesses[1], synthesizer)
    far, predicted = distances(at_own_level(guesses, synthesizer)).tolist()
    story.note(Step("predict", 1, predicted, start.tolist()))
    n = _opening(x, noises[0], synthesizer, guesses[1])
    opening = heard_through(noises[0][:n], replace(synthesizer, n_samples=n), where) if n < len(x) else None
    found = scan(x, h, start, synthesizer.sample_rate, seed, budget, story.chapter(), opening, again, exact)

    closest = distances(found[:1])
    doubtful = not exact and closest > FAR and closest > ITSELF * distances(found[:1], features(again(found[:1])))
    heard = distances(found) if doubtful else closest  # if no noise explains it, both ears choose
    candidates = torch.cat([found[: len(heard)], start[None]])
    order = torch.cat([heard, heard.new_tensor([predicted])]).argsort(stable=True)
    starts = apart(candidates[order], REFINEMENTS if doubtful else 1)
    alike = ALIKE if exact else UNIT
    v, refined, M = _refine_best(S, starts, features, h, budget, story.chapter(), alike)
    settled = _settle(v, distances, AS_CLOSE * refined) if refined > alike else v
    if not torch.equal(settled, v):
        S_v, J = jacobian(settled[None], features, h)
        v, refined, M = settled, float((S_v[0] - S).norm()), gram(J[0]).cpu()
        story.note(Step("refine", story.steps[-1].n_heard + 1, refined, v.tolist()))
    distance = {"constant": far, "encoder": predicted, "scan": float(heard.min()), "match": refined}
    return v, M, distance


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


def _recording(audio: Tensor | Recording | str | Path, synthesizer: Synthesizer) -> Recording:
    if not isinstance(audio, Tensor | Recording | str | Path):
        raise ValueError(f"expected a path, or a sound as a tensor, got {type(audio).__name__}")
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
