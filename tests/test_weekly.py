"""What runs once a week, the notebooks on Colab and the links that lead elsewhere, sees what is broken."""

import threading
import urllib.error
from http.client import BadStatusLine
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import check_links
import nbformat
import pytest
import run_on_colab


class Elsewhere(BaseHTTPRequestHandler):
    """A site whose pages are named after the status that they answer with."""

    def do_GET(self):
        self.send_response(int(self.path.strip("/")))
        self.end_headers()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def elsewhere():
    with ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(("status", "broken"), [(200, 0), (404, 1), (410, 1), (403, 0), (429, 0), (503, 0)])
def test_links(tmp_path, elsewhere, capsys, status, broken):
    (tmp_path / "book").mkdir()
    html = f'<a href="{elsewhere}/{status}#part">there</a><a href="page.html">here</a><a href="#x">above</a>'
    (tmp_path / "book/page.html").write_text(html, encoding="utf-8")
    assert check_links.main(tmp_path) == broken
    assert f"1 links, {broken} broken" in capsys.readouterr().out


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/", "http://127.0.0.1:9/a b"])
def test_what_is_not_there_or_no_address_is_broken(url):
    assert check_links.fault(url)


@pytest.mark.parametrize("error", [urllib.error.URLError(TimeoutError()), TimeoutError(), BadStatusLine("")])
def test_a_host_that_is_slow_or_confused_is_there_for_all_we_know(monkeypatch, error):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr("urllib.request.urlopen", fail)
    assert check_links.fault("http://127.0.0.1:9/") == ""


def test_notebooks(tmp_path, monkeypatch, capsys):
    """One that fails does not keep the others from being executed."""
    monkeypatch.setattr(run_on_colab, "ON_COLAB", "")
    for name, code in (("a", "1 / 0"), ("b", "print(1)")):
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)]), tmp_path / f"{name}.ipynb")
    assert run_on_colab.main(tmp_path) == 1
    printed = capsys.readouterr().out
    assert "ZeroDivisionError" in printed
    assert "b.ipynb: executed" in printed
    assert "not executed: a.ipynb" in printed
    (tmp_path / "a.ipynb").unlink()
    assert run_on_colab.main(tmp_path) == 0
