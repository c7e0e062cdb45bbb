"""The encoder f_W: from a sound to the parameters that may have made it.

    ν̃ = tanh(BatchNorm(A · network(BatchNorm(log(1 + S₁(x)/ε)))))        S₁: constant-Q scalogram

after Han et al. (2023, section 4): the network is timm's EfficientNet-B0, A has no bias, and tanh keeps ν̃ inside the
ranges of the parameters. `Encoder` takes log-compressed scalograms, which a data set holds ready; `AudioEncoder` puts
the scalogram in front of it and takes sounds.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from . import __version__
from .bank import shipped
from .dataset_config import DatasetConfig, encoder_input, stored_config
from .drum import DRUM
from .metric import Map
from .runtime import as_stored, in_float64, lacks_means, read_tensors, tensor_file, write_atomically
from .synthesizer import Synthesizer, refuse_edited, refuse_no_synthesizer, sketch

CHECKPOINT = "checkpoint.pt"  # of a training, in the folder where its encoder is
SHIPPED = {"drum": "encoder.safetensors", "arpeggiator": "arpeggiator.safetensors"}  # by synthesizer


class Encoder(nn.Module):
    """Log-compressed scalogram (..., filters, frames) → ν̃ (..., n_outputs), inside (−1, 1).

    Parameters
    ----------
    n_outputs : int
        Parameters to predict: those of the synthesizer that are not known.
    backbone : str
        A convolutional network of timm by name, of images of that size; weights are random.

    Raises ValueError if timm has no such network, or if n_outputs < 1.
    """

    def __init__(self, n_outputs: int, backbone: str = "efficientnet_b0") -> None:
        super().__init__()
        if n_outputs < 1:
            raise ValueError(f"expected n_outputs ≥ 1, got {n_outputs}")
        import timm

        refuse_unknown_network(backbone)
        self.name, self.n_outputs = backbone, n_outputs
        self.input_norm = nn.BatchNorm2d(1)
        self.backbone = timm.create_model(backbone, pretrained=False, in_chans=1, num_classes=0)
        n_features: int = self.backbone.head_hidden_size  # type: ignore[assignment]
        self.head = nn.Linear(n_features, n_outputs, bias=False)
        self.output_norm = nn.BatchNorm1d(n_outputs)

    def forward(self, S: Tensor) -> Tensor:
        image = S.reshape(-1, 1, *S.shape[-2:]).to(self.head.weight.dtype)  # (B, 1, filters, frames)
        image = image.contiguous(memory_format=torch.channels_last)
        found = self.backbone(self.input_norm(image))
        with torch.autocast(found.device.type, enabled=False):  # in bfloat16, ν̃ near 1 would have steps of 5 cents
            nu_hat = torch.tanh(self.output_norm(self.head(found.to(self.head.weight.dtype))))
        return nu_hat.reshape(*S.shape[:-2], self.n_outputs)


class AudioEncoder(nn.Module):
    """f_W on sounds: audio (..., n_samples) → ν̃ (..., n_outputs), in float64, as θ needs it.

    From a device without float64, ν̃ comes to the CPU.

    Parameters
    ----------
    encoder : Encoder
    config : DatasetConfig
        Of the data set that it was trained on: says which scalogram it takes, and of which synthesizer.
    known : tuple of str
        Names of the parameters that it does not predict, as they are given.
    metadata : dict
        What is known of its training and results; kept in the header of the file.

    Raises ValueError on audio of another length.
    """

    def __init__(
        self,
        encoder: Encoder,
        config: DatasetConfig,
        known: tuple[str, ...] = (),
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.config, self.known, self.metadata = encoder, config, known, metadata or {}
        self.scalogram = encoder_input(config)

    def forward(self, x: Tensor) -> Tensor:
        nu_hat = self.encoder(self.scalogram(x))
        return in_float64(nu_hat)


def refuse_unknown_network(backbone: str) -> None:
    """Raise ValueError if timm has no network of that name."""
    import timm  # here, as it takes longer than torch, and a command that needs no network does without

    if not timm.is_model(backbone):
        raise ValueError(f"timm has no network {backbone!r}: see timm.list_models()")


def sought(data: DatasetConfig, known: tuple[str, ...]) -> list[int]:
    """Columns of ν that an encoder predicts: all but those of known parameters."""
    return [j for j, name in enumerate(data.synthesizer.names) if name not in known]


def complete(nu_hat: Tensor, nu: Tensor, columns: list[int]) -> Tensor:
    """ν̃ (..., n) of what an encoder predicts, ν̃ (..., k) in those columns, and of the true ν (..., n) in the others."""
    return nu.index_copy(-1, torch.tensor(columns, device=nu.device), nu_hat.to(nu.dtype))


def refuse_other_scalogram(model: AudioEncoder, data: DatasetConfig, path: str | Path) -> None:
    """Raise ValueError if a data set, that at `path`, holds other scalograms than an encoder was trained on."""
    own, other = model.config.synthesizer.name, data.synthesizer.name
    if own != other:
        raise ValueError(
            f"the encoder was trained on sounds of the synthesizer {own!r}, but {path} has those of {other!r}"
        )
    for name in ("n_samples", "J", "Q", "T"):
        own, other = getattr(model.config, name), getattr(data, name)
        if own != other:
            raise ValueError(f"the encoder was trained on scalograms with {name} = {own}, but {path} has {other}")


def save(model: AudioEncoder, path: str | Path) -> None:
    """Write an encoder atomically as safetensors: matrices and kernels in float16, the rest in float32.

    The header carries JSON: backbone, outputs, known parameters, configuration of the data set, library version,
    a sketch of the synthesizer's function, and `model.metadata`.
    """
    state = {name: values.half() if values.ndim > 1 else values for name, values in model.encoder.state_dict().items()}
    header = {
        "version": __version__,
        "backbone": model.encoder.name,
        "n_outputs": model.encoder.n_outputs,
        "known": list(model.known),
        "dataset": as_stored(model.config),
        "sketch": sketch(model.config.synthesizer),
        "metadata": model.metadata,
    }
    write_atomically({Path(path): tensor_file(state, header)})


@contextmanager
def _at_most(n: int) -> Iterator[None]:
    """Context in which this thread makes no network of more than n parameters: TypeError, before they take memory."""
    made, here = 0, get_ident()

    def count(module: nn.Module, name: str, parameter: Any) -> None:
        nonlocal made
        if get_ident() != here or parameter is None:
            return
        made += parameter.numel()
        if made > n:
            raise TypeError(f"its network has more than {n:,} parameters, which the file does not hold")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _no_encoder(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is not an encoder of this library ({' '.join(str(error).split())})")


def load_encoder(
    path: str | Path | None = None,
    device: torch.device | str = "cpu",
    synthesizer: Synthesizer | None = None,
    ear: str | Map | None = None,
) -> AudioEncoder:
    """Read an encoder that `save` or `pnp train` wrote, ready to predict.

    Parameters
    ----------
    path : path, optional
        That which ships with the package for the synthesizer, or for drums if none is given either.
    device : device
    synthesizer, ear : as in `store.read_config`

    Returns
    -------
    model : AudioEncoder, on that device, in evaluation mode

    Raises
    ------
    ValueError
        If there is no such file, or none ships; if it is damaged, no encoder of this library, one for another
        synthesizer or ear, or from when a synthesizer that is given made other sounds.
    OSError
        If the file cannot be read.
    """
    if synthesizer is not None:
        refuse_no_synthesizer(synthesizer)
    if path is None:
        name = (synthesizer or DRUM).name
        if name not in SHIPPED:
            raise ValueError(f"no encoder ships for the synthesizer {name!r}: give the file of one")
        path = shipped(SHIPPED[name])
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no encoder at {path}")
    header, state = read_tensors(path, "an encoder")
    try:
        config = stored_config(header["dataset"], synthesizer, ear, str(path))  # whose ValueError names the file
    except (KeyError, TypeError) as error:
        raise _no_encoder(path, error) from error
    if synthesizer is not None:
        refuse_edited(config.synthesizer, header.get("sketch"), path, "train it")
    try:
        # Older files do not name what was known: it was the first parameter, a drum's pitch.
        known = header.get("known", config.synthesizer.names[: len(config.synthesizer.names) - header["n_outputs"]])
        if header["n_outputs"] != (n := len(sought(config, known))):  # before a network is made
            raise TypeError(f"{header['n_outputs']!r} outputs for {n} parameters that are not known")
        if not (isinstance(header["backbone"], str) and set(known) <= set(config.synthesizer.names)):
            raise TypeError(f"the network {header['backbone']!r}, and known parameters {known!r}")
        # A header may name any network of timm, which has some of gigabytes. Twice: some replace what they have made.
        with _at_most(2 * sum(values.numel() for values in state.values())):
            encoder = Encoder(n, header["backbone"])
        encoder.load_state_dict(state)
        model = AudioEncoder(encoder, config, tuple(known), header.get("metadata"))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        if lacks_means(error):
            raise
        raise _no_encoder(path, error) from error
    return model.to(device).eval()
