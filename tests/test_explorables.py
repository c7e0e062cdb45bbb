"""What a reader moves: data and words reach the page as they are, and too much or the wrong of them is an error."""

import json
import re

import numpy as np
import pytest
import torch
from book_extension import accessible, scripts_once
from bs4 import BeautifulSoup

from pnp_tutorial import explorables
from pnp_tutorial.explorables import decode, explorable, scenes, scripts, summary

TEXT = 'A point to move: "near" & far, 1 < 2, </div></script><b>bold</b>'
DATA = {
    "tensor": torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3),
    "array": np.arange(5),
    "number": 0.1,
    "whole": 3,
    "of no dimension": torch.tensor(2.5),
    "words": "</script><!-- <b>ν̃ & “so on”</b>",
    "nested": [{"x": np.array([1.5, np.inf, np.nan])}, ["a", (1, 2)]],
}


def page_of(made):
    """The static page's elements: the one that holds it all, and the script with its data."""
    bundle, _ = made._repr_mimebundle_()
    page = BeautifulSoup(bundle["text/html"], "html.parser")
    (element,) = page.select("[data-explorable]")
    return page, element, element.find("script", type="application/json")


@pytest.mark.parametrize("name", scenes())
def test_data_reach_the_page_and_the_widget_as_they_are(name):
    made = explorable(name, DATA, TEXT)
    page, element, script = page_of(made)
    assert element["data-explorable"] == name
    for data in (script.string, made.get_state()["data"]):
        back = decode(json.loads(data))
        assert back.keys() == DATA.keys()
        np.testing.assert_array_equal(back["tensor"], DATA["tensor"].float().numpy())
        np.testing.assert_array_equal(back["array"], np.arange(5, dtype="f4"))
        np.testing.assert_array_equal(back["nested"][0]["x"], np.array([1.5, np.inf, np.nan], "f4"))
        assert back["nested"][1] == ["a", [1, 2]]
        assert (back["number"], back["whole"], back["of no dimension"]) == (0.1, 3, 2.5)
        assert back["words"] == DATA["words"]
    assert made.get_state()["_esm"] == "".join(scripts(name))
    assert [each.string.strip() for each in page.find_all("script", type="module")] == [
        s.strip() for s in scripts(name)
    ]


def test_the_text_stands_where_a_reader_without_scripts_finds_it_and_is_only_text():
    _, element, _ = page_of(explorable(scenes()[0], DATA, TEXT))
    assert element.p.string == TEXT
    assert element.find("b") is None


def test_data_in_the_page_cannot_end_their_script():
    bundle, _ = explorable(scenes()[0], DATA, TEXT)._repr_mimebundle_()
    inside = re.search(r'<script type="application/json">(.*?)</script>', bundle["text/html"], re.DOTALL)[1]
    assert "<" not in inside
    assert decode(json.loads(inside))["words"] == DATA["words"]


def test_as_many_data_as_allowed_and_one_array_more():
    n = (explorables.MAX_BYTES - 100) // 16 * 3
    explorable(scenes()[0], {"x": np.zeros(n)}, "text")
    with pytest.raises(ValueError, match=r"at most 300,000 bytes of data for '\w+', got 300,\d+"):
        explorable(scenes()[0], {"x": np.zeros(n + 100)}, "text")


@pytest.mark.parametrize(
    ("name", "data", "text", "error", "message"),
    [
        ("no such", {}, "text", ValueError, r"expected a scene of .*damping.*, got 'no such'"),
        ("../drum", {}, "text", ValueError, r"got '../drum'"),
        ("damping", {}, " \n", ValueError, r"expected a text that says what moving 'damping' shows, got none"),
        ("damping", {"a": [1, None]}, "text", TypeError, r"expected data\['a'\]\[1\] to be a Tensor.* got None"),
        ("damping", {"a": 1j * np.ones(2)}, "text", TypeError, r"expected data\['a'\]"),
        (
            "damping",
            {"a": {"b": float("nan")}},
            "text",
            ValueError,
            r"expected data\['a'\]\['b'\] to be finite, got nan",
        ),
        ("damping", {"a": torch.tensor(np.inf)}, "text", ValueError, r"expected data\['a'\] to be finite, got inf"),
    ],
)
def test_what_cannot_be_shown_is_one_clear_error(name, data, text, error, message):
    with pytest.raises(error, match=message):
        explorable(name, data, text)


def test_its_text_form_tells_what_it_holds():
    lines = repr(explorable("damping", {"M": torch.tensor([[4.0, 1e-9], [1.0, 3.0]]), "of": ["toy", 0.25]}, "text"))
    assert lines == "explorable damping\nM: (2, 2) 2.000 0.000 4.000\nof 0: toy\nof 1: 0.250000"
    assert list(summary(np.zeros((0, 2)), "none")) == ["none: (0, 2) 0.000 0.000 0.000"]


def test_all_scripts_together_are_small():
    kit = scripts(scenes()[0])[0]
    own = [kit[kit.index("const GAIN") :], *(scripts(name)[1] for name in scenes())]
    assert sum(len(script.encode()) for script in own) < 50_000


def test_scripts_lose_comments_and_indentation_alone():
    """Word for word the rest is there: of drum.js, of the kit and of the scene."""
    for name in scenes():
        whole = "".join(
            (explorables.FOLDER / file).read_text(encoding="utf-8")
            for file in ("drum.js", "speaker.js", "explorables.js")
        )
        whole += (explorables.FOLDER / f"explorable_{name}.js").read_text(encoding="utf-8")
        lines = [line.strip() for line in whole.splitlines()]
        code = [line for line in lines if not line.startswith("//") and not re.fullmatch(r"/\*\*.*\*/", line)]
        bare = [line.rstrip() for line in "".join(scripts(name)).splitlines()]
        assert [line for line in bare if line] == [line for line in code if line]


def test_two_of_a_page_share_one_kit():
    first, second = (explorable(name, {}, "text")._repr_mimebundle_()[0]["text/html"] for name in ("damping", "losses"))
    page = BeautifulSoup(scripts_once(f"<body>{first}<hr>{second}{first}</body>"), "html.parser")
    kept = [script.string.strip() for script in page.find_all("script", type="module")]
    expected = [*scripts("damping"), scripts("losses")[1]]
    assert kept == [script.strip() for script in expected]
    assert len(page.select("[data-explorable] script[type='application/json']")) == 3


def test_negative_numbers_in_tables_have_a_minus_sign():
    row = '<th>-1</th><td class="a-1">-0.5</td><td>-.5e-3</td><td>a-1</td><td>- none</td><thead>-1</thead>'
    row += "<td>-0.2\u00a0[-1.5,\u00a0-1.0]</td><td>1e-4 (-3 to 4)</td><td>2026-11-28</td>"
    mended = '<th>−1</th><td class="a-1">−0.5</td><td>−.5e-3</td><td>a-1</td><td>- none</td><thead>-1</thead>'
    mended += "<td>−0.2\u00a0[−1.5,\u00a0−1.0]</td><td>1e-4 (−3 to 4)</td><td>2026-11-28</td>"
    assert accessible(row) == mended
