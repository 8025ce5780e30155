"""What lives in the database: tables and functions, made by whoever comes first and may."""

from __future__ import annotations

import importlib.resources

from ...continuity import HEADER_SIZE

__all__ = ["INLINE", "quoted", "schema_sql"]

#: Bytes of a frame that travels inside its notification; a larger one is fetched from the log.
INLINE = 5700


def quoted(schema: str) -> str:
    """The schema's name as SQL writes it."""
    return '"{}"'.format(schema.replace('"', '""'))


def schema_sql(schema: str = "trunkline") -> str:
    """The SQL that makes all Trunkline needs; running it again does no harm."""
    text = importlib.resources.files(__package__).joinpath("schema.sql").read_text()
    return text.format(schema=quoted(schema), header=HEADER_SIZE, inline=INLINE)
