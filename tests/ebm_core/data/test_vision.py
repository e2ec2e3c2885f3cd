"""torchvision can be imported whether or not its build matches torch's."""

import subprocess
import sys


def test_the_parts_that_are_used_work_in_a_fresh_process():
    code = """
import sys
from ebm_core.data.vision import torchvision
assert "torchvision" not in sys.modules, "imported before it was asked for"
vision = torchvision()
assert torchvision() is vision
import torch, torchvision.transforms.v2.functional as T
assert T.hflip(torch.tensor([[[1.0, 2.0]]])).tolist() == [[[2.0, 1.0]]]
assert vision.datasets.CIFAR10.base_folder == "cifar-10-batches-py"
assert vision.utils.make_grid(torch.zeros(4, 3, 2, 2)).shape == (3, 6, 18)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
