"""The features of a cohort as a data set of torch, for one's own loop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.cohort.cohort_slide import CohortSlide
from slideio_pipe.cohort.patients import by_patient, slides_of_row
from slideio_pipe.errors import ConfigError
from slideio_pipe.features.feature_bag import FeatureBag, open_features
from slideio_pipe.mil.columns import class_of, event_of
from slideio_pipe.mil.feature_files import feature_cohort, features_in, is_unnamed


class FeatureDataset(Dataset[dict[str, Any]]):
    """The features of slides or patients, one bag per item; for ``torch.utils.data.DataLoader``.

    An item is a dictionary that the loader's own collate function accepts with a batch size of 1, and ``pad_features``
    with any:

    - ``features``: (N, D) tensor, read from disk when the item is taken;
    - ``coords``: (N, 2) int64, level-0 px of the tiles' corners (x, y); only if they are known;
    - ``label``: the number of its class, or the cell of the table as a number or a text; NaN without one; of several
      columns their numbers, a float64 tensor;
    - ``name``, ``patient``: texts, "" without a patient;
    - ``slide_index``: (N,) int64, with ``unit="patient"``: which of the patient's slides a tile is of.

    Parameters
    ----------
    cohort : path, list or Cohort
        A table with slides and labels; or files of features, or their folder. Take a part with
        ``Cohort.of(…).where(split="train")``.
    encoder : str, optional
        Name of the encoder, if files have features of several.
    folder : path, optional
        The folder of the features of the cohort's slides, found by name; by default the cohort lists these files.
    unit : {"slide", "patient"}
        What an item is: a slide, or all slides of a patient one after another.
    label : str or sequence of str
        Column of the label; several, such as ``("time", "event")``, are numbers.
    classes : sequence of str, optional
        Classes in their order: labels are then their numbers, from 0.
    dtype : torch.dtype or None
        Dtype of the features; None: that of the file.

    Raises
    ------
    ConfigError
        The cohort has errors, has no such column, or a label is none of the classes.

    Examples
    --------
    >>> import tempfile
    >>> from torch.utils.data import DataLoader
    >>> folder = Path(tempfile.mkdtemp())
    >>> for k in range(4):
    ...     torch.save(torch.randn(5 + k, 16), folder / f"s{k}.pt")
    >>> _ = (folder / "study.csv").write_text("slide,label\\ns0.pt,low\\ns1.pt,high\\ns2.pt,low\\ns3.pt,high\\n")
    >>> dataset = FeatureDataset(folder / "study.csv", classes=["low", "high"])
    >>> batch = next(iter(DataLoader(dataset, batch_size=4, collate_fn=pad_features)))
    >>> batch["features"].shape, batch["mask"].sum(1).tolist(), batch["label"].tolist()
    (torch.Size([4, 8, 16]), [5, 6, 7, 8], [0, 1, 0, 1])
    """

    def __init__(
        self,
        cohort: Any,
        encoder: str | None = None,
        *,
        folder: str | Path | None = None,
        unit: str = "slide",
        label: str | Sequence[str] = "label",
        classes: Sequence[str] | None = None,
        dtype: torch.dtype | None = torch.float32,
    ) -> None:
        if unit not in ("slide", "patient"):
            raise ConfigError(f"unit is {unit!r}", remedy='pass "slide" or "patient"')
        columns = [label] if isinstance(label, str) else list(label)
        found = _cohort(cohort, folder)
        self.cohort = by_patient(found, columns) if unit == "patient" else found
        self.unit, self._encoder, self._dtype = unit, encoder, dtype
        self._single = isinstance(label, str)
        self._cells = [self.cohort.column(name) for name in columns]
        self._classes = None if classes is None else [class_of(name) or str(name) for name in classes]
        if self._classes is not None:
            self._check_classes()

    def __len__(self) -> int:
        return len(self.cohort)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a bag; raise what ``open_features`` raises, or ConfigError if the slides of a patient do not fit."""
        row = self.cohort[index]
        bags = [self._open(slide) for slide in slides_of_row(row)]
        widths = {bag.features.shape[1] for bag in bags}
        if len(widths) > 1:
            reason = f"its slides have features of several widths: {', '.join(map(str, sorted(widths)))}"
            raise ConfigError(reason, slide=row.name, remedy="compute them with one encoder")
        found: dict[str, Any] = {"features": torch.cat([self._tensor(bag.features) for bag in bags])}
        coords = [bag.coords for bag in bags if bag.coords is not None]
        if len(coords) == len(bags):
            found["coords"] = torch.from_numpy(np.concatenate(coords).astype(np.int64))
        name = bags[0].name if self.unit == "slide" and is_unnamed(row, bags[0]) else row.name
        found |= {"label": self._label(index, bags), "name": name, "patient": row.patient or bags[0].patient or ""}
        if self.unit == "patient":
            counts = torch.tensor([len(bag) for bag in bags])
            found["slide_index"] = torch.repeat_interleave(torch.arange(len(bags)), counts)
        return found

    def _open(self, slide: CohortSlide) -> FeatureBag:
        if not isinstance(slide.source, Path):
            raise ConfigError("is an open bag, no file of features", slide=slide.name, remedy="save its features")
        return open_features(slide.source, self._encoder)

    def _tensor(self, values: Any) -> Tensor:
        # A copy of one bag: arrays are memory-mapped, and their files stay closed between items.
        return torch.from_numpy(np.array(values)).to(self._dtype)

    def _label(self, index: int, bags: Sequence[FeatureBag]) -> Any:
        if not self._single:
            return torch.tensor([event_of(cells[index]) for cells in self._cells], dtype=torch.float64)
        cell = self._cells[0][index]
        value = bags[0].label if cell is None else cell
        if self._classes is None:
            return float("nan") if value is None else value
        name = class_of(value)
        return float("nan") if name is None else self._classes.index(name)

    def _check_classes(self) -> None:
        assert self._classes is not None
        names = {class_of(cell) for cell in self._cells[0]} - {None}
        unknown = sorted(str(name) for name in names if name not in self._classes)
        if unknown:
            reason = f"labels {', '.join(unknown)} are none of the classes {', '.join(self._classes)}"
            raise ConfigError(reason, remedy="add them to classes")

    def __repr__(self) -> str:
        return f"FeatureDataset({len(self):,} {self.unit}s)"


def pad_features(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return items of a ``FeatureDataset`` as one batch: bags padded with 0 to the longest, and a mask.

    For ``DataLoader(collate_fn=pad_features)``. ``features`` are (B, N, D), ``mask`` is (B, N) bool, True for tiles and
    False for padding (``key_padding_mask`` of torch is its inverse). ``coords`` are there if every item has them.
    Labels become a tensor if they are numbers, else a list; names and patients are lists.

    Raises
    ------
    ConfigError
        Bags have features of several widths.

    Examples
    --------
    >>> items = [{"features": torch.ones(n, 3), "label": 0, "name": f"s{n}", "patient": ""} for n in (1, 2)]
    >>> pad_features(items)["mask"].tolist()
    [[True, False], [True, True]]
    """
    widths = {str(tuple(item["features"].shape[1:])): item.get("name", "") for item in items}
    if len(widths) > 1:
        reason = "features of several widths: " + ", ".join(f"{width} ({name})" for width, name in widths.items())
        raise ConfigError(reason, remedy="use features of one encoder")
    counts = torch.tensor([len(item["features"]) for item in items])
    batch: dict[str, Any] = {"mask": torch.arange(int(counts.max()))[None] < counts[:, None]}
    for key in dict.fromkeys(key for item in items for key in item):
        values = [item.get(key) for item in items]
        if key in ("features", "coords", "slide_index"):
            if all(isinstance(value, Tensor) for value in values):
                batch[key] = torch.nn.utils.rnn.pad_sequence(values, batch_first=True)  # type: ignore[arg-type]
        elif all(isinstance(value, Tensor) for value in values):
            batch[key] = torch.stack(values)  # type: ignore[arg-type]
        elif all(isinstance(value, int | float) for value in values):
            batch[key] = torch.tensor(values)
        else:
            batch[key] = values
    return batch


def _cohort(cohort: Any, folder: str | Path | None) -> Cohort:
    if folder is not None:
        return feature_cohort(cohort, folder)
    files = features_in(Path(cohort)) if isinstance(cohort, str | Path) else []
    return Cohort.of(files or cohort)
