"""Drawing samples of a trained energy and judging them: plain classes and pure functions; Ray in `actor.py` alone."""
