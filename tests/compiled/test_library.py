"""The compiled tile programs: built from these sources, the same bytes on each instruction set, any size, any place."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from augment_reference import COLOURS, random_chain

from slideio_pipe.augment.executors.compiled import compiled_chain
from slideio_pipe.cohort.workers.pool import WorkerPool
from slideio_pipe.compiled import compile_programs, library
from slideio_pipe.compiled.library import Programs, load, use_compiled
from slideio_pipe.compiled.records import BY_COPYING, BY_SAMPLING, OP, SOURCE, STORED, STORED_TILE, TILE

NOISE = np.random.default_rng(3).integers(0, 256, (300, 280, 3), np.uint8)


@pytest.fixture
def programs() -> Iterator[Programs]:
    """The library, left with the instruction set that it chose."""
    found = load()
    assert found is not None, "python slideio_pipe/compiled/compile_programs.py"
    chosen = found.instruction_set()
    yield found
    found.instruction_set(chosen)


def test_the_library_was_compiled_from_these_sources(programs: Programs) -> None:
    """After a change of the C files: python slideio_pipe/compiled/compile_programs.py."""
    assert programs.built_from == compile_programs.digest()


def test_a_library_of_other_sources_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """It could take other structs; the other executor is used."""
    monkeypatch.setattr(library, "digest", lambda: "another")
    library._loaded.cache_clear()
    assert load() is None
    library._loaded.cache_clear()


def test_records_have_the_layout_of_the_structs(tmp_path: Path) -> None:
    """Sizes and offsets as the C compiler computes them."""
    kinds = {"Source": SOURCE, "Tile": TILE, "Stored": STORED, "StoredTile": STORED_TILE}
    printed = [f'printf("%zu ", sizeof({name}));' for name in ("Op", *kinds)]
    fields = [(struct, name) for struct, kind in kinds.items() for name in kind.names or ()]
    printed += [f'printf("%zu ", offsetof({struct}, {name}));' for struct, name in fields]
    header = Path(compile_programs.__file__).with_name("stored_tiles.h")
    code = f'#include "{header}"\n#include <stddef.h>\n#include <stdio.h>\nint main(void) {{ {" ".join(printed)} }}'
    (tmp_path / "a.c").write_text(code)
    command = [sys.executable, "-m", "ziglang", "cc", str(tmp_path / "a.c"), "-o", str(tmp_path / "a")]
    subprocess.run(command, check=True, capture_output=True)
    found = [int(number) for number in subprocess.check_output([tmp_path / "a"]).split()]
    offsets = [kinds[struct].fields[name][1] for struct, name in fields]  # type: ignore[index]
    assert found == [OP.itemsize, *(kind.itemsize for kind in kinds.values()), *offsets]


@pytest.mark.parametrize("seed", range(20))
def test_instruction_sets_give_the_same_colours(programs: Programs, seed: int) -> None:
    """Random chains on the whole colour cube, to the byte."""
    chain = compiled_chain([operation for operation in random_chain(seed) if operation.kind != "noise"])
    assert chain is not None
    results = []
    for instructions in (2, 3):
        programs.instruction_set(instructions)
        programs.colour(COLOURS, out := np.empty_like(COLOURS), chain)
        results.append(out)
    assert np.array_equal(*results)


def one_block(pixels: np.ndarray, outside: int = 255) -> np.ndarray:
    """Return the program, without an affine and a target, of a tile sampled from one picture."""
    tile = np.zeros(1, TILE)
    tile["outside"] = outside
    source = tile["source"]
    source["columns"] = source["rows"] = 1
    source["block_height"] = source["level_height"] = pixels.shape[0]
    source["block_width"] = source["level_width"] = pixels.shape[1]
    return tile


@pytest.mark.parametrize(("width", "height", "sigma"), [(1, 1, 0), (37, 5, 0.5), (224, 224, 0), (1500, 3, 1.2)])
def test_instruction_sets_give_the_same_samples(programs: Programs, width: int, height: int, sigma: float) -> None:
    """Turned and blurred, to the byte; and nothing is written beside the tile."""
    address = np.array([NOISE.ctypes.data], np.uint64)
    tile = one_block(NOISE)
    tile["source"]["blocks"], tile["sigma"] = address.ctypes.data, sigma
    tile["affine"] = (0.71, -0.33, 90.4, 0.33, 0.71, 40.2)
    results = []
    for instructions in (2, 3):
        programs.instruction_set(instructions)
        memory = np.full(width * height * 3 + 128, 7, np.uint8)
        tile["out"] = memory.ctypes.data + 64
        programs.run(tile, 0, 1, width, height)
        assert (memory[:64] == 7).all()
        assert (memory[-64:] == 7).all()
        results.append(memory[64:-64])
    assert np.array_equal(*results)


@pytest.mark.parametrize("block", [(300, 280), (64, 64), (50, 33), (1, 1)])
def test_blocks_of_any_size_are_one_level(programs: Programs, block: tuple[int, int]) -> None:
    """A shift copies the level, grey around it, and a turn samples the same bytes as from one picture."""
    high, wide = block
    padded = np.full((-(-300 // high) * high, -(-280 // wide) * wide, 3), 77, np.uint8)
    padded[:300, :280] = NOISE
    places = itertools.product(range(0, len(padded), high), range(0, padded.shape[1], wide))
    blocks = [np.ascontiguousarray(padded[y : y + high, x : x + wide]) for y, x in places]
    addresses = np.array([each.ctypes.data for each in blocks], np.uint64)
    tile = one_block(NOISE, outside=9)
    source = tile["source"]
    source["blocks"], source["block_width"], source["block_height"] = addresses.ctypes.data, wide, high
    source["columns"], source["rows"] = padded.shape[1] // wide, padded.shape[0] // high
    out = np.empty((340, 330, 3), np.uint8)
    tile["out"], tile["way"], tile["affine"] = out.ctypes.data, BY_COPYING, (1, 0, -20, 0, 1, -30)
    programs.run(tile, 0, 1, 330, 340)
    framed = np.pad(NOISE, ((30, 10), (20, 30), (0, 0)), constant_values=9)
    assert np.array_equal(out, framed)
    tile["way"], tile["affine"] = BY_SAMPLING, (0.9, 0.4, -20.3, -0.4, 0.9, 70.1)
    programs.run(tile, 0, 1, 330, 340)
    whole, address = one_block(NOISE, outside=9), np.array([NOISE.ctypes.data], np.uint64)
    expected = np.empty_like(out)
    whole["source"]["blocks"], whole["out"] = address.ctypes.data, expected.ctypes.data
    whole["affine"] = tile["affine"]
    programs.run(whole, 0, 1, 330, 340)
    assert np.array_equal(out, expected)


def test_a_tile_that_reaches_too_far_is_refused(programs: Programs) -> None:
    """Instead of memory for it."""
    address, out = np.array([NOISE.ctypes.data], np.uint64), np.zeros((8, 8, 3), np.uint8)
    tile = one_block(NOISE)
    tile["source"]["blocks"], tile["out"] = address.ctypes.data, out.ctypes.data
    for affine in ((1e5, 0, 0, 0, 1e5, 0), (1, 0, 1e12, 0, 1, 0), (np.nan, 0, 0, 0, 1, 0)):
        tile["affine"] = affine
        with pytest.raises(MemoryError, match="2 GB"):
            programs.run(tile, 0, 1, 8, 8)


def test_threads_have_their_own_work_memory(programs: Programs) -> None:
    """Eight threads, tiles of different sizes, the same bytes as one."""
    address = np.array([NOISE.ctypes.data], np.uint64)

    def made(number: int) -> np.ndarray:
        tile, side = one_block(NOISE), 20 + 7 * (number % 50)
        out = np.empty((side, side, 3), np.uint8)
        tile["source"]["blocks"], tile["out"], tile["sigma"] = address.ctypes.data, out.ctypes.data, number % 3
        tile["affine"] = (1.1, 0.2 + number / 100, 10, -0.3, 1.2, 60)
        programs.run(tile, 0, 1, side, side)
        return out

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(made, range(200)))
    assert all(np.array_equal(tile, made(number)) for number, tile in enumerate(together))


def test_it_can_be_turned_off_in_this_process_and_its_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """For comparisons with the other executor; the library reads no environment variable."""
    monkeypatch.setenv("SLIDEIO_PIPE_COMPILED", "0")
    assert load() is not None
    try:
        use_compiled(False)
        assert load() is None
        (without,) = WorkerPool(_programs_are_there, 1).outcomes(["task"])
    finally:
        use_compiled(True)
    (with_them,) = WorkerPool(_programs_are_there, 1).outcomes(["task"])
    assert (without.value, with_them.value) == (False, True)


def _programs_are_there(task: str, on_stage: object) -> bool:
    """Return whether a worker has compiled programs."""
    del task, on_stage
    return load() is not None


@pytest.mark.parametrize("instructions", [2, 3])
@pytest.mark.parametrize("count", [0, 1, 7, 8, 1000])
def test_halves_are_rounded_once(programs: Programs, instructions: int, count: int) -> None:
    """Against NumPy, which multiplies, adds and rounds in the same order; and nothing is written beside."""
    programs.instruction_set(instructions)
    pixels = np.random.default_rng(0).integers(0, 256, (count, 3), np.uint8)
    scale, offset = np.float32([0.017, 0.0175, 0.0174]), np.float32([-2.1, -2.03, -1.8])
    memory = np.full((count + 10, 3), 7, np.float16)
    if programs.half(pixels, memory[5 : 5 + count], scale, offset):
        assert np.array_equal(memory[5 : 5 + count], (pixels.astype(np.float32) * scale + offset).astype(np.float16))
        assert (memory[:5] == 7).all()
        assert (memory[5 + count :] == 7).all()
    else:
        assert instructions == 2
        assert (memory == 7).all()
