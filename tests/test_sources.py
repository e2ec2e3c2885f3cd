"""What no source file does: unpickle, evaluate text, load code by a name from data, start a shell. Read as syntax."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from ebm_core.errors import ConfigError
from orchestrator.settings.job import JobConfig, job_preset
from orchestrator.settings.overrides import leaves, override
from orchestrator.training.start import check_data

ROOT = Path(__file__).parents[1]
PACKAGES = ("ebm_core", "workers", "orchestrator", "benchmarks")
MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle", "runpy"}
"""Modules that run code from data, or carry objects as such code."""
CALLS = {
    "eval", "exec", "compile", "__import__", "torch.load", "torch.save", "torch.jit.load", "torch.hub.load",
    "numpy.load", "numpy.save", "numpy.savez", "pandas.read_pickle", "ray.cloudpickle.loads", "os.system", "os.popen",
    "importlib.import_module", "importlib.util.spec_from_file_location", "importlib.reload", "pydoc.locate",
    "yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "tempfile.mktemp",
    "ssl._create_unverified_context", "hashlib.md5", "hashlib.sha1",
}  # fmt: skip
KEYWORDS = {("shell", True), ("verify", False), ("allow_pickle", True), ("trust_remote_code", True)}
"""Arguments that no call has."""

ALLOWED: dict[tuple[str, str], str] = {
    ("ebm_core/data/small.py", "import pickle"): "CIFAR's files as published: sum first, then arrays only",
    ("ebm_core/data/files.py", "hashlib.md5"): "published sums of data files are MD5",
    ("ebm_core/data/vision.py", "importlib.import_module"): "torchvision, written out: imported a second time",
    ("ebm_core/data/vision.py", "sys.modules"): "torchvision's half-imported modules are dropped, by their own name",
    ("benchmarks/baseline.py", "importlib.import_module"): "torchvision.transforms.v2, written out",
    ("workers/features/weights.py", "torch.load"): "a published file, after its SHA-256, with weights_only=True, once",
    ("workers/features/networks.py", "torch.save"): "into memory: torch-fidelity's constructor takes nothing else",
}
"""{(file, what): why it may}."""


def dotted(node: ast.expr, names: dict[str, str]) -> str:
    """The dotted name that an expression has, imports resolved; empty for any other expression."""
    match node:
        case ast.Name(id=name):
            return names.get(name, name)
        case ast.Attribute(value=value, attr=attr):
            base = dotted(value, names)
            return f"{base}.{attr}" if base else ""
    return ""


def imported(tree: ast.AST) -> dict[str, str]:
    """{name in this file: dotted name that it stands for}."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {a.asname: a.name for a in node.names if a.asname}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return names


def dangers(source: str) -> Iterator[str]:
    """What a source file does that is not allowed in general."""
    tree = ast.parse(source)
    names = imported(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (f"import {a.name}" for a in node.names if a.name.partition(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom):
            if (node.module or "").partition(".")[0] in MODULES:
                yield f"import {node.module}"
            yield from (f"import {node.module}.{a.name}" for a in node.names if a.name in MODULES)
        elif isinstance(node, ast.Call):
            name = dotted(node.func, names)
            given = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
            if name in CALLS:
                yield name
            if name == "importlib.import_module" and not isinstance(node.args[0], ast.Constant):
                yield "a module by a name that is not written out"
            if name == "torch.load" and given.get("weights_only") is not True:
                yield "torch.load without weights_only=True"
            if name in ("hashlib.md5", "hashlib.sha1") and given.get("usedforsecurity") is not False:
                yield f"{name} for security"
            yield from (f"{key}={value}" for key, value in given.items() if (key, value) in KEYWORDS)
        elif isinstance(node, ast.Attribute) and dotted(node, names) in ("sys.modules", "builtins.__dict__"):
            yield dotted(node, names)


def sources() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def test_no_source_unpickles_evaluates_or_loads_code_by_name_but_where_it_is_explained():
    found = {
        (path.relative_to(ROOT).as_posix(), danger) for path in sources() for danger in dangers(path.read_text("utf-8"))
    }
    assert len(sources()) > 80
    assert found - ALLOWED.keys() == set()
    assert ALLOWED.keys() - found == set(), "explained, and there no more"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import pickle", "import pickle"),
        ("from pickle import loads", "import pickle"),
        ("from six.moves import cPickle", "import six.moves.cPickle"),
        ("import torch as t\nt.load(p, weights_only=True)", "torch.load"),
        ("from torch import load as l\nl(p)", "torch.load without weights_only=True"),
        ("import torch\ntorch.load(p, weights_only=flag)", "torch.load without weights_only=True"),
        ("import yaml\nyaml.load(s, Loader=yaml.SafeLoader)", "yaml.load"),
        ("import numpy as np\nnp.load(p)", "numpy.load"),
        ("f(p, allow_pickle=True)", "allow_pickle=True"),
        ("eval(text)", "eval"),
        ("import importlib\nimportlib.import_module(cfg.kind)", "a module by a name that is not written out"),
        ("import subprocess\nsubprocess.run(c, shell=True)", "shell=True"),
        ("import requests\nrequests.get(u, verify=False)", "verify=False"),
        ("from hashlib import md5\nmd5(b)", "hashlib.md5 for security"),
        ("import sys\nsys.modules[cfg.name]", "sys.modules"),
    ],
)
def test_the_reader_of_sources_sees_what_it_is_there_for(source: str, expected: str):
    assert expected in set(dangers(source))


def test_settings_that_are_text_are_names_from_a_list_or_places(tmp_path: Path):
    text = {path for path, hint in leaves(JobConfig) if hint is str or str in get_args(hint)}
    places = {"data.root", "storage", "name"}
    names = {"data.name", "data.attributes", "evaluation.metrics", "evaluation.ood.sets", "checkpoint.best"}
    assert text == names | places
    job = override(job_preset("digits_paper"), [f"storage={tmp_path}", f"data.root={tmp_path}"])
    for path in sorted(text - places):
        for name in ("os.system", "torch.nn.Linear", "pickle", "__import__('os')"):
            with pytest.raises(ConfigError):
                check_data(override(job, ["evaluation.metrics=ood", f"{path}={name}"]))
    with pytest.raises(ConfigError):
        override(job, ["name=os/system"])


def test_it_does_not_cry_over_what_is_safe():
    source = "import yaml, re, hashlib\nyaml.safe_load(s)\nre.compile(p)\nhashlib.sha256(b)\nmodel.eval()\nrun.load(x)"
    assert list(dangers(source)) == []
