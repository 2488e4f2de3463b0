"""The command ``encoders``: the encoders that have a name, and what of them is on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from slideio_pipe.commands import options
from slideio_pipe.commands.terminal import out, print_facts, print_json, reported, say

if TYPE_CHECKING:
    from slideio_pipe.features.encoders.known import KnownEncoder

_YES_NO = {True: "yes", False: "no", None: "?"}


@reported
def encoders(
    name: options.KnownName = None,
    installed: options.OnThisMachine = False,
    as_json: options.Json = False,
) -> None:
    """List the encoders that --encoder takes by name; with NAME, the settings of one and the source of each.

    Example: [bold]slideio-pipe encoders[/]

    What is known of one: [bold]slideio-pipe encoders uni[/]
    """
    from slideio_pipe.features.encoders.known import known_encoders, named_encoder

    found = known_encoders() if name is None else [named_encoder(name)]
    rows = [(encoder, _on_this_machine(encoder)) for encoder in found]
    if installed:
        rows = [(encoder, here) for encoder, here in rows if all(here.values())]
    if as_json:
        records = [encoder.model_dump(mode="json") | {"page": encoder.url} | here for encoder, here in rows]
        print_json(records if name is None else next(iter(records), None))
    elif name is not None:
        for encoder, here in rows:
            _print_record(encoder, here)
    else:
        _print_table(rows)


def _on_this_machine(encoder: KnownEncoder) -> dict[str, bool]:
    from slideio_pipe.features.encoders.weight_files import has_package, has_weights

    return {"weights_here": has_weights(encoder), "package_here": has_package(encoder)}


def _print_table(rows: list[tuple[KnownEncoder, dict[str, bool]]]) -> None:
    from slideio_pipe.features.encoders.weight_files import package

    table = Table(box=None, padding=(0, 1, 0, 0))
    for column in ("name", "px at µm", "input", "width", "licence", "gated", "here", "package"):
        table.add_column(column, no_wrap=column != "licence")
    for encoder, here in rows:
        table.add_row(
            encoder.name,
            f"{encoder.tile_size}" + ("" if encoder.mpp is None else f" at {encoder.mpp:g}"),
            f"{encoder.input_size}",
            f"{encoder.width:,}",
            escape(encoder.licence),
            _YES_NO[encoder.gated],
            _YES_NO[here["weights_here"]],
            f"{'' if here['package_here'] else 'no '}{package(encoder)}",
        )
    out.print(table)
    say(
        "px at µm: tiles; here: the weights are on this machine; settings and their sources: slideio-pipe encoders NAME"
    )


def _tile(encoder: KnownEncoder) -> str:
    return f"{encoder.tile_size} px" + ("" if encoder.mpp is None else f" at {encoder.mpp:g} µm")


def _print_record(encoder: KnownEncoder, here: dict[str, bool]) -> None:
    from slideio_pipe.features.encoders.weight_files import install_command, package

    state = "installed" if here["package_here"] else f"missing: {install_command(encoder)}"
    facts = {
        "weights": f"{' or '.join(encoder.files)} of {encoder.url}",
        "on this machine": _YES_NO[here["weights_here"]],
        "address": encoder.address or "",
        "licence": encoder.licence,
        "gated": _YES_NO[encoder.gated],
        "package": f"{package(encoder)}, {state}",
        "architecture": encoder.architecture,
        "arguments": _pairs(encoder.arguments),
        "removed": ", ".join(encoder.removed),
        "output": encoder.output or "",
        "remote code": "needs --trust-remote-code" if encoder.remote_code else "",
        "tile": _tile(encoder) + "".join(f", or {mpp:g} µm" for mpp in encoder.other_mpps),
        "input": _input(encoder),
        "normalize": f"{encoder.normalize}: mean {_numbers(encoder.mean)}, std {_numbers(encoder.std)}",
        "width": f"{encoder.width:,} features per tile",
        "pooling": encoder.pooling + (f", after {encoder.prefix_tokens} tokens" if "mean" in encoder.pooling else ""),
        "precision": encoder.precision,
        "parameters": "" if encoder.parameters is None else f"{encoder.parameters:,} million",
        "other names": ", ".join(encoder.aliases),
        "SHA-256": _pairs(encoder.sha256),
        "sources": ", ".join(encoder.sources),
    }
    notes = {f"note on {key}": text for key, text in encoder.notes.items()}
    print_facts(encoder.name, {key: text for key, text in facts.items() if text} | notes)


def _input(encoder: KnownEncoder) -> str:
    if encoder.resize is None:
        return f"{encoder.input_size} px, resized whole, {encoder.interpolation}"
    return f"{encoder.input_size} px, the centre of tiles resized to {encoder.resize} px, {encoder.interpolation}"


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _pairs(values: Any) -> str:
    return ", ".join(f"{key} {value!r}" if value == "" else f"{key} {value}" for key, value in values.items())
