"""What the scores see: all that need no installed weights, on real held-out images spoilt in known ways.

    python -m benchmarks.judges SET [--root FOLDER] [--images 500] [--json FILE] [--picture FILE]

Clean sets are random parts of the held-out images, `--resamples` of them at each count of images. A score sees a
spoiling at a strength where it leaves the clean sets' mean by more than SIGMAS of their standard deviations, for the
worse; it is fooled where it does so for the better (! in the table). A series is monotone if no step of it, from clean
to the worst, turns back by more than SIGMAS of the largest standard deviation. Scores that have no better direction
(nearest_train, diversity) see what moves them either way.
"""

import argparse
import json
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.spoilt import SPOILINGS, Given, Spoiling
from ebm_core.config import DataConfig
from ebm_core.data import dequantize, load
from ebm_core.data.dataset import Dataset, thinned
from ebm_core.errors import EbmError
from ebm_core.presets import PRESETS
from ebm_core.rng import stream
from ebm_core.types import Pixels
from workers.metrics.metric import combine
from workers.metrics.reference import Reference, Shard
from workers.metrics.registry import METRICS
from workers.pictures import strip_png

SIGMAS = 3.0
NUM_REAL = 3000
"""Training images among which nearest_train searches, and from which memorised images are taken."""
SHARD = 500
METRIC_NAMES = tuple(n for n, m in METRICS.items() if m.extractor not in ("medium", "inception") and n != "energy_gap")

FURTHER: dict[str, tuple[tuple[str, str | None], ...]] = {
    "nearest_train": (("copied_fraction", "less"),),
    "diversity": (("duplicates", "less"),),
    "classifier": (("class_entropy", "more"), ("classes_seen", "more")),
    "precision_recall": (("recall", "more"), ("density", "more"), ("coverage", "more")),
}
"""Fields that count as scores of their own beside `value`, and what is better for each."""


@dataclass
class Series:
    """A score over the strengths of a spoiling."""

    clean: list[float]
    """Mean over the clean sets, at the count of images of each strength."""
    spread: list[float]
    """Their standard deviation, likewise."""
    values: list[float]
    better: str | None

    @property
    def shifts(self) -> list[float]:
        """(value - clean) in standard deviations, positive for the worse (without a direction: larger)."""
        sign = -1.0 if self.better == "more" else 1.0
        rows = zip(self.values, self.clean, self.spread, strict=True)
        return [sign * (value - clean) / max(spread, 1e-9 * abs(clean), 1e-12) for value, clean, spread in rows]

    def seen(self) -> int | None:
        """Index of the weakest strength from which on it is seen at all greater ones; None: not even the worst."""
        flags = [abs(shift) > SIGMAS if self.better is None else shift > SIGMAS for shift in self.shifts]
        return next((i for i in range(len(flags)) if all(flags[i:])), None)

    def fooled(self) -> bool:
        """Whether a spoiling makes the score better somewhere."""
        return self.better is not None and any(shift < -SIGMAS for shift in self.shifts)

    def monotone(self) -> bool:
        """Whether it moves one way from clean to the worst, within the spread."""
        moved = np.array([0.0, *(value - clean for value, clean in zip(self.values, self.clean, strict=True))])
        slack = SIGMAS * max(self.spread)
        return bool((np.diff(moved) >= -slack).all() or (np.diff(moved) <= slack).all())


class Scorer:
    """All scores of sets of images against one data set."""

    def __init__(self, train: Dataset, heldout: Dataset, known_images: int) -> None:
        self.real = Reference(train, heldout, lambda images, dataset, index: np.zeros(len(images)), NUM_REAL)
        for name in METRIC_NAMES:
            METRICS[name].prepare(self.real)
        counts = {"train": min(len(train), 10_000), "heldout": known_images, "noise": known_images}
        sets = {
            which: [self.real.real_shard(which, count, first, SHARD) for first in range(0, count, SHARD)]
            for which, count in counts.items()
        }
        self._known = {
            name: {which: self._partials(name, sets[which]) for which in METRICS[name].real_sets}
            for name in METRIC_NAMES
        }

    def scores(self, images: Pixels) -> dict[str, float]:
        """Every number by name; NaN where there are too few images."""
        parts = [Shard(part, np.zeros(len(part)), i * SHARD, len(images)) for i, part in enumerate(images.split(SHARD))]
        found = {}
        for name in METRIC_NAMES:
            if len(images) < METRICS[name].least:
                continue
            result = METRICS[name].finish(self._partials(name, parts), self.real, self._known[name])
            found[name] = float(result["value"])
            found |= {f"{name} {field}": float(result[field]) for field, _ in _further(name)}
        return found

    def _partials(self, name: str, shards: list[Shard]) -> Any:
        parts = [METRICS[name].score(shard, self.real) for shard in shards]
        return combine(METRICS[name], enumerate(parts), len(parts))


def _further(name: str) -> tuple[tuple[str, str | None], ...]:
    return FURTHER.get("precision_recall" if name.startswith("precision_recall") else name, ())


def directions() -> dict[str, str | None]:
    """What is better for each number, in the order of the tables."""
    found: dict[str, str | None] = {}
    for name in METRIC_NAMES:
        found[name] = METRICS[name].better
        found |= {f"{name} {field}": better for field, better in _further(name)}
    return found


def calibrate(
    train: Dataset, heldout: Dataset, num_images: int, resamples: int
) -> tuple[dict[str, dict[str, Series]], Scorer]:
    """{spoiling: {score: series}}: all scores of all spoilings on the same clean images."""
    if train.labels is None or heldout.labels is None:
        raise SystemExit(f"{train.name} has no labels; the calibration needs some")
    num_images = min(num_images, len(heldout) // 2)
    pool = heldout.fetch(torch.arange(len(heldout)))
    order = torch.randperm(len(heldout), generator=stream(0, 0, "spoilt images"))[:num_images]
    scorer, clean_at = Scorer(train, heldout, num_images), {}

    def clean(count: int) -> tuple[dict[str, float], dict[str, float]]:
        """Mean and standard deviation of every score over clean sets of so many images."""
        if count not in clean_at:
            parts = [
                torch.randperm(len(pool), generator=stream(0, i, f"clean {count}"))[:count] for i in range(resamples)
            ]
            rows = [scorer.scores(pool[part]) for part in parts]
            columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
            clean_at[count] = (
                {name: float(column.mean()) for name, column in columns.items()},
                {name: float(column.std(ddof=1)) for name, column in columns.items()},
            )
        return clean_at[count]

    found: dict[str, dict[str, Series]] = {}
    for name, spoiling in SPOILINGS.items():
        if name == "recolour" and pool.shape[1] == 1:
            continue
        found[name] = {score: Series([], [], [], better) for score, better in directions().items()}
        for images in spoil(spoiling, pool[order], given(train, heldout.labels[order], scorer.real.train.images)):
            (mean, spread), values = clean(len(images)), scorer.scores(images)
            for score, series in found[name].items():
                series.clean.append(mean.get(score, float("nan")))
                series.spread.append(spread.get(score, float("nan")))
                series.values.append(values.get(score, float("nan")))
        print(f"{name} done, {resource.getrusage(resource.RUSAGE_SELF).ru_utime:.0f} s", file=sys.stderr, flush=True)
    return found, scorer


def given(train: Dataset, labels: torch.Tensor, copies: Pixels) -> Given:
    """What the spoilings use, from the training images."""
    index = thinned(len(train), 10_000)
    assert train.labels is not None
    images, classes = dequantize(train.fetch(index)), train.labels[index]
    means = torch.stack([images[classes == k].mean(0) for k in range(int(classes.max()) + 1)])
    return Given(labels, copies, means, stream(0, 0, "spoilings"))


def spoil(spoiling: Spoiling, images: Pixels, known: Given) -> list[Pixels]:
    """The images at each strength."""
    return [spoiling.apply(images, strength, known) for strength in spoiling.strengths]


def table(found: dict[str, dict[str, Series]]) -> list[str]:
    """Markdown: for each score and spoiling the weakest strength that is seen; - none; ! fooled; ~ not monotone."""
    lines = [f"| score | {' | '.join(SPOILINGS[name].title for name in found)} |", "| --- |" + " --- |" * len(found)]
    for score in directions():
        cells = []
        for name, rows in found.items():
            series = rows[score]
            at = series.seen()
            text = "-" if at is None else f"{SPOILINGS[name].strengths[at]:g}"
            cells.append(text + "!" * series.fooled() + "~" * (not series.monotone()))
        lines.append(f"| {score} | {' | '.join(cells)} |")
    return lines


def details(found: dict[str, dict[str, Series]]) -> list[str]:
    """One line a score and spoiling: clean mean and spread, then the value at each strength."""
    lines = []
    for name, rows in found.items():
        spoiling = SPOILINGS[name]
        lines += ["", f"{spoiling.title} ({spoiling.unit}): {', '.join(f'{s:g}' for s in spoiling.strengths)}"]
        for score, series in rows.items():
            values = "  ".join(f"{value:9.4g}" for value in series.values)
            seen = series.seen()
            said = "blind" if seen is None else f"from {spoiling.strengths[seen]:g}"
            said += (", fooled" if series.fooled() else "") + ("" if series.monotone() else ", not monotone")
            lines.append(f"  {score:36}{series.clean[0]:9.4g} ± {series.spread[0]:<8.2g} {values}  {said}")
    return lines


def picture(train: Dataset, heldout: Dataset) -> bytes:
    """Rows: clean images, then each spoiling; in each row the same four images at four strengths."""
    assert heldout.labels is not None
    index = torch.tensor([int((heldout.labels == k).nonzero()[0]) for k in (2, 3, 5, 8)])
    images, known = heldout.fetch(index), given(train, heldout.labels[index], train.fetch(thinned(len(train), 1000)))
    rows = [images.repeat(4, 1, 1, 1)]
    for name, spoiling in SPOILINGS.items():
        if name not in ("few_classes", "repeat", "memorise") and (name != "recolour" or images.shape[1] == 3):
            rows.append(torch.cat(spoil(spoiling, images, known)))
    return strip_png(torch.stack(rows))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("set", choices=[name for name in PRESETS if name not in ("celeba_hq", "lsun_bedroom")])
    parser.add_argument("--root", help="folder of the data set's files")
    parser.add_argument("--images", type=int, default=500, help="images of each spoilt set")
    parser.add_argument("--resamples", type=int, default=12, help="clean sets")
    parser.add_argument("--json", type=Path, help="where to write every number")
    parser.add_argument("--picture", type=Path, help="where to write a picture of the spoilt images, and nothing else")
    words = parser.parse_args()
    cfg = PRESETS[words.set]().data
    cfg = DataConfig(name=cfg.name, image_size=cfg.image_size, channels=cfg.channels, root=words.root or cfg.root)
    try:
        train, heldout = load(cfg, "train"), load(cfg, "test")
    except EbmError as error:
        sys.exit(str(error))
    if words.picture:
        words.picture.write_bytes(picture(train, heldout))
        return
    found, scorer = calibrate(train, heldout, words.images, words.resamples)
    for name in ("judge", "rotation"):
        print(f"{name}: {scorer.real.extractor(name).identity()}")
    print("\n".join(details(found)))
    print("\n" + "\n".join(table(found)))
    if words.json:
        tree = {name: {score: vars(series) for score, series in rows.items()} for name, rows in found.items()}
        words.json.write_text(json.dumps(tree, indent=1) + "\n")


if __name__ == "__main__":
    main()
