"""Plots of a training: its predictions and its course."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from slideio_pipe.errors import require
from slideio_pipe.files import make_folder, write_file
from slideio_pipe.mil.curves import Calibration, kaplan_meier, log_rank, precision_recall_curve, roc_curve, upper_half
from slideio_pipe.mil.metrics import Metric
from slideio_pipe.mil.tasks import Classification, Regression, Survival, Task

# Colours of P. Tol's "bright" scheme, distinguishable with any colour vision.
_COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377")
_INK, _QUIET, _GRID = "#282828", "#8a8a8a", "#e4e4e4"
_WIDE_IN, _HIGH_IN, _DPI = 5.6, 5.0, 160
_MARGIN_IN, _LINE_IN = 0.12, 0.23
_DASHED = {"color": _QUIET, "linewidth": 1, "linestyle": (0, (4, 3))}
Models = NDArray[np.int64]  # number of the model of each prediction
_PARTS = {"val": "validation", "test": "test"}


def write_plots(
    folder: Path,
    task: Task,
    part: str,
    logits: Tensor,
    targets: Tensor,
    metrics: Mapping[str, Metric],
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    strata: Sequence[int] | None = None,
    unit: str = "slide",
) -> list[Path]:
    """Write the plots of a training into a folder, replacing existing ones; return their files.

    Classification: ``roc.png``, ``precision_recall.png``, ``calibration.png``. Regression: ``regression.png``.
    Survival: ``survival.png``. And ``history.png``. Raise MissingExtraError if matplotlib is not installed, OutputError
    if the folder cannot be written.

    Parameters
    ----------
    folder : Path
        Created if missing.
    task : Task
    part : str
        The part of the predictions, "val" or "test".
    logits, targets : tensors
        (n, outputs) and (n, …), for the slides with a known label.
    metrics : mapping
        From ``measure``, for these slides.
    histories : mapping
        The rows of ``history.csv`` of each division.
    strata : sequence of int, optional
        The model of each prediction: risks are compared within each.
    unit : str
        What is predicted: "slide" or "patient".
    """
    figures: dict[str, Any] = {}
    if len(logits):
        slides = f"{_PARTS.get(part, part)}, {len(logits):,} {unit}{'' if len(logits) == 1 else 's'}"
        models = np.zeros(len(logits), np.int64) if strata is None else np.asarray(strata, np.int64)
        figures = _of_task(task, logits.detach().double().cpu(), targets.cpu(), models, metrics, slides)
    if any(len(rows) for rows in histories.values()):
        figures["history"] = _history(histories)
    make_folder(folder)
    files = []
    for name, figure in figures.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=_DPI)
        files.append(folder / f"{name}.png")
        write_file(files[-1], buffer.getvalue(), overwrite=True)
    return files


def _noun(counted: str) -> str:
    """Return the noun of a counted text such as "test, 12 slides"."""
    return "patients" if "patient" in counted else "slides"


def _of_task(
    task: Task, logits: Tensor, targets: Tensor, models: Models, metrics: Mapping[str, Metric], slides: str
) -> dict[str, Any]:
    if isinstance(task, Classification):
        chances, wanted = task.probabilities(logits).numpy(), targets.numpy().astype(np.int64)
        classes = [len(task.classes) - 1] if len(task.classes) == 2 else range(len(task.classes))
        # A class of no slide, or of every slide, has no curve.
        curves = [(k, wanted == k, chances[:, k]) for k in classes if 0 < (wanted == k).sum() < len(wanted)]
        found = {"roc": _roc, "precision_recall": _precision_recall} if curves else {}
        drawn = {name: draw(task, curves, metrics, slides) for name, draw in found.items()}
        return drawn | {"calibration": _calibration(task, chances, wanted, slides)}
    if isinstance(task, Regression):
        return {"regression": _regression(task, logits[:, 0].numpy(), targets.numpy(), metrics, slides)}
    if isinstance(task, Survival):
        return {"survival": _survival(logits[:, 0].numpy(), targets.numpy(), models, metrics, slides)}
    return {}


def _figure(title: str, across: str, up: str, *, high: float = _HIGH_IN) -> tuple[Any, Any]:
    """Return a figure with one plot, without pyplot's state and without changing the caller's settings."""
    figure = require("matplotlib.figure", "train").Figure(
        figsize=(_WIDE_IN, high), layout="constrained", facecolor="white"
    )
    axes = figure.add_subplot()
    _plain(axes)
    axes.set_title(title, loc="left", fontsize=12, color=_INK)
    axes.set_xlabel(across, fontsize=12, color=_INK)
    axes.set_ylabel(up, fontsize=12, color=_INK)
    return figure, axes


def _plain(axes: Any) -> None:
    axes.set_facecolor("white")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_QUIET)
    axes.tick_params(colors=_INK, labelsize=11)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def _legend(figure: Any) -> None:
    """Explain the lines below the plot, where they hide no curve; the plot keeps its size."""
    legend = figure.legend(loc="outside lower left", fontsize=11, frameon=False, labelcolor=_INK)
    wide, high = figure.get_size_inches()
    figure.set_size_inches(wide, high + _LINE_IN * (len(legend.get_texts()) - 1))
    figure.get_layout_engine().set(w_pad=_MARGIN_IN, h_pad=_MARGIN_IN)


def _name(task: Classification, number: int) -> str:
    return f"{task.column} {task.classes[number]}"


def _roc(task: Classification, curves: Any, metrics: Mapping[str, Metric], slides: str) -> Any:
    figure, axes = _figure(f"ROC ({slides})", "false positive rate", "true positive rate")
    axes.plot([0, 1], [0, 1], label="chance", **_DASHED)
    for n, (k, truth, chance) in enumerate(curves):
        false, true = roc_curve(truth, chance)
        area = float(np.sum(np.diff(false) * (true[1:] + true[:-1]) / 2))
        label = f"AUROC {_stated(metrics.get('auroc'))}" if len(task.classes) == 2 else f"{_name(task, k)}: {area:.3f}"
        axes.plot(false, true, color=_COLOURS[n % len(_COLOURS)], linewidth=2.2, label=label, clip_on=False)
    _square(axes)
    if len(task.classes) > 2:
        axes.plot([], [], " ", label=f"mean AUROC {_stated(metrics.get('auroc'))}")
    _legend(figure)
    return figure


def _precision_recall(task: Classification, curves: Any, metrics: Mapping[str, Metric], slides: str) -> Any:
    figure, axes = _figure(f"precision and recall ({slides})", "recall", "precision")
    for n, (k, truth, chance) in enumerate(curves):
        recall, precision = precision_recall_curve(truth, chance)
        colour = _COLOURS[n % len(_COLOURS)]
        mean = float(np.sum(np.diff(recall) * precision[1:]))
        label = f"AUPRC {_stated(metrics.get('auprc'))}" if len(task.classes) == 2 else f"{_name(task, k)}: {mean:.3f}"
        # Average precision is the area below these steps.
        axes.step(recall, precision, where="pre", color=colour, linewidth=2.2, label=label, clip_on=False)
        dashed = _DASHED | ({"color": colour} if len(curves) > 1 else {})
        axes.axhline(truth.mean(), label=None if n else "chance", **dashed)
    _square(axes)
    if len(task.classes) > 2:
        axes.plot([], [], " ", label=f"mean AUPRC {_stated(metrics.get('auprc'))}")
    _legend(figure)
    return figure


def _calibration(task: Classification, chances: Any, classes: Any, slides: str) -> Any:
    """Draw the observed against the predicted frequency: of two classes the second, of several the predicted one."""
    if len(task.classes) == 2:
        truth, chance = classes == 1, chances[:, 1]
        across, up = f"predicted probability of {_name(task, 1)}", "observed fraction"
    else:
        truth, chance = chances.argmax(1) == classes, chances.max(1)
        across, up = "probability of the predicted class", "fraction correct"
    found = Calibration.of(truth, chance)
    figure, axes = _figure(f"calibration ({slides})", across, up)
    axes.plot([0, 1], [0, 1], label="perfect", **_DASHED)
    reach = np.clip([found.observed - found.low, found.high - found.observed], 0, 1)
    label = f"calibration error {found.error:.3f}; numbers are {_noun(slides)}"
    axes.errorbar(
        found.predicted, found.observed, reach, color=_COLOURS[0], fmt="o-", markersize=6, linewidth=1.8,
        elinewidth=1.2, capsize=3, label=label, clip_on=False,
    )  # fmt: skip
    for x, y, count in zip(found.predicted, found.high, found.counts, strict=True):
        below = y > 0.93
        at = found.low[np.flatnonzero(found.predicted == x)[0]] if below else y
        axes.annotate(
            f"{count:,}", (x, at), (-7 if x > 0.5 else 7, -13 if below else 3), textcoords="offset points",
            ha="right" if x > 0.5 else "left", fontsize=10, color=_QUIET,
        )  # fmt: skip
    _square(axes)
    _legend(figure)
    return figure


def _regression(task: Regression, logits: Any, targets: Any, metrics: Mapping[str, Metric], slides: str) -> Any:
    predicted = logits * task.std + task.mean
    figure, axes = _figure(f"{task.column} ({slides})", f"true {task.column}", f"predicted {task.column}")
    ends = np.array([min(predicted.min(), targets.min()), max(predicted.max(), targets.max())])
    ends += np.array([-0.05, 0.05]) * max(float(np.ptp(ends)), 1e-9)
    axes.plot(ends, ends, label="predicted = true", **_DASHED)
    size = 34 if len(targets) <= 300 else 12
    axes.scatter(targets, predicted, s=size, color=_COLOURS[0], alpha=0.75, linewidths=0)
    axes.set_xlim(*ends)
    axes.set_ylim(*ends)
    axes.set_aspect("equal")
    texts = [f"R² {_stated(metrics.get('r2'))}", f"MAE {_stated(metrics.get('mae'))}"]
    axes.plot([], [], " ", label=", ".join(texts))
    _legend(figure)
    return figure


def _survival(risk: Any, targets: Any, models: Models, metrics: Mapping[str, Metric], slides: str) -> Any:
    time, event = targets[:, 0], targets[:, 1] == 1
    high = upper_half(risk, models)
    _, p = log_rank(time, event, high, models)
    figure, axes = _figure(f"survival by predicted risk ({slides})", "time", "survival probability")
    for group, name, colour in ((~high, "lower", _COLOURS[0]), (high, "higher", _COLOURS[1])):
        if not group.any():
            continue
        times, survive = kaplan_meier(time[group], event[group])
        last = float(time[group].max())
        label = f"{name} half of risks: {int(group.sum()):,} {_noun(slides)}, {int(event[group].sum()):,} events"
        x, y = np.append(times, max(last, times[-1])), np.append(survive, survive[-1])
        axes.step(x, y, where="post", color=colour, linewidth=2.2, label=label)
        censored = time[group][~event[group]]
        at = survive[np.searchsorted(times, censored, side="right") - 1]
        axes.plot(censored, at, "|", color=colour, markersize=8, markeredgewidth=1.2, label=f"{name}: censored")
    text = f"C-index {_stated(metrics.get('c_index'))}"
    axes.plot([], [], " ", label=text if math.isnan(p) else f"{text}; log-rank {_p(p)}")
    axes.set_xlim(left=0)
    axes.set_ylim(0, 1.02)
    _legend(figure)
    return figure


def _history(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> Any:
    """Draw loss and leading metric per epoch; with several folds, thin lines."""
    first = next(rows for rows in histories.values() if len(rows))
    leading = next((name for name in first[0] if name.startswith("val_") and name != "val_loss"), None)
    figure = require("matplotlib.figure", "train").Figure(
        figsize=(_WIDE_IN, _HIGH_IN if leading else 3.2), layout="constrained", facecolor="white"
    )
    panels = figure.subplots(2 if leading else 1, 1, sharex=True, squeeze=False)[:, 0]
    for axes in panels:
        _plain(axes)
    several = len(histories) > 1
    for rows in histories.values():
        epochs = [row["epoch"] for row in rows]
        thin = {"linewidth": 1.1 if several else 2.0, "alpha": 0.7 if several else 1.0}
        lines = [(panels[0], "loss", "training", _COLOURS[0]), (panels[0], "val_loss", "validation", _COLOURS[1])]
        lines += [(panels[1], leading, "validation", _COLOURS[1])] if leading else []
        for axes, key, name, colour in lines:
            if key in rows[0]:
                label = name if rows is first and axes is panels[0] else None
                marker = "o" if len(rows) == 1 else None
                axes.plot(epochs, [row[key] for row in rows], color=colour, label=label, marker=marker, **thin)
    panels[0].set_ylabel("loss", fontsize=12, color=_INK)
    panels[0].set_title(f"training{f', {len(histories)} folds' if several else ''}", loc="left", fontsize=12)
    if leading:
        panels[1].set_ylabel(metric_name(leading.removeprefix("val_")), fontsize=12, color=_INK)
    panels[-1].set_xlabel("epoch, from 0", fontsize=12, color=_INK)
    panels[-1].xaxis.set_major_locator(require("matplotlib.ticker", "train").MaxNLocator(integer=True))
    _legend(figure)
    return figure


def metric_name(name: str) -> str:
    """Return the name of a metric as it is written in texts."""
    known = {"auroc": "AUROC", "auprc": "AUPRC", "r2": "R²", "c_index": "C-index", "mae": "MAE"}
    return known.get(name, name.replace("_", " "))


def _square(axes: Any) -> None:
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_aspect("equal")


def _stated(metric: Metric | None) -> str:
    if metric is None or math.isnan(metric.value):
        return "unknown"
    interval = "" if math.isnan(metric.low) else f" ({metric.low:.2f} to {metric.high:.2f})"
    return f"{metric.value:.3f}{interval}"


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"
