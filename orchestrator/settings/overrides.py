"""`override()` is the one way in which a text such as `sampler.step_size=50` becomes a setting.

The command line, resuming and tests all use it. A wrong path, type or range is a ConfigError of one line.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from ebm_core.config import from_tree, to_tree
from ebm_core.errors import ConfigError
from orchestrator.settings.job import EvaluationConfig, JobConfig, _judged, parse
from workers.studies import STUDIES


def override(job: JobConfig, settings: Iterable[str]) -> JobConfig:
    """`job` with `PATH=VALUE` settings applied in order; the last of equal paths wins.

    A list is written `32,64` or as JSON `[32, 64]`, an absent value `null`.
    """
    tree = to_tree(job)
    settings = list(settings)
    _apply(tree, dict(leaves(JobConfig)), settings)
    if tree["data"]["name"] != job.data.name and not any(s.startswith("evaluation.metrics=") for s in settings):
        tree["evaluation"]["metrics"] = list(_judged(job.evaluation.metrics, tree["data"]["name"]))
    return parse(tree)


def override_studies(request: EvaluationConfig, settings: Iterable[str]) -> EvaluationConfig:
    """`request` with settings `STUDY.NAME=VALUE` of the studies among its metrics applied, as in `override`.

    They are those of a job without `evaluation.`, such as chains.num_steps=3000.
    """
    tree, settings = to_tree(request), list(settings)
    _apply(tree, {path: hint for path, hint in leaves(EvaluationConfig) if path.partition(".")[0] in STUDIES}, settings)
    for setting in settings:
        study = setting.partition(".")[0]
        if study not in request.studies:
            raise ConfigError(f"setting {setting!r}: {study} is not among the metrics that are asked for; add it")
    return from_tree(EvaluationConfig, tree, "evaluation")


def _apply(tree: dict[str, Any], hints: Mapping[str, Any], settings: Iterable[str]) -> None:
    """Change a tree of settings by `PATH=VALUE` texts; hints: the type of each path."""
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"setting {setting!r}: write it as PATH=VALUE, such as train.num_steps=1000")
        if path not in hints:
            raise ConfigError(_unknown_path(path, hints))
        *sections, leaf = path.split(".")
        branch = tree
        for section in sections:
            branch = branch[section]
        branch[leaf] = _typed(hints[path], text, path)


def leaves(cls: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, type) of every setting below a config class."""
    for name, hint in get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from leaves(typing.cast(type, hint), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", hint


def _unknown_path(path: str, known: Iterable[str]) -> str:
    names = list(known)
    inside = [name for name in names if name.startswith(f"{path}.")]
    if inside:
        return f"setting {path!r} is a section: set one of {', '.join(inside)}"

    def likeness(name: str) -> float:
        whole = difflib.SequenceMatcher(None, path, name).ratio()
        last = difflib.SequenceMatcher(None, path.rpartition(".")[2], name.rpartition(".")[2]).ratio()
        return whole + last

    return f"unknown setting {path!r}: did you mean {max(names, key=likeness)}?"


def _typed(hint: Any, text: str, path: str) -> Any:
    """The value that `text` stands for, as JSON would hold it."""
    inner = hint
    if get_origin(hint) in (types.UnionType, typing.Union):
        if text == "null":
            return None
        inner = next(a for a in get_args(hint) if a is not type(None))
    try:
        return _value(inner, text)
    except (ValidationError, ValueError):
        raise ConfigError(f"{path} = {_shortened(text)!r}: must be {_allowed(hint)}") from None


def _value(hint: Any, text: str) -> Any:
    if hint is bool:
        if text not in ("true", "false"):
            raise ValueError(text)
        return text == "true"
    if get_origin(hint) is tuple:
        if text.startswith("["):
            return list(TypeAdapter(hint).validate_json(text, strict=True))
        item = get_args(hint)[0]
        values = [_value(item, part.strip()) for part in text.split(",")] if text else []
        return list(TypeAdapter(hint).validate_python(tuple(values), strict=True))
    return TypeAdapter(hint).validate_strings(text)


def _allowed(hint: Any) -> str:
    """What a setting of this type may be, in words."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return f"{_allowed(next(a for a in args if a is not type(None)))}, or null"
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin is tuple:
        item = {int: "whole numbers", float: "numbers"}.get(args[0], "names")
        count = "" if args[-1] is Ellipsis else f"{len(args)} "
        return f"{count}{item} separated by commas"
    return {int: "a whole number", float: "a number", bool: "true or false"}.get(hint, "text")


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
