"""Generated slides that several tests need, made once in a run of the tests and shared by its processes."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

from paths import MADE_SLIDES

from slideio_pipe.synthetic.slide import SyntheticSlide, write_synthetic_slide


def made_slide(path: Path, **options: Any) -> SyntheticSlide:
    """Write a slide as ``write_synthetic_slide`` does; later calls with equal arguments copy the file."""
    name = hashlib.blake2b(repr(sorted(options.items())).encode(), digest_size=12).hexdigest()
    kept, truth = (Path(os.environ[MADE_SLIDES]) / f"{name}.{ending}" for ending in ("svs", "pickle"))
    if truth.exists():
        shutil.copyfile(kept, path)
        slide: SyntheticSlide = pickle.loads(truth.read_bytes())
        return dataclasses.replace(slide, path=Path(path))
    slide = write_synthetic_slide(path, **options)
    own = kept.with_suffix(f".{os.getpid()}")  # another process may make the same one: written atomically
    shutil.copyfile(path, own)
    os.replace(own, kept)
    own.write_bytes(pickle.dumps(slide))
    os.replace(own, truth)
    return slide
