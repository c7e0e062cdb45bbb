"""The data set: what is in it, that it survives a kill, and what it says when something is wrong."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from conftest import contents, fields_of

from pnp_tutorial import dataset
from pnp_tutorial.__main__ import main
from pnp_tutorial.curves import STEPS, curve_gram, near_metric
from pnp_tutorial.dataset import DatasetConfig, build, check, describe, draw, ear, encoder_input, load, verify
from pnp_tutorial.drum import DRUM, rectangular_drum
from pnp_tutorial.metric import riemannian_metric, secant_metric
from pnp_tutorial.mss import CoarseSpectra
from pnp_tutorial.runtime import as_stored
from pnp_tutorial.scalogram import log_compress


def test_some_of_the_rows_are_those_of_all(tiny_data):
    """Drawn, in the order of the store; fewer of them are among more."""
    whole = load(tiny_data.data)
    some, fewer = (load(tiny_data.data, n=n) for n in (20, 5))
    places = [(whole.nu == nu).all(1).nonzero().item() for nu in some.nu]
    assert places == sorted(places) != list(range(20))
    for name in ("scalogram", "metric"):
        assert torch.equal(getattr(some, name), getattr(whole, name)[places])
    assert all((some.nu == nu).all(1).any() for nu in fewer.nu)
    with pytest.raises(ValueError, match=f"at most the {len(whole.nu)} train sounds of .*, got 1000000"):
        load(tiny_data.data, n=10**6)


def test_patience_grows_with_what_chunks_take(tiny_data, tmp_path, monkeypatch):
    waited = []
    monkeypatch.setattr(dataset, "_wait_for_others", lambda path, store, patience_s: waited.append(patience_s))
    build(replace(tiny_data, data=str(tmp_path / "x.zarr"), n_sounds=10), progress=False, patience_s=1e-3)
    assert waited[0] > 2e-3


def test_rows_are_what_they_say(tiny_data):
    """Recomputed from ν alone, with the drum, the scalogram and the metric of the other chapters."""
    test, synthesizer = load(tiny_data.data, "test"), replace(DRUM, n_samples=tiny_data.n_samples)
    x = synthesizer(test.nu)
    S = encoder_input(tiny_data)(x)
    assert torch.allclose(test.scalogram.float(), S, atol=1e-3, rtol=1e-3)  # float16
    assert torch.equal(S, log_compress(encoder_input(tiny_data).transform(x)))
    M = riemannian_metric(test.nu, ear(tiny_data), synthesizer)
    norm = torch.linalg.matrix_norm
    assert (norm(test.metric - M) < 1e-4 * norm(M)).all()  # features are float32, in other batches


def test_metric_may_be_one_of_secants(tiny_data, tmp_path):
    config = replace(tiny_data, data=str(tmp_path / "x.zarr"), n_sounds=10, secant_step=0.1)
    train = load(build(config, progress=False))
    synthesizer = partial(replace(DRUM, n_samples=config.n_samples), dtype=torch.float32)
    M = secant_metric(train.nu, CoarseSpectra(config.n_samples, DRUM.sample_rate), synthesizer, step=0.1)
    torch.testing.assert_close(train.metric, M, rtol=1e-3, atol=1e-5 * float(M.max()))
    assert verify(config.data, progress=False) < 1e-3
    with pytest.raises(ValueError, match="built with secant_step = 0.1, not null"):
        build(replace(config, secant_step=None), progress=False)


def test_curves_are_kept_beside_the_metric(tiny_data, tmp_path):
    config = replace(tiny_data, data=str(tmp_path / "x.zarr"), n_sounds=10, secant_step=0.02, curves=True)
    train = load(build(config, progress=False), names=("metric", "curves"))
    synthesizer = partial(replace(DRUM, n_samples=config.n_samples), dtype=torch.float32)
    G = curve_gram(train.nu, CoarseSpectra(config.n_samples, DRUM.sample_rate), synthesizer, STEPS)
    torch.testing.assert_close(train.curves, G, rtol=1e-3, atol=1e-5 * float(G.max()))
    torch.testing.assert_close(near_metric(train.curves, train.nu, STEPS), train.metric, rtol=1e-3, atol=1.0)
    assert load(config.data).curves is None
    assert verify(config.data, progress=False) < 1e-3


def test_metric_is_positive_semidefinite_as_stored(tiny_data):
    M = load(tiny_data.data).metric
    eigenvalues = torch.linalg.eigvalsh(M)
    assert M.dtype == torch.float64
    assert (eigenvalues[:, 0] >= -1e-14 * eigenvalues[:, -1]).all()


def test_shapes_and_types(tiny_data):
    train, validation, test = (load(tiny_data.data, split) for split in dataset.SPLITS)
    assert [len(part.nu) for part in (train, validation, test)] == [32, 4, 4]
    n_filters = len(encoder_input(tiny_data).transform.frequencies)
    frames = tiny_data.n_samples // tiny_data.T
    assert train.scalogram.shape == (32, n_filters, frames)
    assert (train.nu.dtype, train.scalogram.dtype) == (torch.float64, torch.float16)
    assert len({tuple(row) for part in (train, validation, test) for row in part.nu.tolist()}) == 40


def test_default_scalogram_covers_all_pitches():
    """No pitch of the data set lies below the filters, and frames are shorter than the shortest decay."""
    config = DatasetConfig()
    transform = encoder_input(config).transform
    assert transform.frequencies.min() < 10**2.4 / (2 * np.pi) < 10**3.8 / (2 * np.pi) < transform.frequencies.max()
    assert config.T / 22050 < 0.07


def test_grid_is_split_as_the_authors_did():
    nu, split = draw(DatasetConfig(sampling="grid", n_sounds=100_000))
    assert np.bincount(split).tolist() == [82_224, 7_776, 10_000]
    cells = torch.floor((nu + 1) * 5)
    inner = ((cells >= 2) & (cells <= 7)).all(-1).numpy()
    assert (split[inner] == 1).all()
    assert (split[~inner] != 1).all()


def test_part_of_the_grid_keeps_the_split():
    full, full_split = draw(DatasetConfig(sampling="grid", n_sounds=100_000))
    nu, split = draw(DatasetConfig(sampling="grid", n_sounds=500))
    where = {tuple(row): part for row, part in zip(full.tolist(), full_split, strict=True)}
    assert [where[tuple(row)] for row in nu.tolist()] == split.tolist()


def test_seed_decides():
    assert torch.equal(draw(DatasetConfig(seed=3))[0], draw(DatasetConfig(seed=3))[0])
    assert not torch.equal(draw(DatasetConfig(seed=3))[0], draw(DatasetConfig(seed=4))[0])


def test_chunks_do_not_depend_on_each_other(tiny_data, tmp_path):
    """The first chunk computed last, into a store that lost it, is the same."""
    config = replace(tiny_data, data=str(shutil.copytree(tiny_data.data, tmp_path / "c.zarr")))
    shutil.rmtree(tmp_path / "c.zarr/metric/c/0")
    zarr.open_group(config.data)["done"][0] = False
    with pytest.raises(ValueError, match="4 of 5 chunks"):
        load(config.data)
    build(config, progress=False)
    assert contents(config.data) == contents(tiny_data.data)


@pytest.fixture
def use_threads():
    """Sets torch's number of threads, on which the rounding of everything depends, for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_same_bytes_whatever_happens_on_the_way(tiny_data, tmp_path, monkeypatch, use_threads):
    """Interrupted between the data of a chunk and its mark, then resumed: as if built in one go."""
    config = replace(tiny_data, data=str(tmp_path / "b.zarr"))
    compute, calls = dataset._compute, []

    def fail_at_third(*args):
        if len(args[0]) > 1:  # not the one sound that is tried first
            calls.append(args[0])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return compute(*args)

    monkeypatch.setattr(dataset, "_compute", fail_at_third)
    use_threads(1)
    with pytest.raises(KeyboardInterrupt):
        build(config, progress=False)
    with pytest.raises(ValueError, match="2 of 5 chunks"):
        load(config.data)
    before = calls[:3]
    build(config, progress=False)
    done = [nu for nu in before if not torch.equal(nu, before[2])]
    assert len(done) == 2
    assert all(sum(torch.equal(nu, other) for other in calls) == 1 for nu in done)  # what was marked is not redone
    assert contents(config.data) == contents(tiny_data.data)


def test_same_bytes_whatever_the_number_of_threads(tiny_data, tmp_path, use_threads):
    use_threads(3)
    config = replace(tiny_data, data=str(tmp_path / "threads.zarr"))
    build(config, progress=False)
    assert torch.get_num_threads() == 3  # as it was
    assert contents(config.data) == contents(tiny_data.data)


def test_two_processes_write_the_same_bytes(tiny_data, tmp_path):
    """As a user starts them; killed once in the middle, and called again."""
    config = replace(tiny_data, data=str(tmp_path / "p.zarr"))
    options = [f"--{key}={'null' if value is None else value}" for key, value in fields_of(config).items()]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "pnp_tutorial"]
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen([*launch, "dataset", *options], stderr=file, start_new_session=True)
    deadline = time.time() + 120
    while not list((tmp_path / "p.zarr/done").rglob("c/*")) and time.time() < deadline:
        assert process.poll() is None, log.read_text(encoding="utf-8")
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    run = subprocess.run([*launch, "dataset", *options], capture_output=True, encoding="utf-8")
    assert run.returncode == 0, run.stderr
    assert run.stdout == f"{config.data}\n"  # one of them says so
    assert contents(config.data) == contents(tiny_data.data)


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_killed_build_resumes(tiny_data, tmp_path):
    config = replace(tiny_data, data=str(tmp_path / "k.zarr"), metric=False, chunk_size=1)
    code = (
        "import sys, time, pnp_tutorial.dataset as d; f = d._compute\n"
        "d._compute = lambda *a: (time.sleep(0.1), f(*a))[1]\n"
        f"d.build(d.DatasetConfig(**{fields_of(config)!r}), progress=False)"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.time() + 60
    while len(list((tmp_path / "k.zarr/done").rglob("c/*"))) < 3 and time.time() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    with pytest.raises(ValueError, match="of 40 chunks: run `pnp dataset` again"):
        load(config.data)
    build(config, progress=False)
    assert torch.equal(load(config.data, "test").nu, load(tiny_data.data, "test").nu)
    assert load(config.data).metric is None


def test_finished_data_set_is_left_alone(tiny_data, monkeypatch):
    monkeypatch.setattr(dataset, "_compute", lambda *args: pytest.fail("computed again"))
    assert build(tiny_data, progress=False) == Path(tiny_data.data)


@pytest.mark.parametrize("change", [{"n_sounds": 41}, {"seed": 1}, {"J": 7}, {"chunk_size": 4}])
def test_another_configuration_is_refused(tiny_data, change):
    (name, value), before = *change.items(), contents(tiny_data.data)
    with pytest.raises(ValueError, match=f"built with {name} = {getattr(tiny_data, name)}, not {value}"):
        build(replace(tiny_data, **change), progress=False)
    assert contents(tiny_data.data) == before


def damage_config(path):
    (path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}', encoding="utf-8")


def flip_a_bit(path):
    chunk = next(p for p in (path / "scalogram/c/1").rglob("*") if p.is_file())
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(content)


def lose_a_chunk(path):
    next(p for p in (path / "metric/c/1").rglob("*") if p.is_file()).unlink()


def truncate_a_chunk(path):
    chunk = next(p for p in (path / "metric/c/0").rglob("*") if p.is_file())
    chunk.write_bytes(chunk.read_bytes()[:20])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_config, "not a data set of this library"),
        (flip_a_bit, "is damaged"),
        (lose_a_chunk, "rows of metric are missing"),
        (truncate_a_chunk, "is damaged"),
    ],
)
def test_damage_is_noticed(tiny_data, tmp_path, damage, message):
    path = Path(shutil.copytree(tiny_data.data, tmp_path / "d.zarr"))
    damage(path)
    with pytest.raises(ValueError, match=message) as error:
        load(path)
    assert str(path) in str(error.value)


def garble(path, name):
    for chunk in (path / name / "c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(b"garbled" + chunk.read_bytes()[7:])


@pytest.mark.parametrize("name", ["done", "nu", "split"])
def test_damage_is_noticed_by_whoever_reads(tiny_data, tmp_path, name):
    path = Path(shutil.copytree(tiny_data.data, tmp_path / "d.zarr"))
    garble(path, name)
    readers = {"build": lambda: build(replace(tiny_data, data=str(path)), progress=False)} if name != "split" else {}
    readers |= {"load": lambda: load(path), "verify": lambda: verify(path, progress=False)}
    readers |= {"describe": lambda: describe(path)} if name != "nu" else {}
    for read in readers.values():
        with pytest.raises(ValueError, match=rf"d.zarr is damaged \({name}: "):
            read()


@pytest.mark.parametrize(("attribute", "value"), [("config", 5), ("made_with", None), ("made_with", {})])
def test_damage_of_what_a_store_says_of_itself(tiny_data, tmp_path, attribute, value):
    """Of one that is older than seals: every reader names it, or does without."""
    path = Path(shutil.copytree(tiny_data.data, tmp_path / "d.zarr"))
    store = zarr.open_group(path)
    del store.attrs["seal"]
    store.attrs[attribute] = value
    store["done"][0] = False
    readers = {"build": lambda: build(replace(tiny_data, data=str(path)), progress=False)}
    readers |= {"load": lambda: load(path), "describe": lambda: describe(path)} if attribute == "config" else {}
    for read in readers.values():
        with pytest.raises(ValueError, match=r"d.zarr (is damaged \(it does not say|cannot be read|is not a data set)"):
            read()


@pytest.mark.parametrize("name", ["nu", "scalogram", "metric", "done"])
@pytest.mark.parametrize("content", [None, "{", '{"zarr_format": 3, "node_type": "group", "attributes": {}}'])
def test_an_array_that_is_none_is_noticed(tiny_data, tmp_path, name, content):
    """In a store that is older than seals, too."""
    path = Path(shutil.copytree(tiny_data.data, tmp_path / "d.zarr"))
    del zarr.open_group(path).attrs["seal"]
    (path / name / "zarr.json").unlink()
    if content:
        (path / name / "zarr.json").write_text(content, encoding="utf-8")
    for read in (load, describe):
        with pytest.raises(ValueError, match=rf"d.zarr is damaged \({name}: "):
            read(path)


def test_missing_store_and_split(tiny_data, tmp_path):
    with pytest.raises(ValueError, match="there is no data set"):
        load(tmp_path / "nowhere.zarr")
    with pytest.raises(ValueError, match="expected a split"):
        load(tiny_data.data, "dev")


@pytest.fixture(scope="module")
def full_data(tmp_path_factory):
    """A data set that keeps all there is to keep."""
    path = str(tmp_path_factory.mktemp("full") / "full.zarr")
    config = DatasetConfig(data=path, n_sounds=23, n_samples=2048, J=6, T=64, chunk_size=4, features=True, device="cpu")
    build(config, progress=False)
    return config


def test_features_are_kept_on_request(full_data, tiny_data):
    drums = load(full_data.data, "test", ("features", "metric"))
    x = rectangular_drum(DRUM.to_theta(drums.nu), full_data.n_samples)
    torch.testing.assert_close(drums.features, ear(full_data)(x), rtol=1e-4, atol=1e-4)
    assert drums.metric is not None
    assert drums.scalogram is None  # not asked for
    assert load(full_data.data, "test").features is None
    assert [values is None for values in load(full_data.data, "test", ())] == [False, True, True, True, True]
    assert load(tiny_data.data, "test", ("features",)).features is None  # not there
    with pytest.raises(ValueError, match=r"expected names of .* got \['sound'\]"):
        load(full_data.data, "test", ("sound",))


@pytest.mark.parametrize("metric", [True, False])
def test_features_without_metric_are_the_same(full_data, tmp_path, metric):
    config = replace(full_data, data=str(tmp_path / "f.zarr"), metric=metric)
    build(config, progress=False)
    drums = load(config.data, "train", ("features", "metric"))
    torch.testing.assert_close(drums.features, load(full_data.data, "train", ("features",)).features)
    assert (drums.metric is not None) == metric


def test_describe(full_data):
    document = describe(full_data.data)
    assert document["config"] == as_stored(full_data)
    assert document["chunks"] == "6 of 6 done"
    assert document["splits"] == {"train": 18, "validation": 2, "test": 3}
    assert document["arrays"]["metric"]["shape"] == [23, 5, 5]
    assert document["arrays"]["metric"]["bytes_on_disk"] > 23 * 5 * 5 * 4
    assert set(document["arrays"]) == {"nu", "scalogram", "metric", "features"}


def test_verify_finds_nothing_wrong(full_data):
    assert verify(full_data.data, device="cpu", progress=False) == 0.0  # the very bytes


def change_metric(store):
    store["metric"][5] = store["metric"][5] * 1.1


def change_nu(store):
    store["nu"][3, 1] = 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [(change_metric, "metric of chunk 1 is 0.0"), (change_nu, "nu or split are not those of its configuration")],
)
def test_verify_finds_what_was_changed(full_data, tmp_path, change, message):
    """Rightly written, with right checksums, and wrong."""
    path = shutil.copytree(full_data.data, tmp_path / "v.zarr")
    change(zarr.open_group(path))
    with pytest.raises(ValueError, match=message):
        verify(path, n_chunks=6, device="cpu", progress=False)


@pytest.mark.parametrize("change", [{"n_chunks": -1}, {"n_chunks": 1.5}, {"seed": -1}])
def test_verify_refuses_numbers_that_are_none(tmp_path, change):
    """Before it looks for the store."""
    (name,) = change
    with pytest.raises(ValueError, match=f"{name} must be a whole number"):
        verify(tmp_path / "nowhere.zarr", **change)


def test_metrics_that_were_given_are_not_finished_with_others(full_data, tmp_path, capfd):
    """Nor the other way round; what is finished is left alone. `verify` does not compute them again."""
    M = torch.eye(5, dtype=torch.float64).expand(23, 5, 5)
    for given, other in ((M, None), (None, M)):
        config = replace(full_data, data=str(tmp_path / f"{given is None}.zarr"))
        build(config, progress=False, metric=given)
        assert verify(config.data, n_chunks=6, device="cpu", progress=False) < 1e-3
        assert build(config, progress=False, metric=other).exists()
        before = contents(config.data)
        zarr.open_group(config.data)["done"][0] = False
        with pytest.raises(ValueError, match="begun with metrics that .*, and is to go on with metrics that"):
            build(config, progress=False, metric=other)
        build(config, progress=False, metric=given)
        assert contents(config.data) == before
        assert main(["dataset", f"--data={config.data}", "--verify", "--device=cpu"]) == 0
        assert ("which were given" in capfd.readouterr().out) == (given is not None)


@pytest.mark.parametrize(
    ("M", "message"),
    [
        (np.eye(5), "expected metrics as a tensor in floating point, got ndarray"),
        (torch.eye(5).expand(23, 5, 5) * 1j, "expected metrics as a tensor in floating point, got torch.complex64"),
        (torch.eye(5).expand(22, 5, 5), r"expected metrics of shape \(23, 5, 5\), got \(22, 5, 5\)"),
        (torch.full((23, 5, 5), torch.nan), "expected finite metrics, got NaN"),
        (-torch.eye(5).expand(23, 5, 5), "expected symmetric metrics with diagonals ≥ 0"),
        (torch.ones(23, 5, 5).triu(), "expected symmetric metrics"),
    ],
)
def test_metrics_that_cannot_be_kept_are_named(full_data, tmp_path, M, message):
    with pytest.raises(ValueError, match=message):
        build(replace(full_data, data=str(tmp_path / "x.zarr")), progress=False, metric=M)
    assert not list(tmp_path.iterdir())


def test_metrics_may_be_as_asymmetric_as_float32_makes_them(full_data):
    J = torch.rand(23, 20_000, 5)
    check(full_data, J.mT @ J)


def test_numbers_of_numpy_are_as_good_as_others(full_data):
    config = replace(full_data, n_sounds=np.int64(23), secant_step=np.float32(0.5))
    check(config)
    assert (type(config.n_sounds), type(config.secant_step)) == (int, float)


def test_metrics_that_are_not_to_be_kept_are_refused(full_data, tmp_path):
    config = replace(full_data, data=str(tmp_path / "x.zarr"), metric=False)
    with pytest.raises(ValueError, match="metrics are given, and none are to be kept"):
        build(config, progress=False, metric=torch.eye(5).expand(23, 5, 5))
    assert not list(tmp_path.iterdir())


def test_metrics_that_were_given_do_not_mix_with_others(full_data, tmp_path):
    config, M = replace(full_data, data=str(tmp_path / "x.zarr")), torch.eye(5, dtype=torch.float64).expand(23, 5, 5)
    build(config, progress=False, metric=M)
    zarr.open_group(config.data)["done"][0] = False
    with pytest.raises(ValueError, match="begun with metrics that were given, and is to go on with other ones"):
        build(config, progress=False, metric=3 * M)
    build(config, progress=False, metric=M)


def test_a_store_that_does_not_say_if_metrics_were_given(tiny_data, tmp_path):
    """Is older, and is finished with what is given now."""
    config = replace(tiny_data, data=str(shutil.copytree(tiny_data.data, tmp_path / "old.zarr")))
    store = zarr.open_group(config.data)
    del store.attrs["seal"]
    store.attrs["made_with"] = {k: v for k, v in store.attrs["made_with"].items() if k != "metric_given"}
    store["done"][0] = False
    M = torch.eye(5, dtype=torch.float64).expand(40, 5, 5)
    assert torch.equal(load(build(config, progress=False, metric=M)).metric[0], M[0])


def test_verify_takes_silence_for_what_it_is(full_data, tmp_path, monkeypatch):
    """Of sounds that are silent scalogram and metric are zero, rightly; what is not zero there is an error."""
    config = replace(full_data, data=str(tmp_path / "s.zarr"), features=False, n_sounds=10)
    compute = dataset._compute

    def silent(nu, *args):
        audible = len(nu) < 3  # those by which it is tried whether an ear hears anything
        return {name: audible * values for name, values in compute(nu, *args).items()}

    monkeypatch.setattr(dataset, "_compute", silent)
    build(config, progress=False)
    assert verify(config.data, n_chunks=3, device="cpu", progress=False) == 0.0
    monkeypatch.undo()
    with pytest.raises(ValueError, match="is inf off what is computed anew"):
        verify(config.data, n_chunks=3, device="cpu", progress=False)


@pytest.mark.parametrize("damage", [flip_a_bit, lose_a_chunk, truncate_a_chunk])
def test_verify_finds_damage(full_data, tmp_path, damage):
    path = Path(shutil.copytree(full_data.data, tmp_path / "v.zarr"))
    damage(path)
    with pytest.raises(ValueError, match="is damaged"):
        verify(path, n_chunks=1, device="cpu", progress=False)
