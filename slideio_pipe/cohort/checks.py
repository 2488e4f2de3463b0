"""Check a cohort: each function returns the problems of one kind, as text."""

from __future__ import annotations

import difflib
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from slideio_pipe.cohort.cohort_slide import COLUMNS, CohortSlide
from slideio_pipe.cohort.slide_files import dicom_series, is_named_dicom
from slideio_pipe.cohort.split_names import split_of
from slideio_pipe.cohort.table import is_windows_path
from slideio_pipe.errors import AlikeLabelsWarning
from slideio_pipe.files import TO_PATH, address_in

# Similarity from which an unknown column counts as a misspelling of a missing one.
_SIMILAR = 0.8
# A label this many times rarer than a similar one may be misspelt; shorter words are not checked.
_TIMES_RARER = 5
_SHORT = 5


def series_problems(places: Sequence[str], slides: Sequence[CohortSlide], root: str | Path | None) -> Iterator[str]:
    """Yield the rows that are files of one DICOM slide; files outside of ``root`` are not read."""
    known = {}
    for place, slide in zip(places, slides, strict=True):
        path = slide.source
        if isinstance(path, Path) and is_named_dicom(path) and not any(slide_problems(slide, root)):
            known[path] = place
    for files in dicom_series(known):
        yield f"{' and '.join(sorted(known[path] for path in files))} are files of one DICOM slide"


def header_problems(header: Sequence[str]) -> Iterator[str]:
    unknown = {name.lower(): name for name in header if name not in COLUMNS and not _is_other(name)}
    for name in COLUMNS:
        alike = [] if name in header else difflib.get_close_matches(name, unknown, 1, _SIMILAR)
        if alike:
            yield f'column "{unknown[alike[0]]}" looks like "{name}"; call it "{name}"'
        elif name == "slide" and name not in header:
            listed = ", ".join(header)
            yield f'no column "slide" (there are: {listed}); {{columns="slide=…"}} says which it is'


def _is_other(name: str) -> bool:
    """Return whether a column is not a misspelt one of ours: a person's "Name", a numbered "fold_0"."""
    return name.lower() == "name" or name[-1:].isdigit()


def slide_problems(slide: CohortSlide, root: str | Path | None) -> Iterator[str]:
    files = {"slide": slide.source if slide.name else None, "mask": slide.mask, "cell file": slide.cell_file}
    for what, file in files.items():
        if not isinstance(file, Path):
            continue
        try:
            # Checked before existence, so that a hostile manifest cannot probe other folders.
            if root is not None and not file.resolve().is_relative_to(Path(root).expanduser().resolve()):
                yield f"{what} {file} is outside of {root}"
            elif not file.exists() and (address := address_in(file)) is not None:
                yield f"{what} {address} is an address, not a file ({TO_PATH})"
            elif not file.exists():
                hint = " (write its path with / instead of \\)" if is_windows_path(file.name) else ""
                yield f"no such {what} {file}{hint}"
        except (OSError, ValueError) as error:  # too long, a zero byte, a folder that may not be entered
            yield f"{what} {str(file)!r} cannot be accessed ({getattr(error, 'strerror', None) or error})"


def label_problems(slides: Sequence[CohortSlide]) -> Iterator[str]:
    spelt = defaultdict(set)
    for slide in slides:
        if isinstance(slide.label, str):
            spelt["".join(slide.label.split()).casefold()].add(slide.label)
    for ways in spelt.values():
        if len(ways) > 1:
            yield f"label {' and '.join(repr(spelling) for spelling in sorted(ways))} differ in capitals or spaces only"


def warn_of_alike(slides: Sequence[CohortSlide]) -> None:
    """Warn of labels that look like a misspelling of another one."""
    counts = Counter(slide.label for slide in slides if isinstance(slide.label, str))
    for rare, few in counts.items():
        alike = [
            often for often, many in counts.items() if many >= _TIMES_RARER * few and is_misspelt(str(rare), str(often))
        ]
        for often in alike[:1]:
            reason = f"label {rare!r} ({few}×) may be {often!r} ({counts[often]}×) misspelt"
            warnings.warn(AlikeLabelsWarning(reason), stacklevel=4)


def is_misspelt(word: str, other: str) -> bool:
    """Return whether one letter is wrong, missing, extra, or swapped with its neighbour.

    Only letters count: a digit or a sign distinguishes classes, and so does a one-letter word or a letter of a very
    short word.

    >>> is_misspelt("tumuor", "tumour"), is_misspelt("grade 1", "grade 2"), is_misspelt("type A", "type B")
    (True, False, False)
    """
    first, second = (text.casefold().split() for text in (word, other))
    if len(first) != len(second):
        return False
    differ = [(a, b) for a, b in zip(first, second, strict=True) if a != b]
    if len(differ) != 1:
        return False
    a, b = differ[0]
    if min(len(a), len(b)) < _SHORT:
        return False
    start = _same(a, b)
    end = _same(a[start:][::-1], b[start:][::-1])
    wrong, right = a[start : len(a) - end], b[start : len(b) - end]
    swapped = len(wrong) == 2 and wrong == right[::-1]
    # A prefix (atypical, typical) makes another word, not a misspelling.
    is_prefix = start == 0 and len(a) != len(b)
    return (swapped or max(len(wrong), len(right)) == 1) and (wrong + right).isalpha() and not is_prefix


def _same(a: str, b: str) -> int:
    """Return the number of equal letters at the start."""
    return next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def patient_problems(slides: Sequence[CohortSlide]) -> Iterator[str]:
    splits: dict[str, set[str]] = defaultdict(set)
    folds: dict[str, set[int]] = defaultdict(set)
    for slide in slides:
        if slide.patient is not None:
            splits[slide.patient] |= set() if slide.split is None else {str(split_of(slide.split))}
            folds[slide.patient] |= set() if slide.fold is None else {slide.fold}
    for patient, names in splits.items():
        if len(names) > 1:
            yield f"patient {patient} is in {' and '.join(sorted(names))}"
    for patient, numbers in folds.items():
        if len(numbers) > 1:
            yield f"patient {patient} is in folds {' and '.join(map(str, sorted(numbers)))}"
