"""The encoder: shapes, range, files."""

import json

import pytest
import safetensors
import torch
from torch.nn.modules.module import register_module_parameter_registration_hook

from pnp_tutorial.dataset import DatasetConfig, load
from pnp_tutorial.drum import DRUM, rectangular_drum
from pnp_tutorial.encoder import AudioEncoder, Encoder, load_encoder, save
from pnp_tutorial.mss import CoarseSpectra
from pnp_tutorial.runtime import as_stored, read_tensors, tensor_file

SMALL = DatasetConfig(n_samples=2048, J=6, T=64)
BACKBONE = "test_efficientnet"


@pytest.mark.parametrize("backbone", [BACKBONE, "mobilenetv3_small_050", "resnet18"])
@pytest.mark.parametrize("n_outputs", [5, 4])
def test_shape_and_range(backbone, n_outputs):
    encoder = Encoder(n_outputs, backbone)
    S = 10 * torch.rand(2, 3, 52, 32, generator=torch.Generator().manual_seed(0))
    nu_hat = encoder(S)
    assert nu_hat.shape == (2, 3, n_outputs)
    assert (nu_hat.abs() < 1).all()


def test_architecture_of_the_paper():
    encoder = Encoder(5)
    assert encoder.name == "efficientnet_b0"
    assert encoder.head.bias is None
    assert sum(p.numel() for p in encoder.parameters()) == pytest.approx(4.0e6, rel=0.01)


def test_one_sound_alone_or_in_a_batch():
    encoder = Encoder(5, BACKBONE).eval()
    S = torch.rand(4, 52, 32)
    assert torch.allclose(encoder(S[1]), encoder(S)[1], atol=1e-5)


def test_sounds_and_stored_scalograms_give_the_same(tiny_data, tiny_training):
    model = load_encoder(f"{tiny_training.output_folder}/encoder.safetensors")
    drums = load(tiny_data.data, "test")
    with torch.no_grad():
        from_sound = model(rectangular_drum(DRUM.to_theta(drums.nu), tiny_data.n_samples))
        from_store = model.encoder(drums.scalogram)
    assert from_sound.dtype == torch.float64
    assert torch.allclose(from_sound, from_store.double(), atol=5e-3)  # the store is float16


def test_file_keeps_the_encoder(tmp_path):
    model = AudioEncoder(Encoder(4, BACKBONE), SMALL, ("log_omega",), {"training": {"loss": "pnp"}})
    x = torch.randn(16, 2048)
    model(x)  # moves the running statistics
    model.eval()
    save(model, tmp_path / "e.safetensors")
    again = load_encoder(tmp_path / "e.safetensors")
    assert (again.config, again.metadata, again.encoder.n_outputs) == (SMALL, model.metadata, 4)
    assert not again.training
    assert (again(x) - model(x)).abs().max() < 0.02  # weights in float16
    save(again, tmp_path / "f.safetensors")
    assert (tmp_path / "f.safetensors").read_bytes() == (tmp_path / "e.safetensors").read_bytes()


def test_keys_of_what_is_known_may_be_numbers(tmp_path):
    scores = {2: 1.0, 10: 2.0, None: 0.5}
    save(AudioEncoder(Encoder(5, BACKBONE), SMALL, metadata={"scores": scores}), tmp_path / "e.safetensors")
    assert load_encoder(tmp_path / "e.safetensors").metadata == {"scores": {"2": 1.0, "10": 2.0, "null": 0.5}}


def test_file_is_half_precision_with_a_readable_header(tmp_path):
    save(AudioEncoder(Encoder(5, BACKBONE), SMALL), tmp_path / "e.safetensors")
    with safetensors.safe_open(tmp_path / "e.safetensors", "pt") as file:
        header = json.loads(file.metadata()["pnp_tutorial"])
        assert header["backbone"] == BACKBONE
        assert header["dataset"]["n_samples"] == 2048
        assert file.get_tensor("head.weight").dtype == torch.float16
        assert file.get_tensor("input_norm.running_var").dtype == torch.float32


def test_paper_encoder_file_is_below_10_mb(tmp_path):
    save(AudioEncoder(Encoder(5), SMALL), tmp_path / "e.safetensors")
    assert (tmp_path / "e.safetensors").stat().st_size < 10e6


@pytest.mark.parametrize("content", [b"", b"not an encoder", None])
def test_wrong_files(tmp_path, content):
    path = tmp_path / "e.safetensors"
    if content is None:  # safetensors, but not ours
        from safetensors.torch import save_file

        save_file({"w": torch.zeros(1)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="is not an encoder of this library"):
        load_encoder(path)


def test_a_file_cannot_ask_for_a_larger_network_than_it_holds(tmp_path):
    """timm has networks of gigabytes: of such a one only the beginning is made."""
    path = tmp_path / "e.safetensors"
    save(AudioEncoder(Encoder(5, BACKBONE), SMALL), path)
    header, tensors = read_tensors(path, "an encoder")
    n_held = sum(values.numel() for values in tensors.values())
    made = []
    hook = register_module_parameter_registration_hook(lambda module, name, values: made.append(values))
    try:
        load_encoder(path)
        n_honest = sum(values.numel() for values in made if values is not None)
        made.clear()
        path.write_bytes(tensor_file(tensors, {**header, "backbone": "resnetv2_152x4_bit"}))
        with pytest.raises(ValueError, match="its network has more than .* parameters, which the file does not hold"):
            load_encoder(path)
    finally:
        hook.remove()
    assert n_honest <= n_held, "what it says of itself is enough"
    assert sum(values.numel() for values in made if values is not None) < 5 * n_held
    assert Encoder(5, "resnet18").n_outputs == 5, "the bound is that of one file"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": "alexnot"}, "timm has no network 'alexnot'"),
        ({"backbone": 5}, "the network 5"),
        ({"known": ["pich"]}, "known parameters \\['pich'\\]"),
        ({"known": list(DRUM.names), "n_outputs": 0}, "expected n_outputs ≥ 1, got 0"),
        ({"dataset": {**as_stored(SMALL), "J": 99}}, "J"),
    ],
)
def test_what_a_file_asks_for_in_vain_is_said_with_its_name(tmp_path, change, message):
    path = tmp_path / "e.safetensors"
    save(AudioEncoder(Encoder(5, BACKBONE), SMALL), path)
    header, tensors = read_tensors(path, "an encoder")
    path.write_bytes(tensor_file(tensors, {**header, **change}))
    with pytest.raises(ValueError, match=rf"e\.safetensors is not an encoder of this library \(.*{message}"):
        load_encoder(path)


def test_missing_file(tmp_path):
    with pytest.raises(ValueError, match="there is no encoder at"):
        load_encoder(tmp_path / "e.safetensors")


def test_encoder_that_ships():
    """Of drums drawn afresh it knows each parameter better than the best constant does, which listens to none."""
    model = load_encoder()
    nu = DRUM.sample_uniform(64, seed=99)
    constant = torch.tensor(model.metadata["evaluation"]["nu_constant"], dtype=torch.float64)
    with torch.no_grad():
        nu_hat = torch.cat([model(DRUM(some, torch.float32)) for some in nu.split(8)])
    assert ((nu_hat - nu).square().mean(0) < 0.2 * (constant - nu).square().mean(0)).all()
    features = CoarseSpectra(DRUM.n_samples, DRUM.sample_rate)
    with torch.no_grad():
        S, S_hat, S_constant = (features(DRUM(rows, torch.float32)) for rows in (nu, nu_hat, constant.expand_as(nu)))
    assert ((S_hat - S).norm(dim=-1) < (S_constant - S).norm(dim=-1)).all()


def test_impossible_encoders():
    with pytest.raises(ValueError, match="no network 'alexnot'"):
        Encoder(5, "alexnot")
    with pytest.raises(ValueError, match="n_outputs ≥ 1, got 0"):
        Encoder(0, BACKBONE)


def test_a_synthesizer_of_numbers_is_told_from_the_one_of_the_library(tmp_path):
    path = tmp_path / "e.safetensors"
    save(AudioEncoder(Encoder(5, BACKBONE), SMALL), path)
    header, tensors = read_tensors(path, "an encoder")
    strange = {"name": "drum", "parameters": [1, 2, 3, 4, 5]}
    path.write_bytes(tensor_file(tensors, {**header, "dataset": {**header["dataset"], "synthesizer": strange}}))
    with pytest.raises(ValueError, match=r"'drum' of parameters = \[1, 2, 3, 4, 5\]: the library's has"):
        load_encoder(path)
