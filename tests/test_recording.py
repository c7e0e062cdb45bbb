"""Any recording becomes the sound that the encoder expects, or one clear error."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from matching_study import FILES

from pnp_tutorial import recording
from pnp_tutorial.drum import DRUM, rectangular_drum
from pnp_tutorial.recording import load_recording, noise_level
from pnp_tutorial.scattering import paper_features

THETA = torch.tensor([3.0, 0.4, -2.0, -2.0, 0.6], dtype=torch.float64)


def load_audio(path, n_samples=DRUM.n_samples):
    return load_recording(path, replace(DRUM, n_samples=n_samples)).x


def drum(sample_rate=22050, seconds=3.0):
    # Modes above 8 kHz are weak, and resampling must not be blamed for those near Nyquist.
    return rectangular_drum(THETA, int(seconds * sample_rate), sample_rate).numpy()


@pytest.mark.parametrize(
    ("name", "subtype", "rate", "channels"),
    [
        ("a.wav", "PCM_16", 22050, 1),
        ("b.wav", "FLOAT", 44100, 2),
        ("c.wav", "PCM_24", 48000, 1),
        ("d.flac", "PCM_16", 48000, 2),
        ("e.flac", "PCM_24", 44100, 1),
        ("f.wav", "PCM_16", 96000, 6),
        ("g.wav", "DOUBLE", 8000, 1),
    ],
)
def test_any_format_becomes_the_same_sound(tmp_path, name, subtype, rate, channels):
    """A drum at half level, 100 ms late, in any format: the same spectrum as at 22 050 Hz."""
    x = 0.5 * np.concatenate([np.zeros(rate // 10), drum(rate)])
    soundfile.write(tmp_path / name, np.stack([x] * channels, 1), rate, subtype=subtype)
    y = load_audio(tmp_path / name)
    assert (y.shape, y.dtype) == ((65536,), torch.float64)
    assert y.abs().max() == pytest.approx(1)
    shared = int(65536 * min(rate, 8000) / 22050 / 2 * 0.5)  # bins below half of what every rate holds
    spectrum, expected = (torch.fft.rfft(z)[:shared].abs() for z in (y, torch.from_numpy(drum())[:65536]))
    similarity = torch.nn.functional.cosine_similarity(spectrum, expected, dim=0)
    assert similarity > 0.99
    assert y[:100].abs().max() > 0.02  # the onset is at the start


def test_a_late_drum_begins_where_it_began(tmp_path):
    """Of the same rate, it is the drum, sample by sample: its mean, which is not 0, is no offset."""
    x = rectangular_drum(THETA, 40_000).numpy()
    late = np.concatenate([np.zeros(3000), 0.5 * x])
    assert abs(late.mean()) > 1e-5
    soundfile.write(tmp_path / "x.wav", late, 22050, subtype="DOUBLE")
    y = load_audio(tmp_path / "x.wav", 40_000).numpy()
    np.testing.assert_allclose(y, x, atol=1e-5)


def test_a_drum_of_another_rate_sounds_as_it_did(tmp_path):
    """No click where it is cut: a unit of distance is little, and it was four."""
    x = rectangular_drum(THETA, dtype=torch.float32)
    soundfile.write(tmp_path / "x.wav", FILES["44.1kHz"][0](x, 44_100), 44_100, subtype="FLOAT")
    y = load_audio(tmp_path / "x.wav").float()
    features = paper_features()
    with torch.no_grad():
        assert (features(y) - features(x)).norm() < 1


def test_channels_that_cancel(tmp_path):
    x = 0.5 * drum()
    soundfile.write(tmp_path / "s.wav", np.stack([x, -0.999 * x], 1), 22050, subtype="FLOAT")
    soundfile.write(tmp_path / "m.wav", x, 22050, subtype="FLOAT")
    assert torch.equal(load_audio(tmp_path / "s.wav"), load_audio(tmp_path / "m.wav"))


def test_dither_is_silence(tmp_path):
    x = np.random.default_rng(0).integers(-1, 2, 30000).astype(np.int16)
    soundfile.write(tmp_path / "x.wav", x, 22050)
    with pytest.raises(ValueError, match="is silent: its peak is 3e-05 of full scale, expected at least 0.0001"):
        load_audio(tmp_path / "x.wav")


@pytest.mark.parametrize("quiet", [0.0, 3e-5])
def test_a_silent_beginning_where_no_onset_is_sought_is_named(tmp_path, quiet):
    """Only the first samples are heard."""
    heard = replace(DRUM, from_onset=False)
    noise = quiet * np.random.default_rng(0).uniform(-1, 1, 2 * DRUM.n_samples)
    soundfile.write(tmp_path / "x.wav", np.concatenate([noise, drum()]), 22050, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"is silent in its first 2.97 s, and no more of it is heard"):
        load_recording(tmp_path / "x.wav", heard)


def test_a_long_silence_takes_few_bytes_and_is_a_sound(tmp_path):
    x = np.concatenate([drum(), np.zeros(60 * 22050)])
    soundfile.write(tmp_path / "x.flac", np.stack([x] * 8, 1), 22050)
    assert x.size * 8 > 60 * (tmp_path / "x.flac").stat().st_size
    assert load_audio(tmp_path / "x.flac").abs().max() == 1


def test_floats_may_be_integers_but_not_absurd(tmp_path):
    """Near the largest float32, a conversion of rates overflows."""
    for gain in (2.0**31, 1e38):
        soundfile.write(tmp_path / f"{gain:g}.wav", gain * drum(), 22018, subtype="FLOAT")
    assert load_audio(tmp_path / f"{2.0**31:g}.wav").abs().max() == 1
    with pytest.raises(ValueError, match="is no sound: its peak is .* of full scale, expected at most 4e[+]09"):
        load_audio(tmp_path / "1e+38.wav")


@pytest.mark.parametrize("n_left", [1, 3])
def test_a_sound_in_the_last_samples(tmp_path, n_left):
    x = np.zeros(192_000)
    x[-n_left:] = 0.5
    soundfile.write(tmp_path / "x.wav", x, 192_000, subtype="FLOAT")
    with pytest.raises(ValueError, match=rf"x.wav ends {n_left} samples after its onset at 192000 Hz"):
        load_audio(tmp_path / "x.wav")


def test_raw_is_no_audio(tmp_path):
    (tmp_path / "x.raw").write_bytes(bytes(1000))
    with pytest.raises(ValueError, match="x.raw cannot be read as audio"):
        load_audio(tmp_path / "x.raw")


def test_channels_are_averaged(tmp_path):
    x = drum()
    soundfile.write(tmp_path / "s.wav", np.stack([x, 0 * x], 1), 22050, subtype="FLOAT")
    soundfile.write(tmp_path / "m.wav", x, 22050, subtype="FLOAT")
    assert torch.allclose(load_audio(tmp_path / "s.wav"), load_audio(tmp_path / "m.wav"), atol=1e-6)


def test_short_sounds_are_filled_and_long_ones_cut(tmp_path):
    x = drum(seconds=5)
    soundfile.write(tmp_path / "short.wav", x[:200], 22050)
    soundfile.write(tmp_path / "long.wav", x, 22050)
    short, long = load_audio(tmp_path / "short.wav"), load_audio(tmp_path / "long.wav", n_samples=1000)
    assert (short[200:] == 0).all()
    assert short[:150].abs().max() == pytest.approx(1)
    assert long.shape == (1000,)
    assert long.abs().max() == pytest.approx(1)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_from_8_bits_to_float(tmp_path, subtype):
    x = drum()[:20000]
    soundfile.write(tmp_path / "x.wav", 0.9 * x, 22050, subtype=subtype)
    y = load_audio(tmp_path / "x.wav", n_samples=20000)
    aligned = np.abs(np.fft.irfft(np.fft.rfft(y) * np.fft.rfft(x).conj())).max() / np.linalg.norm(y) / np.linalg.norm(x)
    assert aligned > 0.999


@pytest.mark.parametrize("seconds", [0.1, 0.2, 0.5, 1.0])
def test_a_drum_that_still_sounds_keeps_its_zero(tmp_path, seconds):
    """The plain mean of its quietest stretch is its own: taken for an offset, it is heard."""
    x = rectangular_drum(THETA, round(seconds * 22050)).numpy()
    soundfile.write(tmp_path / "x.wav", 0.5 * x, 22050, subtype="DOUBLE")
    np.testing.assert_allclose(load_audio(tmp_path / "x.wav", len(x)).numpy(), x, atol=1e-6)


def test_a_constant_offset_is_taken_out(tmp_path):
    x = np.concatenate([np.zeros(3000), 0.5 * drum()])
    for name, offset in (("x.wav", 0), ("offset.wav", 0.3)):
        soundfile.write(tmp_path / name, x + offset, 22050, subtype="FLOAT")
    assert torch.allclose(load_audio(tmp_path / "offset.wav"), load_audio(tmp_path / "x.wav"), atol=1e-6)


def test_onset_is_found_in_noise(tmp_path):
    x = np.concatenate([np.zeros(22050), drum()])
    noise = np.random.default_rng(0).normal(size=len(x))
    for level in (0.003, 0.03):
        soundfile.write(tmp_path / "x.wav", 0.5 * (x + level * noise), 22050, subtype="FLOAT")
        y = load_audio(tmp_path / "x.wav")
        early = y[: 22050 // 10].abs().max()
        assert early > 0.9, "the drum begins at once, not after a second of noise"


@pytest.mark.parametrize("seconds", [0.01, 600])
def test_ten_milliseconds_and_ten_minutes(tmp_path, seconds):
    rate = 8000
    x = np.zeros(int(seconds * rate), np.float32)
    start = drum(rate)[: len(x) // 2]
    x[len(x) // 2 :][: len(start)] = start
    soundfile.write(tmp_path / "x.wav", x, rate)
    y = load_audio(tmp_path / "x.wav")
    assert y.shape == (65536,)
    assert y.isfinite().all()
    assert y.abs().max() == pytest.approx(1)
    assert y[: 22050 // 200].abs().max() > 0.1, "the second half is where the drum is"


def test_what_the_study_takes_for_a_phone(tmp_path):
    """The drum is where the sound begins, and the noise of two channels 20 dB below the louder, averaged."""
    x = rectangular_drum(THETA, 65536)
    condition, rate = FILES["phone"]
    soundfile.write(tmp_path / "x.wav", condition(x, rate), rate)
    y = load_audio(tmp_path / "x.wav")
    expected = 0.1 * 0.5**0.5 / 0.75 * float(x.square().mean().sqrt() / x.abs().max())
    assert noise_level(y, 0.9) == pytest.approx(expected, rel=0.1)
    y, x = y / y.norm(), x / x.norm()
    correlation = torch.fft.irfft(torch.fft.rfft(y) * torch.fft.rfft(x).conj())
    assert correlation.max() > 0.98
    lag = (int(correlation.argmax()) + 2**15) % 2**16 - 2**15
    assert abs(lag) < 22050 * 0.005


def test_noise_level():
    """Of white noise its standard deviation, on a drum as well; of a drum alone, nothing that could be heard."""
    generator = torch.Generator().manual_seed(0)
    x = rectangular_drum(THETA, 65536)
    for level in (1e-3, 1e-2, 1e-1):
        noise = level * torch.randn(65536, generator=generator, dtype=torch.float64)
        assert noise_level(noise) == pytest.approx(level, rel=0.02)
        assert noise_level(x + noise) == pytest.approx(level, rel=0.1)
    assert noise_level(x) < 1e-6


@pytest.mark.parametrize("rate", [8000, 16000])
def test_noise_level_in_the_band_of_a_file(tmp_path, rate):
    """Of 8 kHz, converted, most of the spectrum is empty; noise is what is in the rest."""
    x = drum(rate) + 1e-2 * np.random.default_rng(0).normal(size=3 * rate)
    soundfile.write(tmp_path / "x.wav", 0.5 * x, rate, subtype="FLOAT")
    level = 1e-2 / np.abs(x).max() * (22050 / rate) ** 0.5  # of noise as dense, in the whole band
    assert noise_level(load_audio(tmp_path / "x.wav"), 0.9 * rate / 22050) == pytest.approx(level, rel=0.1)


def patched(folder, name, change):
    """A second of a drum in a file, whose bytes are then changed."""
    path = folder / name
    soundfile.write(path, 0.5 * drum(44100, 1.0), 44100)
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)
    return path


def stated_length(n):
    """The number of samples that a FLAC file's header states: 36 bits."""

    def change(content):
        content[21] = content[21] & 0xF0 | n >> 32
        content[22:26] = (n & 0xFFFFFFFF).to_bytes(4, "big")

    return change


def as_from_a_pipe(content):
    """What wrote it did not know how much there would be."""
    content[4:8] = content[40:44] = b"\xff" * 4


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("x.flac", stated_length(2**36 - 1)),
        ("x.flac", stated_length(0)),  # unknown, says the format
        ("x.flac", stated_length(88_200)),
        ("x.wav", as_from_a_pipe),
    ],
)
def test_headers_lie_about_the_length(tmp_path, name, change):
    expected = load_audio(patched(tmp_path, name, lambda content: None))
    assert torch.equal(load_audio(patched(tmp_path, name, change)), expected)


@pytest.mark.parametrize("name", ["x.flac", "x.ogg"])
def test_half_a_file(tmp_path, name):
    path = patched(tmp_path, name, lambda content: content.__delitem__(slice(len(content) // 2, None)))
    with pytest.raises(ValueError, match=f"{name} cannot be read as audio [(].+[)]"):
        load_audio(path)


def test_a_file_that_shrinks_while_it_is_read(tmp_path, monkeypatch):
    path = tmp_path / "x.wav"
    soundfile.write(path, np.concatenate([np.zeros(5000), 0.5 * drum()]), 22050)
    survey = recording._survey

    def then_shrinks(path):
        found = survey(path)
        soundfile.write(path, np.zeros(4000), 22050)
        return found

    monkeypatch.setattr(recording, "_survey", then_shrinks)
    with pytest.raises(ValueError, match="x.wav has changed while it was read"):
        load_audio(path)


@pytest.mark.parametrize("channels", [1, 2, 7])
def test_blocks_make_no_difference(tmp_path, monkeypatch, channels):
    """A file that is read in many blocks gives what it gives in one."""
    x = np.concatenate([np.zeros(30_000), drum(44100)]) + 1e-3 * np.random.default_rng(0).normal(size=162_300)
    soundfile.write(tmp_path / "x.wav", np.stack([0.5 * x * (0.9**k) for k in range(channels)], 1), 44100, "FLOAT")
    whole = load_audio(tmp_path / "x.wav")
    monkeypatch.setattr(recording, "BLOCK", 5000)
    torch.testing.assert_close(load_audio(tmp_path / "x.wav"), whole, rtol=0, atol=1e-12)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells its peak")
def test_an_hour_takes_no_more_memory_than_a_minute(tmp_path):
    """Peak memory of a process that reads it, a drum that is struck in its middle; a minute has more than one block.

    It is asked of the kernel, not of `resource`: that tells of the parent's, too, which has more.
    """
    code = "import sys; from pnp_tutorial.recording import load_recording; from pnp_tutorial.drum import DRUM\n"
    code += "load_recording(sys.argv[1], DRUM)\n"
    code += "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    peaks = []
    for seconds in (60, 3600):
        path = tmp_path / f"{seconds}.wav"
        with soundfile.SoundFile(path, "w", 8000, 1, "PCM_16") as file:
            for start in range(0, seconds, 10):
                file.write(0.5 * drum(8000, 3.0) if start == seconds // 20 * 10 else np.zeros(80_000))
        run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, encoding="utf-8")
        assert run.returncode == 0, run.stderr
        peaks.append(int(run.stdout))
        path.unlink()
    assert peaks[1] < peaks[0] + 20_000  # kB; as float64, the hour alone would be 230 000


def test_band_of_a_recording(tmp_path):
    for rate, band in ((22050, 1.0), (44100, 0.9), (8000, 0.9 * 8000 / 22050)):
        soundfile.write(tmp_path / "x.wav", 0.5 * drum(rate), rate)
        assert load_recording(tmp_path / "x.wav", DRUM).band == pytest.approx(band)
