"""The command ``encoders``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import run


def test_the_table_lists_every_encoder() -> None:
    """With its tiles, width and licence; a line says how to see one."""
    done = run("encoders")
    lines = {line.split()[0]: line for line in done.output.splitlines() if line.strip()}
    assert "256 at 0.5" in lines["uni"]
    assert "1,024 CC-BY-NC-ND-4.0" in lines["uni"]
    assert "224 at 1 " in lines["ctranspath"]
    assert "slideio-pipe encoders NAME" in done.output


def test_one_encoder_is_shown_with_sources_and_notes() -> None:
    """By any of its names."""
    done = run("encoders", "gigapath")
    text = " ".join(done.output.split())
    assert "pytorch_model.bin of https://huggingface.co/prov-gigapath/prov-gigapath" in text
    assert "the centre of tiles resized to 256 px, bicubic" in text
    assert "patch_size 16" in text
    assert "note on resize" in text


def test_json_has_the_whole_records() -> None:
    """A list, or one object."""
    records = json.loads(run("encoders", "--json").output)
    assert len(records) > 20
    one = json.loads(run("encoders", "virchow2", "--json").output)
    assert one == next(record for record in records if record["name"] == "virchow2")
    assert (one["pooling"], one["prefix_tokens"], one["width"]) == ("class+mean", 5, 2560)
    assert one["page"] == "https://huggingface.co/paige-ai/Virchow2"
    assert one["weights_here"] is False


def test_only_what_is_on_this_machine_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights in the hub's cache, and the package."""
    constants = pytest.importorskip("huggingface_hub.constants")
    pytest.importorskip("transformers")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert json.loads(run("encoders", "--installed", "--json").output) == []
    folder = tmp_path / "models--owkin--phikon"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("1" * 40)
    (folder / "snapshots" / ("1" * 40)).mkdir(parents=True)
    (folder / "snapshots" / ("1" * 40) / "model.safetensors").write_bytes(b"weights")
    assert [record["name"] for record in json.loads(run("encoders", "--installed", "--json").output)] == ["phikon"]
    assert "on this machine" in run("encoders", "phikon").output


def test_unknown_names_are_refused() -> None:
    """With similar ones."""
    done = run("encoders", "univ2", code=2)
    assert "univ2: no encoder has this name; did you mean uni2-h?" in " ".join(done.output.split())


@pytest.mark.system
def test_the_table_does_not_load_torch() -> None:
    """It is printed at once."""
    code = "import sys; from slideio_pipe.commands.encoders import encoders; encoders(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.splitlines()[-1] == "False"
