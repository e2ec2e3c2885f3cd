"""Scoring stored checkpoints by actors."""
