"""The changes that mutants.py makes: drawn from those of cosmic-ray and one of ours."""

from __future__ import annotations

import ast
import difflib
import random
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator, operator_names
from parso import parse
from parso.tree import NodeOrLeaf

PACKAGE = Path(__file__).parent.parent / "slideio_pipe"
BITWISE = ("BitAnd", "BitOr", "BitXor", "LShift", "RShift")


class Omission(Operator):
    """A call that stands alone or a ``raise`` becomes ``pass``, a returned value None."""

    def mutation_positions(self, node: NodeOrLeaf) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
        alone = node.parent is not None and node.parent.type == "simple_stmt"
        if (alone and node.type in ("atom_expr", "raise_stmt")) or (node.type == "return_stmt"):
            yield node.start_pos, node.end_pos

    def mutate(self, node: NodeOrLeaf, index: int) -> NodeOrLeaf:
        text = "return None" if node.type == "return_stmt" else "pass"
        return parse(node.get_first_leaf().prefix + text)

    @classmethod
    def examples(cls) -> tuple[()]:
        return ()


@dataclass
class Mutant:
    """One change of one module, and the outcome of its tests."""

    module: str
    operator: str
    line: int
    code: str
    diff: str
    outcome: str = ""
    noticed_by: str = ""


def untouched(tree: ast.Module) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Yield the ranges that are not changed: annotations, f-strings, raised errors."""
    for node in ast.walk(tree):
        parts = [getattr(node, name, None) for name in ("annotation", "returns", "exc")]
        for part in [*parts, node if isinstance(node, ast.JoinedStr) else None]:
            if isinstance(part, ast.expr):
                yield (part.lineno, part.col_offset), (part.end_lineno or 0, part.end_col_offset or 0)


def is_used(name: str) -> bool:
    """Return whether an operator of cosmic-ray is used: not those that end in a TypeError or a warning wherever."""
    kind, *change = name.removeprefix("core/").split("_")
    if kind == "ReplaceBinaryOperator":
        return len({operator in BITWISE for operator in change}) == 1
    return "Variable" not in kind and not (kind == "ReplaceComparisonOperator" and change[-1] in ("Is", "IsNot"))


def mutants_of(module: str, count: int, seed: int) -> list[Mutant]:
    """Draw changes of a module: places without repetition, one change each."""
    source = (PACKAGE / f"{module}.py").read_text()
    kept_out = list(untouched(ast.parse(source)))
    known = {name: get_operator(name)() for name in filter(is_used, operator_names())} | {"Omission": Omission()}
    places: dict[tuple[int, int], list[tuple[str, int]]] = {}
    nodes = list(ast_nodes(get_ast(source)))
    for name, operator in known.items():
        every = (position for node in nodes for position in operator.mutation_positions(node))
        for occurrence, (start, _) in enumerate(every):
            if not any(first <= start < last for first, last in kept_out):
                places.setdefault(start, []).append((name, occurrence))
    chance = random.Random(f"{seed} {module}")
    drawn: list[Mutant] = []
    for start in chance.sample(sorted(places), len(places)):
        name, occurrence = chance.choice(places[start])
        code = mutate_code(source, known[name], occurrence)
        with suppress(SyntaxError):
            if is_change(ast.parse(source), ast.parse(code)):
                drawn.append(Mutant(module, name, start[0], code, difference(source, code)))
        if len(drawn) == count:
            break
    return drawn


def is_change(before: ast.Module, after: ast.Module) -> bool:
    """Return whether the code differs: not "return None" for itself, nor "/" for the star of keyword arguments."""
    positional = [
        sum(len(node.posonlyargs) for node in ast.walk(tree) if isinstance(node, ast.arguments))
        for tree in (before, after)
    ]
    return ast.dump(before) != ast.dump(after) and positional[0] == positional[1]


def difference(old: str, new: str) -> str:
    """Return the lines that differ."""
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm="", n=0)
    return "\n".join(line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---"))
