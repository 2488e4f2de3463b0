"""What training needs and nothing else does: the extra ``[train]``."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

from slideio_pipe.errors import MissingExtraError


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
    except ImportError as error:
        package = module.partition(".")[0]
        remedy = 'pip install "slideio-pipe[train]"'
        raise MissingExtraError(f"{package} is needed for training", remedy=remedy) from error
