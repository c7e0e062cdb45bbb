"""The scenes of chapters 2, 3, 8 and 11 in a real browser: what they show and play is what library and results say.

Not collected by plain `pytest`: `make test` runs it on what `make book` has built. What all scenes must be able to do:
test_explorables_page.py.
"""

import re
from dataclasses import replace
from importlib.resources import files

import numpy as np
import pytest
import torch
from test_explorables_page import data_of, last_sound, scene, value  # noqa: F401  # scene: a fixture

from pnp_tutorial import metric
from pnp_tutorial.bank import load_bank
from pnp_tutorial.drum import DRUM, rectangular_drum
from pnp_tutorial.runtime import read_results
from pnp_tutorial.scattering import JTFS, LogScattering

N = 2**14


def faded(n):
    """What fades out the last quarter of n samples."""
    turn = torch.linspace(0, torch.pi, n // 4, dtype=torch.float64)
    return torch.cat([torch.ones(3 * n // 4), (1 + turn.cos()) / 2])


def synth(nu):
    """The drum of chapter 3."""
    return faded(N) * replace(DRUM, n_samples=N)(nu)


def interpolated(logs, at):
    """exp of log M between the points of the grid (rows along the second parameter), by torch's matrix exponential."""
    n = len(logs)
    place = (np.asarray(at) + 0.8) / 1.6 * (n - 1)
    c, r = np.minimum(np.floor(place).astype(int), n - 2)
    s, t = place - (c, r)
    rows = [(1 - s) * logs[k, c] + s * logs[k, c + 1] for k in (r, r + 1)]
    a, b, d = ((1 - t) * rows[0] + t * rows[1]).tolist()
    return torch.linalg.matrix_exp(torch.tensor([[a, b], [b, d]], dtype=torch.float64))


def test_the_ruler_turns_as_the_metric_does(scene):  # noqa: F811
    element, logs = scene("ruler"), data_of("ruler")["logs"].astype(float)
    nu = DRUM.to_nu(torch.tensor([3.0, 0.25, -1.7, -1.7, 0.6], dtype=torch.float64))
    ear = LogScattering(JTFS(N, J=11, Q=(8, 1), J_fr=3, F=2, sample_rate=DRUM.sample_rate))
    point = element.get_by_role("slider", name="drum")
    point.focus()
    ways = {"ArrowRight": (0.05, 0), "Shift+ArrowUp": (0, 0.5), "Shift+ArrowDown": (0, -0.5)}
    conditions = []
    for key in ("ArrowRight", "Shift+ArrowUp", *3 * ["Shift+ArrowDown"]):
        point.press(key)
        nu[1:3] = (nu[1:3] + torch.tensor(ways[key])).clamp(-0.8, 0.8)
        spoken = point.get_attribute("aria-valuetext").replace("−", "-")
        told = [float(number) for number in re.findall(r"-?\d+\.\d\d", spoken)]
        assert told == pytest.approx(DRUM.to_theta(nu)[1:3].tolist(), abs=0.0051)
        mu, V = metric.eigen(interpolated(logs, nu[1:3].numpy()))
        shown = [value(element, name) for name in ("sloppy", "stiff")]
        assert shown == pytest.approx((0.2 * mu.sqrt()).tolist(), rel=1e-3)
        assert value(element, "condition") == pytest.approx((mu[1] / mu[0]).item(), rel=1e-3)
        M = metric.riemannian_metric(nu, ear, synth)[1:3, 1:3]
        assert shown == pytest.approx((0.2 * metric.eigen(M)[0].sqrt()).tolist(), rel=0.1), "the library's, nearly"
        conditions.append(value(element, "condition"))
        for k, name in enumerate(("sloppiest", "stiffest")):
            direction = V[:, k] * torch.sign(V[1, k])  # towards more damping
            moved = nu.clone()
            moved[1:3] += 0.2 * direction
            element.get_by_role("button", name=name).click()
            x, rate = last_sound(element)
            assert rate == DRUM.sample_rate
            assert np.abs(x - synth(moved).numpy()).max() < 1e-3
    element.get_by_role("button", name="drum").click()
    assert np.abs(last_sound(element)[0] - synth(nu).numpy()).max() < 1e-4
    assert conditions[-1] > 100 * conditions[1], "a sloppy direction where hardly anything is damped"


def test_the_verdicts_are_those_of_the_results(scene):  # noqa: F811
    element, losses = scene("verdicts"), ("parameter", "pnp", "secant", "mss")
    folder = files("pnp_tutorial") / "results/study"
    runs = [read_results(folder / f"{name}-0.json") for name in losses]
    bank = load_bank()
    nu = bank.nu[bank.split == 2]
    ranks = np.linspace(0, len(nu) - 1, 20).round().astype(int)
    twenty = np.argsort(runs[0]["jtfs"], kind="stable")[ranks]
    point = element.get_by_role("slider", name="test drum")
    point.focus()
    at, seen = 11, set()
    for key, move in (("ArrowRight", 1), ("Shift+ArrowLeft", -10), ("ArrowUp", 1), ("Shift+ArrowRight", 10)):
        point.press(key)
        at += move
        i = twenty[at - 1]
        expected = [np.float32(run["jtfs"][i]) for run in runs]  # as the page holds them: 19.55 is rounded down
        for k, distance in enumerate(expected):
            assert element.locator(f"[data-value=loss{k}]").inner_text() == f"{distance:.1f}"
        assert point.get_attribute("aria-valuetext").startswith(f"drum {at}, P-loss {expected[0]:.1f}, ")
        hz = 10 ** DRUM.to_theta(nu[i])[0].item() / (2 * np.pi)
        assert value_of_hz(element) == pytest.approx(hz, rel=5e-3)
        answers = [nu[i], *(torch.tensor(run["nu_hat"][i], dtype=torch.float64) for run in runs)]
        for name, drum in zip(
            ("target", "P-loss", "PNP, adaptive", "PNP, secant, scheduled", "MSS"), answers, strict=True
        ):
            element.get_by_role("button", name=name).click()
            x, rate = last_sound(element)
            sound = DRUM(drum)[: round(rate / 2)].numpy()
            correlation = x @ sound / np.linalg.norm(x) / np.linalg.norm(sound)
            assert correlation > 0.9999
            assert np.sqrt((x**2).mean()) == pytest.approx(0.1, rel=1e-3), "equally loud"
        seen.add(tuple(expected))
    assert len(seen) == 4


def value_of_hz(element):
    return float(element.locator("[data-value=drum]").inner_text().split(" Hz")[0])


def test_the_modulations_light_the_paths_of_the_library(scene):  # noqa: F811
    element = scene("modulation")
    transform = JTFS(N, J=11, Q=(8, 1), J_fr=3, F=2, sample_rate=DRUM.sample_rate)
    n_frames = torch.tensor([transform.N >> transform.levels_2[k] if k >= 0 else 1 for k in transform.paths.n2])
    t = (torch.arange(N, dtype=torch.float64) - N // 2) / DRUM.sample_rate
    slider, seen = element.locator("input"), set()
    slider.focus()
    for key, speed, kinds in (("ArrowRight", 3, (0, 1, 5)), ("ArrowLeft", 2, (4, 2))):
        slider.press(key)
        for kind in kinds:
            element.get_by_label("modulation").select_option(str(kind))
            rate = ([3.75, 7.5, 15, 30] if kind < 4 else [4, 8, 16, 32])[speed]
            assert slider.get_attribute("aria-valuetext").startswith(f"{rate:.3g}")
            swing = torch.cos(2 * torch.pi * rate * t)
            if kind < 4:
                hz = 1000 * 2 ** (swing * [0, 1 / 12, 1 / 4, 1 / 2][kind])
                window = torch.hann_window(N, dtype=torch.float64) * ((1 + swing) / 2 if kind == 0 else 1)
            else:
                hz = 1200 * 2 ** (rate * t * (1 if kind == 4 else -1))
                window = torch.exp(-((rate * t / 0.8) ** 2))
            x = window * torch.sin(2 * torch.pi * hz.cumsum(0) / DRUM.sample_rate)
            element.get_by_role("button", name="sound").click()
            played, sample_rate = last_sound(element)
            assert sample_rate == DRUM.sample_rate
            assert np.abs(played - x.numpy()).max() < 1e-5
            paths = transform.paths.assign(S=(transform(x) / n_frames).numpy())
            means = paths[paths.spin.notna()].groupby(["rate", "scale", "spin"]).S.mean()
            at_rate, scale, spin = means.idxmax()
            other = means[at_rate, scale, -spin] / means.max()
            assert value(element, "rate") == pytest.approx(at_rate, rel=5e-3)
            assert value(element, "scale") == pytest.approx(scale, rel=0.05)
            expected = "both alike" if other > 0.8 else "rising" if spin > 0 else "falling"
            assert element.locator("[data-value=spin]").inner_text() == expected
            seen.add((at_rate, scale, expected))
    assert len(seen) == 5


def test_the_geodesic_is_even_to_the_ear(scene):  # noqa: F811
    element, data = scene("geodesic"), data_of("geodesic")
    short = {"n_samples": 2**12, "sample_rate": 11025}
    ear, fade = LogScattering(JTFS(J=9, Q=(2, 1), J_fr=2, F=2, **short)), faded(short["n_samples"])
    point, thetas = element.get_by_role("slider", name="step"), torch.from_numpy(data["drums"].astype(float))
    spreads = []
    for path, name in enumerate(data["names"]):
        element.get_by_role("combobox").select_option(name)
        sounds = fade * rectangular_drum(thetas[path], **short)
        distance = ear(sounds).double().diff(dim=0).norm(dim=-1)
        spreads.append((distance.max() / distance.min()).item())
        assert value(element, "spread") == pytest.approx(spreads[-1], rel=1e-3)
        assert value(element, "length") == pytest.approx(distance.sum().item(), rel=1e-3)
        point.focus()
        point.press("Shift+ArrowLeft")
        for k, key in enumerate(("ArrowLeft", "ArrowRight", "ArrowUp", "ArrowRight", "ArrowUp", "ArrowRight")):
            point.press(key)
            assert value(element, "distance") == pytest.approx(distance[k].item(), rel=1e-3)
            assert point.get_attribute("aria-valuetext").startswith(f"{k + 1} of 6, distance {distance[k]:.2f}, to ")
            element.get_by_role("button", name="this step").click()
            x, rate = last_sound(element)
            assert rate == short["sample_rate"]
            assert np.abs(x - sounds[k : k + 2].flatten().numpy()).max() < 1e-3
        element.get_by_role("button", name="next step").click()
        assert value(element, "distance") == pytest.approx(distance[0].item(), rel=1e-3), "from the last to the first"
        element.get_by_role("button", name="whole path").click()
        assert np.abs(last_sound(element)[0] - sounds.flatten().numpy()).max() < 1e-3
    assert spreads[-1] < 1.2 < spreads[1] < spreads[0], "the geodesic comes last"


def test_a_click_on_the_map_leads_to_the_nearest_step(scene):  # noqa: F811
    element, data = scene("geodesic"), data_of("geodesic")
    element.get_by_role("combobox").select_option("geodesic")
    x, y = data["drums"][2, 4, data["pair"]].tolist()
    across, up = data["axes"]
    box = element.locator(".ground").first.bounding_box()
    element.page.mouse.click(
        box["x"] + box["width"] * (x - across["low"]) / (across["high"] - across["low"]) + 2,
        box["y"] + box["height"] * (up["high"] - y) / (up["high"] - up["low"]) + 2,
    )
    assert value(element, "distance") == pytest.approx(data["distance"][2, 3], rel=1e-3)


def test_the_ellipses_of_the_map_are_those_of_the_metric(scene):  # noqa: F811
    element, data = scene("geodesic"), data_of("geodesic")
    short = {"n_samples": 2**12, "sample_rate": 11025}
    ear, fade = LogScattering(JTFS(J=9, Q=(2, 1), J_fr=2, F=2, **short)), faded(short["n_samples"])
    low, high = DRUM.ranges()
    drawn = element.locator(".plot").first.locator("polyline")
    for i in (0, 6, 15):
        theta = torch.from_numpy(data["drums"][0, [0, -1]].astype(float)).mean(dim=0)
        theta[1:3] = torch.from_numpy(data["centres"][i].astype(float))
        M = metric.riemannian_metric(
            DRUM.to_nu(theta), ear, lambda nu: fade * rectangular_drum(DRUM.to_theta(nu), **short)
        )
        per_theta = (2 / (high - low))[1:3]
        halves = torch.linalg.inv(per_theta[:, None] * M[1:3, 1:3].double() * per_theta).diag().sqrt()
        box = drawn.nth(i).evaluate("each => { const { width, height } = each.getBBox(); return [width, height]; }")
        ground = element.locator(".ground").first
        sides = [float(ground.get_attribute(side)) for side in ("width", "height")]
        expected = [
            2 * data["radius"] * half * side / (axis["high"] - axis["low"])
            for half, side, axis in zip(halves.tolist(), sides, data["axes"], strict=True)
        ]
        assert box == pytest.approx(expected, rel=5e-3, abs=0.02), "of 48 corners"
