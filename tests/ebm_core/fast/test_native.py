"""C++ that is compiled on first use: where it lies, and what is said when it cannot be."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ebm_core.fast import native

load_anew = native.load.__wrapped__
"""As in a process that has not loaded it yet."""


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("/nowhere/c++", "there is no C\\+\\+ compiler here"),
        ("/bin/false", "fails on augment.cpp: status 1; name another"),
    ],
)
def test_a_missing_or_failing_compiler_is_one_line(
    command: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", command)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    with pytest.raises(native.BuildError, match=message) as refusal:
        load_anew("augment")
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.rglob("*.so"))


def test_a_cache_that_cannot_be_written_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "file"))
    with pytest.raises(native.BuildError, match="name a folder of yours in TORCH_EXTENSIONS_DIR") as refusal:
        load_anew("augment")
    assert "\n" not in str(refusal.value)


@pytest.mark.full
def test_workers_that_compile_side_by_side_all_get_both_files(tmp_path: Path) -> None:
    program = (
        "from ebm_core.fast import winograd; import torch; winograd.load(); "
        "from ebm_core.fast.augment import apply_natively, load_native; assert load_native() is apply_natively; "
        "print(torch.ops.confab.winograd_pack, torch.ops.confab.augment)"
    )
    environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(tmp_path)}
    workers = [
        subprocess.Popen([sys.executable, "-c", program], env=environment, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for worker in workers:
        _, stderr = worker.communicate(timeout=200)
        assert worker.returncode == 0, stderr[-2000:]
    made = sorted(path.name.rpartition("-")[0] for path in (tmp_path / "confab").iterdir())
    assert made == ["augment", "winograd"]


def test_other_options_are_another_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A library that was built with fused multiply-adds must not be taken for one without."""
    asked: list[list[str]] = []

    def pretend(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        Path(command[-1]).touch()
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", pretend)
    monkeypatch.setattr("torch.ops.load_library", lambda _: None)
    for options in ((), ("-ffp-contract=off",), ()):
        load_anew("augment", *options)
    assert ["-ffp-contract=off" in command for command in asked] == [False, True]
    assert len(list((tmp_path / "confab").iterdir())) == 2
