"""The pictures that chapters share, on matplotlib alone.

Every function draws into the axes that it is given, or into a new figure, and returns the axes. Colours are
Okabe and Ito's or cividis, told apart by the colour-blind; lines also differ in style. Nothing global is
changed: `style()` is a context.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator
from numpy.typing import ArrayLike
from scipy.signal import ShortTimeFFT
from scipy.signal.windows import hann
from torch import Tensor

# Okabe and Ito's colours, those that show on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))


def style() -> AbstractContextManager:
    """Context in which figures have the book's fonts, colours and resolution: `with style(): ...`."""
    settings: dict[Any, Any] = {
        "figure.dpi": 140,
        "figure.constrained_layout.use": True,
        "font.size": 10,
        "axes.titlesize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.prop_cycle": cycler(color=COLORS, linestyle=LINES),
        "image.cmap": "cividis",
        "legend.frameon": False,
    }
    # A notebook's backend turns interactive when first loaded: inside the context, leaving it would undo that,
    # and no later figure of the notebook would be shown.
    if not plt.get_fignums():
        plt.switch_backend(mpl.get_backend())
    return mpl.rc_context(settings)


def _array(values: ArrayLike | Tensor) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _axes(ax: Axes | None, figsize: tuple[float, float]) -> Axes:
    if ax is not None:
        return ax
    with style():
        return plt.subplots(figsize=figsize)[1]


def grid(n_rows: int, n_columns: int, figsize: tuple[float, float], **options: Any) -> np.ndarray:
    """New figure in the book's style: its axes, an array (n_rows, n_columns); options as in `plt.subplots`."""
    with style():
        return plt.subplots(n_rows, n_columns, figsize=figsize, squeeze=False, **options)[1]


def spectrogram(
    x: ArrayLike | Tensor,
    sample_rate: float,
    ax: Axes | None = None,
    window_s: float = 0.04,
    range_db: float = 70.0,
    max_hz: float | None = None,
) -> Axes:
    """Power spectrogram of one sound in decibels below its own peak.

    Parameters
    ----------
    x : array or Tensor, shape (n_samples,)
    sample_rate : float, Hz
    window_s : float, s
        Length of the Hann window.
    range_db : float, dB
        Below the peak, where the colours end.
    max_hz : float, Hz, optional
        Top of the picture; half the sample rate if not given.

    Raises
    ------
    ValueError
        If x is not one sound.
    """
    x = _array(x)
    if x.ndim != 1 or len(x) < 2:
        raise ValueError(f"expected one sound of shape (n_samples,), got {x.shape}")
    ax = _axes(ax, (6.5, 2.8))
    length = max(2, min(round(window_s * sample_rate), len(x)))
    transform = ShortTimeFFT(hann(length), hop=max(1, length // 8), fs=sample_rate, mfft=2 * length)
    power = transform.spectrogram(x)
    peak = power.max() or 1.0
    level = 10 * np.log10(np.maximum(power / peak, 10 ** (-range_db / 10)))
    left, right, bottom, top = transform.extent(len(x))
    image = ax.imshow(
        level,
        origin="lower",
        aspect="auto",
        extent=(left, right, bottom / 1000, top / 1000),
        vmin=-range_db,
        vmax=0,
        cmap="cividis",
    )
    image.set_gid("spectrogram")
    ax.set(xlim=(0, len(x) / sample_rate), ylim=(0, (max_hz or sample_rate / 2) / 1000))
    ax.set(xlabel="time (s)", ylabel="frequency (kHz)")
    return ax


def scalogram(
    S: ArrayLike | Tensor,
    frequencies: ArrayLike,
    duration_s: float,
    ax: Axes | None = None,
) -> Axes:
    """Picture of a scalogram over time and log-frequency.

    Parameters
    ----------
    S : array or Tensor, shape (n_filters, n_frames)
        Rows in the order of `frequencies`.
    frequencies : array, shape (n_filters,), Hz
        Centres of the filters, descending, as in `Scalogram.frequencies`. The lowest, equally spaced, are drawn
        on the logarithmic axis too.
    duration_s : float, s
        Of all frames together.

    Raises
    ------
    ValueError
        If the shapes do not agree.
    """
    S, hz = _array(S), _array(frequencies)
    if S.ndim != 2 or S.shape[0] != len(hz) or len(hz) < 2:
        raise ValueError(f"expected a scalogram of shape ({len(hz)}, n_frames), of two filters or more, got {S.shape}")
    ax = _axes(ax, (6.5, 3.2))
    inner = np.sqrt(hz[1:] * hz[:-1])
    edges = np.concatenate([[hz[0] ** 2 / inner[0]], inner, [hz[-1] ** 2 / inner[-1]]])
    times = np.linspace(0, duration_s, S.shape[1] + 1)
    ax.pcolormesh(times, edges, S, cmap="cividis", rasterized=True)
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_locator(NullLocator())
    ax.set(xlabel="time (s)", ylabel="frequency (Hz)")
    return ax


def jtfs_paths(S: ArrayLike | Tensor, paths: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Second order of a JTFS: mean over the carriers, for each rate (across) and signed scale (up).

    The signed scale is scale × spin in cycles per octave: rising patterns above, falling ones below zero.

    Parameters
    ----------
    S : array or Tensor, shape (P,)
    paths : DataFrame
        `JTFS.paths`.

    Raises
    ------
    ValueError
        If S has not one value for each path.
    """
    S = _array(S)
    if S.shape != (len(paths),):
        raise ValueError(f"expected {len(paths)} coefficients, one for each path, got shape {S.shape}")
    ax = _axes(ax, (6.5, 3.2))
    second = paths.assign(S=S, signed=paths.scale * paths.spin)[(paths.order == 2) & paths.spin.notna()]
    table = second.pivot_table(index="signed", columns="rate", values="S", aggfunc="mean")
    image = ax.imshow(table.to_numpy(), origin="lower", aspect="auto", vmin=0, cmap="cividis")
    ax.set_xticks(range(table.shape[1]), [f"{rate:.2g}" if rate < 10 else f"{rate:.0f}" for rate in table.columns])
    ax.set_yticks(range(table.shape[0]), [f"{scale:+.2g}" for scale in table.index])
    ax.set(xlabel="rate (Hz)", ylabel="scale × spin (cycles per octave)")
    ax.figure.colorbar(image, ax=ax, label="mean coefficient")
    return ax


def curves(
    x: ArrayLike | Tensor,
    lines: Mapping[str, ArrayLike | Tensor],
    xlabel: str,
    ylabel: str,
    ax: Axes | None = None,
    log_y: bool = False,
    legend: bool = True,
) -> Axes:
    """Labelled lines over a common x, each with its own colour and dash: losses over steps, say."""
    ax = _axes(ax, (6.5, 3.0))
    for i, (label, y) in enumerate(lines.items()):
        ax.plot(_array(x), _array(y), label=label, color=COLORS[i % 6], linestyle=LINES[i % 6], linewidth=1.8)
    if log_y:
        ax.set_yscale("log")
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if legend:
        ax.legend(frameon=False)
    return ax


def bars(
    values: Mapping[str, ArrayLike | Tensor],
    labels: Sequence[str],
    ylabel: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Groups of bars side by side, one group a label: components of vectors over the parameters, say.

    Raises ValueError if a vector has not one value for each label.
    """
    ax = _axes(ax, (6.5, 2.8))
    width = 0.8 / len(values)
    for i, (name, heights) in enumerate(values.items()):
        heights = _array(heights)
        if heights.shape != (len(labels),):
            raise ValueError(f"expected {len(labels)} values for {name!r}, got shape {heights.shape}")
        offset = (i - (len(values) - 1) / 2) * width
        hatch = ("", "//", "..", "xx")[i % 4]
        ax.bar(
            np.arange(len(labels)) + offset,
            heights,
            width,
            label=name,
            color=COLORS[i % 6],
            hatch=hatch,
            edgecolor="white",
            linewidth=0,
        )
    ax.axhline(0, color="black", linewidth=0.8, linestyle="-")
    ax.set_xticks(range(len(labels)), labels)
    ax.set_ylabel(ylabel)
    if len(values) > 1:
        ax.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(values))
    return ax


def eigenvalues(values: ArrayLike | Tensor, ax: Axes | None = None, floor: float = 1e-12) -> Axes:
    """Eigenvalues of metrics (B, n), one column of marks a sound, on a logarithmic axis; below `floor`, at it."""
    values = _array(values)
    if values.ndim != 2:
        raise ValueError(f"expected eigenvalues of shape (B, n), got {values.shape}")
    ax = _axes(ax, (6.5, 3.0))
    values = np.sort(values)[:, ::-1]
    order = np.argsort(values[:, 0])
    markers = ("o", "s", "^", "v", "D", "P")
    for j in range(values.shape[1]):
        y = np.maximum(values[order, j], floor)
        ax.plot(1 + np.arange(len(y)), y, markers[j % 6], color=COLORS[j % 6], linestyle="none", label=str(j + 1))
    ax.set_yscale("log")
    ax.set(xlabel="sound, by its largest eigenvalue", ylabel="eigenvalue (1: the largest)")
    ax.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=8, columnspacing=0.8, handletextpad=0)
    return ax
