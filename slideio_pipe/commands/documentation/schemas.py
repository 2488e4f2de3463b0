"""JSON schemas of the settings files, made from their records: editors complete and check YAML files with them.

``configs/schema.json`` is for exports, data sets and trainings: one schema, because the sections that both kinds of
files have are the same records. ``slurm.schema.json`` is for SLURM resources, ``transform.schema.json`` for transforms.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from slideio_pipe.cohort.workers.config import ClusterConfig
from slideio_pipe.config import Record
from slideio_pipe.export.config import ExportConfig
from slideio_pipe.mil.config import TrainConfig

Schema = dict[str, Any]
# What yaml-language-server and PyCharm support in full.
_DRAFT = "http://json-schema.org/draft-07/schema#"


class _Untitled(GenerateJsonSchema):
    """Without a title for every key, which would only repeat its name."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        del schema
        return False


def schemas() -> dict[str, Schema]:
    """Return the schemas by file name.

    >>> schemas()["schema.json"]["properties"]["seed"]["minimum"]
    0
    """
    return {
        "schema.json": settings_schema(),
        "slurm.schema.json": cluster_schema(),
        "transform.schema.json": transform_schema(),
    }


def settings_schema() -> Schema:
    """Return the schema of settings of exports, data sets and trainings."""
    definitions = _definitions(ExportConfig, TrainConfig)
    export, train = (definitions.pop(record.__name__)["properties"] for record in (ExportConfig, TrainConfig))
    only_train = {key: False for key in train if key not in export}
    section = train["model"].pop("$ref")  # its name alone is short for it
    train["model"] |= {"anyOf": [{"$ref": section}, {"type": "string"}]}
    return {
        "$schema": _DRAFT,
        "title": "Settings of slideio-pipe",
        "description": "Of export (and tissue, features, view), of data sets (profile) and of trainings (train).",
        "type": "object",
        "additionalProperties": False,
        "properties": train | export,
        # A file has the sections of an export or those of a training.
        "dependencies": {key: {"properties": only_train} for key in export if key not in train},
        "$defs": definitions,
    }


def cluster_schema() -> Schema:
    """Return the schema of SLURM resources."""
    schema = _definitions(ClusterConfig)["ClusterConfig"]
    return {"$schema": _DRAFT, "title": "SLURM resources of slideio-pipe"} | schema


def _definitions(*records: type[Record]) -> dict[str, Schema]:
    modes: Any = [(record, "validation") for record in records]
    definitions: dict[str, Schema] = models_json_schema(modes, schema_generator=_Untitled)[1]["$defs"]
    for definition in definitions.values():
        definition.pop("title", None)
        for key in definition["properties"].values():
            if "$ref" in key:  # a section: its keys have the defaults
                key.pop("default", None)
    return definitions


# -- transforms ----------------------------------------------------------------------------------------------------


def transform_schema() -> Schema:
    """Return the schema of transforms: names and arguments of ours; those of albumentationsxl are not checked."""
    from albumentationsxl.core.serialization import SERIALIZABLE_REGISTRY

    from slideio_pipe.augment import compose  # noqa: F401  # registers our transforms

    ours = {name: made for name, made in sorted(SERIALIZABLE_REGISTRY.items()) if name.startswith("slideio_pipe.")}
    name = {
        "description": "Compose, a transform of slideio_pipe, or one of albumentationsxl.",
        "anyOf": [{"enum": ["Compose", *ours]}, {"type": "string", "pattern": r"^(?!slideio_pipe\.)"}],
    }
    step = {
        "type": "object",
        "required": ["__class_fullname__"],
        "properties": {
            "__class_fullname__": name,
            "transforms": {"type": "array", "items": {"$ref": "#/$defs/step"}, "description": "In this order."},
        },
        "allOf": [
            {"if": {"properties": {"__class_fullname__": {"const": called}}}, "then": _arguments(made)}
            for called, made in ours.items()
        ],
    }
    return {
        "$schema": _DRAFT,
        "title": "A transform, for slideio_pipe.load_transform",
        "type": "object",
        "required": ["transform"],
        "additionalProperties": False,
        "properties": {
            "transform": {"$ref": "#/$defs/step", "description": "The transform, usually Compose with a list."},
            "__version__": {"type": "string", "description": "Written by A.save."},
        },
        "$defs": {"step": step},
    }


# Of every transform of albumentationsxl; not described by ours.
_COMMON = {
    "p": "Probability that it is applied, 0 to 1.",
    "always_apply": "Apply it whatever p is.",
}


def _arguments(made: Any) -> Schema:
    parameters = inspect.signature(made).parameters
    described = _COMMON | parameter_texts(made.__doc__ or "")
    required = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    properties = {name: {"description": described[name]} for name in parameters}
    schema: Schema = {"additionalProperties": False, "properties": {"__class_fullname__": {}} | properties}
    return schema | ({"required": required} if required else {})


def parameter_texts(docstring: str) -> dict[str, str]:
    """Return the types and descriptions of parameters in a docstring of numpydoc.

    >>> parameter_texts("A.\\n\\nParameters\\n----------\\nx, y : int\\n    Corner,\\n    px.\\n\\nNotes\\n-----\\n")
    {'x': 'int. Corner, px.', 'y': 'int. Corner, px.'}
    """
    section = re.search(r"^Parameters\n-+\n(.*?)(?=^\S[^\n]*\n-{3,}|\Z)", inspect.cleandoc(docstring), re.M | re.S)
    texts = {}
    for entry in re.finditer(r"^(\S[^\n]*?) : ([^\n]*)\n((?:[ ]+[^\n]*\n?|\n)*)", section[1] if section else "", re.M):
        names, kind, text = entry.groups()
        for name in names.split(", "):
            texts[name] = f"{kind}. {' '.join(text.split())}".strip()
    return texts
