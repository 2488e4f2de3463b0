"""What training needs and nothing else does: the extra ``[train]``."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

from slideio_pipe.errors import not_importable


def needed(module: str) -> Any:
    """Import a module of the extra.

    Raises
    ------
    MissingExtraError
        It is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what packages of packages say of notebooks without widgets
            return importlib.import_module(module)
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that is not this torch's
        raise not_importable(module.partition(".")[0], "for training", "train", error) from error
