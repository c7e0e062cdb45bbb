"""Sphinx extension: what the book's configuration must compute rather than state."""

import re
import shutil
from pathlib import Path

from execute import CACHES, library_key
from repository import repository_url

# What the theme, MyST-NB and pandas write that a screen reader stumbles over, and what is written in its place.
MENDED = [
    # The name of a fold is its title.
    (r'<summary aria-label="Toggle hidden content">', "<summary>"),
    # All of the page is in some landmark.
    (r'(<div id="pst-primary-sidebar")(?= class)', r'\1 role="complementary" aria-label="Sidebar"'),
    # The name of a control is its text.
    (r'(<a class="(?:left-prev|right-next)"\s+href="[^"]*")\s+title="[^"]*"', r"\1"),
    (r'(<button class="btn search-button-field [^>]*) aria-label="Search"', r"\1"),
    (r'(<i class="theme-switch [^>]*) title="[^"]*"', r"\1"),
    # A role of its time: ARIA has dropped it.
    (r'role="doc-biblioentry"', 'role="listitem"'),
    # An empty corner of a table is the header of nothing.
    (r"<th(?P<attributes>[^>]*)>(?P<blank>(?:&nbsp;|\s)*)</th>", r"<td\g<attributes>>\g<blank></td>"),
]


def configure(app, config):
    # MyST-NB's cache knows the cells, not what they import: so each state of the library has a folder of its own,
    # which tools/execute.py fills. Sphinx's stored pages are void once this setting differs.
    cache = CACHES / library_key()
    config.nb_execution_cache_path = str(cache)
    for old in CACHES.glob("*"):
        if old != cache:
            shutil.rmtree(old)

    if url := repository_url():
        options = config.html_theme_options
        options["repository_url"] = url
        options["use_repository_button"] = True
        options["launch_buttons"]["colab_url"] = "https://colab.research.google.com"


def drop_widget_state(app, env):
    """Without Python behind it, the state of a widget that MyST-NB stores in its page is dead weight."""
    for page in env.nb_metadata.values():
        page.get("js_files", {}).pop("ipywidgets_state", None)


def link_exported_notebook(app, pagename, templatename, context, doctree):
    """Colab opens only .ipynb, which the publishing workflow exports to its own branch."""
    for group in context.get("header_buttons", []):
        for button in group.get("buttons", []):
            if "colab.research" in button.get("url", ""):
                button["url"] = button["url"].removesuffix(".md") + ".ipynb"


def accessible(html: str) -> str:
    for wrong, right in MENDED:
        html = re.sub(wrong, right, html)
    return re.sub(r"(?<=>)[^<]+(?=</t[dh]>)", minus_signs, html)


def minus_signs(cell: re.Match) -> str:
    """What a cell of a table says, with the sign of negative numbers, those of intervals too."""
    return re.sub(r"(?<![\w.)])-(?=\.?\d)", "−", cell[0])


def scripts_once(html: str) -> str:
    """Of inline modules that are the same, as of two players, the first: it runs when all of the page is there."""
    seen = set()

    def first(script):
        is_new = script[0] not in seen
        seen.add(script[0])
        return script[0] if is_new else ""

    return re.sub(r'<script type="module">.*?</script>', first, html, flags=re.DOTALL)


def mend_pages(app, exception):
    for page in Path(app.outdir).rglob("*.html"):
        html = page.read_text(encoding="utf-8")
        if (mended := scripts_once(accessible(html))) != html:
            page.write_text(mended, encoding="utf-8")


def setup(app):
    app.connect("config-inited", configure)
    app.connect("env-updated", drop_widget_state)
    app.connect("html-page-context", link_exported_notebook, priority=900)
    app.connect("build-finished", mend_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
