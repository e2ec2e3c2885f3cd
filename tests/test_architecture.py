"""docs/architecture.md names what exists."""

import importlib
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/architecture.md").read_text()


def test_every_module_and_name_of_the_page_can_be_imported():
    names = re.findall(r"`((?:ebm_core|workers|orchestrator)(?:\.\w+)+)`", PAGE)
    assert len(names) >= 30
    for name in names:
        assert exists(name), name


def test_every_file_of_the_page_stands_where_it_says_and_holds_the_function_beside_it():
    rows = re.findall(r"^\| `([\w/]+\.py)` \| `([\w.]+)`", PAGE, re.MULTILINE)
    assert len(rows) >= 10
    for file, name in rows:
        assert (ROOT / file).is_file(), file
        module = file.removesuffix(".py").replace("/", ".")
        assert name.startswith(f"{module}."), (file, name)
        assert exists(name), (file, name)


def exists(name: str) -> bool:
    """Whether `package.module` or `package.module.name` or `package.module.Class.name` is there."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False
