"""The moduli and sums over time that a scattering transform, and above all its tangents, spend their time in.

    |Z|,  d|Z| = Re(Ẑ* dZ)                                     Ẑ = Z/|Z|
    Σ_t |W Y(t)|,  d Σ_t |W Y| = Re Σ_n W · (Σ_t Ẑ* dYᵀ)       Z = W Y: wavelets W along log-frequency

The second line is the key to a cheap Jacobian: for a sum over time, each tangent costs one matrix product, and neither
wavelets nor a modulus. Complex numbers are stacked as [Re; Im], for real products are faster on a CPU.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .runtime import full_precision

HALO, FRAMES = 8, 32  # of the filter that halves a rate: its reach, and frames filtered at once


def unit(Z: Tensor, modulus: Tensor) -> Tensor:
    """Ẑ = Z/|Z|, and 0 where Z = 0: the direction in which |Z| grows."""
    return torch.where(modulus > 0, Z / modulus, 0)


class Modulus(torch.autograd.Function):
    """|Z| of a complex Z: torch's own is six times slower on a CPU, and its hypot has no derivative at 0."""

    generate_vmap_rule = True

    @staticmethod
    def forward(Z: Tensor) -> Tensor:
        return torch.hypot(Z.real, Z.imag)

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


class PathSums(torch.autograd.Function):
    """Σ_t |W Y(t)| (B, R) of W (R, n) and Y (B, n, t).

    Nothing of size (R, t) outlives a chunk of time; derivatives recompute it. One real product
    [[Re W, −Im W], [Im W, Re W]] [Re Y; Im Y] does it all.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(W: Tensor, Y: Tensor, chunk: int) -> Tensor:  # W (2R, 2n), Y (B, 2n, t), both real
        R = len(W) // 2
        sums = []
        for y in Y.split(chunk, -1):
            Z = W @ y
            if Z.is_cuda:  # one pass over its memory; a CPU's hypot is slow
                modulus = torch.hypot(Z[:, :R], Z[:, R:])
            else:
                square = Z.mul_(Z)
                modulus = (square[:, :R] + square[:, R:]).sqrt_()
            sums.append(modulus.sum(-1))
        return torch.stack(sums).sum(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        W, Y, ctx.chunk = inputs
        ctx.save_for_backward(W, Y)
        ctx.save_for_forward(W, Y)

    @staticmethod
    def _units(W: Tensor, y: Tensor) -> Tensor:
        """Ẑ (B, 2R, t) as [Re; Im]."""
        Z = W @ y
        re, im = Z.chunk(2, 1)
        inverse = (re * re + im * im).clamp_min_(torch.finfo(Z.dtype).tiny).rsqrt_()
        re.mul_(inverse)
        im.mul_(inverse)
        return Z

    @staticmethod
    @full_precision()
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        W, Y = ctx.saved_tensors
        grad = torch.cat([grad, grad], -1)[..., None]
        return None, torch.cat([W.T @ (grad * PathSums._units(W, y)) for y in Y.split(ctx.chunk, -1)], -1), None

    @staticmethod
    @full_precision()
    def jvp(ctx: Any, dW: None, dY: Tensor, dchunk: None) -> Tensor:
        W, Y = ctx.saved_tensors
        pairs = zip(Y.split(ctx.chunk, -1), dY.split(ctx.chunk, -1), strict=True)
        correlation = sum(PathSums._units(W, y) @ dy.mT for y, dy in pairs)
        return (W * correlation).sum(-1).unflatten(-1, (2, -1)).sum(-2)


def modulus(Z: Tensor) -> Tensor:
    """|Z| of Z (B, 1, …), or, of Z and its K tangents (B, 1 + K, …), |Z| and its derivatives Re(Ẑ* dZ)."""
    if Z.shape[1] == 1:
        return Modulus.apply(Z)
    out = torch.empty(Z.shape, dtype=Z.real.dtype, device=Z.device)
    torch.hypot(Z[:, :1].real, Z[:, :1].imag, out=out[:, :1])
    inverse = out[:, :1].clamp_min(torch.finfo(out.dtype).tiny).reciprocal_()  # where Z = 0, Ẑ is 0, too
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
    """Z (B, R, t + FRAMES) at half the rate: (B, R, t/2), of frames HALO later."""
    blocks = Z.view(-1, FRAMES)
    out = blocks @ H[:FRAMES]
    out[:-1].addmm_(blocks[1:, : 2 * HALO], H[FRAMES:])
    return out.view(*Z.shape[:-1], -1)[..., : -FRAMES // 2]


def path_sums(W: Tensor, Y: list[Tensor], chunk: int, H: Tensor) -> Tensor:
    """`PathSums` of a complex Y (B, n, t), and its derivatives along the K tangents that follow: (B, 1 + K, R).

    With tangents the wavelets are applied once for value and derivatives. On a CPU the complex product Ẑ* dYᵀ takes
    three real ones: with Ẑ = u + iv and dY = p + iq,

        Re W (u − iv)(p + iq) = (Re W − Im W) (u − v)p + Re W v(p + q) + Im W u(p − q).

    Tangents of half the rate are (B, n, t/2), and the value then has FRAMES more, HALO of them before its first.
    A GPU, which products keep less busy than memory does, is faster with complex numbers.
    """
    y, *dY = Y
    if not dY:
        return PathSums.apply(W, torch.cat([y.real, y.imag], -2), chunk)[:, None]
    if W.is_cuda:
        return complex_path_sums(W, Y, chunk)
    (B, n, t), K, R = y.shape, len(dY), len(W) // 2
    halved = dY[0].shape[-1] != t
    step, before, halo = (2, HALO, FRAMES) if halved else (1, 0, 0)
    y = torch.cat([y.real, y.imag], -2)
    sums = W.new_zeros(B, R)
    products = [W.new_zeros(B, K * n, R) for _ in range(3)]
    first = 0
    for dy in zip(*(d.split(chunk, -1) for d in dY), strict=True):
        frames = step * dy[0].shape[-1]
        Z = W @ y[..., first : first + frames + halo]
        first += frames
        u, v = Z.chunk(2, 1)
        modulus = (u * u).addcmul_(v, v).sqrt_()
        sums += modulus[..., before : before + frames].sum(-1)
        inverse = modulus.clamp_min_(torch.finfo(W.dtype).tiny).reciprocal_()
        u.mul_(inverse)
        v.mul_(inverse)
        if halved:
            u, v = halve(Z, H).chunk(2, 1)
        p, q = torch.cat([d.real for d in dy], -2), torch.cat([d.imag for d in dy], -2)
        for product, tangents, units in zip(products, (p, p + q, p - q), (u - v, v, u), strict=True):
            product.baddbmm_(tangents, units.mT)
    W_re, W_im = W[:R, :n].mT.contiguous(), W[R:, :n].mT.contiguous()  # (n, R)
    weighted = zip(products, (W_re - W_im, W_re, W_im), strict=True)
    tangents = sum(product.unflatten(1, (K, n)).mul_(w).sum(2) for product, w in weighted)
    return torch.cat([sums[:, None], tangents], 1)


def complex_path_sums(W: Tensor, Y: list[Tensor], chunk: int) -> Tensor:
    """`path_sums` with tangents, in complex numbers."""
    (B, n, _), K, R = Y[0].shape, len(Y) - 1, len(W) // 2
    sums = W.new_zeros(B, R)
    W = torch.complex(W[:R, :n], W[R:, :n])
    product = W.new_zeros(B, K * n, R)
    for y, *dy in zip(*(each.split(chunk, -1) for each in Y), strict=True):
        Z = W @ y
        sums += Z.abs().sum(-1)
        product.baddbmm_(torch.cat(dy, -2), Z.sgn_().mH)
    tangents = (product.unflatten(1, (K, n)) * W.mT).sum(2).real
    return torch.cat([sums[:, None], tangents], 1)
