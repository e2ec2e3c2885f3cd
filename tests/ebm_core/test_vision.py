import subprocess
import sys
import textwrap

import pytest
import torch

from ebm_core.data.vision import torchvision
from ebm_core.errors import DataError

STUMBLING = """
    import torch
    import torchvision.begun
    torch.library.register_fake("torchvision::nms")(lambda dets, scores, iou_threshold: dets)
    torch.library.register_fake("torchvision::qnms")(lambda dets, scores, iou_threshold: dets)
"""
"""A package that fails where torchvision fails when its compiled operators do not load."""


def package(folder, source: str) -> None:
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "__init__.py").write_text(textwrap.dedent(source))
    (folder / "torchvision" / "begun.py").write_text("")


def run(folder, script: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter in which `folder` comes first among the places that packages come from."""
    script = f"import sys; sys.path[:0] = [{str(folder)!r}, '.']\n" + textwrap.dedent(script)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)


def test_readers_transforms_and_networks_work():
    vision = torchvision()
    assert vision.__name__ == "torchvision"
    assert vision.transforms.functional.hflip(torch.tensor([[1.0, 2.0]])).tolist() == [[2.0, 1.0]]
    assert issubclass(vision.datasets.CIFAR10, torch.utils.data.Dataset)
    assert vision.models.resnet18(weights=None).eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)


def test_a_second_call_gives_the_same_module():
    assert torchvision() is torchvision()


def test_an_operator_that_did_not_load_is_declared_and_the_import_made_again(tmp_path):
    package(tmp_path, STUMBLING)
    bare = run(tmp_path, "import torchvision")
    assert "operator torchvision::nms does not exist" in bare.stderr
    done = run(
        tmp_path,
        """
        from ebm_core.data.vision import torchvision
        assert "torchvision" not in sys.modules, "imported before it was needed"
        module = torchvision()
        assert module is torchvision() is sys.modules["torchvision"]
        assert module.begun is sys.modules["torchvision.begun"]
        import torch
        print(module.__file__, torch.ops.torchvision.nms.default._schema, torch.ops.torchvision.qnms.default._schema)
        """,
    )
    assert done.returncode == 0, done.stderr
    schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    assert (
        done.stdout.strip() == f"{tmp_path}/torchvision/__init__.py torchvision::nms{schema} torchvision::qnms{schema}"
    )


def test_another_failure_of_the_import_is_told_in_one_line(tmp_path):
    package(tmp_path, 'raise RuntimeError("built for another torch\\nlong story")')
    done = run(
        tmp_path,
        """
        from ebm_core.data.vision import torchvision
        from ebm_core.errors import DataError
        try:
            torchvision()
        except DataError as error:
            print(error)
        """,
    )
    assert "does not fit torch" in done.stdout, done.stderr
    assert "built for another torch" in done.stdout
    assert len(done.stdout.splitlines()) == 1


def test_its_absence_is_told_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)  # what Python does for a module that must not be found
    with pytest.raises(DataError, match="pip install torchvision"):
        torchvision()
