"""The settings of a job: the core's TrainConfig plus storage, checkpoints, evaluation and cluster."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ebm_core.config import TrainConfig, from_tree, require
from ebm_core.data import DATASETS
from ebm_core.errors import ConfigError, did_you_mean
from ebm_core.places import RUN_NAME_RULE, is_run_name
from ebm_core.presets import PRESETS
from workers.metrics.registry import METRICS
from workers.scoring import check_request
from workers.studies import STUDIES

Section = TypeVar("Section", bound=type)


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    """How often the whole training state is stored, and how many old states are kept."""

    every: int = 500
    """Steps between checkpoints; the last step always gets one."""
    keep: int = 3
    """Number of newest checkpoints kept in storage; up to 8 older ones wait there for their scores
    (evaluation.every)."""
    best: str | None = None
    """Score by which the best checkpoint stays in storage too, however old, since quality may peak and fall: one of
    `evaluation.metrics`, such as fid_judge. Commands take `best` for its step. null: only the newest stay."""

    def __post_init__(self) -> None:
        require(self.every >= 1, "checkpoint.every", self.every, "must be at least 1 step")
        require(
            self.keep >= 2, "checkpoint.keep", self.keep, "must be at least 2, so that a damaged one has a stand-in"
        )


def _with_studies(section: Section) -> Section:
    """The class with a section for the options of each study, by its name: `evaluation.chains.num_steps`."""
    for name, study in STUDIES.items():
        section.__annotations__[name] = study.options
        setattr(section, name, field(default_factory=study.options))
    return section


@dataclass(frozen=True, kw_only=True, slots=True)
@_with_studies
class EvaluationConfig:
    """Scores and sample grids of checkpoints, made while training goes on; `ebm evaluate` takes the same settings of a
    study."""

    every: int = 0
    """Steps between scored checkpoints; the last one is scored too. 0: no scores. Each time, num_images chains of
    sampler.generate_steps are run, so without a GPU this is for small models."""
    metrics: tuple[str, ...] = ("energy_gap", "fid_judge", "diversity", "nearest_train")
    """Scores and studies to compute: keys of `workers.metrics.registry.METRICS` and of `workers.studies.STUDIES`. Data
    sets without class labels have fid_rotation in the place of fid_judge."""
    num_images: int = 1000
    """Number of generated images that are scored."""
    num_reference: int = 50_000
    """Largest number of training images that scores in Inception features compare with."""
    grid_count: int = 64
    """Number of images in the sample grid."""
    num_actors: int | None = 1
    """Number of processes that score one checkpoint together, wherever in the cluster there is room. null: one per CPU
    of the cluster, or per GPU."""
    use_gpu: bool = False
    """Reserve a GPU for each scoring process, in addition to those of training."""

    def __post_init__(self) -> None:
        require(self.every >= 0, "evaluation.every", self.every, "must not be negative (0: never)")
        require(2 <= self.num_images <= 10**7, "evaluation.num_images", self.num_images, "must lie in 2 to 10000000")
        require(self.num_reference >= 2, "evaluation.num_reference", self.num_reference, "must be at least 2")
        actors = self.num_actors
        require(
            actors is None or 1 <= actors <= 4096, "evaluation.num_actors", actors, "must lie in 1 to 4096, or null"
        )
        require(1 <= self.grid_count <= 4096, "evaluation.grid_count", self.grid_count, "must lie in 1 to 4096")
        for name in self.metrics:
            if name not in METRICS and name not in STUDIES:
                raise ConfigError(f"evaluation.metrics = {name!r}: {_unknown(name, (*METRICS, *STUDIES))}")
        check_request(self.scores, self.num_images)

    @property
    def scores(self) -> tuple[str, ...]:
        """The metrics that judge generated images, without the studies."""
        return tuple(name for name in self.metrics if name in METRICS)

    @property
    def studies(self) -> dict[str, Any]:
        """{name: options} of the studies among the metrics."""
        return {name: getattr(self, name) for name in STUDIES if name in self.metrics}

    @property
    def documents(self) -> tuple[str, ...]:
        """Names of the results that the metrics leave beside a checkpoint."""
        named = {name: study.metric for name in self.studies if (study := STUDIES[name]).metric is not None}
        return tuple(named[name](getattr(self, name)) if name in named else name for name in self.metrics)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterConfig:
    """Processes, CPUs and GPUs that the job asks Ray for."""

    num_workers: int = 1
    """Number of training processes, which share each batch; must divide train.batch_size and buffer.num_shards."""
    min_workers: int | None = None
    """Smallest number of workers to continue with when a node is lost: Ray takes any number from min_workers to
    num_workers, and adds workers when there is room again; null: the job waits for num_workers."""
    use_gpu: bool = False
    """Train on GPUs (one per worker, nccl) instead of CPUs (gloo)."""
    gpus_per_worker: float = 1.0
    """Share of a GPU that each worker reserves, with cluster.use_gpu. Below 1, several jobs or trials of one worker
    share a GPU; Ray does not limit memory, so the jobs must fit beside each other."""
    cpus_per_worker: int | None = None
    """Number of CPUs that each worker reserves; null: an equal share of the smallest node."""
    max_failures: int = 3
    """Number of restarts after a lost worker or an unexpected error before the job gives up."""

    def __post_init__(self) -> None:
        require(1 <= self.num_workers <= 4096, "cluster.num_workers", self.num_workers, "must lie in 1 to 4096")
        if self.min_workers is not None:
            allowed = f"must lie in 1 to cluster.num_workers = {self.num_workers}, or null"
            require(1 <= self.min_workers <= self.num_workers, "cluster.min_workers", self.min_workers, allowed)
        cpus = self.cpus_per_worker
        require(cpus is None or cpus >= 1, "cluster.cpus_per_worker", cpus, "must be at least 1, or null for a share")
        gpus = self.gpus_per_worker
        require(0.01 <= gpus <= 1, "cluster.gpus_per_worker", gpus, "must lie in 0.01 to 1; a worker uses one card")
        if gpus < 1:
            alone = "needs cluster.num_workers=1, for the workers of one job cannot share a card (nccl)"
            require(self.num_workers == 1, "cluster.gpus_per_worker", gpus, alone)
            require(self.use_gpu, "cluster.gpus_per_worker", gpus, "needs cluster.use_gpu=true")
        require(self.max_failures >= 0, "cluster.max_failures", self.max_failures, "must not be negative")

    @property
    def least_workers(self) -> int:
        """Fewest workers that the job runs on."""
        return self.num_workers if self.min_workers is None else self.min_workers


@dataclass(frozen=True, kw_only=True, slots=True)
class JobConfig(TrainConfig):
    """All settings of `ebm train`."""

    name: str | None = None
    """Name of the run and of its folder in storage; a run of that name is resumed. null: the next free name, such as
    digits-0001."""
    storage: str = "./runs"
    """Where runs are stored: a folder or `s3://bucket/prefix`."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)  # zero-argument super() does not work in a dataclass with slots
        if self.name is not None:
            require(is_run_name(self.name), "name", self.name, RUN_NAME_RULE)
        require(
            bool(self.storage) and "\0" not in self.storage, "storage", self.storage, "must be a folder or s3:// URI"
        )
        most, least = self.cluster.num_workers, self.cluster.least_workers
        for path, whole in (("buffer.num_shards", self.buffer.num_shards), ("train.batch_size", self.train.batch_size)):
            require(whole % most == 0, "cluster.num_workers", most, f"must divide {path} = {whole}")
            uneven = [n for n in range(least, most) if whole % n]
            remedy = (
                f"the job may run on {least} to {most} workers, and {uneven} of them do not divide {path} = {whole}"
            )
            require(not uneven, "cluster.min_workers", least, remedy)
        if self.train.on_divergence == "rollback":
            kept = (self.checkpoint.keep - 1) * self.checkpoint.every
            drift = self.train.gap_window + self.train.gap_patience
            require(
                kept >= drift,
                "checkpoint.keep",
                self.checkpoint.keep,
                f"train.on_divergence=rollback needs (keep - 1) x checkpoint.every of at least {drift} steps, "
                "train.gap_window + train.gap_patience, or no checkpoint from before a drift is left",
            )
        if self.engine.device == "cuda" and not self.cluster.use_gpu:
            raise ConfigError("engine.device = 'cuda': needs cluster.use_gpu=true, so that Ray reserves the GPU")
        _check_registered_names(self)


def _check_registered_names(job: JobConfig) -> None:
    """`data.name` is a key of a dictionary that lives with the code that it names."""
    if job.data.name not in DATASETS:
        raise ConfigError(f"data.name = {job.data.name!r}: {_unknown(job.data.name, DATASETS)}")
    if (best := job.checkpoint.best) is None:
        return
    if not (job.evaluation.metrics and job.evaluation.every):
        unscored = "needs scores beside training; set evaluation.every to a multiple of checkpoint.every"
        raise ConfigError(f"checkpoint.best = {best!r}: {unscored}")
    ranked = [name for name in job.evaluation.scores if METRICS[name].better is not None]
    if best not in ranked:
        told = ", ".join(ranked) or "none of which says which of two checkpoints is better"
        raise ConfigError(f"checkpoint.best = {best!r}: must be a score of evaluation.metrics: {told}")


def _unknown(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    return f"unknown; known are {', '.join(names)}{did_you_mean(name, names)}"


def job_preset(name: str) -> JobConfig:
    """The preset of that name with the job's defaults; ConfigError names the known ones."""
    if name not in PRESETS:
        raise ConfigError(f"preset {name!r}: {_unknown(name, PRESETS)}")
    train = PRESETS[name]()
    values = {f.name: getattr(train, f.name) for f in dataclasses.fields(TrainConfig)}
    metrics = _judged(EvaluationConfig().metrics, train.data.name)
    if name in ("digits", "digits_paper"):
        every = 2000 if name == "digits" else 500
        evaluation = EvaluationConfig(every=every, metrics=(*metrics, "classifier"), num_images=500)
        return JobConfig(**values, evaluation=evaluation)
    return JobConfig(**values, evaluation=EvaluationConfig(metrics=metrics))


def headline_metric(data: str) -> str:
    """The score by which runs on a data set are compared where nothing else is asked for (docs/results/judges.md)."""
    return "fid_judge" if data in DATASETS and DATASETS[data].num_classes else "fid_rotation"


def _judged(metrics: Sequence[str], data: str) -> tuple[str, ...]:
    """The metrics with the headline of this data set in the place of any other's."""
    headlines = ("fid_judge", "fid_rotation")
    return tuple(dict.fromkeys(headline_metric(data) if name in headlines else name for name in metrics))


def core_config(job: JobConfig) -> TrainConfig:
    """The part of a job that the core knows."""
    return TrainConfig(**{name: getattr(job, name) for name in TrainConfig.__dataclass_fields__})


def parse(tree: Mapping[str, Any]) -> JobConfig:
    """The job that `to_tree` wrote, with every check again."""
    return from_tree(JobConfig, tree)
