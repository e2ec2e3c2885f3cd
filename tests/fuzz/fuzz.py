"""Targets behind a guard: what is given to them, and in which order."""

import random
import sys
import time
from collections import Counter
from pathlib import Path

from tests.fuzz.guard import Guard
from tests.fuzz.mutate import MAX_BYTES, mutate
from tests.readers import Targets


class Fuzz:
    """Targets behind a guard, and a count of what they were given."""

    def __init__(self, base: Path, targets: Targets, guard: Guard) -> None:
        self.base, self.targets, self.guard = base, targets.all(), guard
        self.names = sorted(self.targets)
        self.seeds = {name: targets.seed(name) for name in self.names}
        self.count: Counter[str] = Counter()

    def read(self, name: str, data: bytes) -> None:
        """Give one input to a reader."""
        self.count[name] += 1
        with self.guard.watch(name, data):
            self.targets[name](data)

    def plain(self, seed: int, inputs: int | None, seconds: float) -> None:
        """Change a seed, or what was made of one, and read it; each target in turn."""
        rng = random.Random(seed)
        deadline = time.monotonic() + seconds
        pools = {name: [self.seeds[name]] for name in self.names}
        number = 0
        while number < inputs if inputs is not None else time.monotonic() < deadline:
            name = self.names[number % len(self.names)]
            data = mutate(rng.choice(pools[name]), rng)
            self.read(name, data)
            if rng.random() < 0.1:
                pools[name] = [self.seeds[name], *pools[name][-8:], data]
            number += 1

    def guided(self, seconds: float) -> None:
        """Let atheris choose: its own changes and ours, kept when they reach new code. Does not return."""
        import atheris

        corpus = self.base / "corpus"
        corpus.mkdir()
        for number, name in enumerate(self.names):
            (corpus / str(number)).write_bytes(bytes([number]) + self.seeds[name])

        def one(data: bytes) -> None:
            if data:
                self.read(self.names[data[0] % len(self.names)], data[1:])

        def change(data: bytes, max_size: int, seed: int) -> bytes:
            rng = random.Random(seed)
            if rng.random() < 0.3 or not data:
                return atheris.Mutate(data, max_size)
            return (data[:1] + mutate(data[1:], rng))[:max_size]

        limits = [f"-max_total_time={int(seconds)}", "-timeout=60", "-rss_limit_mb=0", f"-max_len={MAX_BYTES}"]
        options = [*limits, "-print_final_stats=1", "-verbosity=0", f"-artifact_prefix={self.base}/input-"]
        atheris.Setup([sys.argv[0], *options, str(corpus)], one, custom_mutator=change)
        atheris.Fuzz()
