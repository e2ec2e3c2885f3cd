"""Sampling and scoring of stored checkpoints. Plain classes; Ray appears in `actor.py` alone."""
