"""Feedback on a reader's answers, for the cells "Your turn" of the notebooks.

An answer is compared with what the library computes in the same cell. One sentence says that it is right, or names the
first thing that is off: its kind, its shape, its sign, its unit, a factor, or the number that is furthest away.
"""

import math
from collections.abc import Collection
from typing import Any

import numpy as np
from numpy import ndarray
from torch import Tensor

# How many of another unit, with which it is often confused, are one of a unit.
CONFUSED = {
    "s": {"ms": 1e3},
    "ms": {"s": 1e-3},
    "Hz": {"rad/s": 2 * math.pi, "kHz": 1e-3},
    "rad/s": {"Hz": 1 / (2 * math.pi)},
    "cents": {"semitones": 1e-2, "octaves": 1 / 1200},
    "a share": {"percent": 1e2},
}
TREND = ("grow", "shrink", "stay")


def trend(before: Any, after: Any) -> str:
    """What a positive number does, a word of `TREND`: it stays if it changes by less than 1 %."""
    ratio = float(after) / float(before)
    return "stay" if abs(ratio - 1) < 0.01 else "grow" if ratio > 1 else "shrink"


def check(
    what: str,
    answer: Any,
    expected: Any,
    *,
    unit: str = "",
    within: float = 0.05,
    choices: Collection[str] = (),
) -> None:
    """Print in a sentence how a reader's answer compares with what the library finds.

    Parameters
    ----------
    what : str
        What is asked for; the sentence begins with it.
    answer : None, numbers or words
        None, or a list with None in it, is no answer yet. Numbers may be Python's, an array or a tensor.
    expected : numbers or words
        The answer of the library.
    unit : str
        Of the numbers. If the answer is in another unit of `CONFUSED`, the sentence says so.
    within : float
        Largest relative error of a number that is right; 0 for what is counted.
    choices : collection of str
        The words among which a reader chooses.

    Raises
    ------
    ValueError
        If what is expected is neither finite numbers nor words among the choices.
    """
    words, numbers = _words(expected), _numbers(expected)
    if words is None and (numbers is None or not np.isfinite(numbers).all()):
        raise ValueError(f"expected must be finite numbers or words, got {expected!r}")
    if words and choices and not words <= set(choices):
        raise ValueError(f"expected must be among {', '.join(choices)}, got {_listed(words)}")
    if answer is None or (isinstance(answer, list | tuple) and None in map(_or_none, answer)):
        sentence = "no answer yet. Put yours in place of None, and run this cell again."
    elif words is not None:
        sentence = _of_words(_words(answer), words, choices)
    else:
        sentence = _of_numbers(_numbers(answer), np.asarray(numbers), unit, within)
    print(f"{what}: {sentence}")


def _or_none(value: Any) -> int | None:
    """Something that can be compared with None in any list: a tensor cannot."""
    return None if value is None else 0


def _listed(words: Collection[str]) -> str:
    return ", ".join(sorted(words)) or "nothing"


def _words(value: Any) -> set[str] | None:
    """The words of a value; None if it is something else."""
    if isinstance(value, str):
        return {value.strip()}
    if isinstance(value, list | tuple | set) and all(isinstance(part, str) for part in value):
        return {part.strip() for part in value}
    return None


def _numbers(value: Any) -> ndarray | None:
    """The real numbers of a value, in float64; None if it is something else."""
    try:
        array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError):  # a ragged list, a list of tensors with gradients
        return None
    return array.astype(float) if array.dtype.kind in "iuf" else None


def _of_words(answer: set[str] | None, expected: set[str], choices: Collection[str]) -> str:
    if answer is None:
        return "the answer should be a word in quotation marks, or a list of such words."
    if choices and (unknown := answer - set(choices)):
        return f"{_listed(unknown)} is no choice. Choose among {', '.join(choices)}."
    if answer == expected:
        return f"right, {_listed(expected)}."
    faults = {"not right": answer - expected, "missing": expected - answer}
    return "; ".join(f"{fault}: {_listed(words)}" for fault, words in faults.items() if words) + "."


def _of_numbers(answer: ndarray | None, expected: ndarray, unit: str, within: float) -> str:
    if answer is None:
        return f"the answer should be {'an array of real numbers' if expected.ndim else 'one real number'}."
    if answer.shape != expected.shape:
        return f"the shape is {answer.shape}, and should be {expected.shape}."
    if n_bad := np.count_nonzero(~np.isfinite(answer)):
        return f"{n_bad} of {answer.size} numbers are not finite."
    if _close(answer, expected, within):
        found = f"{expected.size} numbers" if expected.ndim else f"{expected:.4g} {unit}".rstrip()
        return f"right. The library finds {found}."
    factor = float((answer * expected).sum() / ((expected * expected).sum() or 1))
    if factor and _close(answer, factor * expected, max(within, 0.05)):
        return _of_factor(factor, unit)
    if _close(abs(answer), abs(expected), within):
        return f"{np.count_nonzero(answer * expected < 0)} of {answer.size} numbers have the wrong sign."
    if answer.ndim == 2 and _close(answer.T, expected, within):
        return "the matrix is transposed."
    worst = np.unravel_index(abs(answer - expected).argmax(), answer.shape)
    which = f"number {', '.join(map(str, worst))} is furthest off: " if worst else ""
    return f"{which}you have {answer[worst]:.4g}, and the library finds {expected[worst]:.4g}."


def _close(answer: ndarray, expected: ndarray, within: float) -> bool:
    return np.allclose(answer, expected, rtol=within, atol=1e-6 * (abs(expected).max(initial=0) or 1))


def _of_factor(factor: float, unit: str) -> str:
    """What is wrong with numbers that are a multiple of the right ones."""
    size = abs(factor)
    alike = {other for other, many in CONFUSED.get(unit, {}).items() if abs(size / many - 1) < 0.05}
    if abs(size - 1) < 0.05:
        fault = "" if factor < 0 else f"nearly right, off by {size - 1:+.1%}"
    elif alike:
        fault = f"the unit seems to be {_listed(alike)}, and should be {unit}"
    else:
        fault = f"too large by a factor of {size:.3g}" if size > 1 else f"too small by a factor of {1 / size:.3g}"
    return " and ".join(["the sign is wrong"] * (factor < 0) + [fault] * bool(fault)) + "."
