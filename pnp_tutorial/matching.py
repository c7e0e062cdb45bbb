"""From a recording to a drum: predicted by the encoder, sought in the whole box, refined on the metric's Jacobian.

    load      x: onset found, one channel, 22 050 Hz, peak 1; σ: the level of its noise
    predict   ν⁰ = f_W(x)
    scan      v¹ = argmin ‖C(h(v)) − C(x)‖ over the box     C: coarse spectra; differential evolution from ν⁰ and others
    refine    ṽ = argmin ½ ‖Φ(h(v)) − Φ(x)‖² from v¹        Levenberg–Marquardt in the box, J of `metric.jacobian`

where h hears a drum as it may be in the recording: v = (ν, l) has six numbers in [−1, 1], and

    h(v) = 10^(12 l / 20) g(ν) + σ n

for what has the peak may be no drum (a click, noise), or the drum's own peak be missing: l is its level, 12 dB up or
down. The noise n is white, and one for all drums; it ends where the recording ends, in time and, for files of another
rate than 22 050 Hz, in frequency.

Refinement alone seldom helps: along pitch, the distance in Φ has a dent at every semitone, which is how far its filters
are apart. The distance in C has none, and is so cheap that thousands of drums can be tried.

What a sound does not determine is told by the metric M = JᵀJ at ṽ. Let the features move by d, the distance that is
left or 1 if that is more, and let [−1, 1] have its own variance, 1/3. Then v has the covariance Σ, and v_j is uncertain
by u_j,

    Σ = (M / d² + 3 I)⁻¹,    u_j = √Σ_jj,  at most 1/√3, where nothing is known of v_j.

Where one parameter can make up for another, both are unsure, but not what they do together. That is told by the
eigenvectors of Σ, or rather of its 5 × 5 block for ν: directions, each with a spread of its own.
"""

import hashlib
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import soundfile
import soxr
import torch
from scipy.optimize import OptimizeResult, differential_evolution, least_squares
from torch import Tensor, nn
from tqdm.auto import tqdm

from .dataset import ear
from .drum import N_SAMPLES, SAMPLE_RATE, rectangular_drum
from .encoder import AudioEncoder, load_encoder
from .metric import Map, eigen, gram, jacobian
from .mss import CoarseSpectra
from .runtime import float64_device, write_atomically
from .synthesizer import N_PARAMETERS, NAMES, PARAMETERS, ranges, to_theta

SILENCE = 1e-4  # peak, of full scale: −80 dB, above the dither of 16 bits
ONSET = 0.02  # of the peak: −34 dB
CANCELLED = 0.01  # peak of the channels' mean, of the loudest channel's: −40 dB
PASSED = 0.9  # of the lower of two bands, when a file's rate is converted: SoXR fades out above
ALIKE = 0.1  # JTFS distance at which a refinement has come close enough
PRIOR = 1 / 3  # variance of a number drawn from [−1, 1]
UNSURE = (PRIOR / 2) ** 0.5  # spread of a direction above which the box says more of it than the sound
MINOR = 0.3  # component of a unit vector that is not worth a word: less than a tenth of its square
LEVEL_DB = 12  # of the drum in the recording, up or down


class Step(NamedTuple):
    """One line of the story of a match."""

    stage: str  # "predict", "scan" or "refine"
    n_drums: int  # drums that were heard up to here
    distance: float  # of the best of them: of coarse spectra in "scan", else of Φ
    nu: list[float]  # that drum's parameters


Listener = Callable[[Step], None]  # is told of every step as it is made


@dataclass(frozen=True)
class Match:
    """A recording and the drum that was found for it.

    Attributes
    ----------
    x, x_hat : Tensors (n_samples,), the recording as it was heard and the matched drum, both of peak 1
    nu, theta : Tensors (5,), the drum's parameters
    level_db : float, of the drum in the recording, above a peak of 1
    covariance : Tensor (5, 5), of ν, as at the head of this module
    nu_encoder, nu_constant : Tensors (5,), what the encoder predicted, and the best constant drum that it knows
    distance : dict of floats
        JTFS distance from the recording of the drums "constant", "encoder", "scan" and "match", all heard through its
        noise, the first two with a peak of 1. That of "match" is the least of the last three.
    noise : Tensor (n_samples,), σ n, through which drums were heard
    noise_db : float, level of that noise, in decibels below the recording's peak
    history : tuple of Steps
    """

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
        """Of each ν_j (5,), whatever the others are."""
        return self.covariance.diagonal().sqrt()

    @property
    def directions(self) -> tuple[Tensor, Tensor]:
        """Spreads (5,) of ν, the largest first, and the unit vectors (5, 5) along which it has them, as columns."""
        variances, directions = eigen(self.covariance)
        return variances.clamp_min(0).sqrt().flip(0), directions.flip(1)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: parameters with name, symbol, unit, value, uncertainty; directions; distances, noise and effort."""
        low, high = ranges()
        spread = self.uncertainty * (high - low) / 2
        parameters = [
            {"name": p.name, "symbol": p.symbol, "unit": p.unit, "meaning": p.meaning, "value": value, "uncertainty": u}
            for p, value, u in zip(PARAMETERS, self.theta.tolist(), spread.tolist(), strict=True)
        ]
        spreads, vectors = self.directions
        directions = [
            {"spread": spread, **dict(zip(NAMES, vector, strict=True))}
            for spread, vector in zip(spreads.tolist(), vectors.T.tolist(), strict=True)
        ]
        named = {"encoder": self.nu_encoder, "constant": self.nu_constant}
        others = {name: dict(zip(NAMES, to_theta(nu).tolist(), strict=True)) for name, nu in named.items()}
        effort = {"n_drums": self.history[-1].n_drums, "n_iterations": sum(s.stage == "refine" for s in self.history)}
        return {
            "theta": parameters,
            "nu": self.nu.tolist(),
            "directions": directions,
            "undetermined": undetermined(spreads, vectors),
            "jtfs_distance": self.distance,
            "level_db": self.level_db,
            "noise_db": self.noise_db,
            **effort,
            **others,
        }


def load_audio(path: str | Path, sample_rate: int = SAMPLE_RATE, n_samples: int = N_SAMPLES) -> Tensor:
    """Read any sound file as one channel from its onset on.

    Channels are averaged (if they cancel, the loudest is taken) and their mean over time is taken out. What comes
    before the onset is left out: the first sample above a fiftieth of the peak and six times the noise. The rest is cut
    or filled with zeros to n_samples, its rate is converted, and it is scaled to a peak of 1.

    Returns
    -------
    x : Tensor, shape (n_samples,), float64

    Raises
    ------
    ValueError
        If the file is missing, no audio, empty, silent, holds NaN or infinite samples, or ends at its onset.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is not a file" if path.exists() else f"{path} does not exist")
    try:
        channels, rate = soundfile.read(path, dtype="float32", always_2d=True)  # (samples, channels)
    except (soundfile.SoundFileError, OSError, TypeError) as error:  # TypeError: RAW, which does not tell its rate
        raise ValueError(f"{path} cannot be read as audio ({' '.join(str(error).split())})") from error
    if len(channels) == 0:
        raise ValueError(f"{path} is empty: it holds no samples")
    if not np.isfinite(channels).all():
        raise ValueError(f"{path} holds NaN or infinite samples")
    x = channels.mean(1, dtype=np.float64)
    x -= x.mean()
    loudest = channels[:, np.ptp(channels, axis=0).argmax()].astype(np.float64)
    loudest -= loudest.mean()
    if np.abs(x).max() < CANCELLED * np.abs(loudest).max():
        x = loudest
    peak = np.abs(x).max()
    if peak < SILENCE:
        raise ValueError(f"{path} is silent: its peak is {peak:.1g} of full scale, expected at least {SILENCE:g}")
    threshold = min(max(ONSET * peak, 6 * noise_level(torch.from_numpy(x))), 0.5 * peak)
    x = x[np.argmax(np.abs(x) > threshold) :][: math.ceil((n_samples + 1) * rate / sample_rate)]
    y = soxr.resample(x, rate, sample_rate)[:n_samples]
    if not y.any():
        raise ValueError(f"{path} ends {len(x)} samples after its onset at {rate} Hz: too few to be a sound")
    return torch.from_numpy(np.pad(y, (0, n_samples - len(y))) / np.abs(y).max())


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


def scan(
    x: Tensor,
    synthesizer: Map,
    start: Tensor,
    seed: int = 0,
    n_runs: int = 3,
    tell: Listener = lambda step: None,
) -> Tensor:
    """The v whose sound is closest to x in coarse spectra, sought in the whole box [−1, 1]ⁿ by differential evolution.

    A population of 64 drums evolves for at most 60 generations. That now and then ends in a wrong valley; so it
    is run again, from other drums, until one comes within a thousandth of ‖C(x)‖ or `n_runs` are done.

    Parameters
    ----------
    x : Tensor, shape (n_samples,), of peak 1
    synthesizer : callable
        v (B, n), float64, to sounds (B, n_samples).
    start : Tensor, shape (n,)
        One of the drums at the beginning, such as the encoder's. The others are random.
    seed, n_runs : int
    tell : callable
        Told of every generation.

    Returns
    -------
    v : Tensor, shape (n,), float64, on the CPU
    """
    coarse = CoarseSpectra(len(x)).to(x.device)
    target = coarse(x)
    enough = 1e-3 * float(target.norm())
    best, v, n_drums = math.inf, start, 0

    def distances(population: np.ndarray) -> np.ndarray:  # (n, B)
        nonlocal n_drums
        n_drums += population.shape[1]
        with torch.no_grad():
            sounds = synthesizer(torch.from_numpy(population.T.copy()))
            return (coarse(sounds) - target).norm(dim=-1).cpu().numpy()

    def generation(intermediate_result: OptimizeResult) -> bool:
        nonlocal best, v
        if intermediate_result.fun < best:
            best, v = float(intermediate_result.fun), torch.from_numpy(intermediate_result.x.copy())
        tell(Step("scan", n_drums, best, v[:N_PARAMETERS].tolist()))
        return best < enough

    for run in range(n_runs):
        random = np.random.default_rng([seed, run])
        population = random.uniform(-1, 1, (64, len(start)))
        population[0] = start.cpu()
        differential_evolution(
            distances,
            [(-1, 1)] * len(start),
            init=population,
            maxiter=60,
            mutation=(0.4, 0.9),
            recombination=0.9,
            rng=random,
            vectorized=True,
            updating="deferred",
            polish=False,
            callback=generation,
        )
        if best < enough:
            break
    return v


def refine(
    S: Tensor, v: Tensor, features: Map, synthesizer: Map, n_iterations: int = 20, tell: Listener = lambda step: None
) -> tuple[Tensor, float, Tensor]:
    """Damped Gauss–Newton steps on ½ ‖Φ(h(v)) − S‖² from v, kept in the box [−1, 1]ⁿ.

    SciPy's trust-region reflective method: Levenberg and Marquardt's with the damping that the gain ratio allows,
    each step the solution of the stacked system [J; √λ D]. Ends where a step gains less than 10⁻⁴ of the loss, or at
    a distance of 0.1.

    Parameters
    ----------
    S : Tensor, shape (P,), features of the recording
    v : Tensor, shape (n,), float64
    features, synthesizer : callables
        As in `metric.jacobian`, but that the synthesizer takes v.
    n_iterations : int
        At most so many drums are tried.
    tell : callable
        Told of every iteration.

    Returns
    -------
    v : Tensor, shape (n,), float64, on the CPU: never farther from S than where it began
    distance : float, ‖Φ(h(v)) − S‖
    M : Tensor, shape (n, n), float64, the metric there
    """
    count = 0

    def residual(v: np.ndarray) -> np.ndarray:
        nonlocal count
        count += 1
        with torch.no_grad():
            return (features(synthesizer(torch.from_numpy(v)[None]))[0] - S).cpu().double().numpy()

    def J(v: np.ndarray) -> np.ndarray:
        return jacobian(torch.from_numpy(v)[None], features, synthesizer, lambda v: v)[1][0].cpu().double().numpy()

    def iteration(intermediate_result: OptimizeResult) -> None:
        distance = math.sqrt(2 * intermediate_result.cost)
        tell(Step("refine", count, distance, intermediate_result.x[:N_PARAMETERS].tolist()))
        if distance < ALIKE:
            raise StopIteration

    start = v.cpu().double().numpy()
    result = least_squares(
        residual,
        start,
        J,
        bounds=(-1, 1),
        x_scale="jac",
        ftol=1e-4,
        max_nfev=n_iterations,
        callback=iteration,
    )
    before = float(np.linalg.norm(residual(start)))
    if before**2 < 2 * result.cost:  # SciPy moves a start on the box's edge inwards, and may not get back
        tell(Step("refine", count, before, start[:N_PARAMETERS].tolist()))
        return torch.from_numpy(start), before, gram(torch.from_numpy(J(start)))
    return torch.from_numpy(result.x), math.sqrt(2 * result.cost), gram(torch.from_numpy(result.jac))


def covariance(metric: Tensor, distance: float) -> Tensor:
    """Of v (n, n), from the metric (n, n) at the match and its distance: as at the head of this module."""
    values, directions = eigen(metric)  # M spans ten decades: so rounding lets no variance be above that of the box
    variances = 1 / (values.clamp_min(0) / max(distance, 1.0) ** 2 + 1 / PRIOR)
    return directions * variances @ directions.mT


def undetermined(spreads: Tensor, directions: Tensor, names: Sequence[str] = NAMES) -> list[str]:
    """In words, that of which the box says more than the sound: "log_D", or combinations like "0.8 tau + 0.6 alpha".

    It is the span of those `Match.directions` whose spread is above `UNSURE`. First come the parameters that lie in it,
    up to `MINOR`, then the directions that are left of it, least determined first.
    """
    is_unsure = spreads > UNSURE
    span = directions[:, is_unsure]  # (5, K)
    alone = span.square().sum(1) > 1 - MINOR**2  # (5,)
    rest = span * spreads[is_unsure] * ~alone[:, None]
    _, combinations = eigen(rest @ rest.mT)
    words = [name for name, is_alone in zip(names, alone.tolist(), strict=True) if is_alone]
    for vector in combinations.T.flip(0)[: span.shape[1] - len(words)].tolist():
        terms = sorted(zip(vector, names, strict=True), key=lambda term: -abs(term[0]))
        terms = [(component, name) for component, name in terms if abs(component) > MINOR]
        signed = " ".join(f"{'−' if component < 0 else '+'} {abs(component):.1f} {name}" for component, name in terms)
        words.append(signed.removeprefix("+ ") if len(terms) > 1 else terms[0][1])
    return words


def verdict(words: str) -> str:
    """A line that tells what is `undetermined`, in words that semicolons join, or none."""
    return f"not determined by the sound: {words}" if words else "the sound determines all five parameters"


def match(
    audio: Tensor | str | Path,
    model: AudioEncoder,
    features: Map | None = None,
    seed: int = 0,
    progress: bool = False,
    tell: Listener = lambda step: None,
) -> Match:
    """Find the drum that sounds like a recording.

    Parameters
    ----------
    audio : Tensor, shape (n_samples,), from its onset on and of peak 1, or path of a sound file
        Zeros at its end are taken for what comes after the recording, where there is no noise. Noise is held to be
        white up to the Nyquist frequency; in a file of another rate than 22 050 Hz, up to nine tenths of the lower one.
    model : AudioEncoder
        Such as `load_encoder()`. If `evaluation.report` has written its best constant into it, "constant" is the
        distance of that drum, else of the drum at the centre of the ranges, ν = 0.
    features : callable, optional
        Φ; that which the encoder was trained for, `ear(model.config)`, if not given.
    seed : int
        Of the scan and of the noise through which drums are heard: the same seed, the same drum.
    progress : bool
        Show a bar.
    tell : callable
        Called with a `Step` for every generation of the scan and every iteration of the refinement.

    Raises
    ------
    ValueError
        If the file is not usable (see `load_audio`), the sound has another length, is not finite or nothing but zeros,
        or the encoder needs the pitch.
    """
    n_samples = model.config.n_samples
    if model.encoder.n_outputs < N_PARAMETERS:
        raise ValueError("this encoder was trained with known pitch: it cannot match a sound alone")
    x = audio if isinstance(audio, Tensor) else load_audio(audio, n_samples=n_samples)
    if x.shape != (n_samples,):
        raise ValueError(f"expected audio of shape ({n_samples},), got {tuple(x.shape)}")
    if not x.isfinite().all():
        raise ValueError("expected finite audio, got NaN or infinite samples")
    rate = SAMPLE_RATE if isinstance(audio, Tensor) else soundfile.info(audio).samplerate
    band = 1.0 if rate == SAMPLE_RATE else PASSED * min(rate / SAMPLE_RATE, 1)
    device = next(model.parameters()).device
    x = x.to(torch.float32).to(device)
    if not x.any():
        raise ValueError("expected audio of peak 1, got nothing but zeros")
    features = features or ear(model.config).to(device)
    where = float64_device(device)  # of ν
    end = int(x.nonzero()[-1]) + 1
    noise_std = noise_level(x[:end], band)
    noise = noise_std * _noise(n_samples, end, band, seed).to(device)

    def drums(nu: Tensor) -> Tensor:
        return rectangular_drum(to_theta(nu.to(where)), n_samples, dtype=torch.float32).to(device)

    def heard(v: Tensor) -> Tensor:
        nu, level = v.split(N_PARAMETERS, -1)
        return 10 ** (LEVEL_DB / 20 * level).to(x.dtype).to(device) * drums(nu) + noise

    def at_peak(nu: Tensor) -> Tensor:
        return torch.cat([nu, torch.zeros_like(nu[..., :1])], -1)

    def distances(v: Tensor) -> list[float]:
        with torch.no_grad():
            return torch.linalg.vector_norm(features(heard(v)) - S, dim=-1).tolist()

    history: list[Step] = []
    with tqdm(
        desc="match", unit=" drums", leave=False, disable=None if progress else True
    ) as bar:  # None: if a terminal

        def note(step: Step, before: int) -> None:
            step = step._replace(n_drums=before + step.n_drums)
            bar.update(step.n_drums - (history[-1].n_drums if history else 0))
            bar.set_postfix_str(f"{step.stage}, distance {step.distance:.3g}")
            history.append(step)
            tell(step)

        with torch.no_grad():
            S, nu_encoder = features(x), model(x).cpu()
        constant = model.metadata.get("evaluation", {}).get("nu_constant", [0.0] * N_PARAMETERS)
        nu_constant = torch.tensor(constant, dtype=torch.float64)
        far, predicted = distances(at_peak(torch.stack([nu_constant, nu_encoder])))
        note(Step("predict", 1, predicted, nu_encoder.tolist()), 0)
        v = scan(x, heard, at_peak(nu_encoder), seed, tell=partial(note, before=1))
        (scanned,) = distances(v[None])
        if predicted < scanned:
            v = at_peak(nu_encoder)
        v, refined, M = refine(S, v, features, heard, tell=partial(note, before=history[-1].n_drums))
    nu, level = v.split(N_PARAMETERS)
    with torch.no_grad():
        x_hat = drums(nu)
    return Match(
        x=x.cpu(),
        x_hat=x_hat.cpu(),
        nu=nu,
        theta=to_theta(nu),
        level_db=LEVEL_DB * float(level),
        covariance=covariance(M, refined)[:N_PARAMETERS, :N_PARAMETERS],
        nu_encoder=nu_encoder,
        nu_constant=nu_constant,
        distance={"constant": far, "encoder": predicted, "scan": scanned, "match": refined},
        noise=noise.cpu(),
        noise_db=20 * math.log10(max(noise_std, 1e-9)),
        history=tuple(history),
    )


def _noise(n_samples: int, end: int, band: float, seed: int) -> Tensor:
    """White noise (n_samples,) of standard deviation 1; of it, the lowest part `band` of the spectrum, up to `end`."""
    noise = torch.randn(n_samples, generator=torch.Generator().manual_seed(seed))[:end]
    if band < 1:
        spectrum = torch.fft.rfft(noise)
        spectrum[math.ceil(band * len(spectrum)) :] = 0
        noise = torch.fft.irfft(spectrum, end)
    return nn.functional.pad(noise, (0, n_samples - end))


def save_match(result: Match, wav: str | Path, document: str | Path, source: dict[str, Any] | None = None) -> None:
    """Write the matched drum as a 16-bit WAV and `Match.to_dict` as JSON: both whole, or an OSError and neither.

    `source` tells what it was made from, and is kept in the JSON.
    """
    sound = io.BytesIO()
    soundfile.write(sound, result.x_hat.numpy(), SAMPLE_RATE, format="WAV", subtype="PCM_16")
    text = json.dumps({"source": source or {}, **result.to_dict()}, indent=2, ensure_ascii=False)
    write_atomically({Path(wav): sound.getvalue(), Path(document): text.encode()})


def match_files(
    paths: Sequence[str | Path],
    output_folder: str | Path,
    encoder: str | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> pd.DataFrame:
    """Match recordings one after the other; a bad one is reported, and the others go on.

    Of each, NAME_matched.wav and NAME_matched.json are written to the output folder. A recording whose JSON is there,
    made from the same file, encoder and seed, is not matched again: what was interrupted goes on from there. Of several
    recordings of one NAME, all but the first are bad.

    Returns
    -------
    table : DataFrame, one row a recording
        file; error (empty if there was none); the parameters, in their units, and their uncertainties, as
        <parameter>_uncertainty; what is undetermined, in words; the JTFS distances of the drums "constant", "encoder",
        "scan" and "match"; level_db, noise_db, n_drums and n_iterations.

    Raises
    ------
    ValueError
        If there is no recording, or the encoder is of no use.
    OSError
        If the output folder cannot be written to.
    """
    stems = [Path(path).stem for path in paths]
    if not stems:
        raise ValueError("expected at least one sound file, got none")
    model = load_encoder(encoder, device)
    features = ear(model.config).to(device)
    rows: list[dict[str, Any]] = []
    bar = tqdm(paths, unit="file", disable=None if progress and len(paths) > 1 else True)  # None: if this is a terminal
    for i, (path, stem) in enumerate(zip(bar, stems, strict=True)):
        wav, document = (Path(output_folder, f"{stem}_matched.{kind}") for kind in ("wav", "json"))
        row: dict[str, Any] = {"file": str(path), "error": ""}
        try:
            if (first := stems.index(stem)) < i:
                raise ValueError(f"{path} would have its match under the same name as {paths[first]}: rename it")
            source = {"sha256": _sum(path), "encoder": encoder, "seed": seed}
            if not (wav.is_file() and _row(document, source)):
                save_match(match(path, model, features, seed, progress), wav, document, source)
            row |= _row(document, source)
        except ValueError as error:
            row["error"] = str(error)
        rows.append(row)
    return pd.DataFrame(rows)


def _sum(path: str | Path) -> str:
    """SHA-256 of a file, empty if there is none; raises ValueError if it cannot be read."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest() if Path(path).is_file() else ""
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error


def _row(document: Path, source: dict[str, Any]) -> dict[str, Any]:
    """What a JSON file that `save_match` made from `source` says, side by side; empty if it is no such file."""
    try:
        content = json.loads(document.read_text())
        if content.get("source") != source:
            return {}
        values = {p["name"]: p["value"] for p in content["theta"]}
        spreads = {f"{p['name']}_uncertainty": p["uncertainty"] for p in content["theta"]}
        words = {"undetermined": "; ".join(content["undetermined"])}
        effort = {name: content[name] for name in ("level_db", "noise_db", "n_drums", "n_iterations")}
        return values | spreads | words | content["jtfs_distance"] | effort
    except (OSError, ValueError, AttributeError, KeyError):  # KeyError: an older version of this package wrote it
        return {}
