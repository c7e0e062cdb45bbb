"""A real browser that cannot reach any network, and whatever it complains of fails the test."""

import os
import shutil

import pytest
from playwright.sync_api import sync_playwright

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
FLAGS += ["--use-fake-device-for-media-stream"]  # a microphone that beeps once a second
# Every sound that a page starts is noted in window.sounds.
LISTEN = """
window.sounds = [];
const start = AudioBufferSourceNode.prototype.start;
AudioBufferSourceNode.prototype.start = function (...args) {
  sounds.push({ source: this, buffer: this.buffer, context: this.context });
  return start.apply(this, args);
};
"""


@pytest.fixture(scope="session")
def browser():
    names = ("chromium", "chromium-browser", "google-chrome")
    path = os.environ.get("CHROME") or next(filter(None, map(shutil.which, names)), None)  # else Playwright's own
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Function of a URL and of options of the browser's context that opens the page.

    Formulas stay TeX where a test does not ask for them: to set those of a chapter takes seconds.
    """
    faults = []
    contexts = []

    def note_request(request):
        if not request.url.startswith(("file:", "data:", "blob:", "about:")):
            faults.append(f"request to {request.url}")

    def note_message(message):
        if message.type in ("error", "warning"):
            faults.append(f"{message.type}: {message.text}")

    def open_page(url, formulas=False, **options):
        context = browser.new_context(offline=True, **options)
        contexts.append(context)
        if not formulas:
            context.route("**/mathjax/**", lambda route: route.fulfill(body="", content_type="text/javascript"))
        context.add_init_script(LISTEN)
        page = context.new_page()
        page.on("request", note_request)
        if options.get("java_script_enabled", True):  # without, scripts that a page preloads are refused: no fault
            page.on("requestfailed", lambda request: faults.append(f"failed: {request.url}"))
        page.on("console", note_message)
        page.on("pageerror", lambda error: faults.append(f"error: {error}"))
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not faults
