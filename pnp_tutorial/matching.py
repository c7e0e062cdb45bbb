"""From a recording to a drum: onset, sample rate and length made right, ν̃ predicted, the drum played again.

    x (any file) → ν̃ = f_W(x) → θ̃ → x̃ = g(θ̃),    ‖Φ(x̃) − Φ(x)‖₂ before and after

"Before" is the distance of the best constant drum: the answer of an encoder that did not listen.
"""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from .dataset import ear, write_atomically
from .drum import N_SAMPLES, SAMPLE_RATE, rectangular_drum
from .encoder import AudioEncoder
from .evaluation import jtfs_distance
from .metric import Map
from .parameters import N_PARAMETERS, PARAMETERS, to_theta

SILENCE = 1e-5  # peak, of full scale: −100 dB
ONSET = 0.02  # of the peak: −34 dB


@dataclass(frozen=True)
class Match:
    """A recording and the drum that was found for it.

    Attributes
    ----------
    x, x_hat : Tensors (n_samples,), the recording as the encoder heard it and the matched drum, both of peak 1
    nu, theta : Tensors (5,), the drum's parameters
    nu_constant : Tensor (5,), the drum that "before" stands for
    distance_before, distance_after : JTFS distances of that drum and of the matched one from the recording
    """

    x: Tensor
    x_hat: Tensor
    nu: Tensor
    theta: Tensor
    nu_constant: Tensor
    distance_before: float
    distance_after: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON: parameters with name, symbol, unit and value, and the two distances."""
        parameters = [
            {"name": p.name, "symbol": p.symbol, "unit": p.unit, "meaning": p.meaning, "value": value}
            for p, value in zip(PARAMETERS, self.theta.tolist(), strict=True)
        ]
        distances = {"before": self.distance_before, "after": self.distance_after}
        constant = dict(zip((p.name for p in PARAMETERS), to_theta(self.nu_constant).tolist(), strict=True))
        return {"theta": parameters, "nu": self.nu.tolist(), "jtfs_distance": distances, "before": constant}


def load_audio(path: str | Path, sample_rate: int = SAMPLE_RATE, n_samples: int = N_SAMPLES) -> Tensor:
    """Read any sound file as one channel from its onset on.

    Channels are averaged, the rate is converted, what comes before the first sample above a fiftieth of the peak is
    left out, the rest is cut or filled with zeros to n_samples and scaled to a peak of 1.

    Returns
    -------
    x : Tensor, shape (n_samples,), float64

    Raises
    ------
    ValueError
        If the file is missing, no audio, empty, silent, or holds NaN or infinite samples.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is not a file" if path.exists() else f"{path} does not exist")
    try:
        channels, rate = soundfile.read(path, dtype="float64", always_2d=True)  # (samples, channels)
    except (soundfile.SoundFileError, OSError) as error:
        raise ValueError(f"{path} cannot be read as audio ({' '.join(str(error).split())})") from error
    if len(channels) == 0:
        raise ValueError(f"{path} is empty: it holds no samples")
    if not np.isfinite(channels).all():
        raise ValueError(f"{path} holds NaN or infinite samples")
    x = soxr.resample(channels.mean(1), rate, sample_rate)
    peak = np.abs(x).max(initial=0)
    if peak < SILENCE:
        raise ValueError(f"{path} is silent: its peak is {peak:.1g} of full scale, expected at least {SILENCE:g}")
    x = x[np.argmax(np.abs(x) > ONSET * peak) :][:n_samples]
    return torch.from_numpy(np.pad(x, (0, n_samples - len(x))) / np.abs(x).max())


def match(audio: Tensor | str | Path, model: AudioEncoder, features: Map | None = None) -> Match:
    """Find the drum that sounds like a recording.

    Parameters
    ----------
    audio : Tensor, shape (n_samples,), from its onset on and of peak 1, or path of a sound file
    model : AudioEncoder
        Such as `load_encoder()`. If `evaluation.report` has written its best constant into it, "before" is
        the distance of that drum, else of the drum at the centre of the ranges, ν = 0.
    features : callable, optional
        Φ, for the distances; the paper's if not given.

    Raises
    ------
    ValueError
        If the file is not usable (see `load_audio`), the sound has another length, or the encoder needs the pitch.
    """
    n_samples = model.config.n_samples
    if model.encoder.n_outputs < N_PARAMETERS:
        raise ValueError("this encoder was trained with known pitch: it cannot match a sound alone")
    x = audio if isinstance(audio, Tensor) else load_audio(audio, n_samples=n_samples)
    if x.shape != (n_samples,):
        raise ValueError(f"expected audio of shape ({n_samples},), got {tuple(x.shape)}")
    device = next(model.parameters()).device
    x = x.to(device)
    features = features or ear(model.config).to(device)
    constant = model.metadata.get("evaluation", {}).get("nu_constant", [0.0] * N_PARAMETERS)
    nu_constant = torch.tensor(constant, dtype=torch.float64, device=device)
    with torch.no_grad():
        nu = model(x)
        drums = rectangular_drum(to_theta(torch.stack([nu_constant, nu])), n_samples)
        before, after = jtfs_distance(drums, x.expand_as(drums), features).tolist()
    return Match(x.cpu(), drums[1].cpu(), nu.cpu(), to_theta(nu).cpu(), nu_constant.cpu(), before, after)


def save_match(result: Match, wav: str | Path, document: str | Path) -> None:
    """Write the matched drum as a 16-bit WAV and `Match.to_dict` as JSON: both whole, or an OSError and neither."""
    sound = io.BytesIO()
    soundfile.write(sound, result.x_hat.numpy(), SAMPLE_RATE, format="WAV", subtype="PCM_16")
    text = json.dumps(result.to_dict(), indent=2, ensure_ascii=False)
    write_atomically({Path(wav): sound.getvalue(), Path(document): text.encode()})
