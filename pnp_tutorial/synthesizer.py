"""What a synthesizer is: a pure function g, and the names, units and ranges of its parameters.

Its parameters have two forms: θ, in physical units, and ν, scaled to [−1, 1] along each range, linearly or by ratios:

    θ_j = low_j + (ν_j + 1)/2 · (high_j − low_j)         or, on a logarithmic scale,
    θ_j = low_j · (high_j / low_j)^((ν_j + 1)/2)

An encoder predicts ν, and the metric is taken over ν, so that a unit step means the same share of each range.
Scaling and sampling are those of Han, Lostanlen and Lagrange (2023, section 4; 2024).
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from .runtime import check_whole, in_float64, load_object, plain, told

# Synthesizers that are known by name; files may name these and no others (see `stored_synthesizer`).
REGISTRY = {
    "drum": "pnp_tutorial.drum:DRUM",
    "arpeggiator": "pnp_tutorial.arpeggiator:ARPEGGIATOR",
    "round_drum": "pnp_tutorial.round_drum:ROUND_DRUM",
}
SKETCHES = ("sketch", "ear_sketch")  # under which files tell what their functions do
MOST_CELLS = 10**7  # of a grid
# What tables of matches call other things than parameters.
TAKEN = {"file", "error", "undetermined", "constant", "encoder", "scan", "match", "spread"}
TAKEN |= {"level_db", "noise_db", "n_heard", "n_iterations"}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True)
class Parameter:
    """One coordinate of θ: its name, symbol in the text, unit, range, what a listener calls it, and its scale.

    Raises ValueError unless the name is a word that tables of matches do not have, low < high, both are
    finite, and on a logarithmic scale low > 0.
    """

    name: str
    symbol: str
    unit: str
    low: float
    high: float
    meaning: str
    scale: Literal["linear", "log"] = "linear"

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and self.name.isidentifier()):
            raise ValueError(f"expected the name of a parameter to be a word, got {self.name!r}")
        if self.name in TAKEN or self.name.endswith("_uncertainty"):
            raise ValueError(f"expected another name of a parameter than {self.name!r}, which tables of matches have")
        plain(self, "low", "high")
        if not (_is_number(self.low) and _is_number(self.high)):
            raise ValueError(f"{self.name}: expected numbers for low and high, got {self.low!r} and {self.high!r}")
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(f"{self.name}: expected finite low < high, got {self.low} and {self.high}")
        if self.scale not in ("linear", "log"):
            raise ValueError(f"{self.name}: expected scale to be 'linear' or 'log', got {self.scale!r}")
        if self.scale == "log" and self.low <= 0:
            raise ValueError(f"{self.name}: expected low > 0 on a logarithmic scale, got {self.low}")


@dataclass(frozen=True)
class Synthesizer:
    """A synthesizer: `synthesizer(ν)` is the sound x = g(θ(ν)).

    Parameters
    ----------
    name : str
        By which files refer to it.
    parameters : tuple of Parameters
    function : callable
        (θ (..., n), n_samples, sample_rate, *, dtype) → x (..., n_samples), of one row or more. Pure, batch first,
        differentiable almost everywhere; θ comes in float64. `check_synthesizer` tries whether it is all that. What it
        makes itself, as a time axis, lies on the device of θ.
    n_samples : int
        Length of a sound; `dataclasses.replace(synthesizer, n_samples=...)` makes others.
    sample_rate : float, Hz
    peak_normalized : bool
        Whether all sounds have a peak of 1, so that their level means nothing: recordings are then scaled to that peak,
        too. Else a sound's level is part of what it says.
    from_onset : bool
        Whether sounds begin at once, so that recordings are heard from their onset on. Else from their first sample.

    Raises ValueError if parameters are none of the class `Parameter`, two have one name, or n_samples or sample_rate is
    not positive.
    """

    name: str
    parameters: tuple[Parameter, ...]
    function: Callable[..., Tensor]
    n_samples: int
    sample_rate: float
    peak_normalized: bool = False
    from_onset: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.parameters, Iterable):
            kind = type(self.parameters).__name__
            raise ValueError(f"expected parameters as a tuple, got one {kind}: of one alone it is (parameter,)")
        object.__setattr__(self, "parameters", tuple(self.parameters))
        plain(self, "n_samples", "sample_rate")
        if not isinstance(self.name, str):
            raise ValueError(f"expected the name of a synthesizer to be a string, got {self.name!r}")
        if not all(isinstance(p, Parameter) for p in self.parameters):
            kinds = ", ".join(type(p).__name__ for p in self.parameters)
            raise ValueError(f"{self.name}: expected parameters of the class Parameter, got {kinds}")
        if not self.parameters or len(set(self.names)) < len(self.names):
            raise ValueError(f"{self.name}: expected parameters with a name of their own each, got {self.names}")
        whole = isinstance(self.n_samples, int) and not isinstance(self.n_samples, bool)
        if not (whole and self.n_samples >= 1 and _is_number(self.sample_rate) and 0 < self.sample_rate < math.inf):
            raise ValueError(
                f"{self.name}: expected a whole n_samples ≥ 1 and a finite sample_rate > 0 Hz, "
                f"got {self.n_samples!r}, {self.sample_rate!r}"
            )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(p.name for p in self.parameters)

    @property
    def symbols(self) -> tuple[str, ...]:
        return tuple(p.symbol for p in self.parameters)

    def ranges(self, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Lower and upper ends of the range of each parameter, each of shape (n,), in the units of θ."""
        low = torch.tensor([p.low for p in self.parameters], dtype=dtype, device=device)
        high = torch.tensor([p.high for p in self.parameters], dtype=dtype, device=device)
        return low, high

    def _is_log(self, device: torch.device) -> Tensor:
        return torch.tensor([p.scale == "log" for p in self.parameters], device=device)

    def to_theta(self, nu: Tensor) -> Tensor:
        """Physical parameters θ (..., n) of scaled parameters ν (..., n); raises ValueError on another shape."""
        check_last_axis(nu, "nu", self.parameters)
        low, high = self.ranges(nu.dtype, nu.device)
        share, is_log = (nu + 1) / 2, self._is_log(nu.device)
        ratio = torch.where(is_log, high / low, 1)  # keeps the unused branch, and so its gradient, finite
        return torch.where(is_log, low * ratio**share, low + share * (high - low))

    def to_nu(self, theta: Tensor) -> Tensor:
        """Scaled parameters ν (..., n) of physical parameters θ (..., n).

        Raises ValueError on another shape, and where θ is not finite or, on a logarithmic scale, θ ≤ 0.
        """
        domain = tuple((0 if p.scale == "log" else -math.inf, math.inf) for p in self.parameters)
        check_domain(theta, self.parameters, domain, "has no place on its scale")
        low, high = self.ranges(theta.dtype, theta.device)
        is_log = self._is_log(theta.device)
        # Without log, all of this stays finite, and so does its gradient.
        base = torch.where(is_log, theta / torch.where(is_log, low, 1), 1)
        ratio = torch.where(is_log, high / low, math.e)
        return torch.where(is_log, 2 * base.log() / ratio.log() - 1, 2 * (theta - low) / (high - low) - 1)

    def slope(self, nu: Tensor) -> Tensor:
        """∂θ_j/∂ν_j (..., n): by how much a small step of ν moves each parameter, in its unit."""
        low, high = self.ranges(nu.dtype, nu.device)
        is_log = self._is_log(nu.device)
        ratio = torch.where(is_log, high / low, 1)
        return torch.where(is_log, self.to_theta(nu) * ratio.log() / 2, (high - low) / 2)

    def sample_uniform(self, n: int, seed: int = 0) -> Tensor:
        """Draw ν (n_sounds, n) uniformly from [−1, 1]ⁿ, float64, the same values for the same seed everywhere.

        Raises ValueError unless n is a whole number, 0 or more.
        """
        check_whole("the number of sounds", n, 0)
        generator = torch.Generator().manual_seed(seed)
        return 2 * torch.rand(n, len(self.parameters), generator=generator, dtype=torch.float64) - 1

    def sample_jittered_grid(self, n_cells: int = 10, seed: int = 0) -> Tensor:
        """Draw one ν uniformly inside each cell of a regular grid over [−1, 1]ⁿ.

        Returns
        -------
        nu : Tensor, shape (n_cellsⁿ, n), float64
            Rows in lexicographic order of the cells, so that row r lies in cell
            `torch.unravel_index(r, (n_cells,) * n)`. The papers have 10 cells an axis of the drum, and 30 of the
            arpeggiator.

        Raises ValueError if there would be no cell, a part of one, or more than ten million.
        """
        n = len(self.parameters)
        if not 1 <= n_cells == int(n_cells) or n_cells**n > MOST_CELLS:
            raise ValueError(f"expected a grid of 1 to {MOST_CELLS:,} cells, got {n_cells} along each of {n} axes")
        axis = torch.arange(n_cells, dtype=torch.float64)
        corners = torch.cartesian_prod(*[axis] * n).reshape(-1, n)
        generator = torch.Generator().manual_seed(seed)
        jitter = torch.rand(corners.shape, generator=generator, dtype=torch.float64)
        return 2 * (corners + jitter) / n_cells - 1

    def __call__(self, nu: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Sounds x (..., n_samples) of ν (..., n), of the dtype of ν if no other is given.

        Raises ValueError if ν has another shape, and as the synthesizer's own function does.
        """
        check_last_axis(nu, "nu", self.parameters)
        theta, dtype = self.to_theta(in_float64(nu)), dtype or nu.dtype
        if not theta.numel():  # of no rows many a function can make nothing
            return theta[..., :1].expand(*theta.shape[:-1], self.n_samples).to(nu.device, dtype)
        x = self.function(theta, self.n_samples, self.sample_rate, dtype=dtype)
        return x if theta.device == nu.device else x.to(nu.device)

    def to_dict(self) -> dict[str, Any]:
        """What files say of it: all but the function, and the length, which a data set has of its own."""
        return {
            "name": self.name,
            "parameters": [asdict(p) for p in self.parameters],
            "sample_rate": self.sample_rate,
            "peak_normalized": self.peak_normalized,
            "from_onset": self.from_onset,
        }


def find_synthesizer(name: str) -> Synthesizer:
    """The synthesizer of a name that its user has typed: one of `REGISTRY`, or `module:OBJECT` or `file.py:OBJECT`.

    The latter two are imported, which runs their code: never call it with a name out of a data set, an encoder or a
    bank. A file of options counts as what its user has typed.
    Raises ValueError if there is no such thing, it cannot be imported, or is no `Synthesizer`.
    """
    if name not in REGISTRY and ":" not in name:
        raise ValueError(
            f"there is no synthesizer {name!r}: expected {', '.join(REGISTRY)}, module:OBJECT or file.py:OBJECT"
        )
    found = load_object(REGISTRY.get(name, name))
    if not isinstance(found, Synthesizer):
        raise ValueError(f"{name} is no Synthesizer, but of type {type(found).__name__}")
    return found


def refuse_no_synthesizer(given: Any) -> None:
    """Raise ValueError of anything but a `Synthesizer`, such as a name or a function."""
    if not isinstance(given, Synthesizer):
        raise ValueError(f"expected a Synthesizer, got {given!r}: `find_synthesizer` makes one of a name")


def stored_synthesizer(stored: Any, given: Synthesizer | None, what: str) -> Synthesizer:
    """The synthesizer that a file names: `given`, if it is that, else one of `REGISTRY`. Nothing else is imported.

    `stored` is what `Synthesizer.to_dict` has put there, or None in files that are older than the choice: the drum.

    Raises ValueError if the library knows no synthesizer of that name and none is given, or if it is another one.
    """
    stored = {"name": "drum"} if stored is None else stored if isinstance(stored, dict) else {"name": stored}
    name = stored.get("name")
    if given is None:
        if name not in REGISTRY:
            raise ValueError(
                f"{what} was made with the synthesizer {name!r}, which this library does not have: pass it, as "
                "--synthesizer file.py:OBJECT on the command line, or as `synthesizer`"
            )
    else:
        refuse_no_synthesizer(given)
    found = given or find_synthesizer(name)
    if found.name != name:
        raise ValueError(f"{what} was made with the synthesizer {name!r}, and {found.name!r} is given")
    own = found.to_dict()
    for key, value in stored.items():
        here, there = _first_difference(own.get(key), value)
        if here != there:
            which = "the library's" if given is None else "the one that is given"
            raise ValueError(
                f"{what} was made with the synthesizer {name!r} of {key} = {there!r}: {which} has {here!r}"
            )
    return found


def _first_difference(own: Any, stored: Any) -> tuple[Any, Any]:
    """Two fields of synthesizers; of lists of parameters, the first that differ, without what is for readers alone."""
    if not (isinstance(own, list) and isinstance(stored, list) and len(own) == len(stored)):
        return own, stored
    texts = ("symbol", "meaning")
    if not all(isinstance(p, dict) for p in [*own, *stored]):
        return own, stored
    numbers = ([{k: v for k, v in p.items() if k not in texts} for p in side] for side in (own, stored))
    return next((pair for pair in zip(*numbers, strict=True) if pair[0] != pair[1]), (None, None))


def refuse_taken_name(synthesizer: Synthesizer) -> None:
    """Raise ValueError if a synthesizer of the user's own has the name of one of the library."""
    name = synthesizer.name
    if name in REGISTRY and synthesizer.function is not find_synthesizer(name).function:
        raise ValueError(f"{name!r} is the name of a synthesizer of the library: give yours another")


def sketch(synthesizer: Synthesizer) -> list[list[float]]:
    """What a function does, in a few numbers: levels of the quarters of three sounds, to three digits; and the same of
    their changes from sample to sample, for of tones the level does not tell the pitch.
    """
    with torch.no_grad():
        x = synthesizer(torch.cat([synthesizer.sample_uniform(2), torch.zeros(1, len(synthesizer.parameters))]))
    return [levels(x), levels(x.diff(dim=-1, prepend=torch.zeros_like(x[:, :1])))]


def levels(values: Tensor) -> list[float]:
    """Root mean squares of the quarters of each row of values (rows, n), to three digits."""
    parts = [part.double().square().mean(-1).sqrt() for part in values.tensor_split(4, -1) if part.shape[-1]]
    return [float(f"{level:.3g}") for level in torch.stack(parts, -1).flatten().tolist()]


def differs(one: list | None, other: list | None) -> bool:
    """Whether two sketches are of different functions: by more than rounding to three digits can do.

    None is that of a function that cannot be sketched, or of a file that is older than sketches; in older files there
    is the first row alone.
    """
    if not one or not other:
        return False
    rows = (sketch if isinstance(sketch[0], list) else [sketch] for sketch in (one, other))
    return any(
        len(a) != len(b) or not np.allclose(a, b, rtol=0.02, atol=0.02 * max(map(abs, a)))
        for a, b in zip(*rows, strict=False)
    )


def refuse_edited(synthesizer: Synthesizer, stored: Any, path: str | Path, again: str) -> None:
    """Raise ValueError if a synthesizer made other sounds when a file was written, which holds the sketch `stored`.

    `again` says what then has to be done. Older files have no sketch (None). Raises ValueError of a damaged one, and of
    a synthesizer that does not play, too.
    """
    with told(f"{synthesizer.name} does not play"):
        own = sketch(synthesizer)
    try:
        edited = differs(own, stored)
    except (TypeError, ValueError, KeyError, IndexError, OverflowError) as error:
        raise ValueError(f"{path} is damaged (its sketch of the synthesizer cannot be read)") from error
    if edited:
        raise ValueError(f"{path} was made when the synthesizer {synthesizer.name!r} made other sounds: {again} again")


def other_functions(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two files were made with functions that differ, as far as their sketches tell."""
    return any(differs(one.get(name), other.get(name)) for name in SKETCHES)


def with_unit(number: str, unit: str) -> str:
    """A number and its unit; "1" is none."""
    return number if unit == "1" else f"{number} {unit}"


def check_last_axis(values: Tensor, name: str, parameters: tuple[Parameter, ...]) -> None:
    """Raise ValueError unless `values` is a floating-point tensor whose last axis holds these parameters."""
    if not isinstance(values, Tensor) or not values.is_floating_point():
        kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"{name} must be a floating-point tensor, got {kind}")
    if values.ndim == 0 or values.shape[-1] != len(parameters):
        names = tuple(p.name for p in parameters)
        raise ValueError(f"{name} must have shape (..., {len(names)}) for {names}, got {tuple(values.shape)}")


def check_domain(
    theta: Tensor,
    parameters: tuple[Parameter, ...],
    domain: tuple[tuple[float, float], ...],
    otherwise: str,
    with_lower_end: tuple[str, ...] = (),
) -> None:
    """Raise ValueError unless each of θ (..., n) lies inside its open interval; the message names parameter and value.

    `otherwise` says what a value outside is, such as "is not physical"; of the parameters `with_lower_end`, the lower
    end will do, too. (Inside `torch.vmap` values cannot be read, so that only the shape is checked there.)
    """
    check_last_axis(theta, "theta", parameters)
    for parameter, (low, high), value in zip(parameters, domain, theta.detach().unbind(-1), strict=True):
        valid = (value > low) & (value < high)
        if parameter.name in with_lower_end:
            valid |= value == low
        try:
            all_valid = bool(valid.all())
        except RuntimeError:  # vmap
            return
        if not all_valid:
            got = with_unit(f"{value[~valid].flatten()[0].item():g}", parameter.unit)
            left = "[" if parameter.name in with_lower_end else "("
            raise ValueError(
                f"{parameter.name} = {got} {otherwise}: expected a value in {left}{low:g}, {high:g}); "
                f"its range is [{parameter.low:g}, {parameter.high:g}]"
            )
