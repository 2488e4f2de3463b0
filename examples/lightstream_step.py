"""Training steps of lightstream's StreamingCNN on whole slides at 4 µm per pixel, augmented as a whole.

    python examples/lightstream_step.py
    python examples/lightstream_step.py a.svs b.svs --device cuda

Needs ``pip install lightstream lightning``. A network is run on one image of a whole slide, part by part, with the
exact gradient. The image stays uint8 on the host; each part crosses to the device as bytes, and is normalised there to
float16 with one rounding. On a GPU the parts are computed in float16, on the CPU in float32. Without slides, one with
and one without lesions are generated. ``--check`` compares the gradient with that of one pass over the whole image.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import albumentationsxl as A
import torch
from torch import Tensor, nn

import slideio_pipe as sp

TRANSFORM = A.Compose([sp.RandomAffine(rotate=180), sp.StainJitter(), sp.ColorJitter(0.1, 0.1, 0.1, 0.02)])


def image_of(slide: sp.Slide, epoch: int, stride: int) -> Tensor:
    """Return a whole slide, augmented by one draw, as (1, 3, H, W) uint8 with sides that ``stride`` divides."""
    view = slide.view(mpp=4, transform=TRANSFORM, seed=1, epoch=epoch)
    width, height = (side - side % stride for side in view.size)
    pixels = view.image.crop(0, 0, width, height).numpy()  # the one time that pixels are decoded
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


def streaming(layers: nn.Module, tile: int, device: torch.device) -> Any:
    """Return the layers as a StreamingCNN whose parts are normalised by ``sp.Normalize``."""
    from lightstream.core.scnn.scnn import StreamingCNN

    class Streamed(StreamingCNN):  # type: ignore[misc]  # lightstream has no types
        to_half = sp.Normalize.imagenet().to(device)

        def _normalize_on_gpu(self, tile: Tensor) -> Tensor:
            return self.to_half(tile).to(self.dtype)

    network = Streamed(layers, (1, 3, tile, tile), copy_to_gpu=False, normalize_on_gpu=True)
    if device.type == "cuda":
        network.dtype = torch.float16  # of the parts; the weights stay float32
    return network


def step(network: Any, head: nn.Module, image: Tensor, label: float) -> float:
    """Back-propagate the loss of one slide, and return it."""
    with torch.autocast(network.device.type, torch.float16, enabled=network.device.type == "cuda"):
        features = network(image).requires_grad_()
        logit = head(features.mean((2, 3)))
        loss = nn.functional.binary_cross_entropy_with_logits(logit.squeeze(), torch.tensor(label, device=logit.device))
    loss.backward()
    network.backward(image, features.grad)
    return float(loss.detach())


def largest_difference(network: Any, plain: nn.Module, head: nn.Module, image: Tensor, label: float) -> float:
    """Return the largest difference of a step's gradients from those of one pass over the whole image, relative."""
    whole = sp.Normalize.imagenet().to(network.device)(image.to(network.device)).float()
    logit = head(plain(whole).mean((2, 3)))
    nn.functional.binary_cross_entropy_with_logits(logit.squeeze(), torch.tensor(label, device=logit.device)).backward()
    pairs = zip(network.stream_module.parameters(), plain.parameters(), strict=True)
    return max(float((p.grad - q.grad).abs().max() / q.grad.abs().max()) for p, q in pairs)


def main() -> None:
    """Make one step for each slide."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slides", type=Path, nargs="*")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--tile", type=int, default=256, help="side of a part, px")
    parser.add_argument("--check", action="store_true", help="compare the gradients with those of one pass")
    args = parser.parse_args()
    try:
        import lightstream  # noqa: F401
    except ImportError as error:
        print(f"lightstream cannot be imported ({error}): pip install lightstream lightning")
        sys.exit(0)
    warnings.filterwarnings("ignore", "CUDA is not available")  # of lightstream, on a machine without a GPU
    torch.manual_seed(0)
    device = torch.device(args.device)
    layers = nn.Sequential(
        *(part for a, b in ((3, 16), (16, 32), (32, 32)) for part in (nn.Conv2d(a, b, 3, 2, 1), nn.ReLU()))
    )
    plain, head = copy.deepcopy(layers).to(device), nn.Linear(32, 1).to(device)
    network = streaming(layers.to(device), args.tile, device)
    parameters = [*network.stream_module.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    with tempfile.TemporaryDirectory() as folder:
        slides = args.slides
        for lesions in () if slides else (1, 0):
            made = sp.write_synthetic_slide(Path(folder) / f"{lesions}.svs", size=(8192, 6144), seed=3, lesions=lesions)
            slides.append(made.path)
        for number, path in enumerate(slides):
            with sp.open_slide(path) as slide:
                image, label = image_of(slide, 0, 8), float(number == 0)
            optimizer.zero_grad()
            loss = step(network, head, image, label)
            text = f"{path.name}: {image.shape[3]} × {image.shape[2]} px of {image.dtype}, loss {loss:.3f}"
            if args.check and not number:
                text += (
                    f", gradients differ by {largest_difference(network, plain, copy.deepcopy(head), image, label):.1e}"
                )
            print(text)
            optimizer.step()


if __name__ == "__main__":
    main()
