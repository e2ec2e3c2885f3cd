"""The paper's studies of a trained model: out-of-distribution detection, long chains, composition."""

STUDY_NAMES = ("ood", "chains", "composition")
"""What can be asked for beside the scores of `workers.metrics.registry.METRICS`."""
