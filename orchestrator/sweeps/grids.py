"""The paper's grids, one table each: rows of settings on top of any preset, beside what the paper reports.

A "yes" leaves the preset's own value where that is one, and a "no" switches it off. To add a grid: a function that
makes its rows from the base job, and a line in GRIDS.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ebm_core.errors import ConfigError
from ebm_core.presets import PRESETS
from orchestrator.records.sweeps import Row
from orchestrator.settings.job import JobConfig, job_preset
from orchestrator.settings.overrides import override
from workers.metrics.published import TABLE_2


@dataclass(frozen=True)
class Grid:
    """A table of the paper, or one in its manner."""

    title: str
    rows: Callable[[JobConfig], tuple[Row, ...]]
    note: str = ""
    four_widths: bool = False
    """Whether some row has three scales, which need four widths in every row to be compared."""
    papers: bool = True
    """Whether it takes the paper's recipe apart: the preset `NAME_paper` in the place of NAME, where there is one."""
    preset: str = "cifar10"
    """What it is run on unless another is asked for; digits with `smoke`."""
    smoke: tuple[str, ...] = ()
    """Further settings of a smoke run."""


SMOKE = (
    "train.num_steps=60",
    "train.batch_size=16",
    "train.log_every=5",
    "train.gap_window=20",
    "train.gap_patience=20",
    "checkpoint.every=30",
    "evaluation.every=60",
    "evaluation.num_images=64",
    "evaluation.grid_count=16",
    "evaluation.metrics=energy_gap",
    "sampler.num_steps=5",
    "sampler.generate_steps=20",
    "loss.num_past=100",
    "buffer.capacity=400",
)
"""What `smoke` puts on top of a preset: seconds of training, which show that the grid runs and nothing more."""

BASES: dict[str, tuple[str, ...]] = {
    "digits_paper": (  # 8 x 8: what augmentation leaves of a digit must still be that digit
        "augment.color_prob=0",
        "augment.grayscale_prob=0",
        "augment.flip_prob=0",
        "augment.blur_prob=0",
        "augment.crop_scale=0.7,1",
    ),
    "mnist_paper": ("augment.crop_scale=0.7,1",),
}
"""Settings of a preset in every row of every grid, where a grid may switch on what the preset has off."""


def grid_base(grid: Grid, preset: str) -> JobConfig:
    """The preset's job with what all rows share."""
    preset = f"{preset}_paper" if grid.papers and f"{preset}_paper" in PRESETS else preset
    job, settings = job_preset(preset), list(BASES.get(preset, ()))
    widths = job.model.widths
    if grid.four_widths and len(widths) < 4:
        widths = (*widths, *(widths[-1:] * (4 - len(widths))))
        settings.append(f"model.widths={','.join(map(str, widths))}")
    return override(job, settings)


def find_grid(name: str) -> Grid:
    """The grid of that name; ConfigError lists the known ones."""
    if name not in GRIDS:
        raise ConfigError(f"grid {name!r}: unknown; known are {', '.join(GRIDS)}")
    return GRIDS[name]


def _yes(flag: bool) -> str:
    return "yes" if flag else "no"


def _kl(job: JobConfig, opt: bool, ent: bool) -> tuple[str, str]:
    """The weights of L_opt and L_ent: the preset's own, or 1 where it has none, when they are on."""
    kl, entropy = job.loss.kl_weight or 1.0, job.loss.entropy_weight or 1.0
    return f"loss.kl_weight={kl if opt else 0}", f"loss.entropy_weight={entropy if ent else 0}"


def _table2(job: JobConfig) -> tuple[Row, ...]:
    """Each row adds one choice to the row before (Table 2)."""

    def row(key: str, opt: bool, ent: bool, aug: bool, res: bool, scales: bool) -> Row:
        flags = {"L_opt": opt, "L_ent": ent, "augmentation": aug, "reservoir": res, "multi-scale": scales}
        settings = (
            *_kl(job, opt, ent),
            f"augment.enabled={'true' if aug else 'false'}",
            f"buffer.kind={'reservoir' if res else 'fifo'}",
            f"model.multiscale={'true' if scales else 'false'}",
        )
        choices = {name: _yes(flag) for name, flag in flags.items()}
        label = ", ".join(name for name, flag in flags.items() if flag) or "none of them"
        return Row(key=key, label=label, settings=settings, choices=choices, paper=dict(TABLE_2[key]))

    return (
        row("plain", False, False, False, False, False),
        row("aug", False, False, True, False, False),
        row("opt", True, False, True, False, False),
        row("ent", True, True, True, False, False),
        row("scales", True, True, True, False, True),
        row("full", True, True, True, True, True),
    )


def _figure9(job: JobConfig) -> tuple[Row, ...]:
    """Architectures with and without L_KL (Fig. 9): the paper says of each whether the energy gap stays at 0."""
    norm = job.model.norm if job.model.norm != "none" else "layer"
    parts = {
        "plain": ("none of them", "none", False, False),
        "norm": (f"{norm} normalisation", norm, False, False),
        "attention": ("self-attention", "none", True, False),
        "spectral": ("spectral norm", "none", False, True),
    }
    rows = []
    for key, (label, norm, attention, spectral) in parts.items():
        for kl in (False, True):
            settings = (
                *_kl(job, kl, kl),
                f"model.norm={norm}",
                f"model.attention={'true' if attention else 'false'}",
                f"model.spectral_norm={'true' if spectral else 'false'}",
            )
            choices = {"architecture": label, "L_KL": _yes(kl)}
            paper = {"stable": kl or spectral} if key != "plain" else {}
            name = f"{key}-{'kl' if kl else 'nokl'}"
            text = f"{label}, {'with' if kl else 'without'} L_KL"
            rows.append(Row(key=name, label=text, settings=settings, choices=choices, paper=paper))
    return tuple(rows)


def _figure7(job: JobConfig) -> tuple[Row, ...]:
    rows = []
    for aug in (False, True):
        for kl in (False, True):
            settings = (*_kl(job, kl, kl), f"augment.enabled={'true' if aug else 'false'}")
            on = [name for name, flag in (("augmentation", aug), ("L_KL", kl)) if flag]
            choices = {"augmentation": _yes(aug), "L_KL": _yes(kl)}
            key = f"{'aug' if aug else 'noaug'}-{'kl' if kl else 'nokl'}"
            rows.append(Row(key=key, label=" and ".join(on) or "neither", settings=settings, choices=choices))
    return tuple(rows)


def _truncation(job: JobConfig) -> tuple[Row, ...]:
    def row(key: str, label: str, fid: float) -> Row:
        choices = {"L_opt goes back through": label}
        return Row(key=key, label=label, settings=(f"sampler.backprop={key}",), choices=choices, paper={"fid": fid})

    return (row("last", "the last step", 90.54), row("all", "all steps", 94.85))


def _buffer(job: JobConfig) -> tuple[Row, ...]:
    kinds = ("fifo", "reservoir")
    return tuple(Row(key=k, label=k, settings=(f"buffer.kind={k}",), choices={"buffer": k}) for k in kinds)


def _steps(job: JobConfig) -> tuple[Row, ...]:
    """A quarter, half, once and one and a half times the preset's Langevin steps (40: 10, 20, 40, 60)."""
    counts = dict.fromkeys(max(1, round(job.sampler.num_steps * factor)) for factor in (0.25, 0.5, 1, 1.5))
    return tuple(
        Row(
            key=f"steps{count}",
            label=f"{count} Langevin steps",
            settings=(f"sampler.num_steps={count}",),
            choices={"Langevin steps": str(count)},
        )
        for count in counts
    )


def _recipe(job: JobConfig) -> tuple[Row, ...]:
    """The preset's recipe, and the same with one part taken out or put in (docs/results/quality.md)."""
    if not 0 < job.warmup.num_steps < job.train.num_steps:
        raise ConfigError(
            f"grid recipe: takes apart a warm start and what follows it; warmup.num_steps = {job.warmup.num_steps} of "
            f"train.num_steps = {job.train.num_steps} has not both; the presets digits and mnist have"
        )
    changes = {
        "full": ("the whole recipe", ()),
        "flow": ("flow matching alone", (f"train.num_steps={job.warmup.num_steps}",)),
        "noflow": ("no flow loss beside L_CD", ("loss.flow_weight=0",)),
        "nodata": ("no chains from data", ("buffer.data_fraction=0",)),
        "reservoir": ("a reservoir, not persistent chains", ("buffer.kind=reservoir",)),
        "noburn": ("restarts join as noise", ("buffer.restart_steps=0",)),
        "random": ("random pairs, not optimal ones", ("warmup.pairing=random",)),
        "speed1": ("speed 1", ("warmup.speed=1",)),
        "kl": ("with both KL terms", ("loss.kl_weight=1", "loss.entropy_weight=1")),
    }
    return tuple(
        Row(key=key, label=label, settings=settings, choices={"change": label})
        for key, (label, settings) in changes.items()
    )


_NO_FID = "The paper's Inception score and FID are of CIFAR-10; no stand-in for them can be compared with them."

GRIDS: dict[str, Grid] = {
    "table2": Grid("Table 2: what each part of the method adds", _table2, _NO_FID, four_widths=True),
    "figure9": Grid(
        "Figure 9: architectures with and without L_KL",
        _figure9,
        "Paper: without L_KL all diverge to an energy gap of -1, except with spectral norm; with it all stay at 0.",
    ),
    "figure7": Grid(
        "Figure 7: augmentation and L_KL in long chains",
        _figure7,
        "Figure 7 is about long chains: `ebm evaluate RUN --metrics chains` runs them for a trial's run.",
    ),
    "truncation": Grid(
        "Appendix A.4: L_opt through the last Langevin step or all", _truncation, "The paper's FIDs are of MNIST."
    ),
    "buffer": Grid("Section 2.5: reservoir against first-in-first-out", _buffer),
    "steps": Grid("Langevin steps in training", _steps),
    "recipe": Grid(
        "The recipe of a warm start, one part changed at a time",
        _recipe,
        papers=False,
        preset="digits",
        smoke=("warmup.num_steps=30", "buffer.restart_steps=5"),
    ),
}
