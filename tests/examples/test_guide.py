"""The pages of the guide are correct: their code runs, and prints and draws what they show."""

from __future__ import annotations

from pathlib import Path

import pytest
from page_blocks import read_blocks
from pages import GUIDE, check_page, compare_pictures, matches, run_page
from PIL import Image

PAGES = [
    page
    for page in sorted(GUIDE.rglob("*.md"))
    if any(block.language in ("python", "bash") for block in read_blocks(page.read_text("utf-8")))
]


@pytest.mark.parametrize("page", PAGES, ids=[page.relative_to(GUIDE).with_suffix("").as_posix() for page in PAGES])
def test_page_is_as_shown(page: Path) -> None:
    """Every block runs, in a process and a folder of its own; outputs and pictures are those of the page."""
    run = run_page(page)
    assert not run.failed, run.failed[0]
    assert not run.different, "\n".join(run.different)
    assert not compare_pictures(run)


@pytest.mark.parametrize(
    ("expected", "output", "same"),
    [
        ("24 tiles in … s", "24 tiles in 0.31 s", True),
        ("24 tiles in … s", "25 tiles in 0.31 s", False),
        ("a\n…\nb", "a\n1\n2\nb", True),
        ("a\n…\nb", "a\nb", True),
        ("a\n…\nb", "a\n1\nc", False),
        ("a  \nb", "a\nb", True),
        ("a+b (1)", "a+b (1)", True),
        ("a", "a\nb", False),
        ("", "a", False),
    ],
)
def test_outputs_are_compared(expected: str, output: str, same: bool) -> None:
    """An ellipsis matches anything, a line of it any number of lines; everything else is compared exactly."""
    assert matches(expected, output) is same


PAGE = """# A page

```python
import warnings
from pathlib import Path
from PIL import Image
import slideio_pipe as sp

x = 3
print("printed")
x + 1
```

```text
printed
OLD
```

```python
Image.new("RGB", (30, 20), "red")
```

![Red](pictures/red.png)

```yaml title="settings.yaml"
a: 1
```

```bash
cat settings.yaml
python -c "print(2)"; ls *.svs
echo $PWD
```

```text
a: 1
…
/home/you/work
```

```sh
exit 1
```

```python raises
x = 4
sp.open_slide("none.svs")
```

```text
FileNotFound…
```

```bash raises
slideio-pipe info none.svs
```

```text
```
"""


def test_a_page_is_run_and_written(tmp_path: Path) -> None:
    """Outputs, pictures and errors are written into the page, after which it is as shown; other lines stay."""
    page = tmp_path / "page.md"
    page.write_text(PAGE, encoding="utf-8")
    assert not check_page(page, write=False)
    assert check_page(page, write=True)
    written = page.read_text(encoding="utf-8")
    assert "printed\n4\n```" in written
    assert "a: 1\n…\n/home/you/work" in written
    assert "SlideNotFoundError: " in written
    assert "```text\nerror: " in written
    with Image.open(tmp_path / "pictures" / "red.png") as picture:
        assert picture.size == (30, 20)
    assert check_page(page, write=False)
    Image.new("RGB", (30, 20), "blue").save(tmp_path / "pictures" / "red.png")
    assert compare_pictures(run_page(page)) == ["page.md: pictures/red.png is another picture"]


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ("python\n1 / 0", "ZeroDivisionError"),
        ("python raises\n1\n```\n\n```text\nNo", "raised no error"),
        ("bash\nfalse\ntrue", "exit code 1"),
        ("python\nsp.warn_about('x')", "NameError"),
        (
            "python\nimport warnings\nfrom slideio_pipe.errors import SkippedWarning\n"
            "warnings.warn(SkippedWarning('a tile'))",
            "issued a warning that the page does not show: SkippedWarning: a tile",
        ),
    ],
)
def test_a_block_that_fails(tmp_path: Path, block: str, words: str) -> None:
    """Ends the page, and its line and reason are reported; nothing is written."""
    page = tmp_path / "page.md"
    page.write_text(f"# A page\n\n```{block}\n```\n", encoding="utf-8")
    (failure,) = run_page(page).failed
    assert failure.startswith("page.md:3: ")
    assert words in failure
    assert not check_page(page, write=True)


@pytest.mark.parametrize(
    "text", ["```python\n1\n", "- a list\n  ```bash\n  ls\n  ```\n", "```python raises\n1 / 0\n```\n"]
)
def test_a_page_that_is_wrong(text: str) -> None:
    """A block without an end, one that would not be run, and an error that is not shown are reported."""
    with pytest.raises(ValueError, match=r"^line [12]: "):
        read_blocks(text)
