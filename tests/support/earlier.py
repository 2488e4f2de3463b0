"""A small file of each kind for tests of later versions, and its content: ``python tests/support/earlier.py OUT.zip``.

``earlier.zip`` was written so in 2026-11 by version 0.1.0, before the package moved into its rooms. It is not written
again: ``tests/ground/test_earlier.py`` opens it with the code of today.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import albumentationsxl as A
import cv2
import numpy as np
import tifffile
import torch
import typer
from typer.main import get_command

import slideio_pipe as sp
from slideio_pipe.geometry import Affine

SIZE = (192, 128)  # px, width first
RESOLUTION = {"resolution": (5_000.0, 5_000.0), "resolutionunit": "CENTIMETER"}  # 2 µm
EXPORT = {
    "view": {"mpp": "native"},
    "grid": {"tile_size": 64, "min_tissue": 0.1},
    "tissue": {"mpp": 4.0, "min_area_um2": 1, "max_hole_um2": 1},
    "store": {"pixels": "source"},
}
CLASSES = {"tumour": 1, "stroma": 2}
LOADING = {name: EXPORT[name] for name in ("view", "grid", "tissue")}
TRAINING = {
    "model": {"embed": [4], "attention": 4},
    "fit": {"epochs": 2, "patience": None, "bootstrap": 0, "validation": 0.25, "accelerator": "cpu"},
}


def digest(array: Any) -> str:
    """Return type, shape and a hash of the bytes of arrays."""
    array = np.ascontiguousarray(array)
    return f"{array.dtype} {array.shape} {hashlib.blake2b(array.tobytes(), digest_size=8).hexdigest()}"


def pixels(seed: int) -> np.ndarray:
    """Return (H, W, 3) uint8: a disc of pink and purple on glass."""
    rng = np.random.default_rng(seed)
    field = cv2.GaussianBlur(rng.random(SIZE[::-1]).astype(np.float32), (0, 0), 8)
    field = (field - field.min()) / (field.max() - field.min())
    glass, eosin, haematoxylin = (np.array(c, np.float32) for c in ((243, 242, 244), (220, 140, 190), (110, 60, 150)))
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    depth = np.clip((52 + 6 * seed - np.hypot(x - 110, y - 60)) / 3, 0, 1)[..., None]
    tissue = eosin + (haematoxylin - eosin) * np.clip(field[..., None] * 4 - 2.4, 0, 1)
    return (glass + (tissue - glass) * depth).astype(np.uint8)


def write_slide(path: Path, seed: int) -> Path:
    """Write a tiled JPEG pyramid of two levels."""
    rgb = pixels(seed)
    with tifffile.TiffWriter(path) as tif:
        for level, image in enumerate((rgb, rgb[::2, ::2])):
            tif.write(
                np.ascontiguousarray(image), tile=(64, 64), photometric="rgb", compression="jpeg",
                compressionargs={"level": 80}, subfiletype=level and 1, metadata=None, **RESOLUTION,
            )  # fmt: skip
    return path


def transform() -> A.Compose:
    """Return one of each of our transforms, and one of albumentationsxl's."""
    return A.Compose(
        [
            sp.RandomAffine(rotate=(-180, 180), scale=(0.9, 1.1), p=1),
            sp.Flip(),
            sp.Rotate90(p=1),
            sp.StainJitter(),
            sp.ColorJitter(0.2, 0.2, 0.2, 0.05),
            sp.GaussianNoise(p=1),
            A.RandomBrightnessContrast(p=1),
        ]
    )


def draws() -> dict[str, Any]:
    """Return draws, by the transform and image they are of."""
    parts = {"all": transform(), "crop": sp.RandomResizedCrop((64, 48)), "gamma": A.RandomGamma(p=1)}
    keys = [
        (seed, epoch, slide, tile)
        for seed in (0, 7)
        for epoch in (0, 3)
        for slide in ("a.svs", "µ")
        for tile in (None, 5)
    ]
    return {
        f"{name} {seed} {epoch} {slide} {tile}": sp.draw(
            part, seed=seed, epoch=epoch, slide=slide, tile=tile, size=(640, 480)
        ).to_json()
        for name, part in parts.items()
        for seed, epoch, slide, tile in keys
        if tile is not None or name != "crop"
    }


def bags(out: Path, slide: sp.Slide) -> None:
    """Write a bag of every pixel kind, and of every kind of bag."""
    view = slide.view()
    plain = sp.TileBag(view, sp.TileGrid(view, 64, tissue=sp.find_tissue(slide, **EXPORT["tissue"])), label="tumour")
    for kind in ("zstd", "none", "source", "jpeg:90"):
        sp.save_bag(plain, out / f"{kind.replace(':', '-')}.bag.zarr", pixels=kind, progress=False).close()
    turned = slide.view(mpp=4.0, transform=transform(), seed=7)
    drawn = sp.TileBag(turned, sp.TileGrid(turned, 40), label=0.5, tile_transform=A.Compose([sp.ColorJitter(0.3)]))
    sp.save_bag(drawn, out / "drawn.bag.zarr", progress=False).close()
    between = sp.TileBag.from_coords(slide.view(mpp=3.2), [[10, 21], [61, 33], [-20, 5]], 40)
    sp.save_bag(between, out / "between.bag.zarr", progress=False).close()
    sp.save_bag(sp.TileBag.from_coords(view, np.zeros((0, 2), int), 64), out / "empty.bag.zarr", progress=False).close()


def encoder() -> sp.Encoder:
    """Return a network with the same result in every version of torch: the mean colour."""
    return sp.load_encoder(MeanColour(), input_size=32, name="mean", normalize="identity")


class MeanColour(torch.nn.Module):
    """The mean of each channel."""

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        return tiles.mean((2, 3))


def study(out: Path) -> None:
    """Write features, a training on them, a cohort's export, masks and a conversion."""
    folder = out / "study"
    folder.mkdir()
    rng = np.random.default_rng(5)
    lines = ["slide,label,patient"]
    for k in range(8):
        torch.save(torch.from_numpy((rng.normal(size=(5 + k, 6)) + k % 2).astype(np.float32)), folder / f"f{k}.pt")
        lines.append(f"f{k}.pt,{'tumour' if k % 2 else 'normal'},p{k}")
    (folder / "cohort.csv").write_text("\n".join(lines) + "\n")
    sp.fit(folder / "cohort.csv", TRAINING, out / "training", progress=False)


def cohort(out: Path) -> None:
    """Export two slides and a file that is no slide; find their tissue; convert one bag."""
    (out / "slides" / "broken.tif").write_bytes(b"II*\0broken")
    lines = ["slide,label", "a.tif,tumour", "b.tif,normal", "broken.tif,normal"]
    (out / "slides" / "cohort.csv").write_text("\n".join(lines) + "\n")
    sp.export_cohort(out / "slides" / "cohort.csv", out / "export", EXPORT, progress=False)
    sp.tissue_cohort(out / "slides" / "cohort.csv", out / "masks", EXPORT, progress=False)
    sp.convert([out / "export" / "a.bag.zarr", out / "export" / "b.bag.zarr"], "clam", out / "clam", progress=False)


def masks(out: Path, slide: sp.Slide) -> None:
    """Write a tissue mask as both files, annotations and a label mask."""
    tissue = sp.find_tissue(slide, **EXPORT["tissue"])
    tissue.to_geojson(out / "tissue.geojson")
    tissue.to_png(out / "tissue.png")
    labels = np.zeros((64, 96), np.uint8)
    labels[10:40, 20:50], labels[30:60, 40:70] = 1, 2
    cv2.imwrite(str(out / "labels.png"), labels)
    mask = sp.LabelMask.from_file(out / "labels.png", slide, classes=CLASSES)
    mask.save(out / "labels-saved.png")
    sp.Annotations.from_labels(mask).to_geojson(out / "annotations.geojson")


def loader_state(slides: Path) -> dict[str, Any]:
    """Return the state of a loader in the middle of its first epoch."""
    dataset = sp.BagDataset([slides / "a.tif", slides / "b.tif"], {**LOADING, "seed": 3})
    with sp.BagLoader(dataset, chunk_size=4, ordered=True, device="cpu", normalize=None) as loader:
        chunks = iter(loader)
        next(chunks)
        return loader.state_dict()


def surface() -> dict[str, Any]:
    """Return the public names, and the options of every command."""
    from slideio_pipe.commands.app import app

    return {"names": sorted(sp.__all__), "commands": options(get_command(app), typer.Context(get_command(app)))}


def options(command: Any, context: Any) -> dict[str, Any]:
    """Return the options of a command, and those of the commands in it."""
    inner = {name: options(part, context) for name, part in sorted(getattr(command, "commands", {}).items())}
    return {
        "options": sorted(name for option in command.params for name in (*option.opts, *option.secondary_opts)),
        **({"commands": inner} if inner else {}),
    }


def seen(folder: Path) -> dict[str, Any]:
    """Return the content of the files in a folder, as the package reads them."""
    slides, found = folder / "slides", {}
    for store in sorted(folder.glob("*/*.bag.zarr")):
        with sp.open_bag(store) as bag:
            found[f"{store.parent.name}/{store.name}"] = {
                "tiles": digest(bag[:]), "coords": digest(bag.coords), "tissue": digest(bag.tissue),
                "index": digest(bag.grid_index), "label": bag.label, "name": bag.name, "encoders": list(bag.encoders),
            }  # fmt: skip
    for store in (folder / "bags" / "source.bag.zarr", folder / "features" / "a.features.zarr"):
        features = sp.open_features(store)
        found[f"features of {store.name}"] = [digest(features.features), digest(features.coords), features.encoder]
    with sp.open_slide(slides / "a.tif") as slide:
        masks = folder / "masks"
        for name in ("a.geojson", "tissue.geojson", "tissue.png"):
            read = sp.TissueMask.from_png if name.endswith("png") else sp.TissueMask.from_geojson
            found[name] = digest(read(masks / name, slide).mask)
        for name in ("labels.png", "labels-saved.png"):
            found[name] = digest(sp.LabelMask.from_file(masks / name, slide, classes=CLASSES).mask)
        annotations = sp.Annotations.from_geojson(masks / "annotations.geojson").on(slide)
        found["annotations"] = digest(annotations.raster((96, 64), Affine.scaling(0.5, 0.5)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        predictor = sp.load_predictor(folder / "training")
    predictions = [predictor.predict(folder / "study" / f"f{k}.pt") for k in range(8)]
    found["logits"] = [[float(value) for value in prediction.logits] for prediction in predictions]
    found["attention"] = [float(prediction.attention.max()) for prediction in predictions]
    return found


def main(out: Path) -> None:
    """Write everything into an archive."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "earlier"
        write(folder)
        texts = {
            "draws": draws(),
            "surface": surface(),
            "loader": loader_state(folder / "slides"),
            "seen": seen(folder),
        }
        for name, value in texts.items():
            (folder / f"{name}.json").write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(folder.rglob("*")):
                if path.is_file():
                    archive.write(path, path.relative_to(folder))


def write(out: Path) -> None:
    """Write the files into a folder."""
    warnings.simplefilter("ignore")
    (out / "bags").mkdir(parents=True)
    (out / "slides").mkdir()
    write_slide(out / "slides" / "a.tif", 1)
    write_slide(out / "slides" / "b.tif", 2)
    slide = sp.open_slide(out / "slides" / "a.tif")
    bags(out / "bags", slide)
    sp.encode_cohort([out / "bags" / "source.bag.zarr"], encoder(), device="cpu", progress=False)
    sp.encode_cohort(out / "slides" / "a.tif", encoder(), out / "features", LOADING, device="cpu", progress=False)
    study(out)
    cohort(out)
    masks(out / "masks", slide)
    for name in ("plots", "tensorboard"):  # pictures, and what another program reads
        shutil.rmtree(out / "training" / name)
    for page in (*out.glob("*/report.html"), *out.glob("*/report/*.jpg")):
        page.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
