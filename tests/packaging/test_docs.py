"""The documentation: it builds without a warning, loads nothing from elsewhere, and its links lead somewhere."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging_support import ROOT, load_script
from playwright.async_api import async_playwright

SITE = re.compile(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=\"(?:https?:)?//")
LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#\s]+)")


#: The Python reference imports everything that it describes, torch included.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    flags = ["--quiet", "--fail-on-warning", "--keep-going", "--nitpicky", "-b", "html", "-d", str(out / ".trees")]
    command = [sys.executable, "-m", "sphinx", *flags, str(ROOT / "docs"), str(out)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr
    return out


def test_the_site_has_a_page_for_every_document(site: Path) -> None:
    for document in (ROOT / "docs").rglob("*.md"):
        assert (site / document.relative_to(ROOT / "docs")).with_suffix(".html").exists()


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert not SITE.search(page.read_text()), page
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import )['\"]?(https?:)?//", style.read_text()), style


def test_links_of_what_is_read_in_the_repository_lead_somewhere() -> None:
    for document in (*ROOT.glob("*.md"), *(ROOT / "helm").rglob("*.md"), *(ROOT / "docs").rglob("*.md")):
        for link in LINK.findall(document.read_text()):
            assert (document.parent / link).exists(), f"{document.relative_to(ROOT)}: {link}"


def test_the_reference_of_the_api_is_current() -> None:
    script = load_script("api_docs")
    assert script.PAGE.read_text() == script.page(), "run make reference"


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

#: Tables with long cells, with identifiers, and with figures.
WITH_TABLES = ("errors.html", "guarantees.html", "quality.html")

#: Tables that are wider than the screen, and cells without the name of their column.
FAULTS = """[...document.querySelectorAll("article .table-wrapper")].filter((table) =>
  table.scrollWidth > table.clientWidth + 1 || table.querySelector("tbody td:not([data-column])")).length"""


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt-get install chromium")
async def test_every_table_fits_a_phone(site: Path) -> None:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"], timeout=300_000
        )
        page = await browser.new_page(viewport={"width": 390, "height": 844})
        page.set_default_timeout(300_000)
        for name in WITH_TABLES:
            await page.goto((site / name).as_uri())
            assert await page.locator("article .table-wrapper").count() > 0
            assert await page.evaluate(FAULTS) == 0, name
        await browser.close()
