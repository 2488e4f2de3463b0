"""Find the JPEG decoder that ``stored_tiles.c`` calls: the libjpeg-turbo that the wheels of imagecodecs bring.

simplejpeg's own decoder cannot be called from C: its library has no public functions. Where imagecodecs was installed
in another way, nothing is found, and tiles are decoded one by one, by simplejpeg: the same pixels.
"""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path
from typing import Any

# In the order of ``stored_tiles.h``.
_NAMES = (
    "jpeg_std_error", "jpeg_CreateDecompress", "jpeg_mem_src", "jpeg_read_header", "jpeg_start_decompress",
    "jpeg_read_scanlines", "jpeg_finish_decompress", "jpeg_destroy_decompress",
)  # fmt: skip


def decoder_functions() -> Any | None:
    """Return the addresses of the decoder's functions, a ctypes array, or None."""
    found = importlib.util.find_spec("imagecodecs")
    if found is None or found.origin is None:
        return None
    folder = Path(found.origin).parent
    beside = folder.with_name("imagecodecs.libs")
    for path in [*beside.glob("libjpeg-*.so*"), *(folder / ".dylibs").glob("libjpeg.*.dylib")]:
        try:
            library = ctypes.CDLL(str(path))
            addresses = [ctypes.cast(getattr(library, name), ctypes.c_void_p).value for name in _NAMES]
        except (OSError, AttributeError):  # made for another system
            continue
        return (ctypes.c_void_p * len(_NAMES))(*addresses)
    return None
