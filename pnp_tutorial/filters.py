"""Wavelets of the scattering transforms: where they lie, how wide they are, and what is kept of them.

    ψ̂(ω) ∝ exp(−(ω − ξ)²/2σ²) − κ exp(−ω²/2σ²),  Σ_t |ψ(t)| = 1        Morlet wavelet, κ such that ψ̂(0) = 0
    ξ_n = 2^(−n/Q) ξ_0,  σ_n ∝ ξ_n      while σ_n > σ_min = 0.1 / 2ᴶ    constant Q
    ξ_n = ξ_e − q ξ_e / Q,  σ_n = σ_min     for q = 1 … Q − 1           constant bandwidth, below

Frequencies ξ and widths σ are in cycles per sample. The wavelets are kymatio's (Andreux et al., 2020), and so are all
numbers here; what later versions of it have left out or changed is written out.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
from kymatio.scattering1d.filter_bank import (
    compute_sigma_psi,
    compute_xi_max,
    gauss_1d,
    get_max_dyadic_subsampling,
    morlet_1d,
)
from torch import Tensor

SIGMA_0 = 0.1  # bandwidth of a low-pass filter of unit width, in cycles per sample: kymatio's
ALPHA = 5.0  # bandwidths kept above a filter's centre when its output is subsampled: kymatio's
ROUNDING = 1e-17  # of float64
BORDER = 1e-3  # share of a low-pass filter that may lie beyond what is padded: kymatio's


class Wavelet(NamedTuple):
    """Where a wavelet lies."""

    xi: float  # centre, in cycles per sample
    sigma: float  # width, in cycles per sample
    level: int  # log₂ of the coarsest step at which its output may be sampled


def filter_bank(J: int, Q: int) -> list[Wavelet]:
    """The wavelets of J octaves, Q an octave, from the highest to the lowest."""

    def lie() -> Iterator[tuple[float, float]]:
        ratio, sigma_min = 2 ** (1 / Q), SIGMA_0 / 2**J
        xi = compute_xi_max(Q)
        sigma = compute_sigma_psi(xi, Q)
        if sigma <= sigma_min:
            xi = sigma  # kymatio's choice, where there is no room for constant Q
        else:
            yield xi, sigma
            while sigma > sigma_min * ratio:
                xi, sigma = xi / ratio, sigma / ratio
                yield xi, sigma
        for q in range(1, Q):
            yield xi - q / Q * xi, sigma_min

    return [Wavelet(xi, sigma, get_max_dyadic_subsampling(xi, sigma, ALPHA)) for xi, sigma in lie()]


def low_pass(N: int, width: float) -> np.ndarray:
    """Spectrum φ̂ (N,) of a Gaussian that averages over about `width` samples; Σ_t φ(t) = 1."""
    return gauss_1d(N, SIGMA_0 / width)


def padded_length(n_samples: int, T: float) -> int:
    """Length, a power of two, that leaves room for three supports of the low-pass filter on each side."""
    phi = np.abs(np.fft.ifft(low_pass(n_samples, T)))[: n_samples // 2]
    beyond = phi[::-1].cumsum()[::-1]  # of the filter's sum, what lies at t or later
    inside = np.flatnonzero(beyond <= BORDER)
    support = inside[0] + 1 if len(inside) else n_samples // 2
    wanted = math.ceil(math.log2(n_samples + 6 * support))
    return 2 ** min(wanted, math.floor(math.log2(3 * n_samples - 2)))


def morlet(N: int, wavelet: Wavelet, bins: np.ndarray) -> np.ndarray:
    """Spectrum ψ̂ at some of N bins. That of kymatio's `morlet_1d`, which computes all."""
    xi, sigma = wavelet.xi, wavelet.sigma

    def gauss(f: Any) -> Any:  # folded, as the spectrum of a sampled signal is
        return sum(np.exp(-((f + period) ** 2) / (2 * sigma**2)) for period in range(-2, 3))

    kappa = gauss(-xi) / gauss(0)
    psi_hat = gauss(bins / N - xi) - kappa * gauss(bins / N)
    if kappa < ROUNDING and reach(sigma, ROUNDING) < N // 2:
        return psi_hat  # ψ is a Gaussian: Σ |ψ(t)| = ψ̂(ξ) = 1
    far = math.sqrt(-2 * math.log(ROUNDING)) * sigma
    own = np.arange(math.floor((min(xi, 0 if kappa >= ROUNDING else xi) - far) * N), math.ceil((xi + far) * N))[:N]
    spectrum = np.zeros(N)
    spectrum[own % N] = gauss(own / N - xi) - kappa * gauss(own / N)
    return psi_hat / np.abs(np.fft.ifft(spectrum)).sum()


def band(N: int, wavelet: Wavelet, width: int, negligible: float) -> tuple[int, np.ndarray]:
    """First bin and values of the stretch, at most `width` bins, of a spectrum of N bins in which a wavelet lives.

    What is below `negligible` times its largest value is not kept.
    """
    middle, far = round(wavelet.xi * N), math.sqrt(-2 * math.log(negligible)) * wavelet.sigma
    half = min(width // 2, math.ceil(2 * far * N))  # twice, as the low-pass part lies around 0
    bins = np.arange(middle - half, middle - half + min(width, 2 * half))
    psi_hat = morlet(N, wavelet, bins)
    kept = np.flatnonzero(np.abs(psi_hat) > negligible * np.abs(psi_hat).max())
    return int(bins[kept[0]]), psi_hat[kept[0] : kept[-1] + 1]


def bands(N: int, wavelets: list[Wavelet], width: int, negligible: float) -> tuple[np.ndarray, np.ndarray]:
    """First bins (n,) and values (n, K) of several `band`s, filled with zeros to the widest."""
    starts, values = zip(*(band(N, wavelet, width, negligible) for wavelet in wavelets), strict=True)
    size = max(map(len, values))
    return np.array(starts), np.stack([np.pad(each, (0, size - len(each))) for each in values])


def reach(sigma: float, negligible: float) -> int:
    """Samples from its middle at which a wavelet of width σ, a Gaussian in time too, is negligible."""
    return math.ceil(math.sqrt(-2 * math.log(negligible)) / (2 * math.pi * sigma))


class FrequencyFilters(NamedTuple):
    """What filters a stack of bins along log-frequency: a low-pass filter, then each wavelet of one spin or of both.

    A falling wavelet is the conjugate of the rising one, but for those so broad that their spectra are cut. So W leaves
    out the falling wavelets of all others: their rows follow those of W, as the conjugates of its last.
    """

    W: np.ndarray  # (rows, bins), complex
    n_low: int  # rows of the low-pass filter
    n_alone: int  # rows without a conjugate
    averages: list[np.ndarray]  # (outputs, rows) of each wavelet, for one spin
    starts: list[tuple[int, ...]]  # first row of each wavelet, for each spin


class FrequencyBank:
    """Wavelets ψ_fr of both spins, and low-pass filters, along log-frequency.

    Parameters
    ----------
    n_bins : int
        At least as many bins as there are first-order filters.
    J_fr, Q_fr : int
        Octaves, and wavelets per octave; the longest spans about 2^J_fr bins.
    F : int or "global"
        Width of the average, in bins, and, rounded down to a power of two, its step; "global" sums.
    negligible : float
        Share of the largest value below which nothing is computed.
    """

    def __init__(self, n_bins: int, J_fr: int, Q_fr: int, F: int | str, negligible: float) -> None:
        width = 2**J_fr if isinstance(F, str) else F
        self.is_global, self.negligible = F == "global", negligible
        self.N = int(n_bins + 8 * min(width, 2**J_fr)) // 2**J_fr * 2**J_fr
        self.log2_F = math.floor(math.log2(width))
        self.low_step = 2**J_fr
        self.wavelets = filter_bank(J_fr, Q_fr)
        self.phi_low = np.fft.ifft(low_pass(self.N, 2**J_fr)).real
        self.phi_F = np.fft.ifft(low_pass(self.N, width)).real
        self.psi = {
            spin: [np.fft.ifft(morlet_1d(self.N, spin * each.xi, each.sigma)) for each in self.wavelets]
            for spin in (1, -1)
        }

    def low_bins(self, n_inputs: int) -> np.ndarray:
        """Bins at which the low-pass filter is sampled."""
        return np.arange(0, n_inputs, self.low_step)

    def out_bins(self, n_inputs: int) -> np.ndarray:
        """Bins at which the averages of the wavelets are sampled."""
        return np.arange(0, n_inputs, n_inputs if self.is_global else 2**self.log2_F)

    def filters(self, n_inputs: int, spins: tuple[int, ...]) -> FrequencyFilters:
        """The filters of a stack of bins, of which only the first n_inputs exist, as dense matrices."""
        low_bins = self.low_bins(n_inputs)
        blocks = [self.phi_low[(low_bins[:, None] - np.arange(n_inputs)) % self.N].astype(complex)]
        steps, averages = [], []
        for n, wavelet in enumerate(self.wavelets):
            level = wavelet.level if self.is_global else min(wavelet.level, self.log2_F)
            positions = np.arange(0, self.N, 2**level)
            step = (positions[:, None] - np.arange(n_inputs)) % self.N
            if self.is_global:
                average = np.ones((1, len(positions)))
            else:
                average = 2**level * self.phi_F[(self.out_bins(n_inputs)[:, None] - positions) % self.N]
            # Only positions that the wavelet sees and that the average reaches are worth computing.
            seen = np.maximum(*(np.abs(self.psi[spin][n][step]).max(1) for spin in (1, -1)))
            reached = np.abs(average).max(0)
            needed = seen * reached > self.negligible * seen.max() * reached.max()
            steps.append(step[needed])
            averages.append(average[:, needed])
        pairs = [n for n in range(len(self.wavelets)) if spins == (1, -1) and self.is_conjugate(n)]
        alone = [(n, spin) for n in range(len(self.wavelets)) if n not in pairs for spin in spins]
        start, n_rows = {}, len(low_bins)
        for n, spin in alone + [(n, 1) for n in pairs]:
            start[n, spin] = n_rows
            blocks.append(self.psi[spin][n][steps[n]])
            n_rows += len(steps[n])
        n_alone = start[pairs[0], 1] if pairs else n_rows
        start |= {(n, -1): start[n, 1] - n_alone + n_rows for n in pairs}
        starts = [tuple(start[n, spin] for spin in spins) for n in range(len(self.wavelets))]
        return FrequencyFilters(np.concatenate(blocks), len(low_bins), n_alone, averages, starts)

    def is_conjugate(self, n: int) -> bool:
        """Whether the falling wavelet is the conjugate of the rising one, to the last digits of float64."""
        rising, falling = self.psi[1][n], self.psi[-1][n]
        return bool(np.abs(falling - rising.conj()).max() < 1e-14 * np.abs(rising).max())


class Circle(NamedTuple):
    """A sound with silence around it, as an FFT takes it: its end is followed by its beginning."""

    length: int
    left: int  # samples before the sound


@dataclass(frozen=True)
class Octave:
    """First-order filters whose outputs are sampled every 2^level samples."""

    level: int
    circle: Circle
    psi: Tensor  # (n, K): each wavelet's stretch of the spectrum
    starts: tuple[int, ...]  # its first bin
    seen: tuple[int, int] = (0, 0)  # first and last bin that any rate of the same circle takes of their outputs
    smooth: Tensor | None = None  # half the spectrum of a low-pass, through which they go on to a longer circle


class Band(NamedTuple):
    """A stretch of the spectra of U₁, sampled every 2^level samples."""

    level: int
    first: int  # bin
    values: Tensor  # (..., n, bins)


@dataclass(frozen=True)
class Scales:
    """Filters along log-frequency, for the bins that one rate hears."""

    W: Tensor  # (2 rows, bins): [Re; Im] of low-pass filters and wavelets
    n_low: int  # rows of the low-pass filter
    n_alone: int  # rows whose conjugates are no filters too
    averages: tuple[Tensor, ...]  # (outputs, rows) of each wavelet
    starts: tuple[tuple[int, ...], ...]  # first row of each wavelet, for each spin


@dataclass(frozen=True)
class Rate:
    """One wavelet ψ_λ₂ in time, and what follows it."""

    n2: int  # its index in the bank
    level: int  # log₂ of the step at which its output is sampled
    circle: Circle
    n_inputs: int  # bins of log-frequency that have it: those above it
    start: int  # first bin of its stretch of the spectrum
    psi: Tensor  # (K,): that stretch
    half_psi: Tensor | None  # (K,), for tangents at half the rate; None where they have the full one
    sounding: slice  # frames that the sound reaches: all others are zero
    scales: Scales


Record = TypeVar("Record", Octave, Scales, Rate)


def moved(record: Record, move: Callable[[Tensor], Tensor]) -> Record:
    """A record with all of its tensors moved, or cast."""

    def of(value: Any) -> Any:
        if isinstance(value, tuple) and not isinstance(value, Circle):
            return tuple(map(of, value))
        if isinstance(value, Scales):
            return moved(value, move)
        return move(value) if isinstance(value, Tensor) else value

    return replace(record, **{field.name: of(getattr(record, field.name)) for field in fields(record)})
