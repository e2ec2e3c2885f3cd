"""What README shows works as written."""

import importlib
import re
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_library_example_runs_as_written():
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["state"].step == 24  # one pass over the 1,500 training digits in batches of 64
    assert names["images"].shape == (64, 1, 8, 8)
    assert names["terms"].keys() >= {"loss/flow", "grad_norm", "lr"}  # the warm start's steps
    assert bool(torch.isfinite(names["images"]).all())


def test_every_make_target_and_ebm_command_of_the_readme_exists():
    targets = set(re.findall(r"^make ([a-z0-9-]+)", README, re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text()
    assert targets >= {"demo", "test"}
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    from orchestrator.cli.app import app

    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    known |= {group.name for group in app.registered_groups}
    used = set(re.findall(r"^(?:ray job submit .*-- )?ebm ([a-z]+)", README, re.MULTILINE))
    assert used >= {"train", "runs", "sample", "config", "doctor"}
    assert used <= known


def test_links_and_pictures_of_the_documents_lead_somewhere():
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#]+)\)|src=\"([^\"]+)\"", document.read_text()):
            target = link[0] or link[1]
            assert target.startswith("http") or (document.parent / target).exists(), f"{document.name}: {target}"


def test_every_setting_example_of_the_readme_is_accepted():
    from orchestrator.settings.job import job_preset
    from orchestrator.settings.overrides import override

    commands = re.findall(r"ebm (?:train|config) (\w+)((?: [\w.]+=\S+)*)", README)
    assert len(commands) >= 4
    for preset, settings in commands:
        override(job_preset(preset), settings.split())


def paper_map() -> list[str]:
    """What stands between backticks in the tables of docs/paper_map.md."""
    rows = [line for line in (ROOT / "docs/paper_map.md").read_text().splitlines() if line.startswith("| ")]
    return re.findall(r"`([^`]+)`", "\n".join(rows))


def test_the_paper_map_names_what_exists():
    names = [name for name in paper_map() if re.fullmatch(r"(ebm_core|workers|orchestrator)(\.\w+)+", name)]
    assert len(names) >= 20
    for name in names:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name


def test_the_settings_of_the_paper_map_exist():
    from ebm_core.config import to_tree
    from orchestrator.settings.job import job_preset
    from orchestrator.settings.trees import flatten

    known = set(flatten(to_tree(job_preset("cifar10"))))
    known |= {path.partition(".")[0] for path in known}
    named = [name for name in paper_map() if re.fullmatch(r"[a-z]+(\.[a-z_]+)?", name)]
    assert len(named) >= 12
    assert set(named) <= known


def test_the_commands_of_the_paper_map_are_understood():
    from typer.main import get_command

    from orchestrator.cli.app import app

    commands = [name.split() for name in paper_map() if name.startswith("ebm ")]
    assert len(commands) >= 10
    group = get_command(app)
    for _, command, *words in commands:
        with group.commands[command].make_context(command, list(words)) as context:  # raises what a person would read
            assert context.params


def test_the_messages_of_the_troubleshooting_page_are_in_the_source():
    source = "".join(
        p.read_text() for name in ("ebm_core", "workers", "orchestrator") for p in (ROOT / name).rglob("*.py")
    )
    source = re.sub(r'"\n\s*f?"', "", source)  # strings over several lines
    rows = re.findall(r"^\| (.+?) \|", (ROOT / "docs/troubleshooting.md").read_text(), re.MULTILINE)
    quoted = [words for row in rows for words in re.findall(r'"([^"]+)"', row)]
    assert len(quoted) >= 12
    of_ray = "Failed to connect to GCS"
    assert [words for words in quoted if words not in source] == [of_ray]


def test_the_settings_of_the_troubleshooting_page_exist():
    from ebm_core.config import to_tree
    from orchestrator.settings.job import job_preset
    from orchestrator.settings.trees import flatten

    known = flatten(to_tree(job_preset("cifar10")))
    named = re.findall(r"`([a-z]+\.[a-z_]+)(?:=\w+)?`", (ROOT / "docs/troubleshooting.md").read_text())
    assert len(named) >= 15
    assert set(named) <= set(known)
