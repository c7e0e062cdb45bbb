"""The search in the page is that of Python: its parts run in node, and the numbers are compared."""

import base64
import io
import json
import math
import subprocess

import numpy as np
import pytest
import soundfile
import soxr
import torch
from bs4 import BeautifulSoup
from scipy.optimize import lsq_linear
from test_instrument import NODE

from pnp_tutorial.drum import DRUM, SAMPLE_RATE
from pnp_tutorial.drum_matcher import SOURCES, DrumMatcher
from pnp_tutorial.matching import _opening, heard_through
from pnp_tutorial.metric import gram, jacobian
from pnp_tutorial.mss import CoarseSpectra
from pnp_tutorial.recording import load_recording, noise_level
from pnp_tutorial.search import BUDGET
from pnp_tutorial.widgets import equally_loud

N_SAMPLES = DRUM.n_samples
OPTIONS = DrumMatcher().options

RUN = """
const load = (source) => import("data:text/javascript;base64," + source);
const [core, page] = await Promise.all(process.argv.slice(1).map(load));
let text = "";
for await (const chunk of process.stdin) text += chunk;
const typed = (key, value) => (value?.doubles ? Float64Array.from(value.doubles, (x) => x ?? NaN) : value);
const { code, values } = JSON.parse(text, typed);
const run = new (async () => {}).constructor("core", "page", ...Object.keys(values), code);
const result = await run(core, page, ...Object.values(values));
console.log(JSON.stringify(result, (key, value) => (ArrayBuffer.isView(value) ? Array.from(value) : value)));
"""


def as_json(value):
    if isinstance(value, np.ndarray | torch.Tensor):
        doubles = np.asarray(value, dtype=np.float64)
        return {"doubles": [x if math.isfinite(x) else None for x in doubles.tolist()]}
    raise TypeError(type(value))


def in_node(code, **values):
    """What this JavaScript returns, an async function's body that sees the modules `core` and `page`, and values."""
    modules = [base64.b64encode(SOURCES[name].encode()).decode() for name in ("core", "matcher")]
    text = json.dumps({"code": code, "values": values}, default=as_json)
    command = [NODE, "--input-type=module", "-e", RUN, *modules]
    run = subprocess.run(command, input=text, capture_output=True, encoding="utf-8")
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    return json.loads(run.stdout)


@pytest.fixture(scope="module")
def double_spectra():
    """C in double precision: in single, Python's own rounding is 10⁻⁴."""
    torch.set_default_dtype(torch.float64)
    coarse = CoarseSpectra(N_SAMPLES, SAMPLE_RATE)
    torch.set_default_dtype(torch.float32)
    return lambda x: coarse._spectra(torch.as_tensor(x, dtype=torch.float64).reshape(-1, np.shape(x)[-1]))


def noise(n, seed=0, level=1.0):
    return level * np.random.default_rng(seed).normal(size=n)


@pytest.mark.parametrize("n", [N_SAMPLES // 4, N_SAMPLES // 2, N_SAMPLES])
def test_coarse_spectra_are_those_of_python(n, double_spectra):
    sounds = {
        "drum": DRUM(DRUM.sample_uniform(1, seed=5)[0])[:n].numpy(),
        "noise": noise(n),
        "silence": np.zeros(n),
        "tone": np.sin(2 * np.pi * 440 / SAMPLE_RATE * np.arange(n)),
    }
    for name, x in sounds.items():
        actual = in_node("return core.coarseSpectra(rate)(x);", x=x, rate=SAMPLE_RATE)
        assert np.abs(actual - double_spectra(x)[0].numpy()).max() < 1e-6, name


def test_a_drum_is_heard_as_in_python(double_spectra):
    """Through noise and at a level of its own: C(h(v)), and its distance from C(x), of openings too."""
    v = torch.cat([DRUM.sample_uniform(4, seed=6), torch.tensor([[0.0], [-0.3], [1.0], [0.2]])], 1)
    x, noises = noise(N_SAMPLES, 1, 0.1), [noise(N_SAMPLES, seed, 1e-3) for seed in (2, 3)]
    actual = in_node(
        """
        const hear = core.listener({ x, noises, ...options });
        return { spectra: hear(v, { spectra: true, noise: 1 }), distances: hear(v, { nSamples: x.length / 4 }) };
        """,
        x=x,
        noises=[*noises],
        v=v.tolist(),
        options=OPTIONS,
    )
    h = heard_through(torch.from_numpy(noises[1]), DRUM, torch.device("cpu"))
    assert np.abs(np.array(actual["spectra"]) - double_spectra(h(v)).numpy()).max() < 1e-6
    n = N_SAMPLES // 4
    sounds = torch.stack([10 ** (12 / 20 * w[5]) * DRUM.function(DRUM.to_theta(w[:5]), n, SAMPLE_RATE) for w in v])
    difference = double_spectra(sounds + torch.from_numpy(noises[0][:n])) - double_spectra(x[:n])
    np.testing.assert_allclose(actual["distances"], difference.norm(dim=1).numpy(), rtol=1e-6)


@pytest.mark.parametrize("band", [1, 0.9, 0.33])
@pytest.mark.parametrize("n", [0, 63, 64, 1000, 5001, 16384, 40000])
def test_the_noise_level_is_that_of_python(n, band):
    x = noise(n, level=0.01)
    (actual,) = in_node("return [core.noiseLevel(x, band)];", x=x, band=band)
    assert actual == pytest.approx(noise_level(torch.from_numpy(x), band), rel=1e-6)


@pytest.mark.parametrize("level", [0, 1e-3, 0.02])
def test_the_noise_in_a_drum_is_that_of_python(level):
    x = DRUM(DRUM.sample_uniform(1, seed=7)[0]).numpy() + noise(N_SAMPLES, level=level)
    (actual,) = in_node("return [core.noiseLevel(x)];", x=x)
    assert actual == pytest.approx(noise_level(torch.from_numpy(x)), rel=1e-6, abs=1e-12)


def test_noise_of_its_own_is_white_up_to_its_band_and_its_end():
    both = in_node("return [1, 0.6].map((band) => core.noiseLike(65536, 40000, band, 3));")
    for x, band in zip(both, (1, 0.6), strict=True):
        assert len(x) == 65536
        assert not np.any(x[40000:])
        assert np.std(x[:40000]) == pytest.approx(math.sqrt(band), rel=0.02)
        power = np.abs(np.fft.rfft(x[:32768])) ** 2
        assert np.mean(power[1000:9000]) == pytest.approx(32768, rel=0.1)
        above = np.mean(power[10500:]) / 32768  # beyond 0.6 of the band
        assert above == pytest.approx(1, rel=0.1) if band == 1 else above < 1e-2


def late_drum(rate, seed=4):
    """A drum at half level, 0.1 s late, of a rate, and 40 dB of noise below its peak."""
    x = DRUM.function(DRUM.to_theta(DRUM.sample_uniform(1, seed=seed)[0]), 3 * rate, rate).numpy()
    x = 0.5 * np.concatenate([np.zeros(rate // 10), x])
    return x + noise(len(x), level=5e-3)


x = late_drum(SAMPLE_RATE)
RECORDINGS = {
    "late": x[:, None],
    "stereo": np.stack([x, 0.3 * x + noise(len(x), 1, 1e-3)], 1),
    "cancelled": np.stack([x, -0.7 * x, -0.3 * x], 1),
    "offset": x[:, None] / 2 + 0.25,
    "brief": x[: SAMPLE_RATE // 10 + 3000, None],
    "at once": x[SAMPLE_RATE // 10 + 1 :, None],
}
PREPARE = "const { x, end, band } = core.prepare(name, channels, rate, rate, n, to); return { x, end, band };"


def prepared(channels, rate):
    values = {"channels": [c.astype(np.float32) for c in channels.T], "rate": rate, "n": N_SAMPLES, "to": SAMPLE_RATE}
    return in_node(PREPARE, name="a.wav", **values)


@pytest.mark.parametrize("name", RECORDINGS)
def test_a_recording_is_prepared_as_in_python(tmp_path, name):
    channels = RECORDINGS[name]
    soundfile.write(tmp_path / "a.wav", channels, SAMPLE_RATE, subtype="FLOAT")
    expected = load_recording(tmp_path / "a.wav", DRUM)
    actual = prepared(channels, SAMPLE_RATE)
    assert np.abs(actual["x"] - expected.x.numpy()).max() < 1e-6
    assert actual["band"] == expected.band == 1
    assert actual["end"] == np.flatnonzero(expected.x)[-1] + 1


@pytest.mark.parametrize("rate", [16000, 44100, 48000])
def test_a_recording_of_another_rate_is_nearly_that_of_python(tmp_path, rate):
    """The onset is the same sample. Rates are converted by another filter, which differs where both fade out."""
    x = late_drum(rate)[:, None]
    soundfile.write(tmp_path / "a.wav", x, rate, subtype="FLOAT")
    expected = load_recording(tmp_path / "a.wav", DRUM)
    actual = prepared(x, rate)
    assert actual["band"] == pytest.approx(expected.band)
    kept = int(0.85 * min(rate / SAMPLE_RATE, 1) * N_SAMPLES / 2)
    spectra = [np.fft.rfft(each)[:kept] for each in (actual["x"], expected.x.numpy())]
    similarity = np.vdot(*spectra) / np.linalg.norm(spectra[0]) / np.linalg.norm(spectra[1])
    assert abs(similarity - 1) < 1e-4, "as complex numbers: a sample late would be another sound"


@pytest.mark.parametrize(("rate", "to"), [(44100, 22050), (48000, 22050), (8000, 22050)])
def test_a_converted_tone_is_that_tone(rate, to):
    for hz in (100, 1234.5, 0.4 * min(rate, to)):
        x, y = (np.sin(2 * np.pi * hz / each * np.arange(each // 4)) for each in (rate, to))
        actual = in_node("return core.resample(x, rate, to);", x=x, rate=rate, to=to)
        middle = slice(1000, len(y) - 1000)
        assert np.abs(np.array(actual)[middle] - y[middle]).max() < 1e-3
        assert len(actual) == pytest.approx(len(soxr.resample(x, rate, to)), abs=1)
    if rate > to:
        above = np.sin(2 * np.pi * 0.52 * to / rate * np.arange(rate // 4))
        assert np.abs(in_node("return core.resample(x, rate, to);", x=above, rate=rate, to=to)[1000:-1000]).max() < 1e-3


BAD = {
    "silent": (np.full(1000, 3e-5) * np.sin(np.arange(1000)), "is silent"),
    "nothing": (np.zeros(1000), "is silent"),
    "too loud": (2.0**40 * np.sin(np.arange(1000)), "is no sound"),
    "empty": (np.zeros(0), "is empty"),
    "nan": (np.array([0.1, np.nan]), "NaN or infinite"),
    "too short": (np.concatenate([np.zeros(500), [0.5, 0.5]]), "ends 2 samples after its onset at 96000 Hz"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_the_sentence_of_the_command_line(tmp_path, name):
    x, words = BAD[name]
    path = tmp_path / "a.wav"
    soundfile.write(path, x, 96000, subtype="FLOAT")
    with pytest.raises(ValueError, match=words) as error:
        load_recording(path, DRUM)
    code = "try { core.prepare('a.wav', [x], 96000, 96000, n, rate); } catch (error) { return error.message; }"
    assert in_node(code, x=x, n=N_SAMPLES, rate=SAMPLE_RATE) == str(error.value).replace(str(path), "a.wav")


@pytest.mark.parametrize(
    ("kind", "subtype", "rate"),
    [("WAV", "PCM_16", 22050), ("WAV", "FLOAT", 48000), ("WAVEX", "PCM_24", 192000), ("FLAC", "PCM_16", 44100)],
)
def test_the_rate_of_a_file_is_read_from_its_beginning(kind, subtype, rate):
    file = io.BytesIO()
    soundfile.write(file, noise(1000, level=0.1), rate, format=kind, subtype=subtype)
    (actual,) = in_node(
        "return [core.fileRate(Uint8Array.from(bytes))];", bytes=np.frombuffer(file.getvalue(), np.uint8)
    )
    assert actual == rate


@pytest.mark.parametrize("data", [b"", b"RIFF", b"OggS" + bytes(100), b"RIFF\xff\xff\xff\xffWAVEdata\xff\xff\xff\xff"])
def test_other_files_do_not_tell_their_rate(data):
    assert in_node("return core.fileRate(Uint8Array.from(bytes)) ?? 'unknown';", bytes=[*data]) == "unknown"


@pytest.mark.parametrize("seed", range(4))
def test_the_opening_is_that_of_python(seed):
    nu = DRUM.sample_uniform(4, seed=9)[seed]
    x, hiss = DRUM(nu), 1e-3 * torch.from_numpy(noise(N_SAMPLES))
    (n,) = in_node("return [core.openingOf(x, noise)];", x=x + hiss, noise=hiss)
    assert n == _opening(x + hiss, hiss, DRUM, nu)


def test_evolution_finds_the_middle_of_a_narrow_valley():
    code = """
    const random = core.randomNumbers(1);
    const start = Array.from({ length: 64 }, () => middle.map(() => 2 * random() - 1));
    const distance = (v) => Math.hypot(...v.map((value, j) => 10 ** j * (value - middle[j])));
    const found = await core.evolve(start, async (vs) => vs.map(distance), random, 100, () => {});
    return { best: found[0], last: found.at(-1), n: found.length };
    """
    middle = [0.3, -0.9, 0.5, 0.0]
    found = in_node(code, middle=middle)
    assert np.abs(np.array(found["best"]) - middle).max() < 1e-3
    assert found["n"] == 64
    assert np.abs(found["last"]).max() <= 1


def test_a_descent_ends_in_the_corner_of_the_box_where_the_minimum_lies():
    """r(v) = A v − b, which is 0 outside: the answer is that of SciPy's bounded least squares."""
    random = np.random.default_rng(0)
    A = random.normal(size=(20, 4))
    b = A @ [1.5, 0.2, -2.0, 0.4] + 0.1 * random.normal(size=20)
    code = """
    const residuals = async (vs) => vs.map((v) => Float64Array.from(A, (row, i) => core.product(row, v) - b[i]));
    return core.descend([0, 0, 0, 0], residuals, 50, 1e-9, () => {});
    """
    found = in_node(code, A=[*A], b=b)
    expected = lsq_linear(A, b, (-1, 1))
    np.testing.assert_allclose(found["v"], expected.x, atol=1e-3)
    assert found["distance"] == pytest.approx(math.sqrt(2 * expected.cost), rel=1e-5)


def test_uncertainty_is_that_of_python():
    """Σ = (M/d² + 3 I)⁻¹, with M from derivatives that PyTorch has taken."""
    v = torch.cat([DRUM.sample_uniform(1, seed=11)[0], torch.zeros(1, dtype=torch.float64)])
    x, hiss = DRUM(v[:5]), 1e-3 * torch.from_numpy(noise(N_SAMPLES))
    code = """
    const hear = core.listener({ x, noises: [noise, noise], ...options });
    const target = core.coarseSpectra(options.sampleRate)(x);
    return core.uncertainty({ v, distance: 2, near: 0.1 }, target, async (...job) => hear(...job));
    """
    actual = in_node(code, x=x + hiss, noise=hiss, v=v.tolist(), options=OPTIONS)
    h = heard_through(hiss.float(), DRUM, torch.device("cpu"))
    M = gram(jacobian(v[None], CoarseSpectra(N_SAMPLES, SAMPLE_RATE), h)[1][0].double())
    expected = torch.linalg.inv(M / 2**2 + 3 * torch.eye(6, dtype=torch.float64)).diagonal().sqrt()
    np.testing.assert_allclose(actual, expected.numpy(), rtol=1e-2)


def test_the_budget_of_a_run_is_that_of_python():
    budget = in_node("return core.BUDGET;")
    n_runs = budget.pop("nRuns")
    assert list(budget.values()) == [BUDGET.n_sounds, BUDGET.n_generations, BUDGET.n_iterations]
    assert n_runs < BUDGET.n_runs, "for a reader who waits"


def test_sounds_to_compare_are_those_of_python():
    sounds = {"a": DRUM(DRUM.sample_uniform(1, seed=1)[0]).numpy(), "b": 0.01 * noise(N_SAMPLES)}
    actual = in_node("return page.equallyLoud([a, b], rate);", **sounds, rate=SAMPLE_RATE)
    for x, y in zip(actual, equally_loud(sounds, SAMPLE_RATE).values(), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-12)


def test_the_file_to_download_is_the_sound():
    x = np.clip(noise(1000, level=0.5), -1, 1)
    file = bytes(in_node("return page.wav(x, 22050);", x=x))
    y, rate = soundfile.read(io.BytesIO(file))
    assert rate == 22050
    assert soundfile.info(io.BytesIO(file)).subtype == "PCM_16"
    assert np.abs(x - y).max() < 1e-4


def test_a_static_page_holds_all_modules_and_the_ranges():
    bundle = DrumMatcher()._repr_mimebundle_()[0]
    assert "application/vnd.jupyter.widget-view+json" in bundle
    page = BeautifulSoup(bundle["text/html"], "html.parser")
    options = json.loads(page.find(attrs={"data-matcher": True})["data-matcher"])
    assert options["nSamples"] == DRUM.n_samples
    assert options["sampleRate"] == DRUM.sample_rate
    ranges = [(p.name, p.symbol, p.unit, p.low, p.high, p.meaning) for p in DRUM.parameters]
    names = ("name", "symbol", "unit", "low", "high", "meaning")
    assert [tuple(p[name] for name in names) for p in options["parameters"]] == ranges
    (script,) = page.find_all("script")
    assert script["type"] == "module"
    sources = json.loads(script.string.strip().split("\n")[0].removeprefix("const sources = ").removesuffix(";"))
    assert sources == SOURCES


def test_workers_can_run_what_they_get():
    """Without its exports, the module is a plain script, as the page gives it to them."""
    script = "\n".join(line.removeprefix("export ") for line in SOURCES["core"].split("\n"))
    run = subprocess.run([NODE, "--check", "-"], input=script, capture_output=True, encoding="utf-8")
    assert run.returncode == 0, run.stderr


def test_the_result_follows_the_browser():
    matcher = DrumMatcher()
    assert matcher.result == {}
    matcher.set_state({"result": {"theta": {"tau": 0.3}, "distance": 1.5}})
    assert matcher.result["theta"] == {"tau": 0.3}
