"""How well the hardware is used by normalisation, copy and stream, and a GPU by an encoder.

::

    python tests/benchmarks/gpu.py --json gpu.json            # a CUDA machine, about a minute
    python tests/benchmarks/gpu.py --device cpu --quick       # the same code on a CPU, in seconds

Without a CUDA device it ends with exit code 3.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import torch
from benchmark import parsed, parser_of, require
from torch import Tensor, nn

from slideio_pipe.features.encode_bag import encode_bag
from slideio_pipe.features.encoders import load_encoder
from slideio_pipe.features.encoders.encoder import EncoderOnDevice
from slideio_pipe.streaming.arguments import default_threads
from slideio_pipe.streaming.device import Sender, check_device, on_device
from slideio_pipe.streaming.normalize import IMAGENET_MEAN, IMAGENET_STD, Normalize
from slideio_pipe.streaming.ring import BufferPool
from slideio_pipe.streaming.stream import stream

NO_DEVICE = 3  # exit code
Row = tuple[str, float, str]  # what, value, unit


class JpegBag:
    """A bag of JPEG tiles in memory, so that decoding is all its reader does; 64 different tiles, repeated."""

    name, label = "jpeg", None

    def __init__(self, count: int, size: int) -> None:
        coarse = np.random.default_rng(0).integers(90, 255, (64, size // 8, size // 8, 3), dtype=np.uint8)
        smooth = [cv2.resize(tile, (size, size), interpolation=cv2.INTER_CUBIC) for tile in coarse]
        self.jpegs = [imagecodecs.jpeg8_encode(tile, level=80) for tile in smooth]
        self.shape = (count, size, size, 3)
        self.coords = np.zeros((count, 2), np.int64)

    def __len__(self) -> int:
        return self.shape[0]

    def provenance(self) -> dict[str, Any]:
        """Return nothing: these tiles are of no slide."""
        return {}

    def read(self, indices: Any, out: Any, *, threads: int) -> Any:
        """Decode tiles into ``out``, each thread a run of them."""

        def decode(places: Any) -> None:
            for k in places:
                imagecodecs.jpeg8_decode(self.jpegs[indices[k] % 64], out=out[k])

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(decode, np.array_split(np.arange(len(indices)), threads)))
        return out


def resnet50_sized() -> nn.Module:
    """Return an untrained stack of 3×3 convolutions with the work of a ResNet-50: 4.1 GMAC per 224-px tile."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for outputs, depth in ((64, 6), (128, 9), (256, 12), (512, 9)):
        for _ in range(depth):
            stride = 1 if inputs == outputs else 2
            layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def run(encoder: Callable[[Tensor], object], batches: Iterable[Tensor]) -> None:
    """Queue an encoder's work on batches, and drop the features."""
    for tiles in batches:
        encoder(tiles)


class Bench:
    """The measurements, all on tiles of one size."""

    def __init__(self, device: torch.device, size: int, batch: int, batches: int, threads: int) -> None:
        self.device, self.size, self.batch, self.batches, self.threads = device, size, batch, batches, threads
        self.cuda = device.type == "cuda"
        self.dtype = torch.float16 if self.cuda else torch.float32  # of the encoder
        self.host = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8)
        self.normalize = Normalize.imagenet().to(device)
        self.bag = JpegBag(batch * batches, size)

    def seconds(self, work: Callable[[], object], repeats: int = 10) -> float:
        """Return the time of one call, the best of three rounds, after a warm-up call."""
        work()
        rounds = []
        for _ in range(3):
            start = self.now()
            for _ in range(repeats):
                work()
            rounds.append((self.now() - start) / repeats)
        return min(rounds)

    def now(self) -> float:
        """Return the time when the device has finished its work."""
        if self.cuda:
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def check(self) -> None:
        """Compare the stream with the formula, in float64, on the bytes that the decoder gives."""
        index = np.arange(min(8, len(self.bag)))
        pixels = self.bag.read(index, np.empty((len(index), self.size, self.size, 3), np.uint8), threads=1)
        exact = ((pixels / 255 - IMAGENET_MEAN) / IMAGENET_STD).transpose(0, 3, 1, 2)
        found = next(iter(self.open())).tiles[: len(index)].double().cpu().numpy()
        apart = float(np.abs(found - exact[: len(found)]).max())
        require(apart <= 2e-3, f"streamed tiles are {apart:.4f} from the formula")

    def normalisation(self) -> list[Row]:
        """Bandwidth of the kernel, 1 byte read and 2 written per value, beside that of a device copy."""
        tiles = self.host.to(self.device).permute(0, 3, 1, 2)
        out = torch.empty_like(tiles, dtype=torch.float16)
        other = torch.empty_like(out)
        mean, std = (torch.tensor(s, device=self.device).view(3, 1, 1) for s in (IMAGENET_MEAN, IMAGENET_STD))
        kernel = self.seconds(lambda: self.normalize.convert(tiles, torch.float16))
        plain = self.seconds(lambda: ((tiles.float() / 255 - mean) / std).half())
        copy = self.seconds(lambda: other.copy_(out))
        gb, ms = tiles.numel() / 1e9, 1e3 / self.batch
        return [
            ("normalise", kernel * ms, "ms per tile"),
            ("  one arithmetic kernel", self.seconds(lambda: self.normalize._compute(tiles, out)) * ms, "ms per tile"),
            ("  the formula step by step", plain * ms, "ms per tile"),
            ("normalise, bandwidth", 3 * gb / kernel, "GB/s"),
            ("  bound: device copy", 4 * gb / copy, "GB/s"),
        ]

    def copies(self) -> list[Row]:
        """Tiles per second to the device and normalised, three ways."""
        sender = Sender(self.device, self.normalize, torch.float16)
        ring = BufferPool(sender, sender.host_buffers(3 if self.cuda else 1, tuple(self.host.shape)))
        on_cpu = Normalize.imagenet(dtype=torch.float32)
        raw = sender.host_buffer(tuple(self.host.shape))
        target = torch.empty_like(raw, device=self.device)
        pin = Tensor.pin_memory if self.cuda else Tensor.contiguous
        ways: dict[str, Callable[[], object]] = {
            "copy + normalise, ring": lambda: ring.send(slot := ring.take(), slot.claim(self.batch)),
            "  page-locking each batch": lambda: self.normalize(
                pin(self.host).to(self.device, non_blocking=True).permute(0, 3, 1, 2)
            ),
            "  float32 on the CPU, then copy": lambda: on_cpu(self.host.permute(0, 3, 1, 2)).to(self.device),
            "  bound: copy alone": lambda: target.copy_(raw, non_blocking=True),
        }
        return [(what, self.batch / self.seconds(way, repeats=4), "tiles/s") for what, way in ways.items()]

    def streaming(self) -> list[Row]:
        """Tiles per second of the whole stream beside decoding alone."""
        index = np.arange(self.batch)
        decode = self.seconds(lambda: self.bag.read(index, self.host.numpy(), threads=self.threads), repeats=2)
        stream_s = self.seconds(lambda: [None for _ in self.open()], repeats=1)
        return [
            ("stream", len(self.bag) / stream_s, "tiles/s"),
            (f"  bound: decode, {self.threads} threads", self.batch / decode, "tiles/s"),
        ]

    @torch.inference_mode()
    def encoding(self) -> list[Row]:
        """Tiles per second through an encoder, streamed and by ``encode_bag``, beside the same encoder alone.

        Alone it computes one batch again and again that is on the device already, so that neither launches that wait
        for tiles nor copies count as its own time.
        """
        network = resnet50_sized().eval().to(self.device, self.dtype, memory_format=torch.channels_last)
        tiles = self.host.to(self.device).permute(0, 3, 1, 2)
        ready = self.normalize.convert(tiles, self.dtype)
        streamed = self.seconds(lambda: run(network, (batch.tiles for batch in self.open())), repeats=1)
        alone = self.seconds(lambda: run(network, [ready] * self.batches), repeats=1)

        encoder = load_encoder(resnet50_sized(), name="resnet50", normalize="imagenet", input_size=self.size)
        options: dict[str, Any] = {"device": self.device, "batch_size": self.batch, "threads": self.threads}
        encoded = self.seconds(lambda: encode_bag(self.bag, encoder, **options), repeats=1)
        on_device = EncoderOnDevice(encoder, self.device, torch.float16)
        bound = self.seconds(lambda: run(on_device, [tiles] * self.batches), repeats=1)
        return [
            ("stream + encoder", len(self.bag) / streamed, "tiles/s"),
            ("  bound: encoder alone", len(self.bag) / alone, "tiles/s"),
            ("  encoder busy", 100 * alone / streamed, "%"),
            ("encode_bag", len(self.bag) / encoded, "tiles/s"),
            ("  bound: its encoder alone", len(self.bag) / bound, "tiles/s"),
            ("  its encoder busy", 100 * bound / encoded, "%"),
        ]

    def open(self) -> Any:
        options = {"batch_size": self.batch, "threads": self.threads, "dtype": self.dtype}
        return stream(self.bag, device=self.device, normalize=self.normalize, **options)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--json", type=Path)
    options = parsed(parser)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print("no CUDA device here; --device cpu --quick runs the same code on the CPU", file=sys.stderr)
        raise SystemExit(NO_DEVICE)
    device = check_device(options.device)
    size, batch, batches = (256, 256, 40) if device.type == "cuda" else (256, 64, 2)
    if options.quick:
        size, batch, batches = 64, 4, 4
    bench = Bench(device, size, batch, batches, options.threads)
    with on_device(device):
        bench.check()
        rows = bench.normalisation() + bench.copies() + bench.streaming() + bench.encoding()
    machine = torch.cuda.get_device_name(device) if bench.cuda else platform.machine()
    print(f"{machine}, torch {torch.__version__}, {batch} tiles of {size} px per batch, {options.threads} threads")
    for what, value, unit in rows:
        print(f"{what:34} {value:12.4g} {unit}")
    if options.json:
        about = {"machine": machine, "torch": torch.__version__, "size_px": size, "batch": batch, "rows": rows}
        options.json.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
