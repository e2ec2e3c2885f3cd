"""Time to a quality: processor seconds until a preset's samples are within a distance of the training images.

    python -m benchmarks.quality [--preset digits] [--target 2.6] [--every 500] [--budget 600]
                                 [--trainer ours] [--further 1000] [PATH=VALUE ...]

The distance is `fid_judge` (docs/results/judges.md) of 500 samples that the averaged model draws from noise by the
preset's own chain. `--trainer` has others train the same network on the same data (benchmarks/rivals.py). Only training
counts: not scoring, nor imports. One thread. Prints a line at each look, and last the row for docs/results/quality.md.
Exit status 1 where the budget ends first.
"""

import argparse
import sys
import time
from dataclasses import dataclass

import torch

from benchmarks.rivals import TRAINERS, Trainer
from ebm_core.data import labelled_batches, load
from ebm_core.errors import EbmError
from ebm_core.models import EnergyModel
from orchestrator.settings.job import JobConfig, core_config, job_preset
from orchestrator.settings.overrides import override
from workers.evaluator import Evaluator

IMAGES = 500
METRICS = ("fid_judge", "classifier", "diversity")


@dataclass(frozen=True)
class Look:
    """What was seen of a model after so many steps and processor seconds of training."""

    step: int
    seconds: float
    distance: float
    heldout: float
    noise: float
    confidence: float
    least_share: float
    """Share of the class that the fewest samples are taken for."""
    diversity: float

    def line(self) -> str:
        return (
            f"step {self.step:6d}  {self.seconds:7.1f} processor s  fid_judge {self.distance:6.2f} (held out "
            f"{self.heldout:.2f}, noise {self.noise:.1f})  confidence {self.confidence:.2f}  "
            f"rarest class {100 * self.least_share:.1f} %  diversity {self.diversity:.2f}"
        )


def look(model: EnergyModel, step: int, job: JobConfig, seconds: float) -> Look:
    """Score the averaged model as `ebm evaluate` does, with the job's seed."""
    cfg = core_config(job)
    evaluator = Evaluator(model, cfg, load(cfg.data, "train"), load(cfg.data, "test"), "in memory")
    found = evaluator.score(METRICS, IMAGES, cfg.seed)
    judged, classes = found["fid_judge"], found["classifier"]
    share = min(classes["images_per_class"]) / IMAGES
    known = (judged["value"], judged["heldout"], judged["noise"], classes["value"], share, found["diversity"]["value"])
    return Look(step, seconds, *known)


def time_to_target(job: JobConfig, trainer: Trainer, target: float, every: int, budget: float) -> list[Look]:
    """Looks at every so many steps, until one is within the target, or training or the budget (processor s) ends."""
    cfg = core_config(job)
    seconds, looks = 0.0, []
    steps = labelled_batches(cfg.data, cfg.train.batch_size, seed=cfg.seed, stop=cfg.train.num_steps)
    for step, (x_data, condition) in enumerate(steps, start=1):
        started = time.process_time()
        trainer.step(x_data, condition)
        seconds += time.process_time() - started
        over = seconds > budget
        if step % every == 0 or step == cfg.train.num_steps or over:
            looks.append(look(trainer.ema, step, job, seconds))
            print(looks[-1].line(), flush=True)
            if over or looks[-1].distance <= target:
                break
    return looks


def table_row(last: Look, job: JobConfig) -> str:
    """The row for the page."""
    drawn = f"{job.sampler.generate_steps} steps of size {job.sampler.step_size:g}"
    return (
        f"| {job.data.name} | {last.step} | {last.seconds:.0f} | {last.distance:.2f} "
        f"| {last.heldout:.2f} / {last.noise:.1f} | {drawn} |"
    )


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("settings", nargs="*", metavar="PATH=VALUE")
    parser.add_argument("--preset", default="digits")
    parser.add_argument("--target", type=float, default=2.6, help="fid_judge at which the clock stops")
    parser.add_argument("--every", type=int, default=500, help="training steps between two looks")
    parser.add_argument("--trainer", default="ours", choices=list(TRAINERS), help="who makes the steps")
    parser.add_argument("--budget", type=float, default=600.0, help="processor seconds of training at most")
    parser.add_argument("--further", type=int, help="look once more, after so many further steps of the chain")
    given = parser.parse_args(words)
    torch.set_num_threads(1)
    try:
        job = override(job_preset(given.preset), given.settings)
        trainer = TRAINERS[given.trainer](core_config(job))
        looks = time_to_target(job, trainer, given.target, given.every, given.budget)
    except EbmError as error:
        print(f"quality: {error}", file=sys.stderr)
        return 2
    if given.further:
        longer = override(job, [f"sampler.generate_steps={job.sampler.generate_steps + given.further}"])
        last = looks[-1]
        print(f"after {given.further} further steps: {look(trainer.ema, last.step, longer, last.seconds).line()}")
    print(table_row(looks[-1], job))
    return 0 if looks[-1].distance <= given.target else 1


if __name__ == "__main__":
    sys.exit(main())
