"""Print the rendered book as one PDF: python tools/print_book.py _build/html _build/pnp_tutorial.pdf

The pages are put one after another, in the order of the book, and Chromium prints that. The
numbers of figures and equations are those of the pages. What a page folds is left out: the code of its figures and
checks, and the solutions. A sound becomes a link to its page, and what a reader can move is there as its text.
"""

import os
import shutil
import sys
import tempfile
from datetime import date
from pathlib import Path
from urllib.parse import urlparse

import yaml
from bs4 import BeautifulSoup, Tag
from export_notebooks import pages
from playwright.sync_api import Browser, sync_playwright
from repository import ROOT, repository_url

# Of the theme, what articles need. Its layout is for screens.
STYLES = ["styles/theme.css", "styles/pydata-sphinx-theme.css", "pygments.css", "styles/sphinx-book-theme.css"]
STYLES += ["sphinx-design.min.css", "book.css", "print.css"]
NO_USE_ON_PAPER = "script, button, details.hide, .headerlink, .copybtn, .tag_remove-input:empty, noscript"
# Elements that scripts would fill; each has a text or sounds inside.
MOVED = "[data-ab-player], [data-matcher], [data-drum], [data-explorable], [data-sound-grid]"
WITHOUT_TEXT = "[data-matcher], [data-drum]"
FOOTER = '<div style="width: 100%; font-size: 8px; text-align: center"><span class="pageNumber"></span></div>'

PAGE = """<!DOCTYPE html>
<html lang="en" data-theme="light" data-mode="light">
<head>
<meta charset="utf-8">
<title>{title}</title>
{styles}
<script>window.MathJax = {{options: {{processHtmlClass: "tex2jax_process|mathjax_process|math|output_area"}}}}</script>
<script defer src="_static/mathjax/tex-svg-full.js"></script>
</head>
<body class="print">
<header class="title-page">
<img src="_static/title_light.svg" alt="">
<h1>{title}</h1>
<p>{author}</p>
<p>{date}</p>
</header>
<nav><h2>Contents</h2>
<ol>
{contents}
</ol></nav>
<main class="bd-article">
{articles}
</main>
</body>
</html>
"""


def site_url() -> str | None:
    """Where the book is published, if the repository is known."""
    if url := repository_url():
        owner, name = urlparse(url).path.strip("/").split("/")
        return f"https://{owner}.github.io/{name}"
    return None


def sounds_to_links(article: Tag, soup: BeautifulSoup, page: str) -> None:
    """Each player becomes its label and, where the book is published, a link to the page that plays it."""
    for player in article.find_all("audio"):
        site = site_url()
        link = soup.new_tag("a", href=f"{site}/book/{page}.html") if site else soup.new_tag("span")
        link["class"] = "sound"
        link.string = "♪ sound, on the page"
        player.replace_with(link)


def own_names(article: Tag, page: str) -> None:
    """Identifiers and links of a page, such that they are unique in the whole book."""
    for element in article.find_all(id=True):
        element["id"] = f"{page}--{element['id']}"
    for element in article.find_all("a", href=True):
        url = urlparse(element["href"])
        if url.scheme or url.netloc:
            continue
        if url.path and not url.path.endswith(".html"):  # of a picture, to itself
            element["href"] = os.path.normpath(f"book/{element['href']}")
            continue
        target = Path(url.path).stem or page
        element["href"] = f"#{target}--{url.fragment}" if url.fragment else f"#{target}"
    for element in article.find_all(attrs={"for": True}):
        element["for"] = f"{page}--{element['for']}"
    for image in article.find_all("img", src=True):
        if not urlparse(image["src"]).scheme:
            image["src"] = os.path.normpath(f"book/{image['src']}")


def for_paper(path: Path) -> Tag:
    """The article of a page, without what paper cannot do."""
    soup = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
    article = soup.find("article")
    if not isinstance(article, Tag):
        raise ValueError(f"{path} has no article: build the book first (make book)")
    for element in article.select(NO_USE_ON_PAPER):
        element.decompose()
    for element in article.select("details"):
        element["open"] = ""  # an answer of a question
    for cell in article.select("div.cell"):
        if not cell.find(["pre", "img", "audio", "table", "svg", "p"]):
            cell.decompose()
    sounds_to_links(article, soup, path.stem)
    for element in article.select(MOVED):
        element["class"] = [*element.get("class", []), "moved"]
    for element in article.select(WITHOUT_TEXT):
        element.string = "To be tried on the page."
    own_names(article, path.stem)
    article.name, article["id"] = "section", path.stem
    return article


def assemble(site: Path) -> str:
    """The whole book as one page, which finds what it needs beside it if it lies in the site's folder."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    names = [Path(page).name for page in pages()]
    articles = [for_paper(site / "book" / f"{name}.html") for name in names]
    contents = []
    for name, article in zip(names, articles, strict=True):
        heading = article.find("h1")
        contents.append(f'<li><a href="#{name}">{heading.get_text() if heading else name}</a></li>')
    return PAGE.format(
        title=config["title"],
        author=config["author"],
        date=date.today().isoformat(),
        styles="\n".join(f'<link rel="stylesheet" href="_static/{style}">' for style in STYLES),
        contents="\n".join(contents),
        articles="\n".join(map(str, articles)),
    )


def print_page(browser: Browser, path: Path, pdf: Path) -> None:
    page = browser.new_page()
    page.goto(path.resolve().as_uri())
    page.evaluate("MathJax.startup.promise")
    page.pdf(
        path=pdf,
        format="A4",
        margin={"top": "18mm", "bottom": "18mm", "left": "18mm", "right": "18mm"},
        display_header_footer=True,
        header_template="<span></span>",
        footer_template=FOOTER,
        print_background=True,
        outline=True,
        tagged=True,
    )
    page.close()


def print_book(browser: Browser, site: Path, pdf: Path) -> None:
    html = assemble(site)
    with tempfile.NamedTemporaryFile("w", suffix=".html", dir=site, encoding="utf-8") as page:
        page.write(html)
        page.flush()
        print_page(browser, Path(page.name), pdf)


def main(site: Path, pdf: Path) -> None:
    names = ("chromium", "chromium-browser", "google-chrome")
    chrome = os.environ.get("CHROME") or next(filter(None, map(shutil.which, names)), None)  # else Playwright's own
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chrome, args=["--no-sandbox"])
        print_book(browser, site, pdf)
        browser.close()
    print(f"{pdf}: {pdf.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
