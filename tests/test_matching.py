"""Any recording becomes the sound that the encoder expects, or one clear error."""

import json

import numpy as np
import pytest
import soundfile
import torch

from pnp_tutorial.drum import rectangular_drum
from pnp_tutorial.encoder import AudioEncoder, Encoder, load_encoder
from pnp_tutorial.evaluation import jtfs_distance
from pnp_tutorial.matching import load_audio, match, save_match
from pnp_tutorial.parameters import PARAMETERS, to_theta

THETA = torch.tensor([3.0, 0.4, -2.0, -2.0, 0.6], dtype=torch.float64)


@pytest.fixture(scope="module")
def model(tiny_training):
    return load_encoder(f"{tiny_training.output_folder}/encoder.safetensors")


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


def test_match_is_consistent(model):
    x = rectangular_drum(THETA, 2048)
    result = match(x, model)
    nu = model(x)
    assert torch.equal(result.nu, nu)
    assert torch.equal(result.theta, to_theta(nu))
    assert torch.equal(result.x_hat, rectangular_drum(to_theta(nu), 2048))
    from pnp_tutorial.dataset import ear

    features = ear(model.config)
    after = jtfs_distance(result.x_hat[None], x[None], features)
    assert result.distance_after == pytest.approx(float(after), rel=1e-4)
    centre = rectangular_drum(to_theta(torch.zeros(5, dtype=torch.float64)), 2048)
    before = jtfs_distance(centre[None], x[None], features)
    assert result.distance_before == pytest.approx(float(before), rel=1e-4)


def test_before_is_the_best_constant_that_the_encoder_knows(model):
    constant = [0.1, -0.2, 0.3, -0.4, 0.5]
    stamped = AudioEncoder(model.encoder, model.config, {"evaluation": {"nu_constant": constant}}).eval()
    x = rectangular_drum(to_theta(torch.tensor(constant, dtype=torch.float64)), 2048)
    result = match(x, stamped)
    assert result.nu_constant.tolist() == constant
    assert result.distance_before == pytest.approx(0, abs=1e-3)
    assert result.distance_after > 1


def test_written_files_say_the_same(model, tmp_path):
    result = match(rectangular_drum(THETA, 2048), model)
    save_match(result, tmp_path / "new/x.wav", tmp_path / "new/x.json")
    wav, rate = soundfile.read(tmp_path / "new/x.wav")
    assert rate == 22050
    assert np.abs(wav - result.x_hat.numpy()).max() < 2**-14
    document = json.loads((tmp_path / "new/x.json").read_text())
    assert [p["unit"] for p in document["theta"]] == [p.unit for p in PARAMETERS]
    assert [p["value"] for p in document["theta"]] == result.theta.tolist()
    assert document["jtfs_distance"] == {"before": result.distance_before, "after": result.distance_after}


def test_known_pitch_cannot_match(model):
    with pytest.raises(ValueError, match="known pitch"):
        match(torch.ones(2048), AudioEncoder(Encoder("test_efficientnet", 4), model.config))


def test_wrong_length(model):
    with pytest.raises(ValueError, match=r"shape \(2048,\), got \(100,\)"):
        match(torch.ones(100), model)
