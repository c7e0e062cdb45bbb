"""Try every link of the rendered book that leads elsewhere: python tools/check_links.py _build/html

A link is broken if its host or its page is not there, twice. A page that refuses robots, or that is too slow today, is
there for all we know.
"""

import http.client
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urldefrag, urlparse

from bs4 import BeautifulSoup

TIMEOUT_S = 30
GONE = (404, 410)
HEADERS = {"User-Agent": "Mozilla/5.0 (link check of a book, once a week)", "Accept": "*/*"}


def links(site: Path) -> dict[str, str]:
    """The addresses that the pages lead to, each with the first page that does."""
    found: dict[str, str] = {}
    for path in sorted((site / "book").glob("*.html")):
        page = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        for element in page.find_all("a", href=True):
            if urlparse(element["href"]).scheme in ("http", "https"):
                found.setdefault(urldefrag(element["href"]).url, path.name)
    return found


def fault(url: str) -> str:
    """Why a link is broken, or nothing."""
    said = ""
    for _ in range(2):
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers=HEADERS), timeout=TIMEOUT_S):
                return ""
        except urllib.error.HTTPError as error:
            if error.code not in GONE:
                return ""
            said = str(error)
        except http.client.InvalidURL as error:
            return str(error)
        except http.client.HTTPException:
            return ""  # an answer that is none
        except OSError as error:  # no such host, nobody listens, a certificate that has expired
            if isinstance(getattr(error, "reason", error), TimeoutError):
                return ""
            said = str(error)
    return said


def main(site: Path) -> int:
    found = links(site)
    with ThreadPoolExecutor(8) as pool:
        faults = {url: said for url, said in zip(found, pool.map(fault, found), strict=True) if said}
    for url, said in faults.items():
        print(f"{found[url]}: {url}: {said}")
    print(f"check_links: {len(found)} links, {len(faults)} broken")
    return 1 if faults or not found else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
