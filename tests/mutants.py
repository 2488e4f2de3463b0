"""Make small random changes to the core modules, one at a time, and count how many fail a test.

    python -m venv mutation && mutation/bin/pip install cosmic-ray
    mutation/bin/python tests/mutants.py --python python --modules geometry tiles/grid --count 8 --seed 1
    mutation/bin/python tests/mutants.py --python python --quick

``--python`` is the interpreter that has the packages of the tests. Cosmic-ray makes the changes: another operator or
number, True for False, ``and`` for ``or``, ``not``, no turn of a loop, another exception, no decorator. We add what it
lacks: a call or a ``raise`` left out, and None returned. A place is drawn at random from all places of a module, then
a change from those possible at it. Left out are annotations, f-strings, docstrings and what is raised (messages);
comparison by identity; bitwise operators for arithmetic ones and the other way round, which mostly end in a TypeError.

Every change is made in a copy of the repository, never in the checkout. The tests that run are the module's doctests
and the files that TESTS names, up to the first failure. A change that takes over ``--timeout`` seconds is listed as
"time out" and not counted: repeat it with more. A module without a survivor is tested once more without a change, so
that broken tests are not counted as kills. One change takes 2 to 30 s of CPU. Printed are killed, survived and
percentage per module, and the survivors with their lines: check by hand which of them change no result.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import shutil
import subprocess
import tempfile
import threading
import tomllib
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from mutations import PACKAGE, Mutant, mutants_of

ROOT = Path(__file__).parent.parent
TESTS: dict[str, str] = tomllib.loads((ROOT / "tests" / "mutants.toml").read_text())


def file_of(name: str) -> str:
    """Return the file of "tiles/grid"."""
    room, module = name.split("/")
    return f"tests/{room}/test_{module}.py"


class Tester:
    """A copy of the repository and a process that runs its tests (mutant_server.py)."""

    def __init__(self, tree: Path, python: str, timeout: float, *, whole_room: bool = False) -> None:
        self.tree, self.timeout, self.whole_room = tree, timeout, whole_room
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in listed.splitlines():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
        command = [python, str(ROOT / "tests" / "mutant_server.py")]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        pipe = subprocess.PIPE
        self.server = subprocess.Popen(command, cwd=tree, env=environment, stdin=pipe, stdout=pipe, text=True)

    def test(self, mutant: Mutant) -> None:
        """Run the tests that reach the module and set the outcome."""
        target = self.tree / "slideio_pipe" / f"{mutant.module}.py"
        original = target.read_text()
        target.write_text(mutant.code)
        for stale in (target.parent / "__pycache__").glob(f"{target.stem}.*"):
            stale.unlink()  # with the same size and second, Python would use the old one
        files = [str(target)] * (">>> " in original) + [file_of(n) for n in TESTS[mutant.module].split()]
        if self.whole_room:
            room = self.tree / "tests" / (mutant.module.split("/")[0] if "/" in mutant.module else "ground")
            others = [str(path.relative_to(self.tree)) for path in sorted(room.glob("test_*.py"))]
            files += [name for name in others if name not in files]
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        print(json.dumps([str(self.tree), files, self.timeout]), file=self.server.stdin, flush=True)
        mutant.outcome, mutant.noticed_by = json.loads(self.server.stdout.readline())
        target.write_text(original)


def work(waiting: queue.SimpleQueue[Mutant], tester: Tester, out: Path) -> None:
    """Test changes until none is left, and append each to the file of results."""
    with suppress(queue.Empty):
        while True:
            mutant = waiting.get_nowait()
            tester.test(mutant)
            with out.open("a") as file:
                file.write(json.dumps({key: value for key, value in asdict(mutant).items() if key != "code"}) + "\n")


def main() -> None:
    """Draw, test, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modules", nargs="+", default=list(TESTS), choices=list(TESTS), metavar="MODULE")
    parser.add_argument("--count", type=int, default=6, help="changes per module")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--python", default="python", help="interpreter with the packages of the tests")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=240, help="seconds for one change")
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "mutants.jsonl")
    parser.add_argument("--whole-room", action="store_true", help="then also the other tests of the module's room")
    parser.add_argument("--quick", action="store_true", help="two changes of geometry and of splits")
    given = parser.parse_args()
    if given.quick:
        given.modules, given.count = ["geometry", "cohort/splits"], 2
    drawn = {module: mutants_of(module, given.count, given.seed) for module in given.modules}
    waiting: queue.SimpleQueue[Mutant] = queue.SimpleQueue()
    for turn in range(given.count):  # every module in turn, so that an interrupted run is a sample, too
        for mutants in drawn.values():
            for mutant in mutants[turn : turn + 1]:
                waiting.put(mutant)
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        trees = [Path(scratch) / str(number) / "repository" for number in range(given.workers)]
        testers = [Tester(tree, given.python, given.timeout, whole_room=given.whole_room) for tree in trees]
        threads = [threading.Thread(target=work, args=(waiting, tester, given.out)) for tester in testers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print_results(drawn, testers[0])
        for tester in testers:
            tester.server.terminate()


def print_results(drawn: dict[str, list[Mutant]], tester: Tester) -> None:
    """Print a line per module, the sum and the survivors; check the tests of modules without one."""
    print(f"{'module':24}{'killed':>8}{'survived':>10}{'time out':>10}{'%':>6}")
    outcomes = {module: [mutant.outcome for mutant in mutants] for module, mutants in drawn.items()}
    outcomes["all"] = [outcome for found in outcomes.values() for outcome in found]
    for module, found in outcomes.items():
        killed, survived = found.count("killed"), found.count("survived")
        share = 100 * killed / max(1, killed + survived)
        print(f"{module:24}{killed:8}{survived:10}{found.count('time out'):10}{share:6.0f}")
    for mutant in (mutant for mutants in drawn.values() for mutant in mutants if mutant.outcome != "killed"):
        print(f"\n{mutant.outcome}: slideio_pipe/{mutant.module}.py:{mutant.line} ({mutant.operator})\n{mutant.diff}")
    for module in (module for module in drawn if "survived" not in outcomes[module]):
        code = (PACKAGE / f"{module}.py").read_text()
        unchanged = Mutant(module, "none", 0, code, "")
        tester.test(unchanged)
        if unchanged.outcome != "survived":
            print(f"\nthe tests of {module} fail without a change: {unchanged.noticed_by}")


if __name__ == "__main__":
    main()
