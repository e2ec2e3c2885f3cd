"""The one door to torchvision: nothing else in the package imports it, and nothing imports it before it is needed.

A torchvision built for CUDA beside a CPU torch cannot load its compiled operators, and fails in the middle of its own
import because two of them are missing. The readers, transforms and models need neither, so the two are declared and the
import is made again; calling them still fails, with torch's own message.
"""

import importlib
import sys
import threading
from types import ModuleType

import torch

from ebm_core.errors import DataError, first_line

MISSING = "operator torchvision::nms does not exist"
_declared: list[torch.library.Library] = []  # a declaration lasts as long as its Library is referenced
_one_at_a_time = threading.RLock()


def torchvision() -> ModuleType:
    """The torchvision package, imported at the first call. DataError when it is absent or does not fit this torch."""
    with _one_at_a_time:
        try:
            return _import()
        except ImportError as error:
            raise DataError(f"torchvision cannot be imported ({first_line(error)}): pip install torchvision") from error
        except RuntimeError as error:
            raise DataError(
                f"torchvision does not fit torch {torch.__version__} ({first_line(error)}): "
                "install the pair that pytorch.org lists together"
            ) from error


def _import() -> ModuleType:
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if MISSING not in str(error) or _declared:
            raise
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)
    return importlib.import_module("torchvision")
