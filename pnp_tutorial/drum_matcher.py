"""The drum of a reader's own sound, found in the browser: in notebooks and in the book's static page.

It is the scan of `search` in JavaScript (drum_matching.js), shown by drum_matcher.js. Nothing leaves the computer,
and no Python is needed.
"""

import html
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from .drum import DRUM


def _source(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


SOURCES = {
    "core": _source("drum.js") + _source("drum_matching.js"),
    "player": _source("ab_player.js"),
    "recorder": _source("recorder.js"),
    "matcher": _source("drum_matcher.js"),
}

# A page that is opened as a file may not load modules from other files: they are in it as text.
MODULE = f"""const sources = {json.dumps(SOURCES, ensure_ascii=False)};
const url = (source) => URL.createObjectURL(new Blob([source], {{ type: "text/javascript" }}));
const load = async () => {{
  const names = ["core", "player", "recorder", "matcher"];
  const modules = await Promise.all(names.map((name) => import(url(sources[name]))));
  return [...modules, url(sources.core.replace(/^export /gm, ""))]; // no module: in a file, Chromium would not run it
}};
let loaded; // once, however often it is shown
async function mount(element, options) {{
  const [core, player, recorder, matcher, workerUrl] = await (loaded ??= load());
  return matcher.mount(element, {{ ...options, core, workerUrl, player, recorder }});
}}
export default {{
  async render({{ model, el }}) {{
    const onResult = (result) => {{
      model.set("result", result);
      model.save_changes();
    }};
    const matcher = await mount(el, {{ ...model.get("options"), onResult }});
    return () => matcher.destroy();
  }},
}};
"""

STATIC_PAGE = """<div data-matcher="{options}">To match a sound here needs JavaScript.</div>
<script type="module">
{module}
for (const element of document.querySelectorAll("[data-matcher]:not([data-matcher=''])")) {{
  mount(element, JSON.parse(element.dataset.matcher));
  element.dataset.matcher = "";
}}
</script>"""


class DrumMatcher(anywidget.AnyWidget):
    """Choose a sound file or record a stroke, and hear the drum that sounds like it, found in the browser.

    Attributes
    ----------
    result : dict
        Of the last match: theta and uncertainty by name, undetermined, distance (of coarse spectra), level_db, noise_db
        and n_heard; empty before the first. In a static page, the element with the attribute `data-matcher` has the
        same as JSON in its attribute `data-result`.
    """

    _esm = MODULE
    result = traitlets.Dict().tag(sync=True)
    # What the browser knows of the drum, from here only.
    options = traitlets.Dict(
        {
            "parameters": [asdict(p) for p in DRUM.parameters],
            "sampleRate": DRUM.sample_rate,
            "nSamples": DRUM.n_samples,
        },
        read_only=True,
    ).tag(sync=True)

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict, dict]:
        """The live widget for Jupyter and Colab, and for static pages the same element without Python behind it."""
        bundle = super()._repr_mimebundle_(**kwargs)
        assert bundle is not None, "the widget has a view"
        options = html.escape(json.dumps(self.options, ensure_ascii=False))
        bundle[0]["text/html"] = STATIC_PAGE.format(options=options, module=MODULE)
        return bundle
