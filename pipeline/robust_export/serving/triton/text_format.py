"""Protobuf's text format, as much of it as a config.pbtxt needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PRINTABLE = {code: chr(code) for code in range(32, 127) if chr(code) not in '"\\'}


class Word(str):
    """A text that is written without quotes: a value of an enumeration."""

    __slots__ = ()


def to_text(message: Mapping[str, Any], indent: str = "") -> str:
    r"""Return a message in text format; a list is a repeated field, a mapping a message.

    >>> print(to_text({"name": "net", "kind": Word("KIND_CPU"), "dims": [3, 8], "map": {"zero": True}}))
    name: "net"
    kind: KIND_CPU
    dims: 3
    dims: 8
    map {
      zero: true
    }
    """
    lines = []
    for name, value in message.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, Mapping):
                inner = to_text(one, indent + "  ")
                lines.append(f"{indent}{name} {{\n{inner}\n{indent}}}" if inner else f"{indent}{name} {{}}")
            else:
                lines.append(f"{indent}{name}: {_scalar(one)}")
    return "\n".join(lines)


def entries(mapping: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the entries of a map field."""
    return [{"key": key, "value": value} for key, value in mapping.items()]


def _scalar(value: str | bool | int) -> str:
    if isinstance(value, Word):
        return value
    if isinstance(value, str):
        return '"' + "".join(PRINTABLE.get(byte, f"\\{byte:03o}") for byte in value.encode()) + '"'
    return str(value).lower() if isinstance(value, bool) else str(value)
