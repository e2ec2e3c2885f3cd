"""docs/commands.md, made from the commands themselves: `python -m docs.command_reference`.

What a command does, its example and its options are what `ebm COMMAND --help` prints. Written here is only when to use
it: one line in USE for each command, with further examples, each of which a test parses.
"""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

HEAD = """\
# Commands

Made by `python -m docs.command_reference` from the commands themselves; a test compares them.
`ebm COMMAND --help` prints what a command does, and its options, on a terminal.

- **PRESET** is one of {presets}. **PATH=VALUE** is any setting of [the configuration](configuration.md).
- **RUN** is the name of a run in `--storage` (default: `./runs`), its folder, or `s3://bucket/.../run`.
- Results go to standard output; progress, notes and errors go to standard error.

## Exit statuses

| Status | Meaning |
| --- | --- |
| 0 | done; also when there was nothing left to do |
| 1 | `ebm doctor` or `ebm verify` found something bad, a sweep lacks results, or a followed job was lost |
| 2 | wrong input, or something that could not be reached: one line on standard error says what to do |
| 3 | training diverged; its last state is stored |
| 130, 143 | stopped by Ctrl-C or SIGTERM; training stores a checkpoint first |
"""

USE: dict[str, tuple[str, tuple[str, ...]]] = {
    "train": (
        "Repeat the command with the same `name=` to resume an interrupted run; a finished run is left as it is. At "
        "the end `ebm train` prints where the run, its samples and its page are.",
        ("ebm train cifar10 name=here data.root=data cluster.num_workers=4 cluster.use_gpu=true",),
    ),
    "config": (
        "Useful before a long run, to see what will be trained. An unknown setting is refused, with the nearest known "
        "one.",
        ("ebm config cifar10 sampler.num_steps=60", "ebm config digits --json"),
    ),
    "profile": ("Useful before a long run, and to compare engine settings.", ()),
    "sample": (
        "Any stored checkpoint of the run can be drawn from.",
        ("ebm sample first --count 16 --steps 400",),
    ),
    "doctor": (
        "Run this first on a new machine, and whenever something looks wrong. Each problem comes with its remedy.",
        ("ebm doctor --storage s3://runs",),
    ),
    "evaluate": (
        "A run can be scored any number of times; each score document names the checkpoint, the data and the seed. "
        "Scores made beside training (`evaluation.every`) come from the same code.",
        (
            "ebm evaluate first --metrics ood ood.sets=svhn=data ood.protocol=paper_code",
            "ebm evaluate first --metrics chains chains.num_steps=3000",
        ),
    ),
    "compose": (
        "The runs may have been trained apart, but on one data set and image size. A run that was trained with "
        "`data.condition` needs a CONDITION.",
        (
            "ebm compose left:left=1 top:top=1 --op and --weight 2 --weight 1",
            "ebm compose written:3 written:8 --op or",
        ),
    ),
    "sweep": (
        "Give a grid of the paper by name, or a preset with several values for a setting. After a stop, the "
        "repeated command runs only the missing trials. `--dry-run` prints their number and about how long they take.",
        (),
    ),
    "report": (
        "The page is one HTML file without links to elsewhere. See [the page of a run](report.md).",
        (
            "ebm report first second --out compared.html",
            "ebm report first --live",
            "ebm report first --tensorboard events",
        ),
    ),
    "submit": (
        "The machine need not be part of the cluster. See [operating](operate.md).",
        ("ebm submit sweep table2 --seeds 3 storage=s3://bucket/runs",),
    ),
    "jobs": ("The list shows each job's run, state and age.", ("ebm jobs --json",)),
    "logs": ("A finished job's output can be read too.", ("ebm logs first -f",)),
    "stop": ("No step is lost.", ("ebm stop first",)),
    "resume": ("The settings need not be repeated: they are stored with the run.", ()),
    "clone": ("Useful to try a change, for instance after a divergence.", ()),
    "verify": (
        "Useful after damage to a disk, before a run is archived, or in a nightly job.",
        ("ebm verify first --set-aside",),
    ),
    "gc": ("Useful after a process was killed. Files of a committed checkpoint are never touched.", ()),
    "data download": (
        "The published files are downloaded once, and their published checksums are checked.",
        ("ebm data download cifar10 data.root=data",),
    ),
    "data check": (
        "Useful before training on images of your own: how many are found, how many are held out, and in what shape "
        "the model sees an image.",
        ("ebm data check digits data.name=image_folder data.root=pictures",),
    ),
    "data prepare": (
        "Useful for a cluster whose nodes share no folder, or for images that are slow to decode. See "
        "[data on a cluster](operate.md#data-on-a-cluster).",
        ("ebm data prepare digits data.name=image_folder data.root=pictures --to prepared",),
    ),
    "data inception": ("Needed once per machine.", ()),
    "data mobilenet": ("Needed once per machine. Nothing is downloaded.", ()),
    "runs": (
        "Each run is listed with its state and its scores.",
        ("ebm runs --sort fid_judge", "ebm runs --sweep table2-digits --json"),
    ),
    "runs compare": ("Useful to find out why two runs came out differently.", ()),
    "metrics list": ("A gauge is a number that runs export while they train.", ()),
    "metrics config": ("Prometheus needs it to find the exporters. See [watching](operate.md#watching).", ()),
}


def reference() -> str:
    """The whole page, Markdown."""
    from ebm_core.presets import PRESETS

    head = HEAD.format(presets=", ".join(f"`{name}`" for name in PRESETS))
    return "\n".join([head, *(section(name, command) for name, command in sorted(commands(), key=_place))])


def commands() -> Iterator[tuple[str, Any]]:
    """(name, command) of everything that runs: `train`, `data check`, and a group that runs by itself, `runs`."""
    from typer.main import get_command

    from orchestrator.cli.app import app

    yield from _below(get_command(app), "")


def section(name: str, command: Any) -> str:
    """One heading: what it does, when to use it, examples, arguments and options."""
    does, own = described(command)
    when, more = USE[name]
    lines = [
        f"## `ebm {name}`",
        "",
        *(line for part in (*does, when) for line in (part, "")),
        "```sh",
        *own,
        *more,
        "```",
    ]
    kinds = get_type_hints(command.callback)
    rows = [row for parameter in command.params if (row := _row(parameter, kinds.get(parameter.name)))]
    return "\n".join([*_without_empty_block(lines), "", *_table(rows), ""]).replace("\n\n\n", "\n\n")


def described(command: Any) -> tuple[list[str], list[str]]:
    """What the docstring says: its text, and the commands after `Example:`."""
    text = inspect.cleandoc(command.help or "")
    prose = [" ".join(part.split()) for part in text.split("\n\n") if not part.startswith("Example")]
    return prose, re.findall(r"^(?:Examples?: )?(ebm .+)$", text, re.MULTILINE)


def _place(item: tuple[str, Any]) -> int:
    return list(USE).index(item[0])


def _below(group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        path = f"{prefix}{name}"
        if not hasattr(command, "commands"):
            yield path, command
            continue
        if command.invoke_without_command:
            yield path, command
        yield from _below(command, f"{path} ")


def _without_empty_block(lines: list[str]) -> list[str]:
    return lines[:-3] if lines[-2:] == ["```sh", "```"] else lines


def _table(rows: list[tuple[str, str, str]]) -> list[str]:
    if not rows:
        return []
    lines = ["| Argument, option | Meaning | Default |", "| --- | --- | --- |"]
    return [*lines, *("| " + " | ".join(_escaped(cell) for cell in row) + " |" for row in rows)]


def _escaped(cell: str) -> str:
    """Text that Markdown leaves as it is; between backticks only the column's sign is special."""
    parts = cell.split("`")
    parts[::2] = [part.replace("<", "&lt;") for part in parts[::2]]
    return "`".join(parts).replace("|", "\\|")


def _row(parameter: Any, kind: Any) -> tuple[str, str, str] | None:
    """(how it is written, what it means, its default); None for --help, which all have."""
    if parameter.name == "help":
        return None
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar or parameter.name.upper()}`", parameter.help or "", ""
    value = "" if kind is bool else f" {parameter.metavar or _noun(kind)}"
    names = ", ".join(f"`{option}{value}`" for option in sorted(parameter.opts, key=len, reverse=True))
    told = kind is not bool and isinstance(parameter.default, str | int | float)
    return names, parameter.help or "", f"`{parameter.default}`" if told else ""  # else its meaning says


def _noun(kind: Any) -> str:
    """What stands for a value of this type: `int | None` and `list[int] | None` are as `int`."""
    inner = {kind, *get_args(kind), *(one for part in get_args(kind) for one in get_args(part))}
    return "N" if int in inner else "X" if float in inner else "FILE" if Path in inner else "TEXT"


if __name__ == "__main__":
    print(reference(), end="")
