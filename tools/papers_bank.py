"""Metrics of the papers' 100 000 drums, in ten pieces that any machine can make, in any order.

    python tools/papers_bank.py                                    # the next pieces, for 100 minutes
    python tools/papers_bank.py --minutes 10 --pieces 3 4 --device cuda --batch 64

The drums are those of `DRUM.sample_jittered_grid()`, one from each of 10⁵ cells, in an order that is always the same:
drums for training and for validation, mixed in proportion, each in the order in which a training draws them; drums for
testing last. So the first pieces serve the trainings on few sounds (tools/scaling.py), and nine of the ten, which are
the default, serve all. A metric is kept as the upper triangle R of J = QR, M = RᵀR, in float32: with the precision of
J, and positive semi-definite whatever the rounding. Batches are kept in runs/papers_bank as soon as they are computed.
A piece of 10 000 that is complete is written to bank, beside its sum, and is then ready to be committed.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from repository import ROOT
from torch import Tensor
from tqdm import tqdm

from pnp_tutorial import __version__
from pnp_tutorial.dataset import SPLITS, DatasetConfig, draw, heard
from pnp_tutorial.drum import DRUM
from pnp_tutorial.metric import jacobian
from pnp_tutorial.runtime import float64_device, select_device, write_atomically
from pnp_tutorial.scattering import paper_features
from pnp_tutorial.store import in_drawn_order

BANK = ROOT / "bank"
GRID = DatasetConfig(n_sounds=100_000, sampling="grid")
PIECE = 10_000
KEEP = 64  # drums that a kept batch has

Root = Callable[[Tensor], Tensor]  # ν (B, n) → R (B, n, n)


def order() -> tuple[Tensor, Tensor]:
    """Places in the grid (100 000,) of the drums of all pieces; and how many of them are for training, up to each."""
    split = torch.as_tensor(draw(GRID)[1])
    places, when = [], []
    for i, name in enumerate(SPLITS):
        of_split = (split == i).nonzero()[:, 0]
        places.append(of_split[in_drawn_order(len(of_split))])
        when.append((torch.arange(len(of_split)) + 0.5) / len(of_split) + (name == "test"))
    found = torch.cat(places)[torch.cat(when).argsort(stable=True)]
    return found, (split[found] == SPLITS.index("train")).cumsum(0)


def drums() -> Tensor:
    """ν (100 000, 5) of the grid, in the order of the pieces."""
    return draw(GRID)[0][order()[0]]


def pieces_for(n_train: int) -> int:
    """How many of the first pieces a training on that many sounds needs."""
    return int((order()[1] < n_train).sum()) // PIECE + 1


def n_there() -> int:
    """How many of the first pieces are there, without a gap."""
    return next((piece for piece in range(n_pieces()) if not path_of(piece).exists()), n_pieces())


def metrics() -> Tensor:
    """M (100 000, 5, 5) of the drums of the first pieces, in the order of the grid; 0 where there is none yet."""
    places, n = order()[0], len(GRID.synthesizer.parameters)
    M = torch.zeros(len(places), n, n, dtype=torch.float64)
    for piece in range(n_there()):
        M[places[piece * PIECE : (piece + 1) * PIECE]] = read(piece)[1]
    return M


def root(device: torch.device) -> Root:
    """R of J = QR, with a diagonal that is not negative, in float64."""
    features, where = paper_features().to(device), float64_device(device)

    def of(nu: Tensor) -> Tensor:
        J = jacobian(nu.to(where), features, lambda nu: heard(DRUM, nu, device))[1].cpu().double()
        R = torch.linalg.qr(J, mode="r")[1]
        return R * torch.where(R.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0)[..., None]

    return of


def n_pieces() -> int:
    return -(-GRID.n_sounds // PIECE)


def of_grid() -> dict[str, int]:
    """What a piece must have been made with."""
    return {"piece": PIECE, **{name: getattr(GRID, name) for name in ("n_cells", "n_inner", "n_grid_test", "seed")}}


def path_of(piece: int) -> Path:
    return BANK / f"drums-{piece}.safetensors"


def write(piece: int, R: Tensor) -> None:
    """A complete piece, and in SHA256SUMS its sum beside those of the others."""
    rows, columns = torch.triu_indices(*R.shape[-2:])
    header = {**of_grid(), "version": __version__, "torch": torch.__version__}
    content = safetensors.torch.save({"R": R[:, rows, columns].float()}, {"pnp_tutorial": json.dumps(header)})
    sums_path = BANK / "SHA256SUMS"
    lines = sums_path.read_text(encoding="utf-8").splitlines() if sums_path.exists() else []
    name = path_of(piece).name
    lines = [line for line in lines if not line.endswith(f"  {name}")]
    lines = sorted([*lines, f"{hashlib.sha256(content).hexdigest()}  {name}"], key=lambda line: line.split()[1])
    write_atomically({sums_path: ("\n".join(lines) + "\n").encode(), path_of(piece): content})  # no piece without a sum


def read(piece: int) -> tuple[Tensor, Tensor]:
    """ν (N, n) and M (N, n, n), float64, of a piece; raises ValueError if it is missing, damaged or of another grid."""
    path = path_of(piece)
    if not path.exists():
        raise ValueError(f"there is no {path}: make it with tools/papers_bank.py --pieces {piece}")
    content = path.read_bytes()
    sums = BANK / "SHA256SUMS"
    own = f"{hashlib.sha256(content).hexdigest()}  {path.name}"
    if not sums.exists() or own not in sums.read_text(encoding="utf-8").splitlines():
        raise ValueError(f"{path} is damaged, or another piece: its sum is not that of its name in {sums}")
    with safetensors.safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["pnp_tutorial"])
        if header | of_grid() != header:
            raise ValueError(f"{path} is of another grid: {header}")
        packed = file.get_tensor("R").double()
    nu = drums()[piece * PIECE : (piece + 1) * PIECE]
    R = nu.new_zeros(len(nu), nu.shape[1], nu.shape[1])
    rows, columns = torch.triu_indices(nu.shape[1], nu.shape[1])
    R[:, rows, columns] = packed
    return nu, R.mT @ R


def make(piece: int, of: Root, batch: int, until: float) -> bool:
    """Go on with a piece until it is written, or until that time; whether it is written."""
    nu = drums()[piece * PIECE : (piece + 1) * PIECE]
    folder = ROOT / "runs/papers_bank" / str(piece)
    kept = [folder / f"{first}.safetensors" for first in range(0, len(nu), KEEP)]
    missing = [i for i, path in enumerate(kept) if not path.exists()]
    for i in tqdm(missing, initial=len(kept) - len(missing), total=len(kept), desc=f"piece {piece}", unit="batch"):
        if time.monotonic() > until:
            return False
        R = torch.cat([of(some) for some in nu[i * KEEP : (i + 1) * KEEP].split(batch)])
        write_atomically({kept[i]: safetensors.torch.save({"R": R.contiguous()})})
    write(piece, torch.cat([safetensors.torch.load_file(path)["R"] for path in kept]))
    return True


def main(pieces: list[int], minutes: float, device: str, batch: int) -> None:
    until, of = time.monotonic() + 60 * minutes, root(select_device(device))
    for piece in pieces:
        if not path_of(piece).exists() and not make(piece, of, batch, until):
            return


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--pieces", type=int, nargs="+", choices=range(n_pieces()), default=list(range(pieces_for(82_224)))
    )
    parser.add_argument("--minutes", type=float, default=100, help="after which it stops; it goes on when called again")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch", type=int, default=4, help="drums at once, at most 64; some dozens on a GPU")
    arguments = parser.parse_args()
    main(arguments.pieces, arguments.minutes, arguments.device, arguments.batch)
