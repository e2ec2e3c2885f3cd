"""The command `ebm`. Heavy imports happen inside the commands, so that `ebm --help` answers at once."""

import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from orchestrator.cli import data, evaluate, jobs, metrics, report, runs, sweep
from orchestrator.cli.options import Address, Preset, RunName, Settings, Storage, show_result

app = typer.Typer(
    name="ebm",
    help="Train, sample and score energy-based models (improved contrastive divergence) on PyTorch and Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
data_app = typer.Typer(help="Get data sets, check the files of one, prepare one for a cluster.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(runs.app, name="runs")
app.add_typer(metrics.metrics_app, name="metrics")
app.command()(evaluate.evaluate)
data_app.command()(data.inception)
data_app.command()(data.mobilenet)
app.command()(evaluate.compose)
app.command()(sweep.sweep)
app.command()(report.report)
app.command(context_settings={"ignore_unknown_options": True})(jobs.submit)
for command in (jobs.jobs, jobs.logs, jobs.stop, jobs.resume, jobs.clone):
    app.command()(command)
runs.register(app)


@app.command()
def train(preset: Preset, settings: Settings = None, address: Address = None) -> None:
    """Train PRESET; a run of the same name= goes on from its newest checkpoint.

    Example: ebm train digits train.num_steps=500 name=first
    """
    from orchestrator.settings.job import job_preset
    from orchestrator.settings.overrides import override

    job = override(job_preset(preset), settings or [])
    from orchestrator.terminal.progress import open_display
    from orchestrator.training.driver import run_training

    result = run_training(job, prefix=preset, address=address, display=open_display(job.train.num_steps))
    show_result(result)
    if result.stopped_by is not None:
        again = " ".join(word for word in settings or [] if not word.startswith("name="))
        print(f"stopped at step {result.step} of {result.num_steps}; go on with:", file=sys.stderr)
        print(f"  ebm train {preset} name={result.name} {again}".rstrip(), file=sys.stderr)
        raise typer.Exit(128 + result.stopped_by)


@app.command()
def config(
    preset: Preset,
    settings: Settings = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print the resolved settings of PRESET and exit."""
    import json

    from ebm_core.config import to_tree
    from orchestrator.settings.job import job_preset
    from orchestrator.settings.overrides import override
    from orchestrator.settings.trees import describe

    job = override(job_preset(preset), settings or [])
    print(json.dumps(to_tree(job), indent=2, ensure_ascii=False) if json_ else describe(job))


@app.command()
def profile(
    preset: Preset,
    settings: Settings = None,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Steps to time, after two to warm up.")] = 5,
) -> None:
    """Time the parts of a training step on this machine and predict the hours of a full run.

    Example: ebm profile cifar10 train.batch_size=16 engine.compile=true engine.winograd=true
    """
    from orchestrator.cli.train import show_profile
    from orchestrator.settings.job import job_preset
    from orchestrator.settings.overrides import override

    show_profile(override(job_preset(preset), settings or []), steps)


@app.command()
def sample(
    run: RunName,
    count: Annotated[int, typer.Option(min=1, max=100_000, help="Number of images.")] = 64,
    out: Annotated[Optional[Path], typer.Option(help="PNG file to write. Default: <run>-<step>.png here.")] = None,  # noqa: UP045
    seed: Annotated[int, typer.Option(min=0, help="Samples of one seed are the same each time.")] = 0,
    checkpoint: Annotated[int | None, typer.Option(min=0, help="Step of the checkpoint. Default: the newest.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Langevin steps. Default: sampler.generate_steps.")] = None,
    storage: Storage = "./runs",
) -> None:
    """Draw images from the averaged (EMA) model of a stored run."""
    from orchestrator.evaluation.sample import draw_grid

    print(draw_grid(run, storage=storage, count=count, out=out, seed=seed, step=checkpoint, num_steps=steps))


@app.command()
def doctor(storage: Annotated[str, typer.Option(help="Storage to try.")] = "./runs") -> None:
    """Say what of the environment is missing or unsafe, with its remedy. Exit status 1 if something must be mended."""
    from orchestrator.cli.doctor import examine

    failed = 0
    colors = {"OK": typer.colors.GREEN, "WARN": typer.colors.YELLOW, "FAIL": typer.colors.RED}
    for finding in examine(storage):
        typer.echo(f"{typer.style(f'{finding.state:<4}', fg=colors[finding.state])}  {finding.what}")
        if finding.remedy:
            typer.echo(f"      {finding.remedy}")
        failed += finding.state == "FAIL"
    if failed:
        raise typer.Exit(1)


@data_app.command("download")
def data_download(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A data set such as cifar10.")],
    settings: Annotated[Optional[list[str]], typer.Argument(metavar="[data.root=FOLDER]")] = None,  # noqa: UP045
) -> None:
    """Download a data set through torchvision into data.root, in the layout that training reads."""
    from ebm_core.data import download

    job = _data_job(name, settings)
    download(job.data.name, job.data.root)
    print(f"{name} is in {Path(job.data.root).absolute()}")


@data_app.command("check")
def data_check(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A preset or a data set such as cifar10.")],
    settings: Settings = None,
) -> None:
    """Read a data set and say what is in it."""
    from ebm_core.data import check_files, load

    cfg = _data_job(name, settings).data
    check_files(cfg)
    for split in ("train", "test"):
        images = load(cfg, split)
        channels, height, width = images.image_shape
        print(f"{name} {split}: {len(images)} images of {channels} x {height} x {width}")


@data_app.command("prepare")
def data_prepare(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A preset or a data set such as cifar10.")],
    to: Annotated[str, typer.Option("--to", metavar="PLACE", help="A new folder or s3://BUCKET/PREFIX.")],
    settings: Settings = None,
) -> None:
    """Decode a data set once and store it as Parquet shards; training then reads them with data.root=PLACE.

    Example: ebm data prepare cifar10 data.root=~/data --to s3://bucket/datasets/cifar10
    """
    from orchestrator.training.prepare_data import prepare

    cfg = _data_job(name, settings).data
    found = prepare(cfg, to, lambda text: print(text, file=sys.stderr))
    print(f"{found.train.num_images:,} images to train on and {found.test.num_images:,} to test with are in {to}")
    print(f"  ebm train {name} data.root={shlex.quote(to)}")


def _data_job(name: str, settings: list[str] | None) -> Any:
    """The preset of that name, or the default job with that data set."""
    from ebm_core.presets import PRESETS
    from orchestrator.settings.job import JobConfig, job_preset
    from orchestrator.settings.overrides import override

    job = job_preset(name) if name in PRESETS else override(JobConfig(), [f"data.name={name}"])
    return override(job, settings or [])


def main() -> None:
    """Entry point of `ebm`: an EbmError is one line and exit status 2 (3: diverged), never a traceback."""
    for name in ("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION"):
        os.environ.setdefault(name, "when_required")
    try:
        code = app(prog_name="ebm", standalone_mode=False)
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at exit
        code = 128 + signal.SIGPIPE
    except Exception as error:
        code = _explain(error)
    sys.exit(code)


def _explain(error: Exception) -> int:
    """Print the line that belongs to an error, and return the exit status. A fault of the program is raised again."""
    from ebm_core.errors import DivergenceError, EbmError

    if isinstance(error, EbmError):
        print(f"ebm: {' '.join(str(error).split())}", file=sys.stderr)
        return 3 if isinstance(error, DivergenceError) else 2
    if hasattr(error, "format_message"):  # the command line itself is wrong
        message = error.format_message()  # pyright: ignore[reportAttributeAccessIssue]
        if message:
            print(f"ebm: {message.rstrip('.')}; see `ebm --help`", file=sys.stderr)
        return 2
    raise error


if __name__ == "__main__":
    main()
