"""Every page of the built book as a screen reader and a keyboard meet it: no rule of axe-core is violated.

Not collected by plain `pytest`: `make test` runs it on what `make book` has built.
"""

from importlib.resources import files
from pathlib import Path

import pytest

SITE = Path(__file__).parents[2] / "_build/html/book"
PAGES = sorted(page.stem for page in SITE.glob("*.html"))
AXE = (files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
RUN = """async rules => {
  const { violations } = await axe.run(document, { resultTypes: ["violations"], rules });
  return violations.flatMap(({ id, nodes }) => nodes.map(({ html }) => `${id}: ${html.slice(0, 200)}`));
}"""
# Not among axe-core's defaults: the name of a control has the text that is seen.
NAMES = {"label-content-name-mismatch": {"enabled": True}}
NO_CONTRAST = {"color-contrast": {"enabled": False}}

# Colours of a thousand letters that look alike take minutes to compare. Of elements that have the same name and classes
# as others, inside elements that have the same as theirs, one stays.
SKELETON = """() => {
  const kind = (e) => e ? `${kind(e.parentElement)} ${e.localName}.${e.getAttribute("class") ?? ""}` : "";
  const seen = new Set();
  for (const e of [...document.querySelectorAll("article *")].reverse()) {
    const name = kind(e);
    if (e.matches("h1, h2, h3, h4") || e.parentElement.closest("a, button, svg")) continue;
    if ((!e.children.length || e.matches("a, button, svg")) && seen.has(name)) e.remove();
    else seen.add(name);
  }
}"""
# The theme's script does so a while after a change, to all that it lets scroll.
CAN_BE_SCROLLED_BY_KEYBOARD = """() => [...document.querySelectorAll("pre, .cell_output > .output")].every(
  (e) => e.tabIndex === 0 || (e.scrollWidth <= e.clientWidth && e.scrollHeight <= e.clientHeight)
)"""
UNFOLD = "document.querySelectorAll('details').forEach((details) => { details.open = true; })"
STILL = "* { transition: none !important; animation: none !important; }"


@pytest.fixture
def page(browser):
    """A page whose formulas stay TeX, for speed: MathJax speaks for itself."""
    context = browser.new_context(offline=True, viewport={"width": 1280, "height": 800}, color_scheme="light")
    context.set_default_timeout(120_000)  # on a busy machine
    context.route("**/mathjax/**", lambda route: route.abort())
    yield context.new_page()
    context.close()


def test_the_book_has_pages():
    assert len(PAGES) > 12, "make book"


@pytest.mark.parametrize("name", PAGES)
def test_no_violation(page, name):
    page.goto((SITE / f"{name}.html").as_uri())
    page.add_style_tag(content=STILL)
    page.evaluate(AXE)
    found = {"whole": page.evaluate(RUN, NAMES | NO_CONTRAST)}
    page.evaluate(UNFOLD)
    page.evaluate(SKELETON)
    for width in (320, 800, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        page.wait_for_function(CAN_BE_SCROLLED_BY_KEYBOARD)
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.wait_for_selector(f"html[data-theme={scheme}]")
            found[width, scheme] = page.evaluate(RUN, NAMES)
    assert not {where: faults for where, faults in found.items() if faults}


def test_a_violation_is_seen(page):
    """Guards the guard."""
    page.set_content(
        "<html lang=en><title>x</title><main><h1>x</h1><img src='data:,'><p style='color: #eee'>pale</main>"
    )
    page.evaluate(AXE)
    found = page.evaluate(RUN, NAMES)
    assert sorted(fault.split(":")[0] for fault in found) == ["color-contrast", "image-alt"]
