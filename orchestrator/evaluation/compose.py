"""`ebm compose`: images of several runs' energies at once, and how far each factor that was asked for is there.

Results go beside the first run, `<run>/compositions/<op>-<digest>.json` and `.png`, where the digest stands for all
that was asked, so that asking again overwrites; or to a PNG file of one's own and a JSON file beside it.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray

from ebm_core.config import TrainConfig
from ebm_core.data import load
from ebm_core.errors import ConfigError
from ebm_core.files import whole_file
from ebm_core.types import Pixels
from orchestrator.cluster.connection import start_ray
from orchestrator.cluster.environment import WORKER_ENV, storage_environment
from orchestrator.cluster.pool import Pool, PoolRunner, Say
from orchestrator.evaluation.actors import FetchCheckpoint
from orchestrator.records.scores import find_step
from orchestrator.settings.job import core_config, parse
from orchestrator.storage.find import open_run
from orchestrator.storage.run_store import Run
from workers.actor import composition_actor
from workers.calls import call
from workers.pictures import grids_png
from workers.studies.composer import COMPOSED, Composer
from workers.studies.composition import GRID_IMAGES, draw
from workers.studies.recipes import Concept, Recipe, check_together, parse_concept, recipe
from workers.studies.study import Document


@dataclass(frozen=True, kw_only=True)
class ComposeRequest:
    """What to compose, and how."""

    concepts: tuple[str, ...]
    """RUN[@STEP][:CONDITION] each."""
    operation: str = "and"
    constants: str = "code"
    weights: tuple[float, ...] | None = None
    sharpness: float | None = None
    num_images: int = 256
    """Of the composition and of each energy alone."""
    num_steps: int | None = None
    """Of each chain. None: the first run's sampler.generate_steps."""
    seed: int = 0
    num_actors: int | None = None
    """None: one per CPU of the cluster."""


@dataclass(frozen=True)
class Part:
    """One concept, found: where its energy is stored, and what a person wrote of its condition."""

    run: Run
    step: int
    cfg: TrainConfig
    told: str

    @property
    def name(self) -> str:
        """What a table calls it."""
        return f"{self.run.name}:{self.told}" if self.told else self.run.name


def compose(
    request: ComposeRequest,
    *,
    storage: str = "./runs",
    out: Path | None = None,
    address: str | None = None,
    say: Say = lambda _: None,
) -> tuple[Document, list[str]]:
    """Draw, judge and store; the result and where it was written. An EbmError stores nothing."""
    if out is not None and (out.is_dir() or not out.absolute().parent.is_dir() or out.suffix != ".png"):
        raise ConfigError(f"`out` {out}: must be a .png file in a folder that exists")
    if not 1 <= request.num_images <= 1_000_000:
        raise ConfigError(f"`num_images` {request.num_images}: must lie in 1 to 1000000")
    parts = [find_part(text, storage) for text in request.concepts]
    check_together([part.cfg for part in parts], [part.run.name for part in parts])
    concepts = [_concept(i, part) for i, part in enumerate(parts)]
    how = recipe(request.operation, concepts, request.constants, request.weights, request.sharpness)
    start_ray(address, say)
    images, document = _measure(request, parts, how, say)
    document = _described(request, parts) | document
    shown = [images[name][:GRID_IMAGES] for name in (*(name for name in images if name != COMPOSED), COMPOSED)]
    return document, _store(parts[0].run, document, grids_png(shown), out)


def find_part(text: str, storage: str) -> Part:
    """The run, step and condition of RUN[@STEP][:CONDITION]; options of a URI follow: s3://b/run:left=1?endpoint_url=…

    Raises ConfigError for a run or step that is not there, CheckpointError for a run without checkpoints.
    """
    plain, sign, options = text.partition("?")
    folder, slash, last = plain.rpartition("/")
    place, _, told = last.partition(":")
    name, at, number = place.partition("@")
    if at and not number.isdecimal() and number != "best":
        raise ConfigError(f"{text}: {number!r} is no training step; write RUN@500:CONDITION or RUN@best:CONDITION")
    run = open_run(f"{folder}{slash}{name}{sign}{options}", storage)
    if number.isdecimal() and int(number) not in (stored := run.checkpoints()) and stored:
        raise ConfigError(f"{text}: run {run.name} has the steps {', '.join(map(str, sorted(stored)))}, and best")
    step = find_step(run, number if at else None)
    return Part(run, step, core_config(parse(run.read_config())), told.strip())


def _measure(
    request: ComposeRequest, parts: Sequence[Part], how: Recipe, say: Say
) -> tuple[dict[str, Pixels], Document]:
    environment = storage_environment()
    fetches = [(FetchCheckpoint(part.run.store.uri, part.run.name, environment), part.step) for part in parts]
    actors = request.num_actors or max(1, int(ray.cluster_resources().get("CPU", 1)))
    names = _unique([part.name for part in parts])
    recipes = {COMPOSED: how, **{f"{name} alone": how.alone(i) for i, name in enumerate(names)}}
    with Pool(lambda: _new_actor(fetches), actors, say) as pool:
        runner = PoolRunner(pool)
        runner.run({0: call(Composer.prepare, how)})
        sizes = {"num_images": request.num_images, "seed": request.seed}
        images = draw(runner, Composer.draw, recipes, **sizes, num_steps=request.num_steps)
        return images, runner.run({0: call(Composer.report, how, images, request.num_steps)})[0]


def _new_actor(fetches: Sequence[tuple[FetchCheckpoint, int]]) -> Any:
    return composition_actor().options(runtime_env={"env_vars": WORKER_ENV}).remote(fetches)


def _concept(member: int, part: Part) -> Concept:
    """ConfigError names the run whose energy does not know the condition."""
    try:
        label = part.cfg.data.condition == "label"
        named = label and not part.told.rpartition("=")[2].isdecimal()
        names = load(part.cfg.data, "train").class_names if named else ()
        return parse_concept(member, part.cfg.data, part.told, names)
    except ConfigError as why:
        raise ConfigError(f"{part.run.name}: {why}") from None


def _unique(names: Sequence[str]) -> list[str]:
    """Names of parts; one that comes twice gets its number."""
    return [f"{name} ({i + 1})" if names.count(name) > 1 else name for i, name in enumerate(names)]


def _described(request: ComposeRequest, parts: Sequence[Part]) -> Document:
    asked = asdict(request) | {
        "concepts": [{"run": part.run.name, "step": part.step, "told": part.told} for part in parts],
        "weights": None if request.weights is None else list(request.weights),
    }
    del asked["num_actors"]
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:10]
    return {"name": f"{request.operation}-{digest}", **asked}


def _store(run: Run, document: Document, png: bytes, out: Path | None) -> list[str]:
    if out is None:
        key = f"compositions/{document['name']}"
        run.write_bytes(f"{key}.png", png)
        run.write_json(f"{key}.json", document)
        return [f"{run.uri}/{key}.png", f"{run.uri}/{key}.json"]
    text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    written = []
    for path, content in ((out, png), (out.with_suffix(".json"), text.encode())):
        try:
            with whole_file(path) as fresh:
                fresh.write_bytes(content)
        except OSError as why:
            raise ConfigError(f"`out` {path}: cannot be written: {why.strerror}") from None
        written.append(str(path))
    return written
