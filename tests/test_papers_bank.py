"""The papers' grid of drums, piece by piece: killed, gone on with, in any order, always the same."""

import math
import time
from dataclasses import replace

import papers_bank
import pytest
import torch

from pnp_tutorial.dataset import SPLITS, draw
from pnp_tutorial.drum import DRUM
from pnp_tutorial.store import drawn


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A grid of 32 drums in 4 pieces, 8 of them for testing, and a metric that costs nothing."""
    grid = replace(papers_bank.GRID, n_sounds=32, n_cells=2, n_inner=1, n_grid_test=8)
    for name, value in (("GRID", grid), ("PIECE", 8), ("KEEP", 3), ("BANK", tmp_path / "bank"), ("ROOT", tmp_path)):
        monkeypatch.setattr(papers_bank, name, value)
    return tmp_path


def slopes(nu):
    """Some J (B, 7, 5) of ν."""
    return torch.sin(torch.arange(1, 36).reshape(7, 5) * (1 + nu[:, None]))


def of(nu):
    return torch.linalg.qr(slopes(nu), mode="r")[1]


def test_pieces_share_the_grid(small):
    assert papers_bank.n_pieces() == 4
    cells = (papers_bank.drums() > 0).int()
    assert len(cells.unique(dim=0)) == 32
    assert not torch.equal(cells, cells.unique(dim=0)), "in a random order"


def test_the_first_pieces_have_what_a_training_on_few_sounds_draws():
    """The first of both splits in the order of `drawn`, in proportion, and drums for testing last."""
    nu, split = draw(papers_bank.GRID)
    pieces = papers_bank.drums().split(papers_bank.PIECE)
    assert torch.equal(torch.cat(pieces).sort(dim=0).values, nu.sort(dim=0).values)
    for name, n in (("train", 4096), ("validation", 512)):
        rows = nu[split == SPLITS.index(name)]
        some = rows[drawn(len(rows), n)]
        assert set(map(tuple, some.tolist())) <= set(map(tuple, pieces[0].tolist()))
    assert torch.equal(pieces[9].sort(dim=0).values, nu[split == SPLITS.index("test")].sort(dim=0).values)
    assert [papers_bank.pieces_for(n) for n in (1, 4096, 9136, 9137, 16_384, 32_768, 82_224)] == [1, 1, 1, 2, 2, 4, 9]


def test_metrics_stand_at_their_drums(small):
    assert papers_bank.n_there() == 0
    for piece in (0, 2):
        papers_bank.make(piece, of, batch=2, until=math.inf)
    assert papers_bank.n_there() == 1, "the third piece waits for the second"
    papers_bank.make(1, of, batch=2, until=math.inf)
    assert papers_bank.n_there() == 3
    nu, split = draw(papers_bank.GRID)
    J, M = slopes(nu), papers_bank.metrics()
    tested = torch.as_tensor(split == SPLITS.index("test"))
    assert torch.allclose(M[~tested], (J.mT @ J)[~tested], rtol=1e-6, atol=1e-6)
    assert not M[tested].any()


def test_a_piece_is_what_was_computed(small):
    assert papers_bank.make(2, of, batch=2, until=math.inf)
    nu, M = papers_bank.read(2)
    assert torch.equal(nu, papers_bank.drums()[16:24])
    J = slopes(nu)
    assert torch.allclose(M, J.mT @ J, rtol=1e-6, atol=1e-6)


def test_it_goes_on_where_it_stopped(small):
    calls = []

    def counted(nu):
        calls.append(len(nu))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return of(nu)

    with pytest.raises(KeyboardInterrupt):
        papers_bank.make(1, counted, batch=2, until=math.inf)  # drums 0 to 2 are kept, the next were not
    assert not papers_bank.path_of(1).exists()
    assert papers_bank.make(1, counted, batch=2, until=math.inf)
    assert sum(calls) == 8 + 2
    whole = papers_bank.path_of(1).read_bytes()
    papers_bank.path_of(1).unlink()
    assert papers_bank.make(1, of, batch=3, until=math.inf)
    assert papers_bank.path_of(1).read_bytes() == whole


def test_its_minutes_are_a_limit(small, monkeypatch):
    monkeypatch.setattr(papers_bank, "root", lambda device: of)
    papers_bank.main([0, 3], minutes=-1, device="cpu", batch=2)
    assert not papers_bank.path_of(0).exists()
    papers_bank.main([0, 3], minutes=10, device="cpu", batch=2)
    assert [path.name for path in sorted(papers_bank.BANK.glob("*.safetensors"))] == [
        "drums-0.safetensors",
        "drums-3.safetensors",
    ]
    assert len((papers_bank.BANK / "SHA256SUMS").read_text(encoding="utf-8").splitlines()) == 2


def test_a_bad_piece_is_named(small):
    with pytest.raises(ValueError, match="there is no .*drums-0.safetensors: make it with"):
        papers_bank.read(0)
    papers_bank.make(0, of, batch=2, until=time.monotonic() + 60)
    content = bytearray(papers_bank.path_of(0).read_bytes())
    content[-1] ^= 1
    papers_bank.path_of(0).write_bytes(content)
    with pytest.raises(ValueError, match="drums-0.safetensors is damaged"):
        papers_bank.read(0)


def test_a_piece_under_another_name(small):
    """It is whole, but its metrics would stand at the drums of that other piece."""
    for piece in (0, 1):
        papers_bank.make(piece, of, batch=2, until=math.inf)
    papers_bank.path_of(1).write_bytes(papers_bank.path_of(0).read_bytes())
    papers_bank.read(0)
    with pytest.raises(ValueError, match="drums-1.safetensors is damaged, or another piece"):
        papers_bank.read(1)


def test_without_its_sums_no_piece_is_whole(small):
    papers_bank.make(0, of, batch=2, until=math.inf)
    (papers_bank.BANK / "SHA256SUMS").unlink()
    with pytest.raises(ValueError, match="drums-0.safetensors is damaged"):
        papers_bank.read(0)


def test_of_another_grid(small, monkeypatch):
    papers_bank.make(0, of, batch=2, until=math.inf)
    monkeypatch.setattr(papers_bank, "GRID", replace(papers_bank.GRID, seed=1))
    with pytest.raises(ValueError, match="drums-0.safetensors is of another grid"):
        papers_bank.read(0)


def test_roots_of_real_metrics():
    """Of two drums: M = RᵀR, with a diagonal that is not negative."""
    nu = DRUM.sample_uniform(2, seed=5)
    R = papers_bank.root(torch.device("cpu"))(nu)
    features = papers_bank.paper_features()
    M = papers_bank.jacobian(nu, features, DRUM)[1].double()
    M = M.mT @ M
    assert torch.allclose(R.mT @ R, M, rtol=1e-9, atol=1e-9 * float(M.abs().max()))
    assert (R.diagonal(dim1=-2, dim2=-1) >= 0).all()
    assert torch.equal(R, R.triu())
