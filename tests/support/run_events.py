"""Events of a run, as run.jsonl has them."""

from __future__ import annotations

from typing import Any


def start(slide: str, **more: Any) -> dict[str, Any]:
    """Return the event of a slide that began."""
    return {"slide": slide, "event": "start", "settings": "s", "fingerprint": "f", **more}


def done(slide: str, tiles: int | None = None, **more: Any) -> dict[str, Any]:
    """Return the event of a slide that is done; without tiles, one that was kept."""
    made = {} if tiles is None else {"made": {"tiles": tiles, "tissue_covered": more.pop("covered", 0.9)}}
    return {"slide": slide, "event": "done", "settings": "s", "fingerprint": "f", **made, **more}


def failed(slide: str, error: str = "damaged", **more: Any) -> dict[str, Any]:
    """Return the event of a slide that failed."""
    return {"slide": slide, "event": "failed", "stage": "tiles", "error": error, "remedy": "copy it again", **more}
