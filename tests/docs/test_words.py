"""Every help text, and every meaning of a setting, can be read alone: in a listing, beside no other."""

import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_type_hints

import pytest

from docs import command_reference, config_reference
from ebm_core.presets import PRESETS
from orchestrator.settings.job import JobConfig

ROOT = Path(__file__).parents[2]
LEANS = re.compile(
    r"(Of|As above|See above|As|Ditto|The same|These|Those|This|That|Their|Its|It|They|Them|Such|Also|And|Or|But|Once|"
    r"Otherwise|With|Same|Section|Appendix|Fig|Eq)\b"
)
"""First words that lean on another text."""
ABSENT = re.compile(r"\b(these|so many|so long|as above|see above|the former|the latter|ditto|and so on)\b")
"""Words that stand for something which a text read alone does not say."""
PRONOUN = re.compile(r"\b(it|its|they|them|their|theirs|each of those)\b")
EMPTY = {
    *(
        "what",
        "which",
        "that",
        "when",
        "where",
        "while",
        "with",
        "from",
        "into",
        "have",
        "been",
        "were",
        "will",
        "would",
    ),
    *("there", "then", "than", "only", "also", "each", "every", "else", "default", "none", "both", "over", "under"),
}
"""Words of four letters and more that a pronoun cannot stand for."""


def complaint(text: str) -> str | None:
    """Why `text` cannot be read alone; None: nothing was found against it."""
    if not text:
        return "says nothing"
    if not re.match(r"[A-Z0-9`]", text):
        return "begins with neither a capital letter nor a name in backticks"
    if found := LEANS.match(text):
        return f"begins with {found[0]!r}"
    if text.startswith("...") or re.search(r"\.\.\.\W*$", text):
        return "goes on elsewhere"
    if not text.endswith((".", "?", ")", "`")):
        return "has no end"
    if found := ABSENT.search(text):
        return f"{found[0]!r} points at nothing in it"
    for sentence in re.split(r"(?<=[.?])\s", text):
        for found in PRONOUN.finditer(sentence):
            before = re.findall(r"[A-Za-z-]{3,}", sentence[: found.start()])
            if not [word for word in before if len(word) > 3 and word.lower() not in EMPTY]:
                return f"{found[0]!r} has no noun before it in {sentence!r}"
    return None


def settings(kind: type = JobConfig, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(path, meaning) of every setting and of every section."""
    hints, said = get_type_hints(kind), config_reference.meanings(kind)
    for field in dataclasses.fields(kind):
        inner, path = hints[field.name], f"{prefix}{field.name}"
        if dataclasses.is_dataclass(inner):
            yield path, " ".join(inspect.cleandoc(inner.__doc__ or "").split())
            yield from settings(inner, f"{path}.")
        else:
            yield path, said.get(field.name, "")


def helps() -> Iterator[tuple[str, str]]:
    """(command and option, text) of every command, argument and option of `ebm`, and what docs/commands.md adds."""
    for name, command in command_reference.commands():
        for part in command_reference.described(command)[0]:
            yield f"ebm {name}", part
        yield f"ebm {name}, when to use it", command_reference.USE[name][0]
        for parameter in command.params:
            if parameter.name != "help":
                yield f"ebm {name} {parameter.opts[0]}", " ".join((getattr(parameter, "help", "") or "").split())


PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
SEVERAL = {
    "metric": r"(?i)\bmetrics?\b",
    "shard without its kind": r"(?i)(?<!batch\s)(?<!image\s)(?<!file\s)\bshards?\b",
    "a package index": r"pypi\.org",
}
"""Words that once had several meanings; docs/words.md, which says so, is the place of the old ones."""


def prose(text: str) -> str:
    """A page without what stands in code."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "words.md"], ids=lambda page: page.name)
def test_a_page_uses_the_words_of_the_list_of_words(page: Path):
    text = prose(page.read_text())
    found = [
        (name, text[hit.start() - 40 : hit.end() + 40])
        for name, word in SEVERAL.items()
        for hit in re.finditer(word, text)
    ]
    assert found == []


def test_the_list_of_words_names_settings_and_options_that_exist():
    named = set(re.findall(r"`((?:[a-z]+\.[a-z_]+)|--[a-z-]+)`", (ROOT / "docs" / "words.md").read_text()))
    options = {option for _, command in command_reference.commands() for one in command.params for option in one.opts}
    paths = {path for path, _ in settings()} | {"prepared.json", "workers.metrics", "state.shards"}
    assert len(named) >= 12
    assert named <= options | paths


def refused(texts: Iterator[tuple[str, str]]) -> list[str]:
    return [f"{where}: {why}: {text!r}" for where, text in texts if (why := complaint(text))]


def test_every_setting_says_alone_what_it_is():
    assert refused(settings()) == []


def test_the_help_of_a_preset_names_every_preset():
    (command,) = [command for name, command in command_reference.commands() if name == "train"]
    (preset,) = [one for one in command.params if one.name == "preset"]
    assert set(re.findall(r"\w+", preset.help)) >= PRESETS.keys()


def test_every_help_text_says_alone_what_it_is():
    assert refused(helps()) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Of a search.",
        "Langevin steps of these chains.",
        "... for so many steps in a row.",
        "Diverged when the mean is below this, ...",
        "Of their noiseless descent (Fig. 8).",
        "min or max.",
        "The same as for sweeps.",
        "Its length.",
        "It multiplies the slope.",
        "A GPU for each of them, beside those of training.",
        "Number of trials",
        "At most so many images of each set.",
    ],
)
def test_a_text_that_leans_on_another_is_refused(text: str):
    assert complaint(text)


@pytest.mark.parametrize(
    "text",
    [
        "Number of trials (searches only).",
        "Length of each long chain, in Langevin steps (metric `chains`).",
        "Stop trials that score badly early: they free their CPUs.",
        "Name of the run: its folder in storage.",
        "`last` or `all`: the steps that L_opt differentiates through.",
    ],
)
def test_a_text_that_stands_alone_passes(text: str):
    assert complaint(text) is None
