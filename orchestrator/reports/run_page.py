"""The page of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from orchestrator.records.rows import GRADIENT, LOSS, about_term
from orchestrator.records.scores import score_rows
from orchestrator.reports import figures as figures
from orchestrator.reports.page import render
from orchestrator.reports.pictures import Grids, Picture, grids, picture
from orchestrator.reports.run_data import PAPER_SCORES, RunData, gather
from orchestrator.storage.commits import step_name
from orchestrator.storage.run_store import Run

BUFFER = {"buffer_fill": "buffer in use", "clamped_fraction": "pixels at 0 or 1"}
CHAIN_BUDGET = 400_000
"""Bytes of each picture of long chains."""


@dataclass(frozen=True)
class Tile:
    """A figure that stands alone at the head of a page."""

    label: str
    value: str
    note: str
    kind: str = ""
    """good, bad or nothing."""


def run_page(run: Run, *, refresh_s: int | None = None) -> str:
    """The page of a stored run; with refresh_s it reloads itself so often until the run has ended."""
    data = gather(run)
    pictures = grids(run)
    last = data.last_scores
    columns, rows = published_column(score_table(last[1], data) if last else [])
    return render(
        "run.html",
        title=f"{data.name}, energy-based model",
        data=data,
        refresh_s=refresh_s if data.state == "unfinished" else None,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        tiles=tiles(data),
        summary=summary(data),
        hero=hero(pictures),
        grids=pictures,
        gap=figures.gap_figures(data),
        losses=loss_figures(data),
        gradients=gradient_figures(data),
        buffer=buffer_figures(data),
        score_step=last[0] if last else None,
        score_columns=columns,
        score_rows=rows,
        scores=figures.score_figures(data, PAPER_SCORES.get(str(data.setting("data.name")), {})),
        **studies(data),
        sections=setting_sections(data),
        changed=[s for s in data.settings if s.changed],
    )


def hero(pictures: Grids) -> Picture | None:
    """The picture that says most: the averaged model's newest samples, else the newest of the chains."""
    return (pictures.averaged or pictures.chains or [None])[-1]


def summary(data: RunData) -> str:
    """A sentence on what was trained and how it went."""
    what = (
        f"{data.setting('data.name')} at {data.setting('data.image_size')} × {data.setting('data.image_size')} pixels"
    )
    ends = {
        "finished": f"trained to its last step, {data.num_steps:,}",
        "diverged": f"diverged at step {data.diverged_at:,} of {data.num_steps:,}" if data.diverged_at else "diverged",
        "unfinished": f"stored up to step {data.step:,} of {data.num_steps:,}",
    }
    seam = data.setting("warmup.num_steps") or 0
    phases = f" The first {min(seam, data.num_steps):,} steps are flow matching, a warm start." if seam else ""
    return f"An energy-based model of {what}, {ends[data.state]}.{phases} Settings start from the preset {data.preset}."


def tiles(data: RunData) -> list[Tile]:
    """Steps, stability, a score and the cost."""
    found = [Tile("Steps", f"{data.step:,}", f"of {data.num_steps:,}"), stability_tile(data)]
    last = data.last_scores
    for metric in ("fid", "fid_judge", "fid_rotation", "fid_small", "inception_score"):
        if last and metric in last[1]:
            real = last[1][metric].get("heldout")
            note = f"real images {real:.3g}" if isinstance(real, float) else "at the last score"
            found.append(Tile(metric, f"{float(last[1][metric]['value']):.3g}", note))
            break
    spread = last[1].get("diversity", {}) if last else {}
    if spread.get("collapsed") is True:
        note = f"pair distances {float(spread['value']):.2f} of real ones', near-duplicates {spread['duplicates']:.0%}"
        found.append(Tile("Diversity", "collapsed", note, "bad"))
    cost, rates = data.cost, [r for r in data.rows.get("steps_per_s", []) if r]
    if cost.train_s:
        share = f"{cost.num_workers} × {cost.per_worker:g} {'GPU' if cost.unit == 'GPU-hours' else 'CPU'}"
        found.append(
            Tile(f"{cost.unit[0].upper()}{cost.unit[1:]}", f"{cost.hours:.3g}", f"{duration(cost.train_s)} on {share}")
        )
    if rates:
        middle = sorted(rates)[len(rates) // 2]
        found.append(Tile("Rate", f"{middle:.3g} steps/s", "median of the logged rows"))
    return found


def stability_tile(data: RunData) -> Tile:
    """The verdict on the energy gap, in the monitor's units."""
    running = [v for v in data.rows.get("running_gap", []) if v is not None]
    limit = float(data.setting("train.gap_limit") or -0.5)
    if data.state == "diverged":
        return Tile("Stability", "unstable", f"diverged at step {data.diverged_at:,}", "bad")
    if not running:
        return Tile("Stability", "-", "no row is stored yet")
    lowest = min(running)
    note = f"lowest running gap {lowest:.3g}, limit {limit:g}".replace("-", "\N{MINUS SIGN}")
    return Tile("Stability", "stable", note, "good") if lowest > limit else Tile("Stability", "at risk", note, "bad")


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    minutes, hours = seconds / 60, seconds / 3600
    return f"{hours:.3g} h" if hours >= 2 else f"{minutes:.3g} min" if minutes >= 2 else f"{seconds:.3g} s"


def loss_figures(data: RunData) -> list[figures.Figure]:
    """The weighted terms that training minimises."""
    text = "Each term with its weight and sign, as they are summed and minimised."
    return figures.column_figure(data, "Loss terms", text, {"loss": "sum"} | _of_terms(data, LOSS))


def gradient_figures(data: RunData) -> list[figures.Figure]:
    """Norms of the whole gradient, and of each term where train.grad_norms_every asked for them."""
    text = "L2 norm of the gradient before clipping; of each term (Fig. 12) where train.grad_norms_every is set."
    names = {"grad_norm": "whole gradient"} | _of_terms(data, GRADIENT)
    return figures.column_figure(data, "Gradient norms", text, names, log_y=True)


def _of_terms(data: RunData, prefix: str) -> dict[str, str]:
    """{column: label} of each term that the run has logged."""
    return {name: about_term(name.removeprefix(prefix)).label for name in data.rows if name.startswith(prefix)}


def buffer_figures(data: RunData) -> list[figures.Figure]:
    """What the chains start from, and whether they run against the ends of the range."""
    share = "Share of the buffer's slots in use, and of the samples' pixels at the ends of the data range."
    age = "Mean age of the past samples that Eq. 7 measures against, in steps."
    return [
        *figures.column_figure(data, "Buffer and clamping", share, BUFFER),
        *figures.column_figure(data, "Age of past samples", age, {"buffer_age": "mean age"}),
    ]


def published_column(rows: Sequence[tuple[str, ...]]) -> tuple[list[str], list[tuple[str, ...]]]:
    """The columns of the table of scores, and its rows; the paper's column only where it has a figure."""
    columns = ["score", "samples", "real, held out", "noise"]
    if any(row[-1] != "-" for row in rows):
        return [*columns, "paper (CIFAR-10)"], list(rows)
    return columns, [row[:-1] for row in rows]


def score_table(documents: Mapping[str, Any], data: RunData) -> list[tuple[str, ...]]:
    """(score, of the samples, real held-out images, noise, the paper) as text."""
    paper = PAPER_SCORES.get(str(data.setting("data.name")), {})
    rows = []
    for name, document in documents.items():
        try:
            found = score_rows({name: document})
        except (KeyError, TypeError):  # of another version
            found = [(name, document.get("value"), None, None)]
        for label, *values in found:
            published = paper.get(label)
            if name == "ood":
                published = document["sets"].get(label.removeprefix("AUROC against "), {}).get("published_auroc")
            shown = [f"{v:.4g}" if isinstance(v, (int, float)) else "-" for v in (*values, published)]
            rows.append((label, *(text.replace("-", "\N{MINUS SIGN}") if text != "-" else text for text in shown)))
    return rows


def studies(data: RunData) -> dict[str, Any]:
    """The newest study of OOD detection and of long chains, with their pictures."""
    newest = {name: step for step, documents in data.scores.items() for name in documents}
    ood, chains = newest.get("ood"), newest.get("chains")
    strips = []
    if chains is not None:
        for variant in data.scores[chains]["chains"].get("variants", {}):
            alt = f"chains of kind {variant} from noise at the left to their end at the right"
            key = f"evaluations/{step_name(chains)}/chains-{variant}.png"
            strips.append(
                picture(data.run, key, alt, variant.replace("_", " "), CHAIN_BUDGET) if _is_word(variant) else None
            )
    return {
        "ood_step": ood,
        "ood": figures.ood_figure(data.run, ood) if ood is not None else [],
        "chain_step": chains,
        "chains": figures.chain_figures(data.scores[chains]["chains"]) if chains is not None else [],
        "strips": [strip for strip in strips if strip],
    }


def _is_word(text: str) -> bool:
    """Can it be part of a key?"""
    return text.replace("_", "").isalnum() and text.isascii()


def setting_sections(data: RunData) -> dict[str, list[Any]]:
    """Settings by their first word; those without a section come first."""
    sections: dict[str, list[Any]] = {"run": []}
    for setting in data.settings:
        section, dot, _ = setting.path.partition(".")
        sections.setdefault(section if dot else "run", []).append(setting)
    return sections
