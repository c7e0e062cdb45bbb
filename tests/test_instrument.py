"""The drum that plays in the browser is the drum of drum.py: its module runs in node, and the numbers are compared."""

import base64
import itertools
import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import playwright
import pytest
import torch
import traitlets
from bs4 import BeautifulSoup

from pnp_tutorial import drum
from pnp_tutorial.drum import DRUM
from pnp_tutorial.drum_instrument import SOURCE, START, DrumInstrument

SAMPLE_RATE = drum.SAMPLE_RATE
NODE = shutil.which("node") or shutil.which("node", path=Path(playwright.__file__).parent / "driver")

# A data URL is a module in every version of node; a .js file is one only in some.
CALL = """
const module = await import("data:text/javascript;base64," + process.argv[1]);
let text = "";
for await (const chunk of process.stdin) text += chunk;
const results = JSON.parse(text).map(([name, args, then]) => {
  const result = module[name](...args);
  return then ? then.map((t) => result(t)) : result;
});
console.log(JSON.stringify(results, (key, value) => (ArrayBuffer.isView(value) ? Array.from(value) : value)));
"""


def in_node(calls, source=SOURCE):
    """Results of calls [function, arguments] of the module, or of [function, arguments, times] if it returns a function
    of time."""
    module = base64.b64encode(source.encode()).decode()
    command = [NODE, "--input-type=module", "-e", CALL, module]
    run = subprocess.run(command, input=json.dumps(calls), capture_output=True, encoding="utf-8")
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    return json.loads(run.stdout)


MIDDLE = DRUM.to_theta(torch.tensor(START, dtype=torch.float64))
CORNERS = torch.tensor(list(itertools.product(*[(p.low, p.high) for p in DRUM.parameters])), dtype=torch.float64)
RANDOM = DRUM.to_theta(2 * torch.rand(20, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1)
ELSEWHERE = {"strike": (0.13, 0.71), "ear": (0.5, 0.25), "n_modes": 7}


def in_js(options):
    """The same options under the names that JavaScript prefers."""
    return {"nModes" if name == "n_modes" else name: value for name, value in options.items()}


@pytest.mark.parametrize("options", [{}, ELSEWHERE], ids=["default", "elsewhere"])
def test_modes_are_those_of_python(options):
    theta = torch.cat([CORNERS, RANDOM])
    results = in_node([["modes", [values, in_js(options)]] for values in theta.tolist()])
    for name, expected in zip(("omega", "sigma", "amplitude"), drum.modes(theta, **options), strict=True):
        actual = np.array([result[name] for result in results])
        np.testing.assert_allclose(actual, expected.numpy(), rtol=1e-12, atol=1e-18)


@pytest.mark.parametrize("options", [{}, ELSEWHERE, {"normalize": False}], ids=["default", "elsewhere", "raw"])
def test_sounds_are_those_of_python_sample_by_sample(options):
    theta = torch.cat([CORNERS, RANDOM])
    n_samples = 2500  # not a whole number of blocks
    above = drum.modes(theta)[0] >= math.pi * SAMPLE_RATE
    assert above.any(-1).any(), "some modes are to be left out"
    assert not above.all(-1).any()
    results = in_node([["rectangularDrum", [v, n_samples, SAMPLE_RATE, in_js(options)]] for v in theta.tolist()])
    expected = drum.rectangular_drum(theta, n_samples, SAMPLE_RATE, **options).numpy()
    largest = np.abs(expected).max(-1, keepdims=True)
    assert np.abs((results - expected) / largest).max() < 1e-9


@pytest.mark.parametrize(("n_samples", "sample_rate"), [(1, 22050), (2, 22050), (65536, 22050), (5000, 48000)])
def test_any_length_and_sample_rate(n_samples, sample_rate):
    if n_samples == 1:  # x[0] = 0 has no peak to divide by
        assert in_node([["rectangularDrum", [MIDDLE.tolist(), 1, sample_rate, {"normalize": False}]]]) == [[0.0]]
        return
    (x,) = in_node([["rectangularDrum", [MIDDLE.tolist(), n_samples, sample_rate]]])
    assert np.abs(x - drum.rectangular_drum(MIDDLE, n_samples, sample_rate).numpy()).max() < 1e-9


def test_spectrum_is_the_fourier_transform_of_the_sound():
    # At a high sample rate and until it has decayed, the sum over samples is the integral over time.
    theta = torch.tensor([2.8, 0.07, -3.0, -2.0, 0.6], dtype=torch.float64)
    sample_rate, n_samples = 192_000, 192_000
    x = drum.rectangular_drum(theta, n_samples, sample_rate, normalize=False).numpy()
    expected = np.abs(np.fft.rfft(x)) / sample_rate
    hz = [20, 57, 100, 101, 180, 333, 1000, 2000]  # bins of 1 Hz
    (modes,) = in_node([["modes", [theta.tolist()]]])
    actual = in_node([["magnitude", [f, modes, sample_rate]] for f in hz])
    np.testing.assert_allclose(actual, expected[hz], rtol=1e-3)


@pytest.mark.parametrize("strike", [(0.4, 0.4), (0.2, 0.7)])
def test_the_ear_hears_what_the_membrane_does(strike):
    times = [n / SAMPLE_RATE for n in (0, 1, 10, 100, 1000)]
    columns, rows = [0.1, 0.4, 0.9], [0.4, 0.8]
    call = ["membrane", [MIDDLE.tolist(), columns, rows, SAMPLE_RATE, {"strike": strike}], times]
    (actual,) = in_node([call])
    for (r, row), (c, column) in itertools.product(enumerate(rows), enumerate(columns)):
        x = drum.rectangular_drum(MIDDLE, 1001, strike=strike, ear=(column, row), normalize=False)
        seen = [u[r * len(columns) + c] for u in actual]
        np.testing.assert_allclose(seen, x[[0, 1, 10, 100, 1000]].numpy(), rtol=1e-9, atol=1e-18)


def test_words_are_true():
    theta = torch.tensor([3.0, 0.2, -1.0, -0.6, 0.5], dtype=torch.float64)
    (pitch, sustain, damping, stiffness, shape) = in_node([["inWords", [theta.tolist()]]])[0]
    omega, sigma, _ = drum.modes(theta, n_modes=2)
    assert pitch == f"{omega[0] / (2 * math.pi):.0f} Hz" == "159 Hz"
    assert sustain == f"60 dB down after {3 * math.log(10) * 0.2:.1f} s"
    assert f"dies {sigma[3] / sigma[0]:.2f} ×" in damping
    assert f"at {omega[3] / omega[0]:.2f} × the pitch" in stiffness
    assert shape == "sides 1 : 0.50"


@pytest.mark.parametrize("path", sorted(Path(drum.__file__).parent.glob("*.js")), ids=lambda path: path.name)
def test_a_module_is_small_and_alone(path):
    source = path.read_text(encoding="utf-8")
    assert len(source.encode()) < 50_000
    assert not re.search(r"\bimport\b|\brequire\(|https?://|console\.", source)
    # It is inlined in HTML, which these would end or hide.
    assert not re.search(r"</script|<!--", source, re.IGNORECASE)


def test_theta_starts_where_every_slider_is_heard_and_can_be_set():
    instrument = DrumInstrument()
    assert instrument.theta == MIDDLE.tolist()
    for end in ("low", "high"):
        instrument.theta = [getattr(p, end) for p in DRUM.parameters]
        assert instrument.theta == [getattr(p, end) for p in DRUM.parameters]
    assert DrumInstrument(theta=CORNERS[3].tolist()).theta == CORNERS[3].tolist()


def test_theta_is_synchronized_with_the_browser():
    instrument = DrumInstrument()
    assert instrument.get_state()["theta"] == instrument.theta
    instrument.set_state({"theta": CORNERS[5].tolist()})  # what a moved slider does
    assert instrument.theta == CORNERS[5].tolist()


@pytest.mark.parametrize(
    ("theta", "message"),
    [
        ([3.0, 0.2, -1.0, -1.0], "5 numbers.*got 4"),
        ([3.0, 0.2, -1.0, -1.0, 1.5], r"alpha in \[1e-05, 1\].*got 1.5"),
        ([3.9, 0.2, -1.0, -1.0, 0.5], r"log_omega in \[2.4, 3.8\] log₁₀ rad/s, got 3.9"),
        ([3.0, math.nan, -1.0, -1.0, 0.5], "tau.*got nan"),
        ([3.0, 0.2, "loud", -1.0, 0.5], "loud"),
        (3.0, "theta"),
    ],
)
def test_theta_is_refused(theta, message):
    instrument = DrumInstrument()
    with pytest.raises(traitlets.TraitError, match=message):
        instrument.theta = theta
    assert instrument.theta == MIDDLE.tolist()
    with pytest.raises(traitlets.TraitError, match=message):
        DrumInstrument(theta=theta)


def test_the_browser_knows_ranges_and_sample_rate_from_python():
    instrument = DrumInstrument()
    ranges = [(p.symbol, p.unit, p.low, p.high, p.meaning) for p in DRUM.parameters]
    for held in (instrument.get_state(), static_options(instrument)):
        names = ("symbol", "unit", "low", "high", "meaning")
        assert [tuple(p[name] for name in names) for p in held["parameters"]] == ranges
    assert instrument.get_state()["sample_rate"] == static_options(instrument)["sampleRate"] == SAMPLE_RATE


def static_options(instrument):
    page = BeautifulSoup(instrument._repr_mimebundle_()[0]["text/html"], "html.parser")
    return json.loads(page.find(attrs={"data-drum": True})["data-drum"])


def test_a_static_page_holds_theta_and_the_module_once():
    theta = CORNERS[7].tolist()
    bundle = DrumInstrument(theta=theta)._repr_mimebundle_()[0]
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert static_options(DrumInstrument(theta=theta))["theta"] == theta
    page = BeautifulSoup(bundle["text/html"], "html.parser")
    (script,) = page.find_all("script")
    assert script["type"] == "module"
    assert script.string.count(SOURCE) == 1
