"""Sphinx extension: what the book's configuration must compute rather than state."""

import shutil

from execute import CACHES, library_key
from repository import repository_url


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


def setup(app):
    app.connect("config-inited", configure)
    app.connect("env-updated", drop_widget_state)
    app.connect("html-page-context", link_exported_notebook, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
