"""How an encoder is trained: every setting, and what cannot be."""

import math
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch

from .damping import Shape
from .dataset_config import DatasetConfig
from .ears import find_ear
from .encoder import CHECKPOINT, refuse_unknown_network, sought
from .losses import root
from .metric import Map
from .mss import SHORTEST
from .runtime import check_fields, check_writable, plain, select_device
from .store import read_config
from .synthesizer import Synthesizer

MOST_TRAINING_SEED = 2**32 - 1  # what is made of a seed, an epoch and a process fits into torch's 64 bits


@dataclass(frozen=True)
class TrainingConfig:
    """How an encoder is trained.

    Parameters
    ----------
    data
        Path of the data set.
    output_folder
        Where checkpoint.pt, metrics.jsonl (losses and λ, a line an epoch), results.json and encoder.safetensors are
        written.
    synthesizer
        Of the data set, if it is none of the library.
    ear
        Of the data set, if it is none of the library; only the spectral loss listens with it.
    loss
        "parameter", "pnp", "curves" (`curves.curve_form`: PNP that holds far away, too), "spectral" (squared distance
        in the features of the data set's ear), or "mss".
    damping
        What λ does from epoch to epoch, for the losses pnp and curves. "constant": it stays. "scheduled": it falls by
        one factor every epoch. "adaptive": it is divided by 5 after an epoch whose validation loss is the lowest so
        far; after any other it stays, and the weights go back to the best. The next two are for these losses, too.
    damping_shape
        What λ multiplies: "identity", "diagonal" (of M) or "mean" (of M over the training set).
    lambda_0
        The first λ; if not given, the one that just outweighs M for every training sound: with "identity" the
        largest eigenvalue.
    unit_trace
        Divide the metric of every sound by its trace, so that all sounds count alike; for the loss pnp.
    root
        Δ: minimize `losses.root`, a distance, instead of its square. For pnp and curves it is in units of √(λ d + m),
        by which distances are divided, with m and d the medians of tr M / n and tr D / n over the training set, where λ
        multiplies D; for the P-loss in ν; for the spectral loss in features. MSS is a distance already.
    n_train
        Sounds to train on, drawn from the training set, the same for every seed: the drawn ones of a smaller number are
        among those of a larger one. All, if not given.
    n_validation
        Sounds to validate on, drawn in the same way.
    known
        Names of parameters that are given to the loss, and that the encoder need not predict; on the command line in
        quotation marks, as '[tau, alpha]'.
    backbone
        A convolutional network of timm that takes images of the size of the scalogram, without a name of weights.
    start_from
        File of an encoder of that kind, whose weights the training begins with; random ones, if not given. So a loss
        can take over where another ended.
    n_epochs
        Number of epochs. More may be asked for later, if the damping has no schedule and the learning rate is constant.
    epoch_share
        Share of the training set that makes an epoch, drawn anew each time. Sounds that fill no whole batch are left
        out.
    batch_size
        Sounds a step, of all processes together: a multiple of their number. If there are fewer sounds to train on,
        all of them.
    learning_rate
        Of Adam.
    final_learning_rate
        What the learning rate falls to in the last epoch, along half a period of a cosine; if not given, it stays.
        No more than learning_rate.
    clip
        Largest norm of a step's gradient: what is larger is scaled down to it. If not given, none is.
    seed
        Of weights and batches.
    precision
        Of the network: "32-true", "bf16-mixed" (bfloat16 where that is safe), or "auto": bf16-mixed on a CPU that has
        matrix units for it (AMX), and 32-true elsewhere, on a GPU, too. PNP and P-loss are taken in float64 in any
        case.
    tensorboard
        Write losses and λ for TensorBoard, too, to the folder `tensorboard` in output_folder. TensorBoard must be
        installed.
    device
        "cpu", "cuda", "mps", or "auto": cuda if there is one, else mps if there is one, else cpu.

    Nothing is checked when it is made: `check` and `fit` raise ValueError if it is impossible.
    """

    data: str = "data/sounds.zarr"
    output_folder: str = "runs/pnp"
    synthesizer: Synthesizer | None = None
    ear: str | Map | None = None
    loss: Literal["parameter", "pnp", "curves", "spectral", "mss"] = "pnp"
    damping: Literal["constant", "scheduled", "adaptive"] = "adaptive"
    damping_shape: Shape = "identity"
    lambda_0: float | None = None
    unit_trace: bool = False
    root: float | None = None
    n_train: int | None = None
    n_validation: int | None = None
    known: tuple[str, ...] = ()
    backbone: str = "efficientnet_b0"  # the paper's
    start_from: str | None = None
    n_epochs: int = 70  # the paper's
    epoch_share: float = 1.0  # the paper's is 0.3114: 25 600 of 82 224 sounds
    batch_size: int = 256  # the paper's, but for its spectral loss: 64
    learning_rate: float = 1e-3  # the paper's
    final_learning_rate: float | None = None  # the paper's rate is constant
    clip: float | None = None
    seed: int = 0
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    tensorboard: bool = False
    device: str = "auto"

    def __post_init__(self) -> None:
        plain(self)
        if isinstance(self.known, list):
            object.__setattr__(self, "known", tuple(self.known))
        if isinstance(self.known, tuple) and all(isinstance(name, str) for name in self.known):
            object.__setattr__(self, "known", tuple(map(str, self.known)))  # of numpy's, too

    @property
    def ends_with_its_epochs(self) -> bool:
        """Whether learning rate or damping have come to their end after the last epoch, so that none can follow."""
        scheduled = self.damping == "scheduled" and self.loss in ("pnp", "curves")
        return scheduled or self.final_learning_rate is not None


def check(config: TrainingConfig) -> DatasetConfig:
    """What the data set is made of; raises ValueError, before any work, if a training cannot be as `config` has it.

    Raises OSError if the output folder cannot be written to.
    """
    check_fields(config)
    for name in ("n_epochs", "learning_rate"):
        if not 0 < getattr(config, name) < math.inf:
            raise ValueError(f"expected {name} > 0, got {getattr(config, name)}")
    if config.batch_size < 2:
        raise ValueError(f"expected batch_size ≥ 2, which batch normalization needs, got {config.batch_size}")
    if not 0 < config.epoch_share <= 1:
        raise ValueError(f"expected epoch_share in (0, 1], got {config.epoch_share}")
    for name in ("root", "clip", "n_train", "n_validation"):
        value = getattr(config, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"expected {name} > 0, got {value}")
    if config.root is not None:
        try:
            root(torch.zeros((), dtype=torch.float32), float(config.root))  # in which some losses are
        except ValueError as error:
            raise ValueError(f"expected a root whose square float32 can hold, got {config.root}") from error
    if config.root is not None and config.loss == "mss":
        raise ValueError(f"expected no root with the loss mss, which is a distance already, got root = {config.root}")
    if config.unit_trace and config.loss != "pnp":
        raise ValueError(f"expected unit_trace with the loss pnp only, got the loss {config.loss}")
    for name in ("lambda_0", "final_learning_rate", "seed"):
        value = getattr(config, name)
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"expected {name} ≥ 0, got {value}")
    if config.seed > MOST_TRAINING_SEED:
        raise ValueError(f"expected seed ≤ {MOST_TRAINING_SEED}, got {config.seed}")
    refuse_unknown_network(config.backbone)
    begun = Path(config.output_folder, CHECKPOINT).exists()  # a training that goes on needs its first weights no more
    if not begun:  # an older version may have begun with such a setting
        _refuse_without_meaning(config)
    if config.start_from is not None and not begun and not Path(config.start_from).is_file():
        raise ValueError(f"there is no encoder at {config.start_from}")
    check_writable(config.output_folder)
    data = read_config(config.data, config.synthesizer, config.ear, select_device(config.device))
    _refuse_unfit_data(config, data)
    if config.tensorboard and not find_spec("tensorboard") and not find_spec("tensorboardX"):
        raise ValueError("tensorboard is not installed: pip install tensorboard")
    return data


def _refuse_without_meaning(config: TrainingConfig) -> None:
    """Raise ValueError if a setting would have no effect, or another than its name says."""
    if config.final_learning_rate is not None and config.final_learning_rate > config.learning_rate:
        raise ValueError(
            f"expected a learning rate that falls, got {config.learning_rate:g} and, at the end, "
            f"{config.final_learning_rate:g}"
        )
    for name in ("lambda_0", "damping_shape"):  # damping has a value for every loss
        if config.loss not in ("pnp", "curves") and getattr(config, name) != getattr(TrainingConfig, name):
            raise ValueError(f"expected {name} with the losses pnp and curves only, got the loss {config.loss}")
    if "." in config.backbone:
        name = config.backbone.partition(".")[0]
        raise ValueError(f"expected a network without the name of weights, {name!r}, got {config.backbone!r}")


def _refuse_unfit_data(config: TrainingConfig, data: DatasetConfig) -> None:
    """Raise ValueError if a data set lacks what a training asks for."""
    if unknown := [name for name in config.known if name not in data.synthesizer.names]:
        raise ValueError(f"expected known parameters of {data.synthesizer.names}, got {unknown[0]!r}")
    if not sought(data, config.known):
        raise ValueError(f"expected a parameter that is not known, got known = {config.known}")
    if config.loss == "pnp" and not data.metric:
        raise ValueError(f"{config.data} was built without the metric M, which the PNP loss needs")
    if config.loss == "spectral":
        find_ear(data.ear, data.n_samples, data.synthesizer.sample_rate)
    if config.loss == "mss" and data.n_samples < SHORTEST:
        raise ValueError(f"expected sounds of {SHORTEST} samples or more with the loss mss, got {data.n_samples}")
    if config.loss == "curves" and not data.curves:
        raise ValueError(f"{config.data} was built without curves, which the loss of that name needs")
