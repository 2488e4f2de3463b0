"""Controls of any transform: a seed gives the draw of a training, and the sliders' values give that draw again."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import albumentationsxl as A
import numpy as np
import pytest
from paths import CONFIGS

import slideio_pipe as sp
from slideio_pipe.errors import ConfigError
from slideio_pipe.slides.view import SlideView
from slideio_pipe.viewer.controls import AdjustPanel, Control
from slideio_pipe.viewer.transform_controls import TransformPanel

TRANSFORMS: dict[str, Any] = {
    "stain": A.Compose([sp.StainJitter(alpha=0.3, beta=0.05)]),
    "ours": A.Compose(
        [sp.StainJitter(), sp.ColorJitter(), sp.RandomAffine(scale=0.2, shear=5), sp.Flip(), sp.Rotate90()]
    ),
    "statistics": A.Compose([sp.RandStainNA(source="cohort"), sp.GaussianNoise()]),
    "chances": A.Compose([sp.StainJitter(p=0.5), A.OneOf([A.HorizontalFlip(), sp.ColorJitter()], p=0.5)]),
    "colours": A.Compose(
        [
            A.HueSaturationValue(p=1),
            A.RandomBrightnessContrast(p=1),
            A.RandomGamma(p=1),
            A.HEDShift(p=1),
            A.GaussNoise(p=1),
        ]
    ),
    "geometry": A.Compose([A.Affine(rotate=(-40, 40), shear=(-5, 5), p=1), A.RandomRotate90(p=1), A.Flip(p=1)]),
    "rotation": A.Rotate(limit=30, p=1),
    "scale": A.RandomScale(p=1),
    "whole image": A.Compose([sp.StainJitter(), A.Blur(p=1)]),
}


@pytest.fixture(scope="module")
def view() -> SlideView:
    """A plain view of noise."""
    return sp.open_slide(np.random.default_rng(1).integers(0, 255, (300, 400, 3), np.uint8), slide_mpp=0.5).view()


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_seed_gives_the_draw_of_a_training(view: SlideView, name: str) -> None:
    """``of_seed`` is what ``Slide.view`` draws, and the values of the controls give it again."""
    panel = TransformPanel(TRANSFORMS[name])
    for seed, epoch in [(0, 0), (1, 0), (2, 5), (3, 1)]:
        drawn = panel.of_seed(view, seed, epoch)
        true = view.slide.view(transform=TRANSFORMS[name], seed=seed, epoch=epoch).draw
        assert drawn.draw == true
        again = panel.of_values(view, drawn.values).draw
        assert true is not None
        assert again.canvas == true.canvas
        assert again.affine == pytest.approx(true.affine, abs=1e-6)
        assert [each.kind for each in again.operations] == [each.kind for each in true.operations]
        for one, other in zip(again.operations, true.operations, strict=True):
            assert numbers(one.model_dump()) == pytest.approx(numbers(other.model_dump()), rel=1e-9, abs=1e-12)


def numbers(value: Any) -> list[float]:
    """Return every number of a record, in order."""
    if isinstance(value, dict):
        return [number for each in value.values() for number in numbers(each)]
    if isinstance(value, list | tuple):
        return [number for each in value for number in numbers(each)]
    return [float(value)] if isinstance(value, int | float) else []


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_stain_configuration_has_named_controls(view: SlideView, file: Path) -> None:
    """No control of a transform of ``configs/`` is a nameless number, and each has its range."""
    if not file.read_text(encoding="utf-8").partition("\ntransform:")[1]:
        pytest.skip("not a transform")
    panel = TransformPanel(sp.load_transform(file))
    assert panel.controls
    assert not [control for control in panel.controls if control.label.startswith("Number")]
    assert all(control.low <= control.neutral <= control.high for control in panel.controls)


def test_neutral_values_change_nothing(view: SlideView) -> None:
    """With every control neutral the slide is as scanned; so it is before anything was touched."""
    for panel in (AdjustPanel(), TransformPanel(TRANSFORMS["ours"])):
        assert panel.of_values(view, {}).draw.is_identity


def test_one_slider_moves_one_number(view: SlideView) -> None:
    """The turn that a slider shows is the turn of the draw; values beyond the range are limited to it."""
    panel = TransformPanel(A.Compose([sp.RandomAffine(rotate=(-90, 90), flip=False)]))
    switch, turn = panel.controls
    for asked, shown in [(30.0, 30.0), (-90.0, -90.0), (500.0, 90.0)]:
        draw = panel.of_values(view, {switch.id: 1.0, turn.id: asked}).draw
        a, b, *_ = draw.affine
        assert math.degrees(math.atan2(b, a)) == pytest.approx(shown)


def test_adjusted_python_is_the_draw(view: SlideView) -> None:
    """The line that the page copies makes the draw that it shows."""
    drawn = AdjustPanel().of_values(view, {"haematoxylin": 1.3, "turn": 20, "mirror": 1})
    made = eval(drawn.python, {}, {"view": view.slide.view})
    assert made.draw == drawn.draw


def test_a_transform_for_tiles_only(view: SlideView) -> None:
    """A crop cannot be drawn for a slide: the panel says so, and the other transforms have controls."""
    panel = TransformPanel(A.Compose([sp.RandomResizedCrop(64), sp.StainJitter()]))
    assert "crops tiles, not slides" in panel.notes[0]
    assert {control.group for control in panel.controls} == {"RandomResizedCrop", "StainJitter"}


def test_a_transform_without_quick_preview_is_said() -> None:
    """A transform that runs as a whole image only is named."""
    (note,) = TransformPanel(TRANSFORMS["whole image"]).notes
    assert note.startswith("Blur runs as a whole image only: no quick preview")


@pytest.mark.parametrize("value", ["1", None, float("nan"), [1]])
def test_what_is_no_number_is_refused(value: Any) -> None:
    """A page that sends something else gets an error with the control's name."""
    with pytest.raises(ConfigError, match="Turn"):
        Control("turn", "Geometry", "Turn", -1, 1, 0).checked(value)
