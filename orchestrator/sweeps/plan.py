"""From what a person asks of `ebm sweep` to a checked plan: everything that is wrong is refused here, in a line."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from ebm_core.config import to_tree
from ebm_core.errors import ConfigError, did_you_mean
from ebm_core.presets import PRESETS
from orchestrator.records.rows import METRIC_NAMES, WALL_CLOCK, column_name, is_column
from orchestrator.records.sweeps import Row, SweepPlan
from orchestrator.settings.job import JobConfig, headline_metric, job_preset
from orchestrator.settings.overrides import override
from orchestrator.settings.trees import flatten
from orchestrator.storage.run_store import require_run_name
from orchestrator.sweeps.grids import GRIDS, SMOKE, find_grid, grid_base
from orchestrator.sweeps.lists import listed_rows, listed_values
from orchestrator.sweeps.ranges import is_range, parse_space

OF_THIS_MACHINE = (
    "name",
    "storage",
    "data.root",
    "cluster",
    "engine.num_threads",
    "train.log_every",
    "checkpoint.keep",
)
"""Settings that may change when a sweep goes on."""
MAXIMISED = ("running_gap",)
"""Logged columns of which more is better, where the request does not say; a score says so itself."""
_KEYS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


@dataclass(frozen=True, kw_only=True)
class SweepRequest:
    """The command line of `ebm sweep`, and the keys of a sweep's YAML file."""

    preset: str | None = None
    """Of a grid: default cifar10, with smoke digits."""
    name: str | None = None
    settings: tuple[str, ...] = ()
    """PATH=VALUE; a VALUE that is a range makes the sweep a search, one that is a list makes it a grid."""
    rows: tuple[Row, ...] = ()
    """Of a grid in a YAML file."""
    metric: str | None = None
    """A score, or a logged column; None: the headline score of the preset's data set."""
    mode: str | None = None
    """min or max; None: what is better for the metric."""
    seeds: int = 1
    """Of a grid: each row is run with seed, seed + 1, ..."""
    seed: int = 0
    trials: int = 16
    """Of a search."""
    scheduler: str = "none"
    """none or asha."""
    search: str = "random"
    """random or optuna."""
    max_concurrent: int | None = None
    smoke: bool = False

    def __post_init__(self) -> None:
        for name, low, high in (("seeds", 1, 1000), ("trials", 1, 100_000), ("seed", 0, 2**31 - 1)):
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"`{name}` {getattr(self, name)}: must lie in {low} to {high}")
        if self.max_concurrent is not None and self.max_concurrent < 1:
            raise ConfigError(f"`max_concurrent` {self.max_concurrent}: at least 1")
        for option, allowed in (("scheduler", ("none", "asha")), ("search", ("random", "optuna"))):
            if getattr(self, option) not in allowed:
                raise ConfigError(f"`{option}` {getattr(self, option)}: one of {', '.join(allowed)}")
        if self.mode not in (None, "min", "max"):
            raise ConfigError(f"`mode` {self.mode}: min or max")


def make_plan(what: str, request: SweepRequest) -> tuple[SweepPlan, JobConfig]:
    """The plan of a grid's name, a YAML file or a preset with values; and the job that all trials start from."""
    if what.endswith((".yaml", ".yml")):
        request = read_yaml(Path(what), request)
        name = request.name or Path(what).stem
        return _rows_plan(name, request) if request.rows else _values_plan(name, request)
    if what in GRIDS:
        return _grid_plan(what, request)
    if what in PRESETS:
        return _values_plan(request.name, replace(request, preset=what))
    hint = did_you_mean(what, [*GRIDS, *PRESETS])
    raise ConfigError(f"sweep {what!r}: give a grid ({', '.join(GRIDS)}), a preset or a file .yaml{hint}")


def concurrent_trials(what: str, request: SweepRequest) -> int | None:
    """What the request says of `max_concurrent`, or what a YAML file says instead."""
    return read_yaml(Path(what), request).max_concurrent if what.endswith((".yaml", ".yml")) else request.max_concurrent


def _grid_plan(what: str, request: SweepRequest) -> tuple[SweepPlan, JobConfig]:
    grid = find_grid(what)
    preset = request.preset or ("digits" if request.smoke else grid.preset)
    job = grid_base(grid, preset)
    settings = _single_values(request, f"grid {what}")
    base = prepare(override(job, [*((*SMOKE, *grid.smoke) if request.smoke else ()), *settings]), request)
    name = request.name or f"{what}-{preset}{'-smoke' if request.smoke else ''}"
    plan = _plan(name, "grid", grid.title, preset, base, request)
    return _checked_grid(replace(plan, rows=grid.rows(base), note=grid.note), base)


def _rows_plan(name: str, request: SweepRequest) -> tuple[SweepPlan, JobConfig]:
    preset = request.preset or ""
    smoke = SMOKE if request.smoke else ()
    base = prepare(override(job_preset(preset), [*smoke, *_single_values(request, name)]), request)
    return _checked_grid(replace(_plan(name, "grid", name, preset, base, request), rows=request.rows), base)


def _checked_grid(plan: SweepPlan, base: JobConfig) -> tuple[SweepPlan, JobConfig]:
    if plan.scheduler != "none":
        raise ConfigError("`scheduler` asha: a grid is a table of whole runs; leave it out")
    for row in plan.rows:
        try:
            override(base, row.settings)
        except ConfigError as why:
            raise ConfigError(f"row {row.key}: {why}") from None
    return plan, base


def _values_plan(name: str | None, request: SweepRequest) -> tuple[SweepPlan, JobConfig]:
    """A preset with values to try: ranges make a search, lists a grid of all their combinations."""
    pairs = [(setting.partition("=")[0], setting.partition("=")[2]) for setting in request.settings]
    space = {path: text.strip() for path, text in pairs if is_range(text)}
    plain = {path: text for path, text in pairs if not is_range(text)}  # of a range's path: its value in the base
    lists = {path: values for path, text in plain.items() if len(values := listed_values(path, text)) > 1}
    if space and lists:
        path, values = next(iter(lists.items()))
        raise ConfigError(
            f"{path} = {plain[path]!r}: a list makes a grid, a range ({next(iter(space))}) a search; "
            f"beside a range write {path}='choice({','.join(values)})'"
        )
    fixed = [setting for setting in request.settings if _is_single(setting) and setting.partition("=")[0] not in lists]
    smoke = SMOKE if request.smoke else ()
    base = prepare(override(job_preset(request.preset or ""), [*smoke, *fixed]), request)
    if not space and not lists:
        raise ConfigError(
            "a sweep of a preset needs a range or a list of values, such as sampler.step_size='loguniform(10,1000)' or "
            "optimizer.lr=1e-4,1e-3"
        )
    if lists:
        name = name or f"{request.preset}-grid"
        plan = _plan(name, "grid", f"Grid over {', '.join(lists)}", request.preset or "", base, request)
        return _checked_grid(replace(plan, rows=listed_rows(lists, base)), base)
    return _search_plan(name or f"{request.preset}-search", space, base, request)


def _search_plan(
    name: str, space: Mapping[str, str], base: JobConfig, request: SweepRequest
) -> tuple[SweepPlan, JobConfig]:
    if request.seeds != 1:
        raise ConfigError(f"`seeds` {request.seeds}: is for grids; a search draws its trials by `seed`")
    parse_space(space, base)
    plan = _plan(name, "search", f"Search on {request.preset}", request.preset or "", base, request)
    plan = replace(
        plan, space=dict(space), num_trials=request.trials, search=cast(Any, request.search), search_seed=request.seed
    )
    return replace(plan, seeds=()), base


def _plan(name: str, kind: Any, title: str, preset: str, base: JobConfig, request: SweepRequest) -> SweepPlan:
    require_run_name(name)
    if len(name) > 80:
        raise ConfigError(f"`name` {name!r:.90}: at most 80 characters, for its trials' runs have longer names")
    metric = metric_of(request, base)
    return SweepPlan(
        name=name,
        kind=kind,
        title=title,
        preset=preset,
        base=stored_base(base),
        metric=metric,
        mode=cast(Any, request.mode or better_mode(metric)),
        seeds=tuple(range(request.seed, request.seed + request.seeds)),
        scheduler=cast(Any, request.scheduler),
    )


def metric_of(request: SweepRequest, job: JobConfig) -> str:
    """What the sweep's trials are compared by."""
    return column_name(request.metric or headline_metric(job.data.name))


def better_mode(metric: str) -> str:
    """min or max, as a score or a column is better. ConfigError for one of which neither less nor more is better."""
    from workers.metrics.registry import METRICS

    if metric not in METRICS:
        return "max" if metric in MAXIMISED else "min"
    better = METRICS[metric].better
    if better is None:
        raise ConfigError(f"`metric` {metric}: neither less nor more of it is better; add `mode` min or `mode` max")
    return "min" if better == "less" else "max"


def prepare(job: JobConfig, request: SweepRequest) -> JobConfig:
    """The base job with what a sweep needs: its metric among the scores, and a score at the end of training."""
    from workers.metrics.registry import METRICS

    metric, evaluation = metric_of(request, job), job.evaluation
    columns = [name for name in METRIC_NAMES if name not in WALL_CLOCK]
    if metric not in METRICS and (metric in WALL_CLOCK or not is_column(metric)):
        hint = did_you_mean(metric, [*METRICS, *columns])
        raise ConfigError(f"`metric` {metric}: no evaluation produces it; known are {', '.join(METRICS)}{hint}")
    if metric in METRICS and metric not in evaluation.metrics:
        evaluation = replace(evaluation, metrics=(*evaluation.metrics, metric))
    if evaluation.every == 0:
        parts = 9 if request.scheduler == "asha" else 1  # two rungs below the end, at a reduction by 3
        evaluation = replace(evaluation, every=max(1, job.train.num_steps // parts))
    every = min(job.checkpoint.every, job.train.num_steps)
    if evaluation.every % every:  # a score needs a checkpoint
        every = evaluation.every
    return replace(job, name=None, evaluation=evaluation, checkpoint=replace(job.checkpoint, every=every))


def stored_base(job: JobConfig) -> dict[str, Any]:
    """The job as a tree without the settings of this machine."""

    def kept(tree: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        return {
            name: kept(value, f"{prefix}{name}.") if isinstance(value, Mapping) else value
            for name, value in tree.items()
            if f"{prefix}{name}" not in OF_THIS_MACHINE
        }

    return kept(to_tree(job), "")


def check_same(stored: SweepPlan, wanted: SweepPlan) -> None:
    """Refuse to go on with a sweep that was something else; the message shows what has changed."""
    old, new = (flatten(dataclasses.asdict(plan)) for plan in (stored, wanted))
    old, new = ({k: list(v) if isinstance(v, tuple) else v for k, v in one.items()} for one in (old, new))
    passing = ("version", "note", "title")
    changed = [k for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k) and k not in passing]
    if changed:
        shown = "; ".join(f"{k} was {old.get(k)!r:.80}, now {new.get(k)!r:.80}" for k in changed[:4])
        raise ConfigError(
            f"sweep {wanted.name!r} exists with other settings: {shown}. Use another `name` or the old ones"
        )


def _is_single(setting: str) -> bool:
    """Does PATH=VALUE give one value, no range and no list?"""
    path, _, text = setting.partition("=")
    return not is_range(text) and len(listed_values(path, text)) == 1


def _single_values(request: SweepRequest, where: str) -> Sequence[str]:
    for setting in request.settings:
        if not _is_single(setting):
            raise ConfigError(f"{setting}: {where} has rows of its own; sweep a preset over values instead")
    return request.settings


def read_yaml(path: Path, request: SweepRequest) -> SweepRequest:
    """The request that a YAML file makes, on top of the command line's settings, which win.

    Keys are those of SweepRequest: `settings` and `space` are maps of dotted paths, `rows` a list of maps with `key`,
    `settings` and perhaps `label`. Only plain data is read. Raises ConfigError.
    """
    import yaml

    try:
        tree = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as why:
        raise ConfigError(f"{path}: cannot be read ({why})") from None
    except (yaml.YAMLError, RecursionError) as why:
        raise ConfigError(f"{path}: not YAML ({' '.join(str(why).split())})") from None
    fields = {f.name: f for f in dataclasses.fields(SweepRequest)}
    _known(tree, [*fields, "space"], str(path))
    settings = [*_pairs(tree, "settings", path), *_pairs(tree, "space", path), *request.settings]
    rows = tuple(_yaml_row(row, path) for row in tree.get("rows") or ())
    if not tree.get("preset"):
        raise ConfigError(f"{path}: needs preset: one of {', '.join(PRESETS)}")
    for key in ("seeds", "seed", "trials", "max_concurrent"):
        if key in tree and type(tree[key]) is not int:
            raise ConfigError(f"{path}: {key} = {tree[key]!r}: must be a whole number")
    for key in ("preset", "name", "metric", "mode", "scheduler", "search"):
        if key in tree and not isinstance(tree[key], str):
            raise ConfigError(f"{path}: {key} = {tree[key]!r}: must be a text")
    default = SweepRequest()
    given = {n: getattr(request, n) for n in fields if getattr(request, n) != getattr(default, n)}
    plain = {n: v for n, v in tree.items() if n not in ("settings", "space", "rows")}
    return SweepRequest(**plain | given | {"settings": tuple(settings), "rows": rows})


def _pairs(tree: Mapping[str, Any], key: str, path: Path) -> list[str]:
    values = tree.get(key) or {}
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path}: {key} must be a map of dotted paths to values")
    return [f"{name}={_text(value)}" for name, value in values.items()]


def _text(value: Any) -> str:
    """A YAML value as it would stand on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return ",".join(json.dumps(one) if isinstance(one, list) else _text(one) for one in value)
    return str(value)


def _yaml_row(row: Any, path: Path) -> Row:
    _known(row, ["key", "label", "settings"], f"{path}: rows")
    key = str(row.get("key", ""))
    if not key or not set(key) <= set(_KEYS) or len(key) > 40:
        raise ConfigError(f"{path}: a row's key {key!r} must be 1 to 40 letters, digits, - or _; it names its runs")
    settings = tuple(_pairs(row, "settings", path))
    return Row(
        key=key, label=str(row.get("label", key)), settings=settings, choices={"row": str(row.get("label", key))}
    )


def _known(tree: Any, known: Sequence[str], where: str) -> None:
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{where}: must be a map with the keys {', '.join(known)}")
    for key in tree:
        if key not in known:
            hint = did_you_mean(str(key), known, cutoff=0.4) or f"; known are {', '.join(known)}"
            raise ConfigError(f"{where}: unknown key {key!r}{hint}")
