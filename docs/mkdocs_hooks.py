"""What `mkdocs build` does beside rendering docs/: pages from files that lie elsewhere, and from the notebook.

On GitHub a link leads from docs/ to ../README.md; on the site the same link leads to the page that is made here.
"""

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "readme.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Files of the repository's root and the pages that they become."""
RUN_PAGES = {f"results/{name}.html": f"results/{name}-page.html" for name in ("table2", "figure9")}
"""Pages of sweeps, HTML of our own, that lie beside a document of the same name: on the site they need another."""
ELSEWHERE = {
    "docs/library.ipynb": "library.md",
    "docs/results": "results/digits.md",
    **PAGES,
    **{f"docs/{name}": page for name, page in RUN_PAGES.items()},
}
"""Where a link to a file of the repository leads on the site."""
NOTEBOOK = "docs/library.ipynb"
_LINK = re.compile(r"""(\]\(|src=")([^)#\s"]+)((?:#[^)\s]*)?[)"])""")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is made from files of other places or kinds."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=relocated((ROOT / source).read_text(), source)))
    for name, content in notebook_files(json.loads((ROOT / NOTEBOOK).read_text())):
        files.append(File.generated(config, name, content=content))
    for source, page in RUN_PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / "docs" / source).read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links out of docs/ lead to the made pages."""
    if page.file.generated_by is not None:
        return markdown
    return relocated(markdown, f"docs/{page.file.src_uri}")


def relocated(markdown: str, source: str) -> str:
    """The text of `source`, a path of the repository, with its links as they lie on the site; others stay."""
    here = PurePosixPath(source).parent

    def moved(match: re.Match[str]) -> str:
        if "://" in match[2]:
            return match[0]
        target = _plain(here / match[2])
        page = ELSEWHERE.get(target, target.removeprefix("docs/") if target.startswith("docs/") else None)
        if page is None:
            return match[0]
        depth = len(PurePosixPath(source.removeprefix("docs/")).parts) - 1
        return f"{match[1]}{'../' * depth}{page}{match[3]}"

    return _LINK.sub(moved, markdown)


def _plain(path: PurePosixPath) -> str:
    parts: list[str] = []
    for part in path.parts:
        if part == ".." and parts:
            parts.pop()
        elif part != ".":
            parts.append(part)
    return "/".join(parts)


def notebook_files(notebook: dict[str, Any]) -> Iterator[tuple[str, str | bytes]]:
    """The notebook as a page, with what its cells printed and drew when it was last run, and its pictures."""
    parts: list[str] = []
    for number, cell in enumerate(notebook["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            shown = output.get("data", {})
            if "image/png" in shown:
                name = f"images/library-{number}.png"
                yield name, base64.b64decode(shown["image/png"])
                parts.append(f"![Drawn by the cell above]({name})")
            elif text := "".join(output.get("text", shown.get("text/plain", ""))).rstrip():
                parts.append(f"```text\n{text}\n```")
    yield "library.md", "\n\n".join(parts) + "\n"
