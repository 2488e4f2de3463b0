"""The table of steps: how often each is drawn, in words and numbers that a user can check."""

from __future__ import annotations

import albumentationsxl as A  # noqa: N812
import numpy as np
import pytest

import slideio_pipe as sp

CASES = {
    "alone": (sp.StainJitter(p=0.3), [0.3]),
    "composed": (A.Compose([sp.StainJitter(p=0.5), sp.GaussianNoise()], p=0.5), [0.25, 0.5]),
    "one of": (A.OneOf([sp.StainJitter(p=1), sp.GaussianNoise(p=0.5)], p=0.6), [0.4, 0.2]),
    "one or other": (A.OneOrOther(sp.StainJitter(p=0.1), sp.GaussianNoise(p=0.1), p=0.3), [0.3, 0.7]),
    "some of": (
        A.SomeOf([sp.StainJitter(), sp.GaussianNoise(), sp.RandStainNA(source="cohort")], n=2, replace=False),
        [2 / 3] * 3,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_step_says_how_often_it_is_drawn(case: str) -> None:
    """The share of 2,000 draws that have the step's operation is the p of the table, within 4 standard errors."""
    transform, expected = CASES[case]
    steps = sp.explain(transform).steps
    assert [step.p for step in steps] == pytest.approx(expected)
    kinds = {"StainJitter": "stain", "GaussianNoise": "noise", "RandStainNA": "lab"}
    draws = [sp.draw(transform, seed=seed, size=(9, 9)) for seed in range(2000)]
    for step in steps:
        found = np.mean([kinds[step.name] in {o.kind for o in drawn.operations} for drawn in draws])
        assert abs(found - step.p) < 4 * np.sqrt(0.25 / len(draws))


def test_the_cost_counts_what_is_drawn() -> None:
    """A choice between two steps costs their mean, not their sum."""
    parts = [sp.StainJitter(), sp.ColorJitter()]
    alone = [sp.explain(part).ms_per_tile for part in parts]
    assert sp.explain(A.OneOf(parts, p=1)).ms_per_tile == pytest.approx(sum(alone) / 2)
