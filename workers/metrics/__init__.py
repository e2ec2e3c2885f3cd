"""Scores of generated images: partials of shards, folded in order, finished beside real images and noise."""
