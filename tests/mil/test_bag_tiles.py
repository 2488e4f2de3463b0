"""End to end from slides: two passes read the same tiles, in one process or two, from memory or read again."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import albumentationsxl as A
import pytest
import torch
from made_slides import made_slide
from paths import CONFIGS, ROOT, SUPPORT
from pixel_training import settings
from torch import Tensor

from slideio_pipe.augment.geometric_transforms import RandomAffine, RandomResizedCrop
from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.errors import ConfigError
from slideio_pipe.export.cohort import export_cohort
from slideio_pipe.mil.checkpoint import read_checkpoint
from slideio_pipe.mil.config import load_train_config
from slideio_pipe.mil.fit import fit
from slideio_pipe.mil.models.mil_model import MilModel
from slideio_pipe.mil.models.small_encoder import SmallEncoder
from slideio_pipe.mil.models.tile_encoder import tile_encoder
from slideio_pipe.mil.models.two_pass import TwoPass
from slideio_pipe.mil.sources import PixelSource

pytest.importorskip("lightning_fabric")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the manifest of six small slides, half with a lesion."""
    folder = tmp_path_factory.mktemp("slides")
    with (folder / "cohort.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["slide", "label"])
        for k in range(6):
            made_slide(folder / f"s{k}.svs", size=(1536, 1024), seed=k, lesions=k % 2)
            rows.writerow([f"s{k}.svs", k % 2])
    (folder / "stain.yaml").write_text((CONFIGS / "stain-light.yaml").read_text())
    return folder / "cohort.csv"


def source(slides: Path, keep_gb: float, *, augment: bool) -> PixelSource:
    """Return the slides as a source of training."""
    values = settings(slides, augment=augment)
    values["encoder"]["keep_gb"] = keep_gb
    encoder = tile_encoder(None, "small", None)
    return PixelSource(Cohort.of(slides), CPU, load_train_config(values), encoder.prepare, augment=True)


@pytest.mark.slow
@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("keep_gb", [0.0, 0.0001, 1.0])
def test_the_second_pass_has_the_tiles_of_the_first(slides: Path, keep_gb: float, augment: bool) -> None:
    """Read again, or kept in part or whole: byte for byte, with stains drawn; the next epoch draws others."""
    found = source(slides, keep_gb, augment=augment)
    seen = []
    for example in found.epoch(3, shuffle=True):
        bag = example.pixels
        assert bag is not None
        first, second = torch.cat(list(bag)), torch.cat(list(bag))
        assert torch.equal(first, second)
        assert len(bag.coords) == len(first)
        seen.append((example.number, first))
    other = {e.number: torch.cat(list(e.pixels)) for e in found.epoch(4, shuffle=True) if e.pixels is not None}
    found.close()
    assert sorted(number for number, _ in seen) == list(range(6))
    assert all(torch.equal(tiles, other[number]) is not augment for number, tiles in seen)


def test_an_epoch_can_be_resumed_after_any_slide(slides: Path) -> None:
    """Also after the last one: then nothing of that epoch is left, and no other epoch is read instead."""
    found = source(slides, 0.0, augment=True)
    order, states = [], []
    for example in found.epoch(3, shuffle=True):
        order.append(example.number)
        assert example.pixels is not None
        assert len(list(example.pixels))
        example.pixels.drain()
        states.append(found.state())
    for done, state in enumerate(states, 1):
        assert [example.number for example in found.epoch(3, shuffle=True, state=state)] == order[done:]
    found.close()
    assert len(order) == 6


def test_the_gradient_from_slides_equals_that_of_whole_bags(slides: Path) -> None:
    """With stains drawn, in double precision, with tiles that are read twice."""
    torch.manual_seed(0)
    encoder, model = SmallEncoder(16).double(), MilModel(16, 1, embed=(), dropout=0.0).double()
    passes, parameters = TwoPass(encoder), [*encoder.parameters(), *model.parameters()]
    found = source(slides, 0.0, augment=True)
    wanted: list[Tensor] = []
    for example in found.epoch(0, shuffle=True):
        bag = example.pixels
        assert bag is not None
        bag.prepare = lambda tiles: tiles.double() / 255
        encoded = passes.encode(bag)
        model(encoded.features).logits.sum().backward()
        encoded.backward()
        wanted.append(torch.cat(list(bag)))
    got = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    for parameter in parameters:
        parameter.grad = None
    torch.stack([model(encoder(tiles)).logits.sum() for tiles in wanted]).sum().backward()
    full = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    found.close()
    assert float((got - full).norm() / full.norm()) < 1e-9


@pytest.mark.slow
def test_training_end_to_end_changes_the_encoder(slides: Path, tmp_path: Path) -> None:
    """With ``trainable: false`` it does not."""
    changed = fit(slides, settings(slides, augment=True), tmp_path / "a", progress=False)
    frozen = settings(slides)
    frozen["encoder"]["trainable"] = False
    kept = fit(slides, frozen, tmp_path / "b", progress=False)
    torch.manual_seed(0)
    start = tile_encoder(None, "small", None).module.state_dict()
    for fitted, same in ((changed, False), (kept, True)):
        weights = read_checkpoint(fitted.checkpoints[0])["encoder"]
        assert all(torch.equal(weights[name], value) for name, value in start.items()) is same


_TWO = """
import sys
sys.path[:0] = [{root!r}, {support!r}]
from pathlib import Path
import torch
torch.set_num_threads(1)
from pixel_training import settings
from slideio_pipe.mil.fit import fit
slides = Path({slides!r})
fit(slides, settings(slides, {more}), {out!r}, progress=False)
"""


def train(slides: Path, out: Path, more: str) -> dict[str, Tensor]:
    """Train in processes of its own, and return the weights."""
    code = _TWO.format(root=str(ROOT), support=str(SUPPORT), slides=str(slides), out=str(out), more=more)
    script = out.with_suffix(".py")
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    state = read_checkpoint(out / "last.ckpt")
    return state["encoder"] | state["model"]


@pytest.mark.system
def test_two_processes_train_as_one(slides: Path, tmp_path: Path) -> None:
    """One bag each, averaged, equals a step of two bags in one process: weights agree to single precision."""
    two = train(slides, tmp_path / "two", "devices=2, bags_per_step=1, warmup=0.0, clip=None")
    one = train(slides, tmp_path / "one", "devices=1, bags_per_step=2, warmup=0.0, clip=None")
    assert two.keys() == one.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_precisions_are_those_of_fabric(precision: str, slides: Path, tmp_path: Path) -> None:
    """In both passes."""
    fitted = fit(slides, settings(slides, precision=precision, epochs=1), tmp_path / "run", progress=False)
    assert 0.3 < fitted.history[0][0]["loss"] < 1.5


def test_bad_input_is_refused_before_the_first_epoch(slides: Path, tmp_path: Path) -> None:
    """Tiles that the network does not take; a network without features."""
    small = settings(slides) | {"grid": {"tile_size": 2, "min_tissue": 0.3}}
    with pytest.raises(ConfigError, match=r"Sequential does not take tiles of 2×2 px .*set grid.tile_size"):
        fit(slides, small, tmp_path / "a", encoder=torch.nn.Sequential(torch.nn.Conv2d(3, 4, 5)), progress=False)
    with pytest.raises(ConfigError, match=r"returns \(2, 7\) int64 for 2 tiles|returns a tuple"):
        fit(slides, settings(slides), tmp_path / "b", encoder=Pair(), progress=False)
    assert not (tmp_path / "b" / "last.ckpt").exists()


class Pair(torch.nn.Module):
    """A network that returns a pair."""

    def forward(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        return tiles, tiles


def test_the_error_of_a_too_large_chunk_names_one_that_fits(slides: Path, tmp_path: Path) -> None:
    """As a setting of the configuration."""

    class Greedy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = SmallEncoder(16)

        def forward(self, tiles: Tensor) -> Tensor:
            if len(tiles) > 5:
                raise torch.OutOfMemoryError("out of memory")
            out: Tensor = self.inside(tiles)
            return out

    with pytest.raises(ConfigError, match="a chunk of 16 tiles does not fit into memory; pass chunk_size=4"):
        fit(slides, settings(slides), tmp_path / "a", encoder=Greedy(), progress=False)


@pytest.fixture(scope="module")
def bags(slides: Path) -> Path:
    """Return the manifest of the same slides as stored bags, with the tiles of ``settings``."""
    tiles = {"view": {"mpp": 1.0}, "grid": {"tile_size": 32, "min_tissue": 0.3}, "store": {"pixels": "jpeg:95"}}
    export_cohort(slides, slides.parent / "bags", tiles, progress=False)
    rows = [f"bags/s{k}.bag.zarr,{k % 2}" for k in range(6)]
    (slides.parent / "bags.csv").write_text("\n".join(["slide,label", *rows]))
    turns = A.Compose([RandomAffine(rotate=180), RandomResizedCrop((24, 24), scale=(0.5, 1.0))])
    A.save(turns, slides.parent / "turns.yaml", data_format="yaml")
    return slides.parent / "bags.csv"


@pytest.mark.slow
@pytest.mark.parametrize("keep_gb", [0.0, 1.0])
def test_the_second_pass_over_stored_bags_has_the_tiles_of_the_first(bags: Path, keep_gb: float) -> None:
    """Turned, cropped and stained tiles, read again or kept, byte for byte; the next epoch draws others."""
    values = settings(bags, augment=True) | {"tile_transform": str(bags.parent / "turns.yaml")}
    values["encoder"]["keep_gb"] = keep_gb
    encoder = tile_encoder(None, "small", None)
    found = PixelSource(Cohort.of(bags), CPU, load_train_config(values), encoder.prepare, augment=True)
    epochs: list[dict[int, Tensor]] = []
    for epoch in (0, 1):
        seen = {}
        for example in found.epoch(epoch, shuffle=True):
            assert example.pixels is not None
            first, second = torch.cat(list(example.pixels)), torch.cat(list(example.pixels))
            assert torch.equal(first, second)
            assert first.shape[1:] == (3, 24, 24)
            seen[example.number] = first
        epochs.append(seen)
    found.close()
    assert sorted(epochs[0]) == list(range(6))
    assert not any(torch.equal(epochs[0][number], epochs[1][number]) for number in range(6))


@pytest.mark.system
def test_training_on_augmented_stored_bags(bags: Path, tmp_path: Path) -> None:
    """Two trainings are equal, and differ from one without transforms; a rotation of whole slides is refused."""
    drawn = settings(bags, augment=True) | {"tile_transform": str(bags.parent / "turns.yaml")}
    runs = [
        fit(bags, values, tmp_path / name, progress=False)
        for name, values in (("a", drawn), ("b", drawn), ("plain", settings(bags)))
    ]
    first, again, plain = (read_checkpoint(fitted.checkpoints[0])["encoder"] for fitted in runs)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], plain[name]) for name in first)
    turned = settings(bags) | {"slide_transform": str(CONFIGS / "mil-slides.yaml")}
    with pytest.raises(ConfigError, match="Rotate90 of slide_transform cannot move stored tiles"):
        fit(bags, turned, tmp_path / "turned", progress=False)
