"""Data sets by name, and the batches that training draws from them."""

from ebm_core.data.batches import batch_indices, batches, labelled_batches
from ebm_core.data.catalog import (
    DATASETS,
    check_files,
    chosen_attributes,
    condition_table,
    default_config,
    download,
    load,
    num_conditions,
)
from ebm_core.data.dataset import Dataset, from_pixels
from ebm_core.data.pixels import dequantize, quantize
from ebm_core.data.prepared import absolute_root

__all__ = [
    "DATASETS",
    "Dataset",
    "absolute_root",
    "batch_indices",
    "batches",
    "check_files",
    "chosen_attributes",
    "condition_table",
    "default_config",
    "dequantize",
    "download",
    "from_pixels",
    "labelled_batches",
    "load",
    "num_conditions",
    "quantize",
]
