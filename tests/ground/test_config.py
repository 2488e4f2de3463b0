"""Configurations are written to and read from YAML, and errors name every invalid value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from slideio_pipe.config import Record, checked
from slideio_pipe.errors import ConfigError
from slideio_pipe.export.config import ExportConfig, load_config
from slideio_pipe.tiles.config import GridConfig

POSITIVE = st.floats(1e-3, 1e3)
MICROSCOPIC = st.floats(0.05, 100)  # no microscope is finer
GRIDS = st.one_of(
    st.fixed_dictionaries(
        {"tile_size": st.integers(1, 4096)},
        optional={
            "stride": st.integers(1, 4096),
            "edge": st.sampled_from(["drop", "shift", "pad"]),
            "min_tissue": st.floats(0, 1),
        },
    ),
    st.integers(2, 4096).flatmap(
        lambda tile: st.fixed_dictionaries({"tile_size": st.just(tile), "overlap": st.integers(0, tile - 1)})
    ),
)
EXPORTS = st.fixed_dictionaries(
    {},
    optional={
        "slide": st.fixed_dictionaries({}, optional={"slide_mpp": st.none() | MICROSCOPIC}),
        "view": st.fixed_dictionaries({}, optional={"mpp": st.none() | POSITIVE}),
        "tissue": st.fixed_dictionaries({}, optional={"mpp": POSITIVE}),
        "grid": GRIDS,
    },
)


@given(EXPORTS)
def test_a_record_written_as_yaml_reads_back_equal(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]
) -> None:
    """Also without its default values."""
    path = tmp_path_factory.mktemp("config") / "export.yaml"
    config = checked(ExportConfig, None, **values)
    for written in (values, config.model_dump(mode="json")):
        path.write_text(yaml.safe_dump(written), encoding="utf-8")
        assert load_config(path) == config


@given(GRIDS)
def test_the_step_is_stride_or_tile_minus_overlap(values: dict[str, Any]) -> None:
    """Or the tile size if neither is given."""
    expected = values.get("stride", values["tile_size"] - values.get("overlap", 0))
    assert checked(GridConfig, None, **values).step == expected


def test_stride_and_overlap_may_agree() -> None:
    """Both may be given if they state the same step."""
    assert checked(GridConfig, None, tile_size=256, stride=192, overlap=64).step == 192


def test_records_are_immutable() -> None:
    """They can be shared and stored."""
    config = ExportConfig()
    with pytest.raises(ValidationError):
        config.grid.tile_size = 3  # type: ignore[misc]


def test_numpy_integers_are_accepted() -> None:
    """Sizes often come from arrays."""
    assert checked(GridConfig, None, tile_size=np.int64(64), stride=np.int32(32)).step == 32


IMPOSSIBLE = [
    ("quality", "min_focus", -1),
    ("quality", "max_pen", 1.5),
    ("quality", "max_white", -0.1),
    ("grid", "tile_size", 0),
    ("grid", "tile_size", -256),
    ("grid", "tile_size", 256.5),
    ("grid", "tile_size", "big"),
    ("grid", "stride", 0),
    ("grid", "stride", -1),
    ("grid", "overlap", -1),
    ("grid", "edge", "wrap"),
    ("grid", "min_tissue", -0.1),
    ("grid", "min_tissue", 1.1),
    ("grid", "min_tissue", float("nan")),
    ("view", "mpp", 0),
    ("view", "mpp", -0.5),
    ("view", "mpp", float("inf")),
    ("view", "mpp", float("nan")),
    ("view", "mpp", "20x"),
    ("slide", "slide_mpp", 0),
    ("slide", "slide_mpp", 0.00025),
    ("slide", "backend", "bioformats"),
    ("tissue", "method", "magic"),
    ("tissue", "mpp", 0),
    ("store", "pixels", "gif"),
]


@pytest.mark.parametrize(("section", "key", "value"), IMPOSSIBLE, ids=lambda v: str(v))
def test_an_impossible_value_is_named(tmp_path: Path, section: str, key: str, value: Any) -> None:
    """The message has the file, the key with its section, and the value."""
    path = tmp_path / "export.yaml"
    path.write_text(yaml.safe_dump({section: {key: value}}), encoding="utf-8")
    with pytest.raises(ConfigError) as raised:
        load_config(path)
    message = str(raised.value)
    assert str(path) in message
    assert f"{section}.{key}" in message
    assert str(value) in message


def test_one_message_lists_all_mistakes(tmp_path: Path) -> None:
    """Three mistakes, one message."""
    path = tmp_path / "export.yaml"
    path.write_text("grid: {stride: 0, edge: wrap}\ncolour: blue\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r'grid\.stride\b.*grid\.edge\b.*unknown key "colour"'):
        load_config(path)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"tile_size": 256, "stride": 256, "overlap": 64}, "stride and overlap contradict each other"),
        ({"tile_size": 256, "overlap": 256}, "overlap must be smaller than tile_size"),
        ({"tile_size": 256, "overlap": 300}, "overlap must be smaller than tile_size"),
    ],
)
def test_contradicting_values_are_refused(values: dict[str, int], reason: str) -> None:
    """Each is valid on its own."""
    with pytest.raises(ConfigError, match=reason):
        checked(GridConfig, "a.svs", **values)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("grid: [1, 2", "is no YAML"),
        ("- 1\n- 2\n", "is no mapping"),
        ("just words", "is no mapping"),
        ("grid: 7", "grid=7: should be a section with keys of its own"),
        ("1: 2", 'unknown key "1"'),
        ("tile_size: 256", 'unknown key "tile_size", did you mean "grid.tile_size"?'),
        ("grid: {tilesize: 256}", 'unknown key "grid.tilesize", did you mean "grid.tile_size"?'),
        ("gird: {tile_size: 256}", 'unknown key "gird", did you mean "grid"?'),
        ("grid: {colour: red}", 'unknown key "grid.colour"; see slideio-pipe config show export'),
        ("grid: {tile_size: !!python/object:os.system {}}", "is no YAML"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    """For any content, one of our errors names the file."""
    path = tmp_path / "export.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as raised:
        load_config(path)
    assert reason in str(raised.value)
    assert str(path) in str(raised.value)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    """Missing, a directory, not text."""
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00\xd8")
    for path in (tmp_path / "none.yaml", tmp_path, binary):
        with pytest.raises(ConfigError):
            load_config(path)


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    """Every key has a default."""
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing yet\n", encoding="utf-8")
    assert load_config(path) == ExportConfig()


def test_every_section_refuses_unknown_keys() -> None:
    """A misspelt key is never ignored, in any section."""
    for name, field in ExportConfig.model_fields.items():
        if name == "unit":  # no section
            continue
        record = field.annotation
        assert isinstance(record, type)
        assert issubclass(record, Record)
        with pytest.raises(ConfigError, match='unknown key "typo"'):
            checked(record, None, typo=1)
