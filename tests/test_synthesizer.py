import json
import math
import os
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.func import jacfwd, jacrev

from pnp_tutorial.arpeggiator import ARPEGGIATOR
from pnp_tutorial.drum import DRUM
from pnp_tutorial.synthesizer import (
    REGISTRY,
    Parameter,
    Synthesizer,
    check_domain,
    find_synthesizer,
    refuse_edited,
    stored_synthesizer,
)

MIXED = Synthesizer(
    "mixed",
    (Parameter("a", "a", "1", -3.0, 5.0, "linear, through 0"), Parameter("b", "b", "Hz", 0.5, 8.0, "ratios", "log")),
    lambda theta, n_samples, sample_rate, *, dtype: theta.sum(-1, keepdim=True).expand(*theta.shape[:-1], n_samples),
    n_samples=4,
    sample_rate=10.0,
)
ALL = pytest.mark.parametrize("synthesizer", [DRUM, ARPEGGIATOR, MIXED], ids=lambda synthesizer: synthesizer.name)


def test_drums_have_the_papers_ranges():
    low, high = DRUM.ranges()
    assert low.tolist() == [2.4, 0.07, -5.0, -5.0, 1e-5]
    assert high.tolist() == [3.8, 0.8, -0.7, -0.52, 1.0]


def test_what_is_not_said_of_a_synthesizer():
    assert MIXED.from_onset
    assert not MIXED.peak_normalized
    assert DRUM.symbols[:2] == ("log₁₀ ω₁", "τ₁")


@ALL
def test_corners_of_the_cube_are_the_ends_of_the_ranges(synthesizer):
    low, high = synthesizer.ranges()
    ends = torch.stack([-torch.ones_like(low), torch.ones_like(low)])
    torch.testing.assert_close(synthesizer.to_theta(ends), torch.stack([low, high]))


@ALL
def test_scaling_and_its_inverse_cancel(synthesizer):
    nu = synthesizer.sample_uniform(100, seed=3).reshape(4, 25, -1)
    torch.testing.assert_close(synthesizer.to_nu(synthesizer.to_theta(nu)), nu)


@ALL
def test_slope_is_the_derivative_of_theta(synthesizer):
    nu = synthesizer.sample_uniform(1, seed=4)[0]
    torch.testing.assert_close(jacfwd(synthesizer.to_theta)(nu), synthesizer.slope(nu).diag())


@pytest.mark.parametrize("low", [-3.0, 0.0])
def test_gradients_of_nu_are_those_of_the_inverse(low):
    synthesizer = replace(MIXED, parameters=(replace(MIXED.parameters[0], low=low), MIXED.parameters[1]))
    nu = synthesizer.sample_uniform(1, seed=4)[0]
    gradients = jacrev(synthesizer.to_nu)(synthesizer.to_theta(nu))
    torch.testing.assert_close(gradients, (1 / synthesizer.slope(nu)).diag())


def test_the_middle_of_a_logarithmic_range_is_its_geometric_mean():
    torch.testing.assert_close(MIXED.to_theta(torch.zeros(2, dtype=torch.float64)), torch.tensor([1.0, 2.0]).double())


@ALL
def test_uniform_sampling_is_reproducible_and_fills_the_cube(synthesizer):
    nu = synthesizer.sample_uniform(20_000, seed=1)
    assert torch.equal(nu, synthesizer.sample_uniform(20_000, seed=1))
    assert not torch.equal(nu, synthesizer.sample_uniform(20_000, seed=2))
    assert nu.abs().max() <= 1
    # Mean 0 and variance 1/3, to five standard errors.
    assert nu.mean(0).abs().max() < 5 * (1 / 3 / 20_000) ** 0.5
    assert (nu.var(0) - 1 / 3).abs().max() < 5 * (4 / 45 / 20_000) ** 0.5


@ALL
def test_jittered_grid_has_one_point_in_every_cell(synthesizer):
    n = len(synthesizer.names)
    nu = synthesizer.sample_jittered_grid(n_cells=4, seed=0)
    cells = ((nu + 1) / 2 * 4).floor().long()
    expected = torch.stack(torch.unravel_index(torch.arange(4**n), (4,) * n), -1)
    assert torch.equal(cells, expected)


def test_a_grid_of_too_many_cells_is_refused():
    parameters = tuple(Parameter(f"p{i}", "p", "1", 0.0, 1.0, "") for i in range(100))
    many = replace(MIXED, parameters=parameters)
    assert many.sample_uniform(3).shape == (3, 100)
    with pytest.raises(ValueError, match="10 along each of 100 axes"):
        many.sample_jittered_grid()


@pytest.mark.parametrize("bad", [torch.zeros(4), torch.zeros(3, 6), torch.zeros(()), torch.zeros(5, dtype=torch.long)])
def test_wrong_shape_or_type_is_named(bad):
    with pytest.raises(ValueError, match="nu must"):
        DRUM.to_theta(bad)
    with pytest.raises(ValueError, match="theta must"):
        DRUM.to_nu(bad)


@pytest.mark.parametrize("lower_end", [(), ("a",)])
@pytest.mark.parametrize("value", [-4.0, -5.0, 6.0, 7.0, math.nan])
def test_values_outside_of_a_domain_are_named(value, lower_end):
    domain = ((-4.0, 6.0), (0.0, math.inf))
    theta = torch.tensor([[-3.9, 1.0], [5.9, 9.0]], dtype=torch.float64)
    check_domain(theta, MIXED.parameters, domain, "will not do", lower_end)
    theta[1, 0] = value
    if value == -4 and lower_end:
        check_domain(theta, MIXED.parameters, domain, "will not do", lower_end)
    else:
        left = r"\[" if lower_end else r"\("
        with pytest.raises(ValueError, match=rf"a = {value:g} will not do: .* {left}-4, 6\); .* range is \[-3, 5\]"):
            check_domain(theta, MIXED.parameters, domain, "will not do", lower_end)


def test_called_on_nu_it_is_its_function_of_theta():
    nu = 0.5 * DRUM.sample_uniform(2, seed=5)
    short = replace(DRUM, n_samples=300)
    assert torch.equal(short(nu), DRUM.function(DRUM.to_theta(nu), 300, DRUM.sample_rate))
    assert short(nu, torch.float32).dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "two words"}, "expected the name of a parameter to be a word, got 'two words'"),
        ({"low": 2.0}, "a: expected finite low < high, got 2.0 and 1.0"),
        ({"high": math.inf}, "finite low < high"),
        ({"low": math.nan}, "finite low < high"),
        ({"scale": "cubic"}, "'linear' or 'log', got 'cubic'"),
        ({"scale": "log"}, "low > 0 on a logarithmic scale, got 0.0"),
        ({"low": None}, "a: expected numbers for low and high, got None and 1.0"),
        ({"high": "1"}, "a: expected numbers for low and high, got 0.0 and '1'"),
        ({"low": False}, "a: expected numbers for low and high, got False and 1.0"),
    ],
)
def test_impossible_parameters_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        replace(Parameter("a", "a", "1", 0.0, 1.0, ""), **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parameters": ()}, "a name of their own each"),
        ({"parameters": MIXED.parameters * 2}, "a name of their own each"),
        ({"n_samples": 0}, "n_samples ≥ 1"),
        ({"sample_rate": -1.0}, "sample_rate > 0 Hz"),
        ({"sample_rate": math.inf}, "a finite sample_rate > 0 Hz, got 4, inf"),
        ({"sample_rate": "8000"}, "sample_rate > 0 Hz, got 4, '8000'"),
        ({"n_samples": True}, "a whole n_samples ≥ 1"),
        ({"name": 3}, "expected the name of a synthesizer to be a string, got 3"),
        ({"parameters": ("f",)}, "expected parameters of the class Parameter, got str"),
        ({"parameters": MIXED.parameters[0]}, r"expected parameters as a tuple, got one Parameter: .* \(parameter,\)"),
    ],
)
def test_impossible_synthesizers_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        replace(MIXED, **change)


@pytest.mark.parametrize("n", [-1, 2.5, True, "3"])
def test_numbers_of_sounds_that_are_none_are_named(n):
    with pytest.raises(ValueError, match=rf"the number of sounds must be a whole number in \[0, inf\], got {n!r}"):
        MIXED.sample_uniform(n)


@pytest.mark.parametrize("stored", [[[[1.0], [1.0, 2.0]] * 6], 12 * [10**400], {"levels": 1.0}])
def test_a_sketch_that_cannot_be_read_is_damage(stored):
    with pytest.raises(ValueError, match=r"x.zarr is damaged \(its sketch of the synthesizer cannot be read\)"):
        refuse_edited(replace(DRUM, n_samples=64), stored, "x.zarr", "build it")


def test_synthesizers_are_found_by_name():
    assert find_synthesizer("drum") is DRUM
    assert find_synthesizer("arpeggiator") is ARPEGGIATOR
    assert find_synthesizer("pnp_tutorial.drum:DRUM") is DRUM
    assert all(find_synthesizer(name).name == name for name in REGISTRY)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "dram",
            "there is no synthesizer 'dram': expected drum, arpeggiator, round_drum, module:OBJECT or file.py:OBJECT",
        ),
        ("os:system", "os:system is no Synthesizer, but of type builtin_function_or_method"),
        ("nowhere.py:BELL", "there is no file nowhere.py"),
        ("nowhere:BELL", "nowhere cannot be imported"),
        ("pnp_tutorial.drum:DRAM", "pnp_tutorial.drum has no DRAM"),
        ("pnp_tutorial.drum:", "expected module:OBJECT or file.py:OBJECT, got 'pnp_tutorial.drum:'"),
    ],
)
def test_names_of_no_synthesizer_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        find_synthesizer(name)


def test_a_file_that_fails_says_how(tmp_path):
    (tmp_path / "broken.py").write_text("1 / 0\n", encoding="utf-8")
    with pytest.raises(ValueError, match="broken.py cannot be imported .ZeroDivisionError: division by zero"):
        find_synthesizer(f"{tmp_path}/broken.py:BELL")


def test_a_name_out_of_a_file_is_never_imported(tmp_path, monkeypatch):
    """Neither os:system nor a file that would leave a trace."""
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w')\nBELL = None\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(os, "system", lambda command: pytest.fail("os.system was called"))
    for name in ("os:system", "evil:BELL", f"{tmp_path}/evil.py:BELL"):
        for stored in (name, {"name": name}, {"name": name, "parameters": []}):
            with pytest.raises(ValueError, match="the synthesizer '.*', which this library does not have"):
                stored_synthesizer(stored, None, "x")
    assert not (tmp_path / "trace").exists()
    assert "evil" not in sys.modules


def test_what_a_file_says_must_be_what_is_given():
    stored = MIXED.to_dict()
    assert stored_synthesizer(stored, MIXED, "x") is MIXED
    assert stored_synthesizer(DRUM.to_dict(), None, "x") is DRUM
    assert stored_synthesizer(None, None, "x") is DRUM, "files of before there was a choice"
    with pytest.raises(ValueError, match="x was made with the synthesizer 'mixed', which .* not have: pass"):
        stored_synthesizer(stored, None, "x")
    with pytest.raises(ValueError, match="x was made with the synthesizer 'mixed', and 'drum' is given"):
        stored_synthesizer(stored, DRUM, "x")
    with pytest.raises(ValueError, match="of sample_rate = 10.0: the one that is given has 20.0"):
        stored_synthesizer(stored, replace(MIXED, sample_rate=20.0), "x")
    with pytest.raises(ValueError, match="made with the synthesizer 'drum', and 'arpeggiator' is given"):
        stored_synthesizer(None, ARPEGGIATOR, "x")


def test_what_is_for_readers_alone_may_be_mended_and_a_range_that_differs_is_named():
    first, *others = MIXED.parameters
    stored = MIXED.to_dict()
    mended = replace(MIXED, parameters=(replace(first, meaning="other words", symbol="s"), *others))
    assert stored_synthesizer(stored, mended, "x") is mended
    wider = replace(MIXED, parameters=(*MIXED.parameters[:-1], replace(MIXED.parameters[-1], high=1e6)))
    with pytest.raises(ValueError, match="1000000.0") as error:
        stored_synthesizer(stored, wider, "x")
    assert MIXED.parameters[-1].name in str(error.value)
    assert f"'name': '{first.name}'" not in str(error.value), "only the one that differs"
    with pytest.raises(ValueError, match="made with the synthesizer 'mixed' of parameters = "):
        stored_synthesizer(stored, replace(MIXED, parameters=(first,)), "x")


def test_no_rows_give_no_sounds_whatever_the_function_does_with_them():
    def picky(theta, n_samples, sample_rate, *, dtype):
        assert theta.numel()
        return MIXED.function(theta, n_samples, sample_rate, dtype=dtype)

    nothing = torch.zeros(2, 0, 2, dtype=torch.float64, requires_grad=True)
    x = replace(MIXED, function=picky)(nothing, torch.float32)
    assert (x.shape, x.dtype) == ((2, 0, 4), torch.float32)
    x.sum().backward()
    assert nothing.grad.shape == nothing.shape


def test_parameters_reach_the_function_in_float64_whatever_the_dtype_of_nu():
    dtypes = []

    def function(theta, n_samples, sample_rate, dtype):
        dtypes.append(theta.dtype)
        return theta[..., :1].expand(*theta.shape[:-1], n_samples).to(dtype)

    x = replace(DRUM, function=function)(torch.zeros(2, 5))
    assert (x.dtype, dtypes) == (torch.float32, [torch.float64])


def test_a_grid_has_whole_cells():
    with pytest.raises(ValueError, match="got 2.5 along each of 5 axes"):
        DRUM.sample_jittered_grid(2.5)


def test_numbers_of_numpy_become_pythons():
    ends = np.array([1, 5])
    a = Parameter("a", "a", "1", ends[0], np.float32(ends[1]), "mine")
    mine = replace(DRUM, name="mine", parameters=(a,), n_samples=np.int64(300), sample_rate=np.float64(8000))
    assert json.loads(json.dumps(mine.to_dict()))["parameters"][0]["high"] == 5
    assert type(mine.n_samples) is int
    with pytest.raises(ValueError, match="expected a whole n_samples"):
        replace(mine, n_samples=4096.0)


def test_parameters_have_no_names_that_tables_of_matches_have():
    with pytest.raises(ValueError, match="expected another name of a parameter than 'error'"):
        Parameter("error", "e", "1", 0.0, 1.0, "mine")


def test_a_name_that_tables_give_to_uncertainties():
    with pytest.raises(ValueError, match="another name of a parameter than 'f_uncertainty'"):
        replace(MIXED.parameters[0], name="f_uncertainty")


def test_what_has_no_logarithm_has_no_place_on_a_logarithmic_scale():
    theta = torch.tensor([[1.0, 2.0], [1.0, 0.0]], dtype=torch.float64)
    with pytest.raises(ValueError, match="= 0.* has no place on its scale"):
        MIXED.to_nu(theta)
