"""Explorables: pictures that a reader moves, in notebooks and in the book's static page, without Python behind them.

A scene is one script, explorable_NAME.js, on the kit that all scenes share (drum.js, speaker.js, explorables.js). It
gets what the chapter has computed: numbers and words as JSON, and arrays as float32.
"""

import base64
import html
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets
from torch import Tensor

FOLDER = Path(__file__).parent
MAX_BYTES = 300_000  # of the data of one explorable, as JSON
BARE = re.compile(r"^ *(//.*\n|/\*\*.*\*/\n)?", re.MULTILINE)  # what a line of JavaScript can do without


class Explorable(anywidget.AnyWidget):
    """A scene with its data: what `explorable` returns. Each has a form for Jupyter and one for static pages."""

    name = traitlets.Unicode(read_only=True).tag(sync=True)
    data = traitlets.Unicode(read_only=True).tag(sync=True)  # JSON
    text = traitlets.Unicode(read_only=True).tag(sync=True)

    def __init__(self, name: str, data: str, text: str) -> None:
        self._esm = "".join(scripts(name))
        super().__init__()
        self.set_trait("name", name)
        self.set_trait("data", data)
        self.set_trait("text", text)

    def __repr__(self) -> str:
        """Name and data, a line each: of an array its shape, mean, least and largest value, to 10⁻⁴ of the largest."""
        return "\n".join([f"explorable {self.name}", *summary(decode(json.loads(self.data)), "")])

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict, dict]:
        """The live widget for Jupyter and Colab, and for static pages the same scene without Python behind it."""
        bundle = super()._repr_mimebundle_(**kwargs)
        assert bundle is not None, "the widget has a view"
        kit, scene = scripts(self.name)
        bundle[0]["text/html"] = STATIC_PAGE.format(
            name=html.escape(self.name), text=html.escape(self.text), data=self.data, kit=kit, scene=scene
        )
        return bundle


# A page that is opened as a file may not load modules from other files: they are in it. tools/book_extension.py leaves
# one of two scripts that are the same.
STATIC_PAGE = """<div data-explorable="{name}"><p>{text}</p>
<script type="application/json">{data}</script></div>
<script type="module">
{kit}</script>
<script type="module">
{scene}</script>"""


def scenes() -> list[str]:
    """Names of all scenes."""
    return sorted(path.stem.removeprefix("explorable_") for path in FOLDER.glob("explorable_*.js"))


def scripts(name: str) -> tuple[str, str]:
    """The kit that all scenes share, and the scene of this name, without comments and indentation: pages carry them."""
    files = ("drum.js", "speaker.js", "explorables.js", f"explorable_{name}.js")
    drum, speaker, kit, scene = (BARE.sub("", (FOLDER / file).read_text(encoding="utf-8")) for file in files)
    return drum + speaker + kit, scene


def explorable(name: str, data: Mapping[str, Any], text: str) -> Explorable:
    """A scene for the reader to move.

    Parameters
    ----------
    name : str
        Of the scene, one of `scenes()`.
    data : mapping of names to Tensors, arrays, numbers, strings, and lists or mappings of these
        What the scene shows. Tensors and arrays become float32, but those without a dimension numbers.
    text : str
        What moving it shows, in plain sentences: for readers without a script or a screen, and in print.

    Returns
    -------
    explorable : Explorable, which notebooks and the book's page show

    Raises
    ------
    ValueError
        If there is no such scene, the text is empty, a number outside of arrays is not finite, or the data exceed
        300 kB of JSON, in which an array takes 5.3 bytes a number.
    TypeError
        If a value is of another type.
    """
    if name not in scenes():
        raise ValueError(f"expected a scene of {', '.join(scenes())}, got {name!r}")
    if not text.strip():
        raise ValueError(f"expected a text that says what moving {name!r} shows, got none")
    coded = json.dumps(encode(data, "data"), ensure_ascii=False, separators=(",", ":"))
    coded = coded.replace("<", "\\u003c")  # it stands in HTML, where it may not end the script
    if (n_bytes := len(coded.encode())) > MAX_BYTES:
        raise ValueError(f"expected at most {MAX_BYTES:,} bytes of data for {name!r}, got {n_bytes:,}")
    return Explorable(name, coded, text)


def encode(value: Any, where: str) -> Any:
    """A value as JSON holds it; `where` names it in errors."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.generic | np.ndarray) and value.ndim == 0:
        value = value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        array = np.ascontiguousarray(value, dtype="<f4")
        return {"shape": list(array.shape), "float32": base64.b64encode(array.tobytes()).decode()}
    if isinstance(value, Mapping):
        return {key: encode(each, f"{where}[{key!r}]") for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [encode(each, f"{where}[{i}]") for i, each in enumerate(value)]
    if not isinstance(value, str | int | float):
        kinds = "a Tensor, an array, a number, a string, a list or a mapping"
        raise TypeError(f"expected {where} to be {kinds}, got {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"expected {where} to be finite, got {value}")
    return value


def decode(value: Any) -> Any:
    """What `encode` was given, with arrays as float32."""
    if isinstance(value, list):
        return [decode(each) for each in value]
    if not isinstance(value, dict):
        return value
    if "float32" in value:
        return np.frombuffer(base64.b64decode(value["float32"]), "<f4").reshape(value["shape"])
    return {key: decode(each) for key, each in value.items()}


def summary(value: Any, where: str) -> Iterator[str]:
    """A line for each number, string and array of a decoded value."""
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, each in pairs:
            yield from summary(each, f"{where} {key}")
    elif isinstance(value, np.ndarray):
        numbers = np.array([value.mean(), value.min(), value.max()], dtype=float) if value.size else np.zeros(3)
        step = 1e-4 * np.abs(numbers).max() or 1.0
        told = " ".join(f"{number:#.4g}" for number in np.round(numbers / step) * step + 0.0)
        yield f"{where.strip()}: {value.shape} {told}"
    else:
        yield f"{where.strip()}: {value:#.6g}" if isinstance(value, float) else f"{where.strip()}: {value}"
