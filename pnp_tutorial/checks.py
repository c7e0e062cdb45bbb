"""Does a synthesizer keep its promises? They are tried before any long work, and what is wrong is said in words."""

from dataclasses import replace

import torch
from torch import Tensor

from .metric import tangents
from .runtime import float64_device, lacks_means, told
from .synthesizer import Synthesizer, refuse_no_synthesizer

N_SOUNDS = 8  # at random, and as many at corners
STEP = 1e-6  # of ν, for finite differences
SILENT = 1e-6  # peak
ALIKE = 1e-2  # relative error of derivatives that finite differences may have
ROUNDING = 1e-9  # of the sound: derivatives below are what rounding leaves of none


def check_synthesizer(synthesizer: Synthesizer) -> list[str]:
    """What a synthesizer breaks of its promises, a sentence each; an empty list if it keeps all that are tried.

    It must be batched (any leading axes; no row depends on another), pure (the same θ, the same sound; θ is left as it
    is), finite and nowhere silent in the whole box, of the dtype and the length that are asked for, and differentiable,
    in forward mode, almost everywhere in every parameter. Tried at eight random ν, at as many corners of the box and at
    its centre. Raises ValueError of anything but a `Synthesizer`.
    """
    refuse_no_synthesizer(synthesizer)
    nu = _points(synthesizer)
    trials = {
        "called as function(θ, n_samples, sample_rate, *, dtype) "
        f"with θ of shape {tuple(nu.shape)} on the CPU it raises": _calls,
        "playing it again, row by row, raises": _purity,
        "differentiating it in forward mode raises": _derivatives,
    }
    for what, trial in trials.items():
        try:
            broken = trial(synthesizer, nu)
        except Exception as error:  # of code that is not ours
            if lacks_means(error):
                raise
            return [f"{what} {type(error).__name__}: {error}"]
        if broken:  # what follows would fail for the same reason
            return broken
    return []


def refuse_broken(synthesizer: Synthesizer) -> None:
    """Raise ValueError, which says what, if a synthesizer breaks a promise."""
    if broken := check_synthesizer(synthesizer):
        raise ValueError(f"{synthesizer.name} breaks its promises: {'; '.join(broken)}")


def refuse_elsewhere(synthesizer: Synthesizer, device: torch.device | str) -> None:
    """Raise ValueError if a synthesizer, which works on the CPU, does not play with θ on a device."""
    nu = torch.zeros(1, len(synthesizer.parameters), dtype=torch.float64, device=float64_device(device))
    why = " (what it makes itself, as a time axis, must lie on the device of θ)"
    with told(f"{synthesizer.name} does not play with θ on {nu.device}", why), torch.no_grad():
        synthesizer(nu)


def refuse_infinite(synthesizer: Synthesizer, nu: Tensor, named: dict[str, Tensor]) -> None:
    """Raise ValueError, which names the θ of the row, if values (B, …) of sounds ν (B, n) are not finite."""
    for name, values in named.items():
        finite = values.flatten(1).isfinite().all(1)
        if not finite.all():
            at = _first(synthesizer, nu, finite.to(nu.device))
            raise ValueError(f"{synthesizer.name}: its {name} is not finite at θ = {at}")


def _points(synthesizer: Synthesizer) -> Tensor:
    random, other, centre = synthesizer.sample_uniform(2 * N_SOUNDS + 1).split([N_SOUNDS, N_SOUNDS, 1])
    return torch.cat([random, other.sign(), 0 * centre])


def _calls(synthesizer: Synthesizer, nu: Tensor) -> list[str]:
    """What comes back: shapes, types and values."""
    broken = []
    n_samples = synthesizer.n_samples
    with torch.no_grad():
        for dtype in (torch.float64, torch.float32):
            x = synthesizer(nu, dtype)
            if not isinstance(x, Tensor) or x.shape != (len(nu), n_samples):
                got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
                return [f"θ of shape {tuple(nu.shape)} gives {got}: expected ({len(nu)}, {n_samples})"]
            if x.dtype != dtype:
                broken.append(f"asked for sounds of {dtype}, it gives {x.dtype}")
        if not x.isfinite().all():
            broken.append(f"sounds are not finite at θ = {_first(synthesizer, nu, x.isfinite().all(-1))}")
        for shape in ((2, 3, nu.shape[1]), (nu.shape[1],)):
            try:
                got = synthesizer(nu[:6].reshape(2, 3, -1) if len(shape) == 3 else nu[0]).shape
            except Exception as error:
                if lacks_means(error):
                    raise
                broken.append(f"θ of shape {shape} raises {type(error).__name__}: {error}")
                continue
            if got != (*shape[:-1], n_samples):
                broken.append(f"θ of shape {shape} gives {tuple(got)}: expected {(*shape[:-1], n_samples)}")
        peak = x.abs().amax(-1)
        if (peak < SILENT).any():
            broken.append(
                f"it is silent at θ = {_first(synthesizer, nu, peak >= SILENT)}, where nothing tells a parameter: let "
                "a gain end above 0, or be in dB"
            )
        if synthesizer.peak_normalized and not ((peak - 1).abs() < 1e-3).all():
            broken.append(
                f"it says that its sounds have a peak of 1, and one has {peak[(peak - 1).abs().argmax()]:.3g}"
            )
    half = max(1, n_samples // 2)
    with torch.no_grad():
        got = tuple(replace(synthesizer, n_samples=half)(nu).shape)
    if got != (len(nu), half):
        broken.append(f"asked for {half} samples, it gives {got}: expected ({len(nu)}, {half})")
    return broken


def _purity(synthesizer: Synthesizer, nu: Tensor) -> list[str]:
    """Does it change what it is given, or anything else?"""
    broken = []
    theta = synthesizer.to_theta(nu)

    def play(theta: Tensor) -> Tensor:
        return synthesizer.function(theta, synthesizer.n_samples, synthesizer.sample_rate, dtype=torch.float64)

    with torch.no_grad():
        before, x = theta.clone(), play(theta)
        if not torch.equal(theta, before):
            broken.append("it changes the θ that it is given")
            theta = before
        if not _alike(x, play(theta)):
            broken.append("the same θ gives another sound when called again: it has a state, or draws random numbers")
        elif not _alike(x, torch.cat([play(row[None]) for row in theta])):
            broken.append("a row's sound depends on the other rows of its batch")
    return broken


def _derivatives(synthesizer: Synthesizer, nu: Tensor) -> list[str]:
    """Are they finite, and those of the sound?"""
    inside = nu[nu.abs().amax(-1) < 1 - 2 * STEP]  # finite differences would leave the box
    x, dx = tangents(inside, synthesizer)
    audible = dx.norm(dim=-1) > ROUNDING * x.norm(dim=-1)  # (n, sounds)
    if not dx.isfinite().all():
        finite = dx.isfinite().all(-1).all(0)
        return [f"derivatives are not finite at θ = {_first(synthesizer, inside, finite)}"]
    found: dict[str, list[str]] = {}
    for j, name in enumerate(synthesizer.names):
        axis = torch.eye(len(synthesizer.names), dtype=nu.dtype)[j]
        with torch.no_grad():
            secant = (synthesizer(inside + STEP * axis) - synthesizer(inside - STEP * axis)) / (2 * STEP)
            elsewhere = synthesizer(inside + axis * (0.5 * inside.sign() - inside))
        error, size = (secant - dx[j]).norm(dim=-1), ALIKE * dx[j].norm(dim=-1) + 1e-6 * x.norm(dim=-1)
        if not audible[j].any() and _alike(x, elsewhere):
            found.setdefault("silent", []).append(name)
        elif not dx[j].any():
            found.setdefault("zero", []).append(name)
        elif (error > size).double().mean() > 0.5:
            found.setdefault("wrong", []).append(name)
    words = {
        "silent": "the sound does not depend on {}",
        "zero": "derivatives with respect to {} are zero, but the sound changes: is it detached, or stepwise?",
        "wrong": "derivatives with respect to {} are not those of the sound: is θ rounded, or a part of it detached?",
    }
    return [words[kind].format(", ".join(names)) for kind, names in found.items()]


def _alike(x: Tensor, y: Tensor) -> bool:
    return bool(((x - y).norm(dim=-1) <= 1e-6 * x.norm(dim=-1) + 1e-12).all())


def _first(synthesizer: Synthesizer, nu: Tensor, good: Tensor) -> str:
    theta = synthesizer.to_theta(nu[~good][0]).tolist()
    return ", ".join(f"{name} = {value:.4g}" for name, value in zip(synthesizer.names, theta, strict=True))
