"""Draw a transform with random parameters as one ``Draw``, and read transforms from YAML."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import albumentationsxl as A
import numpy as np
from albumentationsxl.core.composition import BaseCompose
from albumentationsxl.core.serialization import NON_SERIALIZABLE_REGISTRY, SERIALIZABLE_REGISTRY, shorten_class_name
from numpy.typing import ArrayLike
from pydantic import ValidationError

# Imported to register our transforms with albumentationsxl by name.
from slideio_pipe.augment import colour_transforms, geometric_transforms, own_transforms, replay  # noqa: F401
from slideio_pipe.augment.albumentations import adopted, verdict
from slideio_pipe.augment.draw import Draw, seeded
from slideio_pipe.augment.operations import Operation
from slideio_pipe.augment.placement import Placement, checked_size
from slideio_pipe.augment.slide_colour import SlideColour
from slideio_pipe.augment.stain_matrices import as_matrix, checked_basis
from slideio_pipe.augment.steps import Steps
from slideio_pipe.augment.transform_base import Context, OurTransform
from slideio_pipe.config import read_yaml
from slideio_pipe.errors import ConfigError, NoTissueError
from slideio_pipe.geometry import Size
from slideio_pipe.parts.import_path import import_object, importable, is_import_path
from slideio_pipe.presets import settings_file


class MeasuredSlide(Protocol):
    """A slide that can measure its own colours."""

    @property
    def colour(self) -> SlideColour:
        """Stains and statistics."""


def draw(
    transform: Any,
    *,
    seed: int = 0,
    epoch: int = 0,
    slide: str = "",
    tile: int | None = None,
    size: Size | tuple[int, int],
    basis: ArrayLike | None = None,
    colour: SlideColour | None = None,
) -> Draw:
    """Draw ``transform`` for one slide or tile; equal arguments give an equal draw on every machine.

    Parameters
    ----------
    transform : an albumentationsxl transform
        Ours or albumentationsxl's own, alone or in ``Compose``, ``Sequential``, ``OneOf``, ``SomeOf``, ``OneOrOther``.
    seed, epoch, slide, tile
        Inputs of the draw. With ``tile=None`` it is a draw for the whole slide, whose canvas grows to hold rotated
        content; for a tile the canvas keeps its size unless it is cropped or resized.
    size : (width, height)
        Size of the plain image in px.
    basis : (3, 3) array_like, optional
        The slide's own stains, for ``StainJitter(basis="slide")``.
    colour : SlideColour, optional
        The slide's own stains and statistics, from ``slide_colour.slide_colour``; takes precedence over ``basis``.

    Raises
    ------
    ConfigError
        A transform is refused or invalid; the message names it.

    Examples
    --------
    >>> drawn = draw(A.Compose([A.HorizontalFlip(p=1), A.VerticalFlip(p=1)]), seed=1, size=(40, 30))
    >>> drawn.affine, drawn.operations
    ((-1.0, 0.0, 40.0, 0.0, -1.0, 30.0), ())
    """
    check(transform)
    context = Context(
        slide_wide=tile is None,
        basis=None if basis is None else as_matrix(checked_basis(basis, "basis")),
        colour=colour,
    )
    number = None if tile is None else int(tile)
    return draw_one(
        transform, seed=int(seed), epoch=int(epoch), slide=slide, tile=number, size=checked_size(size), context=context
    )


def draw_one(
    transform: Any, *, seed: int, epoch: int, slide: str, tile: int | None, size: Size, context: Context
) -> Draw:
    """Return what ``draw`` returns, for a transform that ``check`` has checked."""
    path = DrawState(seeded(seed, epoch, slide, tile), size, context)
    walk(transform, path)
    return Draw(
        seed=seed, epoch=epoch, slide=slide, tile=tile,
        size=size, canvas=path.canvas, affine=path.affine(), operations=tuple(path.operations),
    )  # fmt: skip


def check(transform: Any) -> None:
    """Raise ``ConfigError`` if any part is refused, even if rarely drawn, so that training does not stop later.

    Raises
    ------
    ConfigError
        Names the transform, the reason and the replacement.
    """
    if not isinstance(transform, A.BasicTransform | BaseCompose):
        own = callable(transform) and not isinstance(transform, type)
        more = "; from_numpy(function) makes one of a function, and stream takes a module of tensors" if own else ""
        remedy = f"pass A.Compose([...]) or a transform{more}"
        raise ConfigError(f"{type(transform).__name__}: no albumentationsxl transform", remedy=remedy)
    for leaf in leaves(transform):
        judged = verdict(leaf)
        if judged.kind == "refused":
            raise ConfigError(f"{type(leaf).__name__}: {judged.why}", remedy=f"instead: {judged.instead}")


def leaves(transform: Any) -> Iterator[Any]:
    """Yield every transform inside compositions, in order."""
    if isinstance(transform, BaseCompose):
        for part in transform.transforms:
            yield from leaves(part)
    else:
        yield transform


def needs_slide(transform: Any) -> bool:
    """Return whether some part needs the slide's own colours (``slide_colour.slide_colour``)."""
    return bool(_needing_slide(transform))


def measured(slide: MeasuredSlide, transform: Any) -> SlideColour | None:
    """Return the slide's own colours if some part of the transform needs them, else None.

    Raises
    ------
    NoTissueError, ConfigError
        The slide is glass, or has only one stain; names the transform and the argument to pass instead.
    """
    askers = _needing_slide(transform)
    if not askers:
        return None
    try:
        return slide.colour
    except (NoTissueError, ConfigError) as error:
        names = ", ".join(askers)
        instead = ", ".join(f"{name}({leaf.without_slide})" for name, leaf in askers.items())
        remedy = f"pass {instead}, or leave the slide out"
        raise type(error)(f"{names}: {error.reason}", slide=error.slide, remedy=remedy) from error


def _needing_slide(transform: Any) -> dict[str, OurTransform]:
    """Return, by name, the transforms that need the slide's own colours."""
    found = (leaf for leaf in leaves(transform) if isinstance(leaf, OurTransform) and leaf.needs_slide)
    return {type(leaf).__name__: leaf for leaf in found}


class DrawState(Placement):
    """State of a draw: the geometry so far, and the operations."""

    def __init__(self, rng: np.random.Generator, size: Size, context: Context) -> None:
        super().__init__(size)
        self.rng, self.context = rng, context
        self.operations: list[Operation] = []

    def run(self, transform: Any) -> None:
        """Draw one transform, not a composition, and append it."""
        self.add(drawn_steps(transform, self.rng, self.canvas, self.context))

    def add(self, steps: Steps) -> None:
        """Append what one transform drew."""
        self.operations.extend(steps.operations)
        self.move(steps)


# -- walking -------------------------------------------------------------------------------------------------------


def walk(transform: Any, path: DrawState, *, forced: bool = False) -> None:
    """Draw as a call of the transform would, from the path's own generator."""
    if not isinstance(transform, BaseCompose):
        if path.rng.random() < transform.p or transform.always_apply or forced:
            path.run(transform)
    elif isinstance(transform, A.OneOf):
        _walk_chosen(transform, path, 1, replace=True, forced=forced)
    elif isinstance(transform, A.SomeOf):
        _walk_chosen(transform, path, transform.n, replace=transform.replace, forced=forced)
    elif isinstance(transform, A.OneOrOther):
        walk(transform.transforms[0 if path.rng.random() < transform.p else -1], path, forced=True)
    elif isinstance(transform, A.Sequential):
        # albumentationsxl's Sequential always runs: its p is only a weight in OneOf.
        _walk_all(transform.transforms, path)
    elif isinstance(transform, A.Compose):
        if forced or path.rng.random() < transform.p:
            _walk_all(transform.transforms, path)
        else:
            _walk_all([leaf for leaf in leaves(transform) if leaf.always_apply], path)
    else:
        raise ConfigError(
            f"{type(transform).__name__}: no composition known here",
            remedy="use A.Compose, A.Sequential, A.OneOf, A.SomeOf or A.OneOrOther",
        )


def _walk_all(transforms: Sequence[Any], path: DrawState) -> None:
    for transform in transforms:
        walk(transform, path)


def _walk_chosen(transform: Any, path: DrawState, count: int, *, replace: bool, forced: bool) -> None:
    if not forced and path.rng.random() >= transform.p:
        return
    try:
        chosen = path.rng.choice(len(transform.transforms), count, replace=replace, p=transform.transforms_ps)
    except ValueError as error:
        raise ConfigError(f"{type(transform).__name__}: {error}", remedy="pass n up to the number of parts") from error
    for index in chosen:
        walk(transform.transforms[index], path, forced=True)


def drawn_steps(transform: Any, rng: np.random.Generator, canvas: Size, context: Context) -> Steps:
    """Return what one transform, not a composition, draws for an image of the size ``canvas``."""
    try:
        if isinstance(transform, OurTransform):
            return transform.draw_steps(rng, canvas, context)
        return adopted(transform, rng, canvas, context)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(str(step) for step in problem["loc"])
        raise ConfigError(
            f"{type(transform).__name__}: {place}={problem['input']!r}: {problem['msg']}", remedy="pass other limits"
        ) from None


# -- files ---------------------------------------------------------------------------------------------------------


def load_transform(path: str | Path) -> Any:
    """Return the transform in a YAML or JSON file, as written by ``A.save``, or of a preset by its name.

    A function of your own on NumPy arrays (``from_numpy``), or a transform, may be written by its import path,
    ``my_module:my_function``, as one step; the module may be beside the file.

    Raises
    ------
    ConfigError
        The file is missing or not a mapping, or has a transform or an argument that does not exist.

    Examples
    --------
    >>> type(load_transform("stain-light")).__name__
    'Compose'
    """
    path = settings_file(path, "transform")
    written = read_yaml(path, "see slideio-pipe config show stain-light")
    if not isinstance(written, Mapping) or "transform" not in written:
        raise ConfigError('has no "transform"', slide=str(path), remedy="see slideio-pipe config show stain-light")
    unknown = set(written) - {"transform", "__version__"}
    if unknown:
        raise ConfigError(f'unknown key "{min(map(str, unknown))}"', slide=str(path), remedy='keep "transform" alone')
    return _built(written["transform"], str(path))


def _built(written: Any, where: str) -> Any:
    if isinstance(written, str) and is_import_path(written):
        importable(Path(where).parent)
        return _brought(written)
    if not isinstance(written, Mapping) or not isinstance(written.get("__class_fullname__"), str):
        raise ConfigError('no "__class_fullname__"', slide=where, remedy="see slideio-pipe config show stain-light")
    name = shorten_class_name(written["__class_fullname__"])
    made = SERIALIZABLE_REGISTRY.get(name)
    if made is None or name in NON_SERIALIZABLE_REGISTRY:
        raise ConfigError(f'no transform "{name}"', slide=where, remedy=_nearest(name, SERIALIZABLE_REGISTRY))
    arguments = {str(key): value for key, value in written.items() if key != "__class_fullname__"}
    known = [key for key, kind in inspect.signature(made).parameters.items() if kind.kind is not kind.VAR_KEYWORD]
    for key in arguments:
        if key not in known:
            raise ConfigError(f'{name}: unknown key "{key}"', slide=where, remedy=_nearest(key, known))
    if "transforms" in arguments:
        parts = arguments["transforms"]
        if not isinstance(parts, list):
            raise ConfigError(f"{name}: transforms is no list", slide=where, remedy="write one transform per line")
        arguments["transforms"] = [_built(part, where) for part in parts]
    if made is own_transforms.FromNumpy:
        importable(Path(where).parent)
    try:
        return made(**arguments)
    except ConfigError as error:
        raise ConfigError(error.reason, slide=where, remedy=error.remedy) from error
    except Exception as error:  # albumentationsxl may raise anything
        raise ConfigError(f"{name}: {error}", slide=where, remedy=f"there are: {', '.join(known)}") from error


def _brought(path: str) -> Any:
    """Return a user's transform by its import path: one of albumentationsxl's kind, or a function on NumPy arrays."""
    found = import_object(path)
    if isinstance(found, type) and issubclass(found, A.BasicTransform):
        found = found()
    return found if isinstance(found, A.BasicTransform | BaseCompose) else own_transforms.from_numpy(path)


def _nearest(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), 1, 0.5)
    return f'did you mean "{close[0]}"?' if close else f"there are: {', '.join(sorted(known))}"
