"""A small strict checker for JSON documents: every field known, present once and of the stated type."""

from __future__ import annotations

from typing import Any

from accel.errors import BundleError


class Map:
    """Any keys, values of one schema."""

    def __init__(self, value: Any) -> None:
        self.value = value


class ListOf:
    """A list whose items follow one schema."""

    def __init__(self, item: Any) -> None:
        self.item = item


ANY = object()


def check(data: Any, schema: Any, where: str) -> None:
    """Raise BundleError naming the path of the first field that does not follow ``schema``.

    A schema is ``int``, ``str``, ``bool``, a dict of named fields (all required, no others allowed), a :class:`Map`, a
    :class:`ListOf` or :data:`ANY`.
    """
    if schema is ANY:
        return
    if isinstance(schema, type):
        if type(data) is not schema:
            raise BundleError(f"{where}: expected {schema.__name__}, found {type(data).__name__} {data!r:.60}")
    elif isinstance(schema, ListOf):
        if not isinstance(data, list):
            raise BundleError(f"{where}: expected a list, found {type(data).__name__}")
        for index, item in enumerate(data):
            check(item, schema.item, f"{where}[{index}]")
    elif not isinstance(data, dict):
        raise BundleError(f"{where}: expected a table of fields, found {type(data).__name__}")
    elif isinstance(schema, Map):
        for key, value in data.items():
            check(value, schema.value, f"{where}.{key}")
    else:
        for key in data:
            if key not in schema:
                raise BundleError(f"{where}: unknown field {key!r}: expected only {', '.join(schema)}")
        for key, item in schema.items():
            if key not in data:
                raise BundleError(f"{where}: missing field {key!r}")
            check(data[key], item, f"{where}.{key}")
