"""explain: for each step where it runs, how often it is drawn, its cost, and its warnings."""

from __future__ import annotations

import json

import albumentationsxl as A
import numpy as np
import pytest

from slideio_pipe import (
    ColorJitter,
    Flip,
    GaussianNoise,
    RandomAffine,
    RandomResizedCrop,
    RandStainNA,
    StainJitter,
    StainNormalize,
    draw,
    explain,
    open_slide,
)
from slideio_pipe.augment.albumentations import VERDICTS
from slideio_pipe.errors import ConfigError

OURS = [StainJitter(), ColorJitter(0.1), GaussianNoise(3), RandomAffine(), Flip(), RandomResizedCrop(64)]
DEFAULTS = {"CropOrPad": (8, 8), "Crop": (), "CenterCrop": (8, 8), "RandomCrop": (8, 8), "Resize": (8, 8)}


def runs(transform: object) -> list[str]:
    return [step.runs.split(":")[0].split(" ")[0] for step in explain(transform).steps]


def test_every_step_is_named_in_order_with_where_it_runs() -> None:
    """Geometry in the pyramid, colours on pixels, the rest in a graph or nowhere."""
    steps = A.Compose([RandomAffine(), StainJitter(), A.HorizontalFlip(), A.Blur(), A.AdvancedBlur()])
    found = explain(steps)
    assert [step.name for step in found.steps] == [type(leaf).__name__ for leaf in steps.transforms]
    assert runs(steps) == ["pyramid", "pixels", "pyramid", "lazy", "refused"]
    assert all(step.why and step.dtype for step in found.steps)


@pytest.mark.parametrize("transform", OURS, ids=lambda leaf: type(leaf).__name__)
def test_our_transforms_are_not_refused_and_have_a_cost(transform: object) -> None:
    """None is lazy only, none has a warning."""
    found = explain(transform)
    assert runs(transform)[0] in ("pyramid", "pixels")
    assert found.warnings == ()
    assert found.ms_per_tile > 0


@pytest.mark.parametrize("name", sorted(set(VERDICTS) - {"Lambda", "Crop", "ToDtype", "ToTensor", "Normalize"}))
def test_explain_and_draw_refuse_the_same_transforms(name: str) -> None:
    """For all of albumentationsxl's that can be made with default arguments."""
    made = getattr(A, name)
    arguments = DEFAULTS.get(name, ())
    try:
        transform = made(*arguments, p=1)
    except TypeError:
        transform = made(p=1)
    refused = runs(transform) == ["refused"]
    assert any(name in warning for warning in explain(transform).warnings) or not refused
    if refused:
        with pytest.raises(ConfigError, match=name):
            draw(transform, size=(64, 48), tile=0)


def test_the_frequency_of_steps_agrees_with_a_thousand_draws() -> None:
    """For Compose, OneOf, SomeOf, OneOrOther and Sequential; within four standard deviations."""
    transform = A.Compose(
        [
            A.OneOf([ColorJitter((2, 2), 0, 0, 0, p=1), GaussianNoise(5, p=0.3), A.Blur(p=0.7)], p=0.6),
            A.OneOrOther(StainJitter(), A.MedianBlur(), p=0.3),
            A.Sequential([A.Sharpen(p=0.4)], p=0.1),
        ],
        p=0.8,
    )
    counts: dict[str, int] = {}
    for seed in range(1000):
        for operation in draw(transform, seed=seed, size=(64, 64)).operations:
            kind = operation.name if operation.kind == "opaque" else operation.kind
            counts[kind] = counts.get(kind, 0) + 1
    names = {"tone": "ColorJitter", "noise": "GaussianNoise", "stain": "StainJitter"}
    stated = {step.name: step.p for step in explain(transform).steps}
    assert stated["ColorJitter"] == pytest.approx(0.8 * 0.6 * 0.5)
    for kind, count in counts.items():
        p = stated[names.get(kind, kind)]
        assert abs(count / 1000 - p) < 4 * np.sqrt(p * (1 - p) / 1000)
    assert len(counts) == len(stated) == 6


def test_some_of_divides_its_number_among_the_steps() -> None:
    """Two of four are each drawn half of the time, whatever their own p."""
    steps = [A.Blur(p=0.5), GaussianNoise(3, p=0.5), StainJitter(p=0.5), ColorJitter(0.1, p=0.5)]
    assert [step.p for step in explain(A.SomeOf(steps, n=2, p=1)).steps] == pytest.approx([0.5] * 4)


def test_the_total_is_the_weighted_sum() -> None:
    """Refused steps cost nothing."""
    found = explain(A.Compose([StainJitter(p=0.5), GaussianNoise(3), A.AdvancedBlur()]))
    costs = [step.ms_per_tile for step in found.steps]
    assert costs[2] is None
    assert found.ms_per_tile == pytest.approx(0.5 * costs[0] + costs[1])


@pytest.mark.parametrize(
    ("transform", "warning"),
    [
        (A.Compose([A.Rotate(), A.Affine()]), "Rotate and Affine both turn: one of them is enough"),
        (A.Compose([RandomAffine(), A.Rotate()]), "RandomAffine and Rotate both turn"),
        (A.Compose([A.Normalize(0.5, 0.5), A.HorizontalFlip()]), "normalisation is not the last step"),
        (A.Compose([A.MedianBlur()]), "MedianBlur is expensive"),
        (A.Compose([StainJitter(), A.Blur()]), "prevents the whole transform from running on the device"),
        (A.Compose([A.ElasticTransform()]), "ElasticTransform is refused: takes degrees for radians"),
    ],
)
def test_warnings_name_the_step_and_the_remedy(transform: object, warning: str) -> None:
    """For each kind of warning."""
    assert any(warning in found for found in explain(transform).warnings)


def test_a_transform_without_faults_has_no_warnings() -> None:
    """A warning that always appears would not be read."""
    steps = [RandomAffine(), A.HorizontalFlip(), StainJitter(), ColorJitter(0.1), GaussianNoise(2), RandStainNA()]
    assert explain(A.Compose(steps)).warnings == ()


def test_text_json_and_html_have_the_same_content() -> None:
    """All names are in all three; HTML is escaped; JSON is valid."""
    view = open_slide(np.zeros((300, 400, 3), np.uint8), slide_mpp=0.25).view(mpp=0.5)
    found = explain(A.Compose([StainJitter(), A.Blur(), A.AdvancedBlur()]), view)
    written, page = json.dumps(found.to_json()), found._repr_html_()
    for step in found.steps:
        assert step.name in str(found)
        assert step.name in written
        assert f">{step.name}<" in page
    assert "200×150 px at 0.5 µm" in str(found)
    assert repr(found) == str(found)  # a plain terminal shows the table, as a notebook does
    assert found.where == repr(view)
    assert page.count("<tr>") == 4
    assert page.count("<li>") == len(found.warnings) > 0


def test_explain_draws_no_random_numbers_and_reads_no_pixels() -> None:
    """The transform draws the same before and after."""
    transform = A.Compose([StainJitter(), RandomAffine()])
    before = draw(transform, seed=1, size=(64, 64))
    explain(transform)
    assert draw(transform, seed=1, size=(64, 64)) == before


@pytest.mark.parametrize("thing", [None, 3, "StainJitter", StainJitter, [StainJitter()]])
def test_an_object_that_is_no_transform_is_a_config_error(thing: object) -> None:
    """The error says what to pass."""
    with pytest.raises(ConfigError, match=r"no albumentationsxl transform; pass A\.Compose"):
        explain(thing)


def test_stain_normalisation_runs_on_pixels() -> None:
    """With its own cost."""
    step = explain(StainNormalize()).steps[0]
    assert (step.runs, step.ms_per_tile) == ("pixels: decoded tiles, device or lazy graph", 0.25)


def test_what_has_no_compiled_form_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise, and everything on a system without the library."""
    jitter, noise = explain(A.Compose([ColorJitter(), GaussianNoise()])).steps
    assert ("no compiled form" in jitter.why, "no compiled form" in noise.why) == (False, True)
    assert explain(ColorJitter()).warnings == ()
    monkeypatch.setattr("slideio_pipe.compiled.library._in_use", False)
    assert any("no compiled tile programs" in warning for warning in explain(ColorJitter()).warnings)
