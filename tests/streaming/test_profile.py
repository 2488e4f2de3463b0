"""Profiles: times of stages, the bottleneck, and the trace."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import albumentationsxl as A
import numpy as np
import pytest
from made_slides import made_slide
from PIL import Image
from typer.testing import CliRunner

import slideio_pipe as sp
from slideio_pipe.commands.app import app
from slideio_pipe.errors import ConfigError, OutputError
from slideio_pipe.streaming.profile import Clock, Profile, profile


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_slide(tmp_path_factory.mktemp("profile") / "a.svs", size=(2000, 1500), seed=1).path


def dataset(slide: Path, **values: object) -> sp.BagDataset:
    return sp.BagDataset([slide], {"view": {"mpp": "native"}, "tissue": {"method": "none"}, **values})


def test_a_profile_has_every_stage_of_a_slide(slide: Path, executor: str) -> None:
    """Bytes, decoding, turning and shrinking, colours, the device; every tile is read."""
    transform = A.Compose([sp.RandomAffine(rotate=20), A.Resize(100, 100), sp.StainJitter()])
    cohort = sp.BagDataset([slide], {"view": {"mpp": "native"}, "tissue": {"method": "none"}}, tile_transform=transform)
    found = profile(cohort, threads=2, chunk_size=8)
    assert found.tiles == 7 * 5
    assert found.bags == 1
    sampled = "program" if executor == "compiled" else "resample"
    assert set(found.stages) == {"open", "read", "decode", sampled, "augment", "device"}
    assert all(spent > 0 for spent in found.stages.values())
    assert 0 < found.first_chunk_s <= found.wait_s <= found.seconds


def test_stages_on_one_thread_take_no_longer_than_the_run(slide: Path) -> None:
    """Those of the reader."""
    found = profile(dataset(slide), threads=1)
    reading = sum(found.stages.get(stage, 0.0) for stage in ("read", "decode", "program", "resample", "augment"))
    assert reading <= found.seconds


def test_a_profile_does_not_change_the_callers_bag(slide: Path) -> None:
    """Nor the dataset: their later reads are not timed."""
    view = sp.open_slide(slide).view()
    bag = sp.TileBag(view, sp.TileGrid(view, 256))
    cohort = sp.BagDataset([bag])
    assert profile(cohort).tiles == len(bag)
    assert bag.on_stage is None
    assert cohort.on_stage is None


def test_stored_bags_are_decoded_too(slide: Path, tmp_path: Path) -> None:
    """A bag on disk has a decode stage and no resampling."""
    view = sp.open_slide(slide).view()
    sp.save_bag(sp.TileBag(view, sp.TileGrid(view, 256)), tmp_path / "a.bag.zarr")
    assert set(profile(sp.BagDataset([tmp_path / "a.bag.zarr"])).stages) == {"open", "decode", "device"}


def test_it_stops_after_max_tiles(slide: Path) -> None:
    """After the chunk that reaches the number; no thread is left."""
    before = threading.active_count()
    assert profile(dataset(slide), max_tiles=5, chunk_size=4).tiles == 8
    assert threading.active_count() == before


def figures(**changed: object) -> Profile:
    values: dict[str, object] = {
        "seconds": 10.0, "tiles": 1000, "bags": 2, "threads": 1, "first_chunk_s": 0.1, "wait_s": 6.0,
        "consumer_s": 4.0, "stages": {"read": 1.0, "decode": 7.0, "device": 2.0}, "memory": "1 MB",
    }  # fmt: skip
    return Profile(**(values | changed))  # type: ignore[arg-type]


def test_the_bottleneck_is_the_stage_with_most_work() -> None:
    """If the consumer waits; otherwise there is none."""
    assert figures().bottleneck == "decode"
    assert figures().verdict().startswith("decode takes 70% of the work, and the consumer waited 60% of the time: ")
    assert figures(wait_s=0.2).bottleneck == "consumer"
    assert "waited 2%" in figures(wait_s=0.2).verdict()
    assert figures().verdict() in repr(figures())  # a notebook shows what to change


@pytest.mark.parametrize(
    "stage", ["open", "read", "decode", "fallback", "program", "resample", "augment", "copy", "device"]
)
def test_every_bottleneck_has_a_remedy(stage: str) -> None:
    """One sentence without placeholders."""
    verdict = figures(stages={stage: 3.0}).verdict()
    assert "{" not in verdict
    assert verdict.endswith(".")


def test_shares_sum_to_one() -> None:
    """Rates are tiles per second of the stage."""
    rows = {stage: figures for stage, *figures in figures().rows()}
    assert sum(row[1] for row in rows.values()) == pytest.approx(1)
    assert rows["decode"] == [7.0, 0.7, 7.0, pytest.approx(1000 / 7)]


def test_the_trace_has_every_span_on_its_thread() -> None:
    """In microseconds from the first one, in Chrome's trace event format."""
    clock = Clock(spans=True)
    clock("read", 10.0, 10.5)
    other = threading.Thread(target=clock, args=("decode", 10.25, 11.0), name="other")
    other.start()
    other.join()
    names, spans = ([event for event in clock.trace()["traceEvents"] if event["ph"] == kind] for kind in ("M", "X"))
    assert [event["args"]["name"] for event in names] == [threading.current_thread().name, "other"]
    assert [(span["name"], span["ts"], span["dur"]) for span in spans] == [("read", 0, 5e5), ("decode", 2.5e5, 7.5e5)]
    assert spans[0]["tid"] != spans[1]["tid"]


def test_invalid_numbers_and_paths_are_refused(slide: Path, tmp_path: Path) -> None:
    """Before or after the run, with our errors."""
    with pytest.raises(ConfigError, match="step_ms"):
        profile(dataset(slide), step_ms=-1)
    with pytest.raises(OutputError, match="trace cannot be written"):
        profile(dataset(slide), max_tiles=1, trace=tmp_path / "none" / "t.json")


def test_the_command_prints_stages_and_the_bottleneck(slide: Path, tmp_path: Path) -> None:
    """As text with a trace, and as JSON."""
    trace = tmp_path / "trace.json"
    run = CliRunner().invoke(app, ["profile", str(slide), "--mpp", "native", "--trace", str(trace)])
    assert run.exit_code == 0, run.output
    assert "decode" in run.output
    assert "the consumer" in run.output
    assert {event["ph"] for event in json.loads(trace.read_text())["traceEvents"]} == {"M", "X"}
    run = CliRunner().invoke(app, ["profile", str(slide), "--json", "--tiles", "2", "--step-ms", "1"])
    assert run.exit_code == 0, run.output
    found = json.loads(run.stdout)
    assert found["tiles"] >= 2
    assert np.isclose(sum(row["share"] for row in found["stages"].values()), 1)


def test_a_cohort_file_is_profiled(slide: Path, tmp_path: Path) -> None:
    """A CSV means its slides; an error of it is one line."""
    (tmp_path / "cohort.csv").write_text(f"slide,label\n{slide},1\n")
    run = CliRunner().invoke(app, ["profile", str(tmp_path / "cohort.csv"), "--json", "--tiles", "4"])
    assert run.exit_code == 0, run.output
    run = CliRunner().invoke(app, ["profile", str(tmp_path / "missing.csv")])
    assert run.exit_code == 2
    assert "missing.csv" in run.output


def test_advice_for_stored_bags_does_not_change_mpp_or_grid() -> None:
    """These are fixed."""
    verdict = figures(stages={"open": 1.0, "decode": 3.0}).verdict()
    assert "mpp" not in verdict
    assert "mpp" in figures(stages={"augment": 0.1, "decode": 3.0}).verdict()


def test_failed_slides_are_a_warning_with_max_failures(slide: Path, tmp_path: Path) -> None:
    """Without it they end the command, with their name; a missing slide is an error at once."""
    (tmp_path / "broken.svs").write_bytes(b"II*\0")
    slides = ["profile", str(slide), str(tmp_path / "broken.svs")]
    run = CliRunner().invoke(app, slides)
    assert run.exit_code == 2
    assert "broken.svs" in run.output
    run = CliRunner().invoke(app, [*slides, "--max-failures", "1"])
    assert run.exit_code == 0, run.output
    assert "1 slide could not be read, such as broken.svs" in run.output
    run = CliRunner().invoke(app, ["profile", str(tmp_path / "missing.svs")])
    assert f"{tmp_path / 'missing.svs'}: no such file; check the path" in run.output


def test_the_resolution_of_slides_can_be_given(tmp_path: Path) -> None:
    """By the option that the error names."""
    Image.fromarray(np.full((300, 500, 3), 90, np.uint8)).save(tmp_path / "a.png")
    unknown = CliRunner().invoke(app, ["profile", str(tmp_path / "a.png")])
    assert "pass --slide-mpp" in unknown.output
    given = CliRunner().invoke(app, ["profile", str(tmp_path / "a.png"), "--slide-mpp", "0.5", "--tile-size", "100"])
    assert given.exit_code == 0, given.output


def test_an_interrupted_profile_does_not_offer_to_resume(monkeypatch: pytest.MonkeyPatch, slide: Path) -> None:
    """It starts again, unlike an export."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("slideio_pipe.streaming.profile.profile", interrupted)
    run = CliRunner().invoke(app, ["profile", str(slide)])
    assert (run.exit_code, run.stderr) == (130, "interrupted\n")
