"""Scores of generated images: partials of image shards, folded in order, finished beside real images and noise."""
