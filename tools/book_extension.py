"""Sphinx extension: what the book's configuration must compute rather than state."""

import hashlib
import shutil

from repository import ROOT, repository_url


def execution_key() -> str:
    """Hash of everything that a chapter's outputs depend on, besides its own cells."""
    digest = hashlib.sha256((ROOT / "requirements.lock").read_bytes())
    for path in sorted((ROOT / "pnp_tutorial").rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def configure(app, config):
    # MyST-NB's cache knows the cells, not what they import. One folder per state of the
    # library re-executes all chapters when it changes; so does Sphinx, whose stored pages
    # are void once this setting differs.
    caches = ROOT / "_build" / "execution_cache"
    config.nb_execution_cache_path = str(caches / execution_key())
    if caches.exists():
        for old in caches.iterdir():
            if str(old) != config.nb_execution_cache_path:
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
