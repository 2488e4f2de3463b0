"""The blocks of a Markdown page: code, the output that the page shows below it, the picture after it."""

from __future__ import annotations

import re
from dataclasses import dataclass

RUN = ("python", "bash")
_FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,})(?P<words>[^`]*)$")
_PICTURE = re.compile(r"^!\[[^\]]*\]\((pictures/[^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    raises: bool  # the block should fail
    title: str  # of a file that the block is; it is written and not run
    code: str
    line: int  # of the opening fence, from 1
    end: int  # of the closing fence
    output: tuple[int, int] | None  # lines of the fences of the text block directly after it
    expected: str
    picture: str  # directly after it, or after its output

    @property
    def has_output(self) -> bool:
        """Whether the page shows an output."""
        return self.output is not None


def asked_files(text: str) -> list[str]:
    """Return the names in ``<!-- files: study cohort -->`` on the first line."""
    found = re.match(r"<!-- files: ([\w ]+) -->", text)
    return found[1].split() if found else []


def read_blocks(text: str) -> list[Block]:
    """Return the blocks of a page, in order; ``text`` blocks belong to the block before them."""
    lines = text.splitlines()
    fences = list(_fences(lines))
    blocks = []
    for k, (words, start, end) in enumerate(fences):
        language, _, options = words.partition(" ")
        if language == "text":
            continue
        title = re.search(r'title="([^"]+)"', options)
        after = fences[k + 1] if k + 1 < len(fences) else None
        output = None
        if after and after[0] == "text" and not "".join(lines[end : after[1] - 1]).strip():
            output = after[1:]
        blocks.append(
            Block(
                language,
                "raises" in options.split(),
                title[1] if title else "",
                "\n".join(lines[start : end - 1]) + "\n",
                start,
                end,
                output,
                "\n".join(lines[output[0] : output[1] - 1]) if output else "",
                _picture(lines[(output[1] if output else end) :]),
            )
        )
    for block in blocks:
        if block.raises and not block.has_output:
            raise ValueError(f"line {block.line}: a block that raises needs a text block with the error")
    return blocks


def _fences(lines: list[str]) -> list[tuple[str, int, int]]:
    """Return the words after the ticks, and the numbers of the first and last line, of each fenced block."""
    found: list[tuple[str, int, int]] = []
    opened: tuple[str, str, int] | None = None
    for number, line in enumerate(lines, 1):
        fence = _FENCE.match(line)
        if not fence:
            continue
        if opened is None:
            opened = fence["ticks"], fence["words"].strip(), number
            if fence["indent"] and opened[1].split(" ")[0] in RUN:
                raise ValueError(f"line {number}: a block that is run begins at the left margin")
        elif fence["ticks"] == opened[0] and not fence["words"]:
            found.append((opened[1], opened[2], number))
            opened = None
    if opened:
        raise ValueError(f"line {opened[2]}: the block has no end")
    return found


def _picture(lines: list[str]) -> str:
    """Return the picture on the first of the lines that is not empty."""
    first = next((line for line in lines if line.strip()), "")
    found = _PICTURE.match(first)
    return found[1] if found else ""
