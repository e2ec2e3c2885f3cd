"""The pages of docs/ make a site without warnings, which asks for nothing from elsewhere."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr, done.stderr
    return folder


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("mkdocs_hooks", ROOT / "docs" / "mkdocs_hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_document_has_a_page_and_every_page_is_in_the_navigation(site: Path):
    documents = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    made = {Path(name) for name in ("readme.html", "contributing.html", "changelog.html", "library.html")}
    pages = {path.relative_to(site) for path in site.rglob("*.html")}
    assert documents | made <= pages
    listed = set(re.findall(r'href="([\w/]+\.html)" class="md-nav__link"', (site / "tutorial.html").read_text()))
    assert {str(page) for page in documents | made} - {"tutorial.html"} <= listed


def test_links_and_pictures_of_the_pages_lead_to_files_of_the_site(site: Path):
    for page in site.rglob("*.html"):
        if page.name == "404.html" or page.name.endswith("-page.html"):
            continue
        for target in re.findall(r'(?:href|src)="([^"#?]+)', page.read_text()):
            if not target.startswith(("http", "data:", "mailto:")):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_a_page_loads_nothing_from_elsewhere(site: Path):
    for page in site.rglob("*.html"):
        loaded = re.findall(r'<(?:script|link|img|iframe)\b[^>]*(?:src|href)="?(https?://[^"\s>]+)', page.read_text())
        assert not loaded, f"{page.name}: {loaded}"


def test_links_out_of_docs_lead_to_the_pages_made_of_those_files(hooks):
    assert hooks.relocated("[a](../README.md#x) [b](report.md)", "docs/index.md") == "[a](readme.md#x) [b](report.md)"
    assert hooks.relocated("[c](../../CONTRIBUTING.md)", "docs/results/fid.md") == "[c](../contributing.md)"
    assert hooks.relocated('<img src="docs/images/a.png">', "README.md") == '<img src="images/a.png">'
    assert hooks.relocated("[d](https://x.org/README.md)", "README.md") == "[d](https://x.org/README.md)"


def test_a_notebook_becomes_a_page_with_what_its_cells_printed_and_drew(hooks):
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "text"]},
        {"cell_type": "code", "source": ["print(1)"], "outputs": [{"output_type": "stream", "text": ["1\n"]}]},
        {"cell_type": "code", "source": ["f()"], "outputs": [{"data": {"image/png": "YQ==", "text/plain": ["<F>"]}}]},
    ]
    made = dict(hooks.notebook_files({"cells": cells}))
    assert made["images/library-2.png"] == b"a"
    assert made["library.md"] == (
        "# Title\ntext\n\n```python\nprint(1)\n```\n\n```text\n1\n```\n\n"
        "```python\nf()\n```\n\n![Drawn by the cell above](images/library-2.png)\n"
    )
