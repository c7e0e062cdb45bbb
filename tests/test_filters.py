"""The wavelets are kymatio's, whatever a later version of it leaves out."""

import warnings

import numpy as np
import pytest
from kymatio.scattering1d import filter_bank as kymatio

from pnp_tutorial import filters


@pytest.mark.parametrize(("J", "Q"), [(13, 12), (13, 1), (7, 8), (5, 1), (1, 1), (2, 16), (10, 2)])
def test_filter_bank_is_that_of_kymatio(J, Q):
    bank = [tuple(wavelet) for wavelet in filters.filter_bank(J, Q)]
    assert bank == list(zip(*kymatio.compute_params_filterbank(0.1 / 2**J, Q, 5.0), strict=True))


@pytest.mark.parametrize("n_samples", [1000, 2**12, 2**16])
@pytest.mark.parametrize("T", [4, 64, 1000, 8192])
def test_padding_is_that_of_kymatio(n_samples, T):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "support too small": both then cap it
        support = kymatio.compute_temporal_support(kymatio.gauss_1d(n_samples, 0.1 / T)[None], criterion_amplitude=1e-3)
    limit = np.floor(np.log2(3 * n_samples - 2))
    assert filters.padded_length(n_samples, T) == 2 ** min(np.ceil(np.log2(n_samples + 6 * support)), limit)


@pytest.mark.parametrize(("N", "J", "Q"), [(2**14, 8, 8), (71_680, 13, 12), (2**17, 13, 1), (1000, 6, 16), (64, 5, 1)])
def test_a_band_is_all_that_is_not_negligible(N, J, Q):
    """And what it holds is kymatio's, from the broadest wavelet to those that go around the circle."""
    for wavelet in filters.filter_bank(J, Q):
        for width in {N, N >> wavelet.level}:
            start, values = filters.band(N, wavelet, width, 1e-7)
            whole = kymatio.morlet_1d(N, wavelet.xi, wavelet.sigma)
            bins = np.arange(start, start + len(values)) % N
            np.testing.assert_allclose(values, whole[bins], rtol=0, atol=1e-11)
            assert len(values) <= width
            if width == N:
                whole[bins] = 0
                assert np.abs(whole).max() <= 1e-7 * np.abs(values).max()
