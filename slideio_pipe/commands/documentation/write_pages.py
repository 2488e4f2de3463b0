"""Write schemas and pages from the code: ``python -m slideio_pipe.commands.documentation.write_pages``."""

from __future__ import annotations

import json
from pathlib import Path

from slideio_pipe.commands.documentation.commands_page import commands_page
from slideio_pipe.commands.documentation.reference_pages import reference_pages
from slideio_pipe.commands.documentation.schemas import schemas
from slideio_pipe.commands.documentation.settings_page import settings_page

ROOT = Path(__file__).resolve().parents[3]
REFERENCE = "examples/guide/reference"


def made_files() -> dict[str, str]:
    """Return the contents of the files that are made from the code, by their path in the checkout."""
    made = {f"configs/{name}": json.dumps(schema, indent=2, ensure_ascii=False) for name, schema in schemas().items()}
    pages = {"commands.md": commands_page(), "settings.md": settings_page()} | reference_pages()
    made |= {f"{REFERENCE}/{name}": text for name, text in pages.items()}
    return {name: f"{text.rstrip()}\n" for name, text in made.items()}


def main() -> None:
    """Write the files that differ."""
    for name, text in made_files().items():
        file = ROOT / name
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
            print(f"written: {name}")


if __name__ == "__main__":
    main()
