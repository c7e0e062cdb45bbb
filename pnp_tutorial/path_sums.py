"""The moduli and sums over time that a scattering transform, and above all its tangents, spend their time in.

    |Z|,  d|Z| = Re(Ẑ* dZ)                                     Ẑ = Z/|Z|
    Σ_t |W Y(t)|,  d Σ_t |W Y| = Re Σ_n W · (Σ_t Ẑ* dYᵀ)       Z = W Y: wavelets W along log-frequency

The second line is the key to a cheap Jacobian: for a sum over time, each tangent costs one matrix product, and neither
wavelets nor a modulus. Complex numbers are stacked as [Re; Im], for real products are faster on a CPU, and both spins
share them.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .runtime import full_precision

HALO, FRAMES = 8, 32  # of the filter that halves a rate: its reach, and frames filtered at once


def least(dtype: torch.dtype) -> float:
    """The least modulus whose square is no subnormal number: below it a modulus may be 0 though Z is not."""
    return torch.finfo(dtype).tiny ** 0.5


def unit(Z: Tensor, modulus: Tensor) -> Tensor:
    """Ẑ = Z/|Z|, and 0 where Z = 0: the direction in which |Z| grows."""
    is_there = modulus > 0
    return torch.where(is_there, Z / torch.where(is_there, modulus, 1), 0)  # divided so, its own derivative is no NaN


class Modulus(torch.autograd.Function):
    """|Z| of a complex Z: torch's own is slower, and its hypot has no derivative at 0."""

    generate_vmap_rule = True

    @staticmethod
    def forward(Z: Tensor) -> Tensor:
        return torch.hypot(Z.real, Z.imag) if Z.is_cuda else (Z.real.square() + Z.imag.square()).sqrt()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)
        ctx.save_for_forward(*inputs, output)

    @staticmethod
    @full_precision()
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        Z, modulus = ctx.saved_tensors
        return grad * unit(Z, modulus)

    @staticmethod
    @full_precision()
    def jvp(ctx: Any, dZ: Tensor) -> Tensor:
        Z, modulus = ctx.saved_tensors
        Z_unit = unit(Z, modulus)
        return Z_unit.real * dZ.real + Z_unit.imag * dZ.imag


def with_conjugates(W: Tensor, n_alone: int) -> Tensor:
    """Wavelets (rows, n), complex, of W (2R, n), stacked as [Re; Im].

    Its R rows, and then the conjugates of all but the first n_alone: a wavelet's other spin.
    """
    W = torch.complex(*W.chunk(2))
    return torch.cat([W, W[n_alone:].conj()])


def both_spins(W: Tensor, Y: Tensor, n_alone: int) -> list[tuple[Tensor, Tensor]]:
    """Real and imaginary parts (B, ·, t) of W Y and of W* Y, of W (2R, n) and Y (B, 2, n, t), stacked as [Re; Im].

    Together they are `with_conjugates(W, n_alone)` @ Y, and share four real products: with W = A + iB and Y = a + ib,

        W Y = (Aa − Bb) + i (Ab + Ba),    W* Y = (Aa + Bb) + i (Ab − Ba)
    """
    (Aa, Ba), (Ab, Bb) = (product.chunk(2, 1) for product in (W @ Y).unbind(1))
    conjugates = Aa[:, n_alone:] + Bb[:, n_alone:], Ab[:, n_alone:] - Ba[:, n_alone:]
    if torch.is_grad_enabled():  # a derivative that is itself to be differentiated
        return [(Aa - Bb, Ab + Ba), conjugates]
    return [(Aa.sub_(Bb), Ab.add_(Ba)), conjugates]


def normalized(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Ẑ of Z = u + iv, in place, unless it is to be differentiated; 0 where Z = 0."""
    power = u * u + v * v
    if torch.is_grad_enabled():
        inverse = torch.where(power > 0, power, torch.inf).rsqrt()
        return u * inverse, v * inverse
    inverse = power.clamp_min_(torch.finfo(u.dtype).tiny).rsqrt_()
    return u.mul_(inverse), v.mul_(inverse)


class PathSums(torch.autograd.Function):
    """Σ_t |Z(t)| (B, rows) of Z = W Y, and of the conjugates of W, with arguments as in `both_spins`.

    Nothing of size (rows, t) outlives a chunk of time; derivatives recompute it.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(W: Tensor, Y: Tensor, n_alone: int, chunk: int) -> Tensor:
        sums = []
        for y in Y.split(chunk, -1):
            spins = both_spins(W, y, n_alone)
            if y.is_cuda:  # one pass over its memory; a CPU's hypot is slow
                moduli = [torch.hypot(u, v) for u, v in spins]
            else:
                moduli = [u.mul_(u).add_(v.mul_(v)).sqrt_() for u, v in spins]
            sums.append(torch.cat([each.sum(-1) for each in moduli], -1))
        return torch.stack(sums).sum(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        W, Y, ctx.n_alone, ctx.chunk = inputs
        ctx.save_for_backward(W, Y)
        ctx.save_for_forward(W, Y)

    @staticmethod
    @full_precision()
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        W, Y = ctx.saved_tensors
        R, n_alone = len(W) // 2, ctx.n_alone
        grad_W, grad_conjugates = grad[..., None].split([R, R - n_alone], 1)

        def of(y: Tensor) -> Tensor:
            (u, v), (p, q) = (normalized(*Z) for Z in both_spins(W, y, n_alone))
            u, v, p, q = grad_W * u, grad_W * v, grad_conjugates * p, grad_conjugates * q
            sides = []
            for same, other in (((u, p), (v, -q)), ((v, q), (-u, p))):  # of Re Y and of Im Y
                each = [torch.cat([r[:, :n_alone], r[:, n_alone:] + f], 1) for r, f in (same, other)]
                sides.append(W.T @ torch.cat(each, 1))
            return torch.stack(sides, 1)

        return None, torch.cat([of(y) for y in Y.split(ctx.chunk, -1)], -1), None, None

    @staticmethod
    @full_precision()
    def jvp(ctx: Any, dW: None, dY: Tensor, *_: None) -> Tensor:
        W, Y = ctx.saved_tensors
        sums = []
        for y, dy in zip(Y.split(ctx.chunk, -1), dY.split(ctx.chunk, -1), strict=True):
            parts = []
            for Z, (du, dv) in zip(both_spins(W, y, ctx.n_alone), both_spins(W, dy, ctx.n_alone), strict=True):
                u, v = normalized(*Z)
                parts.append((u * du + v * dv).sum(-1))
            sums.append(torch.cat(parts, -1))
        return torch.stack(sums).sum(0)


def modulus(Z: Tensor) -> Tensor:
    """|Z| of Z (B, 1, …), or, of Z and its K tangents (B, 1 + K, …), |Z| and its derivatives Re(Ẑ* dZ)."""
    if Z.shape[1] == 1:
        return Modulus.apply(Z)
    out = torch.empty(Z.shape, dtype=Z.real.dtype, device=Z.device)
    out[:, :1] = Modulus.apply(Z[:, :1])
    inverse = out[:, :1].clamp_min(least(out.dtype)).reciprocal_()  # where Z = 0, Ẑ is 0, too
    torch.mul(Z[:, 1:].real, Z[:, :1].real * inverse, out=out[:, 1:])
    out[:, 1:].addcmul_(Z[:, 1:].imag, Z[:, :1].imag * inverse)
    return out


def halving_filter() -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """Filter that lets tangents dY of a sum over time have half the frames, at the price of filtering Ẑ once.

    dY fills less than half of its spectrum: only the modulus of Y needs the other half. For a short low-pass h, then,

        dY(t) = Σ_s h(t − 2s) dY′(s)    and    Σ_t Ẑ*(t) dY(t) = Σ_s (Σ_t h(t − 2s) Ẑ(t))* dY′(s)

    if the spectrum of dY′ is that of dY divided by the response of h. What h lets pass beyond its half is the less, the
    larger ψ_λ₂ is there: together they leave less than 10⁻⁷. Bands lie in the middle of their spectra, where h
    is a low-pass that alternates in sign.

    Returns
    -------
    H : ndarray, shape (FRAMES + 2 HALO, FRAMES / 2)
        From a block of frames, and the 2 HALO that follow it, to its frames at half the rate, HALO frames later.
    response : callable
        Of h, at frequencies f, in cycles per frame, from the middle of the spectrum.
    """
    h, k = np.kaiser(2 * HALO + 1, 16.5), np.arange(-HALO, HALO + 1)
    H = np.zeros((FRAMES + 2 * HALO, FRAMES // 2))
    for s in range(FRAMES // 2):
        H[2 * s : 2 * s + len(h), s] = h * (-1.0) ** (k + s)
    return H, lambda f: np.cos(2 * np.pi * f[:, None] * k) @ h


def halve(Z: Tensor, H: Tensor) -> Tensor:
    """Z (B, R, t + FRAMES) at half the rate: (B, R, t/2), of frames HALO later.

    Raises ValueError unless t is a multiple of FRAMES.
    """
    if Z.shape[-1] % FRAMES:
        raise ValueError(f"expected whole blocks of {FRAMES} frames, got {Z.shape[-1]} frames")
    blocks = Z.view(-1, FRAMES)
    out = blocks @ H[:FRAMES]
    out[:-1].addmm_(blocks[1:, : 2 * HALO], H[FRAMES:])
    return out.view(*Z.shape[:-1], -1)[..., : -FRAMES // 2]


def path_sums(W: Tensor, Y: list[Tensor], n_alone: int, chunk: int, H: Tensor) -> Tensor:
    """`PathSums` of a complex Y (B, n, t), and its derivatives along the K tangents that follow: (B, 1 + K, rows).

    With tangents the wavelets are applied once for value and derivatives. On a CPU the complex product Ẑ* dYᵀ takes
    three real ones: with Ẑ = u + iv and dY = p + iq,

        Re W (u − iv)(p + iq) = (Re W − Im W) (u − v)p + Re W v(p + q) + Im W u(p − q).

    Tangents of half the rate are (B, n, t/2), and the value then has FRAMES more, HALO of them before its first.
    A GPU, which products keep less busy than memory does, is faster with complex numbers.
    """
    y, *dY = Y
    if dY and W.is_cuda:
        return complex_path_sums(W, Y, n_alone, chunk, H)
    t = y.shape[-1]
    y = torch.stack([y.real, y.imag], 1)
    if not dY:
        return PathSums.apply(W, y, n_alone, chunk)[:, None]
    (B, n, t_tangents), K = dY[0].shape, len(dY)
    halved = t_tangents != t
    step, before, halo = (2, HALO, FRAMES) if halved else (1, 0, 0)
    W_full = with_conjugates(W, n_alone).mT.contiguous()  # (n, rows)
    W_re, W_im = W_full.real, W_full.imag
    sums = W.new_zeros(B, W_re.shape[1])
    products = [W.new_zeros(B, K * n, W_re.shape[1]) for _ in range(3)]
    first = 0
    for dy in zip(*(d.split(chunk, -1) for d in dY), strict=True):
        frames = step * dy[0].shape[-1]
        spins = both_spins(W, y[..., first : first + frames + halo], n_alone)
        u, v = (torch.cat(parts, 1) for parts in zip(*spins, strict=True))
        first += frames
        modulus = (u * u).addcmul_(v, v).sqrt_()
        sums += modulus[..., before : before + frames].sum(-1)
        inverse = modulus.clamp_min_(least(W.dtype)).reciprocal_()
        u.mul_(inverse)
        v.mul_(inverse)
        if halved:
            u, v = halve(u, H), halve(v, H)
        p, q = torch.cat([d.real for d in dy], -2), torch.cat([d.imag for d in dy], -2)
        for product, tangents, units in zip(products, (p, p + q, p - q), (u - v, v, u), strict=True):
            product.baddbmm_(tangents, units.mT)
    weighted = zip(products, (W_re - W_im, W_re, W_im), strict=True)
    tangents = sum(product.unflatten(1, (K, n)).mul_(w).sum(2) for product, w in weighted)
    return torch.cat([sums[:, None], tangents], 1)


def complex_path_sums(W: Tensor, Y: list[Tensor], n_alone: int, chunk: int, H: Tensor) -> Tensor:
    """`path_sums` with tangents, in complex numbers."""
    y, *dY = Y
    (B, n, t_tangents), K = dY[0].shape, len(dY)
    step, before, halo = (2, HALO, FRAMES) if t_tangents != y.shape[-1] else (1, 0, 0)
    W = with_conjugates(W, n_alone)
    sums, product = W.real.new_zeros(B, len(W)), W.new_zeros(B, K * n, len(W))
    first = 0
    for dy in zip(*(d.split(chunk, -1) for d in dY), strict=True):
        frames = step * dy[0].shape[-1]
        Z = W @ y[..., first : first + frames + halo]
        first += frames
        sums += Z[..., before : before + frames].abs().sum(-1)
        Z = Z.sgn_() if halo == 0 else halve(Z.sgn_(), H.to(Z.dtype))
        product.baddbmm_(torch.cat(dy, -2), Z.mH)
    tangents = (product.unflatten(1, (K, n)) * W.mT).sum(2).real
    return torch.cat([sums[:, None], tangents], 1)
