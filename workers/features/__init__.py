"""Images to numbers, by networks whose weights a person installed or that are trained on the spot."""
