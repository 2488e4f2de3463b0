"""``demo --patients`` makes the study of patients, and prints the commands that use it."""

from __future__ import annotations

import csv
import json
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

from slideio_pipe.commands.app import app
from slideio_pipe.commands.demos import patients as demo_patients
from slideio_pipe.commands.demos.patients import write_patient_cohort
from slideio_pipe.errors import ConfigError

SMALL = {"patients": 10, "size_um": (128.0, 96.0)}


@pytest.mark.system
def test_the_command_makes_the_study_and_prints_the_next_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Smaller here."""
    monkeypatch.setattr(demo_patients, "write_patient_cohort", partial(write_patient_cohort, **SMALL))
    done = CliRunner().invoke(app, ["demo", "--patients", "--out", str(tmp_path)])
    assert done.exit_code == 0
    shown = " ".join(done.stdout.split())
    assert "10 patients with 22 slides" in shown
    assert f"train --config mil-end-to-end --cohort {tmp_path / 'cohort.csv'} --set unit=patient" in shown
    with (tmp_path / "cohort.csv").open(newline="") as file:
        assert len({row["patient"] for row in csv.DictReader(file)}) == 10
    found = json.loads(CliRunner().invoke(app, ["demo", "--patients", "--out", str(tmp_path), "--json"]).stdout)
    assert found == {"cohort": str(tmp_path / "cohort.csv"), "slides": 22, "patients": 10}


@pytest.mark.parametrize("more", ["--cohort", "--mil"])
def test_one_study_at_a_time(more: str) -> None:
    refused = CliRunner().invoke(app, ["demo", "--patients", more])
    assert refused.exit_code == 2
    assert f"{more} and --patients are both given" in refused.stderr


@pytest.mark.parametrize("other", [{"seed": 2}, {"patients": 12}])
def test_a_folder_of_another_study_is_refused(other: dict[str, int], tmp_path: Path) -> None:
    """Its slides would have wrong labels."""
    (tmp_path / "demo.json").write_text('{"patients": 10, "size_um": [128.0, 96.0], "seed": 1}')
    with pytest.raises(ConfigError, match="holds the slides of another cohort"):
        write_patient_cohort(tmp_path, **(SMALL | other))
