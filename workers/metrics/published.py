"""The paper's numbers for CIFAR-10, each from the table where it stands: the two that have an Inception score differ.

Table 1 compares the paper's unconditional model with others; the last row of Table 2 is the same model. The paper does
not say of how many images its scores are.
"""

from typing import Any

TABLE_1: dict[str, float] = {"inception_score": 7.58, "fid": 35.4}
TABLE_2: dict[str, dict[str, Any]] = {
    "plain": {"inception_score": 1.46, "fid": 253.1, "stable": False},
    "aug": {"inception_score": 6.19, "fid": 61.3, "stable": False},
    "opt": {"inception_score": 6.28, "fid": 59.8, "stable": True},
    "ent": {"inception_score": 6.53, "fid": 54.3, "stable": True},
    "scales": {"inception_score": 6.78, "fid": 50.8, "stable": True},
    "full": {"inception_score": 7.48, "fid": 35.4, "stable": True},
}
"""By the row's key in the grid `table2`."""
TABLE_3: dict[str, float] = {"svhn": 0.91, "textures": 0.88, "interpolation": 0.65, "cifar100": 0.83}
"""AUROC of each out-of-distribution set against CIFAR-10."""

PUBLISHED: dict[str, dict[str, Any]] = {
    "fid": {"value": TABLE_1["fid"], "where": "Table 1"},
    "inception_score": {
        "value": TABLE_1["inception_score"],
        "where": f"Table 1; Table 2 has {TABLE_2['full']['inception_score']} for the same model",
    },
}
"""What stands beside a score of a model of all of CIFAR-10, and where the paper has it."""
