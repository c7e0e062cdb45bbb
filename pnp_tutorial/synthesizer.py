"""The five parameters of the drum: names, units, ranges, and the scaling θ ↔ ν.

    ν_j = 2 (θ_j − low_j) / (high_j − low_j) − 1        θ in physical units, ν in [−1, 1]⁵

The encoder predicts ν, and the metric is taken over ν, so that a unit step means the same
share of each parameter's range. Ranges: Han, Lostanlen and Lagrange (2023), section 4.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Parameter:
    """One coordinate of θ: its name, symbol in the text, unit, range and what a listener calls it."""

    name: str
    symbol: str
    unit: str
    low: float
    high: float
    meaning: str


PARAMETERS = (
    Parameter("log_omega", "log₁₀ ω₁", "log₁₀ rad/s", 2.4, 3.8, "pitch"),
    Parameter("tau", "τ₁", "s", 0.07, 0.8, "sustain of the first mode"),
    Parameter("log_p", "log₁₀ p", "1", -5.0, -0.7, "how much faster high partials die"),
    Parameter("log_D", "log₁₀ D", "1", -5.0, -0.52, "inharmonicity"),
    Parameter("alpha", "α", "1", 1e-5, 1.0, "shape: ratio of the sides"),
)
NAMES = tuple(p.name for p in PARAMETERS)
N_PARAMETERS = len(PARAMETERS)


def ranges(dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Lower and upper ends of the range of each parameter, each of shape (5,), in the units of θ."""
    low = torch.tensor([p.low for p in PARAMETERS], dtype=dtype, device=device)
    high = torch.tensor([p.high for p in PARAMETERS], dtype=dtype, device=device)
    return low, high


def check_last_axis(values: Tensor, name: str, parameters: tuple[Parameter, ...] = PARAMETERS) -> None:
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
            raise ValueError(
                f"{parameter.name} = {value[~valid].flatten()[0].item():g} {parameter.unit} {otherwise}: "
                f"expected a value in ({low:g}, {high:g}); the data set has [{parameter.low:g}, {parameter.high:g}]"
            )


def to_theta(nu: Tensor) -> Tensor:
    """Physical parameters θ (..., 5) of scaled parameters ν (..., 5); raises ValueError on another shape."""
    check_last_axis(nu, "nu")
    low, high = ranges(nu.dtype, nu.device)
    return low + (nu + 1) / 2 * (high - low)


def to_nu(theta: Tensor) -> Tensor:
    """Scaled parameters ν (..., 5) of physical parameters θ (..., 5); raises ValueError on another shape."""
    check_last_axis(theta, "theta")
    low, high = ranges(theta.dtype, theta.device)
    return 2 * (theta - low) / (high - low) - 1


def sample_uniform(n: int, seed: int = 0) -> Tensor:
    """Draw ν uniformly from [−1, 1]⁵: shape (n, 5), float64, the same values for the same seed everywhere."""
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(n, N_PARAMETERS, generator=generator, dtype=torch.float64) - 1


def sample_jittered_grid(n_cells: int = 10, seed: int = 0) -> Tensor:
    """Draw one ν uniformly inside each cell of a regular grid over [−1, 1]⁵.

    Returns
    -------
    nu : Tensor, shape (n_cells⁵, 5), float64
        Rows in lexicographic order of the cells, so that row r lies in cell
        `torch.unravel_index(r, (n_cells,) * 5)`. The paper's data set has n_cells = 10.
    """
    axis = torch.arange(n_cells, dtype=torch.float64)
    corners = torch.cartesian_prod(*[axis] * N_PARAMETERS)  # (n_cells⁵, 5)
    generator = torch.Generator().manual_seed(seed)
    jitter = torch.rand(corners.shape, generator=generator, dtype=torch.float64)
    return 2 * (corners + jitter) / n_cells - 1
