"""The one door to torchvision, imported only when it is asked for.

PyPI's torchvision is a CUDA build. Beside a CPU torch its compiled operators are missing, and its import fails until
the two operators that it extends with shape rules are declared; all but its boxes and its image files then works.
"""

import importlib
import sys
from functools import cache
from types import ModuleType

import torch

_declarations: list[torch.library.Library] = []  # a declaration lasts as long as its Library object


@cache
def torchvision() -> ModuleType:
    """The torchvision package, also where its build does not match torch's."""
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "nms" not in str(error):
            raise
    for name in [n for n in sys.modules if n == "torchvision" or n.startswith("torchvision.")]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declarations.append(library)
    return importlib.import_module("torchvision")
