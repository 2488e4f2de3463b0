"""Units of length by their names in NGFF and OME-XML."""

from __future__ import annotations

from typing import Any

# Metres per unit. NGFF writes UDUNITS-2 names in full (https://ngff.openmicroscopy.org), OME-XML symbols.
_PREFIXES = {
    "yotta": 1e24,
    "zetta": 1e21,
    "exa": 1e18,
    "peta": 1e15,
    "tera": 1e12,
    "giga": 1e9,
    "mega": 1e6,
    "kilo": 1e3,
    "hecto": 1e2,
    "deca": 1e1,
    "": 1.0,
    "deci": 1e-1,
    "centi": 1e-2,
    "milli": 1e-3,
    "micro": 1e-6,
    "nano": 1e-9,
    "pico": 1e-12,
    "femto": 1e-15,
    "atto": 1e-18,
}
_NAMES = {
    **{f"{prefix}{metre}": factor for prefix, factor in _PREFIXES.items() for metre in ("meter", "metre")},
    "micron": 1e-6,
    "angstrom": 1e-10,
    "ångström": 1e-10,
    "inch": 0.0254,
    "foot": 0.3048,
    "yard": 0.9144,
    "mile": 1609.344,
    "line": 0.0254 / 12,
    "thou": 0.0254 / 1000,
    "point": 0.0254 / 72,
}
_SYMBOLS = {
    "m": 1.0,
    "dm": 1e-1,
    "cm": 1e-2,
    "mm": 1e-3,
    "µm": 1e-6,
    "um": 1e-6,
    "nm": 1e-9,
    "pm": 1e-12,
    "fm": 1e-15,
    "km": 1e3,
    "Å": 1e-10,
    "in": 0.0254,
    "ft": 0.3048,
    "yd": 0.9144,
    "mi": 1609.344,
    "li": 0.0254 / 12,
    "thou": 0.0254 / 1000,
    "pt": 0.0254 / 72,
}
_UM_PER_METRE = 1e6


def um_per(unit: Any) -> float | None:
    """Return the micrometres per unit of length; None for "pixel", no unit or an unknown one.

    >>> um_per("micrometer"), um_per("µm"), um_per("centimeters"), um_per("inch"), um_per("pixel")
    (1.0, 1.0, 10000.0, 25400.0, None)
    """
    if not isinstance(unit, str):
        return None
    # Look-alike characters: micro sign and Greek mu; Ångström as a letter and as a sign.
    text = unit.strip().replace("\u03bc", "\u00b5").replace("\u212b", "\u00c5")
    name = text.lower()
    name = "inch" if name == "inches" else "foot" if name == "feet" else name
    metres = _SYMBOLS.get(text) or _NAMES.get(name) or _NAMES.get(name.removesuffix("s"))
    return None if metres is None else float(f"{metres * _UM_PER_METRE:.15g}")
