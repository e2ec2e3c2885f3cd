"""What a job is told: dataclasses with ranges, and the dotted paths that change them."""
