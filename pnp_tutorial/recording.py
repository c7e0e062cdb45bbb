"""From a sound file to the sound that an encoder hears: one channel, of one length and rate; of one peak and from its
onset on, where a synthesizer's sounds are so.

A file is read in blocks, twice: all of it to learn its peak, and from the beginning to the end of what is heard. So an
hour takes no more memory than ten seconds, and what a header says of a file's length is not believed.
"""

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor, nn

from .synthesizer import Synthesizer

SILENCE = 1e-4  # peak, of full scale: −80 dB, above the dither of 16 bits
LOUDEST = 2.0**32  # floats may be integers of 32 bits; near the largest floats, a conversion of rates gives NaN
ONSET = 0.02  # of the peak: −34 dB
CANCELLED = 0.01  # peak of the channels' mean, of the loudest channel's: −40 dB
PASSED = 0.9  # of the lower of two bands, when a file's rate is converted: SoXR fades out above
BLOCK = 2**18  # samples, of all channels together, that are read at once: 1 MB
PACKED = 2**11  # samples that a byte may stand for: FLAC needs one for some hundreds of silence
LEAD = 64  # samples before the onset from which a rate is converted: what a filter hears there is no silence
QUIET = 2**13  # samples of which the mean is taken for zero, where they vary least: 0.2 s at 44.1 kHz
NOISE = 2**18  # samples from the beginning in which the noise before the onset is measured: 6 s at 44.1 kHz


class Recording(NamedTuple):
    """A sound, and how much of the spectrum it can have."""

    x: Tensor  # (n_samples,), float64, one channel
    band: float  # lowest part of the band up to the Nyquist frequency: 1, if its rate was not converted


class _Stream(soundfile.SoundFile):
    """A sound file that is read from its beginning to its end.

    After each read, soundfile would seek to where the header says that it is: an error, where the header is wrong.
    """

    def seekable(self) -> bool:
        return False


class _Survey(NamedTuple):
    """What is known of a file once it has been read."""

    rate: int  # Hz
    row: int  # of `_blocks` that is heard: 0, the mean of all channels, or 1 + a channel
    offset: float  # of its zero: the mean of its quietest stretch, if that is one
    peak: float  # around that


def load_recording(path: str | Path, synthesizer: Synthesizer) -> Recording:
    """Read any sound file as one channel, of the length and sample rate of a synthesizer's sounds.

    Channels are averaged (if they cancel, the loudest is taken) and set to zero where they are quietest, if both halves
    of that stretch agree: the mean of a drum that still sounds is its own, and to take that out would be heard as a
    click. What comes before the onset, but for one sample, is left out: that is the first above a fiftieth of the peak
    and six times the noise of the first seconds. The rest is cut or filled with zeros to the synthesizer's length, its
    rate is converted, and it is scaled to a peak of 1. For a synthesizer whose sounds do not begin at once, or whose
    level has a meaning, the beginning or the level stay as they are.

    Raises
    ------
    ValueError
        If the file is missing, no audio, empty, silent, absurdly loud, holds NaN, infinite samples or more samples than
        its bytes can hold, cannot be decoded to its end, or ends at its onset.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is not a file" if path.exists() else f"{path} does not exist")
    survey = _survey(path)
    if survey.peak < SILENCE:
        raise ValueError(
            f"{path} is silent: its peak is {survey.peak:.1g} of full scale, expected at least {SILENCE:g}"
        )
    if survey.peak > LOUDEST:
        raise ValueError(
            f"{path} is no sound: its peak is {survey.peak:.1g} of full scale, expected at most {LOUDEST:.1g}"
        )
    n_samples, sample_rate = synthesizer.n_samples, synthesizer.sample_rate
    n = math.ceil((n_samples + 1) * survey.rate / sample_rate)
    x, lead = _read(path, survey, n, synthesizer.from_onset)
    early = max(0, math.floor(lead * sample_rate / survey.rate) - 1)
    y = soxr.resample(x, survey.rate, sample_rate)[early : early + n_samples]
    if not synthesizer.from_onset and len(y) and np.abs(y).max() < SILENCE:
        raise ValueError(
            f"{path} is silent in its first {n_samples / sample_rate:.3g} s, and no more of it is heard: its peak "
            f"there is {np.abs(y).max():.1g} of full scale, expected at least {SILENCE:g}"
        )
    if not y.any() or (len(x) - lead) * sample_rate < survey.rate:
        after = " after its onset" if synthesizer.from_onset else ""
        raise ValueError(f"{path} ends {len(x) - lead} samples{after} at {survey.rate} Hz: too few to be a sound")
    band = 1.0 if survey.rate == sample_rate else PASSED * min(survey.rate / sample_rate, 1)
    gain = np.abs(y).max() if synthesizer.peak_normalized else 1.0
    return Recording(torch.from_numpy(np.pad(y, (0, n_samples - len(y))) / gain), band)


def _blocks(path: Path) -> Iterator[tuple[int, np.ndarray]]:
    """Sample rate and samples of a file, block by block: (1 + channels, n), float64, the mean of all channels first."""
    try:
        # libsndfile opens it itself: where a header asks for a wrong place, calls back into Python print a traceback.
        with open(path, "rb"):  # whose errors say more than its own
            pass
        with _Stream(str(path) if sys.platform == "win32" else os.fsencode(path)) as stream:
            n_left = PACKED * path.stat().st_size
            while True:
                block = stream.read(max(1, BLOCK // stream.channels), dtype="float32", always_2d=True)
                if not len(block):
                    return
                n_left -= block.size
                if n_left < 0:  # some decoders go on with zeros for as long as the header says
                    raise ValueError(f"{path} has more samples than its {path.stat().st_size} bytes can hold")
                if not np.isfinite(block).all():
                    raise ValueError(f"{path} holds NaN or infinite samples")
                yield stream.samplerate, np.stack([block.mean(1, dtype=np.float64), *block.T.astype(np.float64)])
    except (soundfile.SoundFileError, OSError, TypeError) as error:  # TypeError: RAW, which does not tell its rate
        reason = getattr(error, "error_string", None) or getattr(error, "strerror", None) or error
        raise ValueError(f"{path} cannot be read as audio ({' '.join(str(reason).split())})") from error


def _survey(path: Path) -> _Survey:
    rate = 0
    rest, low, high = np.zeros((1, 0)), np.full(1, np.inf), np.full(1, -np.inf)
    offset, quietest = np.zeros(1), np.full(1, np.inf)
    for rate, rows in _blocks(path):  # noqa: B007
        low, high = np.minimum(low, rows.min(1)), np.maximum(high, rows.max(1))
        rest = np.concatenate([np.broadcast_to(rest, (len(rows), rest.shape[1])), rows], 1)
        while rest.shape[1] >= QUIET:
            stretch, rest = np.split(rest, [QUIET], 1)
            spread = stretch.std(1)
            offset = np.where(spread < quietest, _zero(stretch), offset)
            quietest = np.minimum(spread, quietest)
    if not rate:
        raise ValueError(f"{path} is empty: it holds no samples")
    if not np.isfinite(quietest).all():
        offset = _zero(rest)
    peak = np.maximum(high - offset, offset - low)
    loudest = 1 + int((high - low)[1:].argmax())
    row = loudest if peak[0] < CANCELLED * peak[loudest] else 0
    return _Survey(rate, row, float(offset[row]), float(peak[row]))


def _zero(rows: np.ndarray) -> np.ndarray:
    """Means (n_rows,) of rows (n_rows, n), through Hann windows over their halves; 0 where the halves disagree.

    A constant is in both. What a drum has at the ends of the stretch, and its lowest partials, are not.
    """
    n = max(1, rows.shape[1] // 2)
    window = np.hanning(n + 2)[1:-1]
    first, last = (half @ window / window.sum() for half in (rows[:, :n], rows[:, -n:]))
    return np.where(np.abs(first - last) <= np.abs(first + last) / 4, (first + last) / 2, 0.0)


def _read(path: Path, survey: _Survey, n: int, from_onset: bool) -> tuple[np.ndarray, int]:
    """At most n samples from the onset on, or from the first, and how many there are before it: at most LEAD."""
    parts = (rows[survey.row] - survey.offset for _, rows in _blocks(path))
    x = np.concatenate([next(parts, np.zeros(0))])
    while len(x) < NOISE and (part := next(parts, None)) is not None:
        x = np.concatenate([x, part])
    noise = noise_level(torch.from_numpy(x[:NOISE]))
    threshold = min(max(ONSET * survey.peak, 6 * noise), 0.5 * survey.peak)
    while from_onset and not (above := np.abs(x) > threshold).any():
        part = next(parts, None)
        if part is None:
            raise ValueError(f"{path} has changed while it was read")
        x = np.concatenate([x[-LEAD:], part])
    onset = int(above.argmax()) if from_onset else 0
    lead = min(LEAD, onset)
    x = x[onset - lead :]
    while len(x) < lead + n and (part := next(parts, None)) is not None:
        x = np.concatenate([x, part])
    return x[: lead + n], lead


def noise_level(x: Tensor, band: float = 1.0) -> float:
    """Standard deviation of white noise like that in the lowest part, `band`, of the spectrum of a sound (n_samples,).

    A tenth of the values in a spectrogram of white noise lie below log(10/9) of their mean. Those are found between the
    partials of a drum and after it, where there is nothing else: so a drum alone has next to no noise, and x must not
    be filled with zeros. Sounds of less than 64 samples are held to have none.
    """
    if len(x) < 64:
        return 0.0
    n_fft = min(4096, len(x) // 4)
    window = torch.hann_window(n_fft, dtype=x.dtype, device=x.device)
    X = torch.stft(x, n_fft, n_fft // 2, window=window, center=False, return_complex=True)
    power = (X.real**2 + X.imag**2)[1:-1] / window.square().sum()
    power = power[: math.ceil(band * len(power))]
    return math.sqrt(np.quantile(power.cpu(), 0.1) / math.log(10 / 9))


def noise_like(n_samples: int, end: int, band: float, seed: int) -> Tensor:
    """White noise (n_samples,) of standard deviation 1; of it, the lowest part `band` of the spectrum, up to `end`."""
    noise = torch.randn(n_samples, generator=torch.Generator().manual_seed(seed))[:end]
    if band < 1:
        spectrum = torch.fft.rfft(noise)
        spectrum[math.ceil(band * len(spectrum)) :] = 0
        noise = torch.fft.irfft(spectrum, end)
    return nn.functional.pad(noise, (0, n_samples - end))
