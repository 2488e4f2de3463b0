"""A training killed within an epoch and resumed has the weights of the undisturbed one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from benchmark import require

import slideio_pipe as sp
from slideio_pipe.commands.demos.study import write_mil_cohort
from slideio_pipe.mil.checkpoint import read_checkpoint
from slideio_pipe.mil.fit import fit
from slideio_pipe.mil.models.small_encoder import SmallEncoder

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
_TILES = {"view": {"mpp": 1.0}, "grid": {"tile_size": 32, "min_tissue": 0.3}}
_KILLED_AT = (5, 14)  # steps of 6 in an epoch: both in its middle


def settings(kind: str, folder: Path) -> dict[str, object]:
    """Return a training of four epochs with all random parts: dropout, order, stains, turns."""
    fitting = {"epochs": 4, "bootstrap": 0, "accelerator": "cpu", "save_every": 1, "patience": None}
    model = {"embed": [16], "attention": 8, "dropout": 0.25}
    if kind == "features":
        return {"fit": fitting, "model": model, "encoder": {"folder": str(folder / "features")}}
    transforms = {"slide_transform": CONFIGS / "mil-slides.yaml", "tile_transform": CONFIGS / "mil-turns.yaml"}
    drawn = {name: str(path) for name, path in transforms.items()}
    encoder = {"source": "small", "chunk_size": 16, "keep_gb": 0.0}
    return {"fit": fitting, "model": model, "encoder": encoder} | drawn | _TILES


def resume(rounds: int = 1, *, quick: bool = False) -> None:
    """Print whether the weights are equal, bit for bit."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cohort = write_mil_cohort(folder, 12, size=(1024, 768))
        encoder = sp.load_encoder(SmallEncoder(16), normalize="imagenet", input_size=32)
        sp.encode_cohort(cohort, encoder, folder / "features", _TILES, progress=False)
        print("| training | killed after steps | weights of the undisturbed run |\n|---|---|---|")
        for kind in ("features",) if quick else ("features", "pixels"):
            start(kind, folder, folder / f"{kind}-whole").wait()
            whole = weights(folder / f"{kind}-whole")
            for turn in range(rounds):
                out = folder / f"{kind}-killed-{turn}"
                seen = [killed(kind, folder, out, steps) for steps in _KILLED_AT]
                start(kind, folder, out).wait()
                found = weights(out)
                same = found.keys() == whole.keys() and all(torch.equal(found[k], v) for k, v in whole.items())
                print(f"| {kind} | {', '.join(map(str, seen))} | {'equal' if same else 'OTHERS'} |", flush=True)
                require(same, f"{kind}: other weights than those of the undisturbed run")


def start(kind: str, folder: Path, out: Path) -> subprocess.Popen[bytes]:
    """Start or resume a training in its own process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", __file__, kind, str(folder), str(out)]
    return subprocess.Popen(command, env=environment, start_new_session=True)


def killed(kind: str, folder: Path, out: Path, steps: int) -> int:
    """Kill a training once its checkpoint has this many steps; return its number of steps."""
    process, last = start(kind, folder, out), out / "last.ckpt"
    while process.poll() is None:
        if last.exists() and read_checkpoint(last)["progress"]["step"] >= steps:
            os.killpg(process.pid, signal.SIGKILL)
            break
        time.sleep(0.005)
    process.wait()
    progress = read_checkpoint(last)["progress"]
    if progress["finished"]:
        raise RuntimeError("the training was over before it could be killed")
    return int(progress["step"])


def weights(out: Path) -> dict[str, torch.Tensor]:
    """Return all weights of the last epoch."""
    state = read_checkpoint(out / "last.ckpt")
    parts = {"model": state["model"], "encoder": state.get("encoder") or {}}
    return {f"{part}.{name}": value for part, found in parts.items() for name, value in found.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    kind, folder, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    fit(folder / "cohort.csv", settings(kind, folder), out, progress=False)
