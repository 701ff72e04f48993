"""The rows of a damaged SQLite file that are beyond doubt: found page by page, each proved by its own checksum.

SQLite itself stops at the first page of a table that makes no sense. Here every page is looked at alone, those of the
write-ahead log too, so that what lies on whole pages is found whatever happened to the pages that lead there.

Source: "Database File Format" and "WAL-mode File Format", sqlite.org, sections 1.6, 2.1 and 4.1.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from vmaptune.store.schema import COLUMNS, row_sum

PAGE = 4096  # SQLite's own default, where the header does not say
TABLE_LEAF, INDEX_LEAF, INDEX_INNER = 0x0D, 0x0A, 0x02
REAL = {"started", "finished", "value", "loss", "compile_seconds", "time"}  # columns in which 3.0 is stored as 3
INTEGER_KEY = {"rounds", "trials", "groups", "decisions", "tally"}  # whose first column is the row's number
NOT_ROWS = (IndexError, ValueError, struct.error, OverflowError)  # what damaged bytes come to


@dataclass
class Pages:
    """A file's pages, and those of its log in the order in which they were written."""

    size: int
    reserved: int
    versions: dict[int, list[tuple[int, bytes]]] = field(default_factory=dict)  # number -> (when, content)

    @classmethod
    def of(cls, file: bytes, log: bytes) -> Pages:
        """Reads both; `when` is 0 for the file's own pages."""
        size, reserved = struct.unpack(">H", file[16:18])[0] if len(file) > 20 else 0, file[20] if len(file) > 20 else 0
        size = 65536 if size == 1 else size
        if size < 512 or size & (size - 1):
            size, reserved = PAGE, 0
        found = cls(size, reserved if reserved <= size - 480 else 0)
        for number, start in enumerate(range(0, len(file), size), 1):
            found.versions[number] = [(0, file[start : start + size].ljust(size, b"\0"))]
        for when, start in enumerate(range(32, len(log) - 24 - size + 1, 24 + size), 1):
            (number,) = struct.unpack(">I", log[start : start + 4])
            found.versions.setdefault(number, []).append((when, log[start + 24 : start + 24 + size]))
        return found

    @property
    def usable(self) -> int:
        return self.size - self.reserved

    def at(self, number: int, when: int) -> bytes:
        """A page as it was then."""
        versions = self.versions.get(number, [])
        earlier = [content for written, content in versions if written <= when]
        if not earlier:
            raise ValueError("no such page")
        return earlier[-1]


def carved(file: bytes, log: bytes) -> dict[str, dict[Any, tuple[Any, ...]]]:
    """The rows of each table by their keys, without their sums; of several versions of a row the last one.

    Only rows whose checksum is right are among them. A row that was taken back later may be.
    """
    pages = Pages.of(file, log)
    found: dict[str, dict[Any, tuple[Any, ...]]] = {table: {} for table in COLUMNS}
    ranks: dict[tuple[str, Any], tuple[int, int]] = {}
    for number, versions in pages.versions.items():
        for when, content in versions:
            for rowid, record in _cells(pages, number, when, content):
                row = _recognised(rowid, record)
                if row is None:
                    continue
                table, values = row
                key = values[:2] if table == "curves" else values[0]
                named = dict(zip(COLUMNS[table], values, strict=True))
                rank = (max(named.get("seq") or 0, named.get("ended") or 0), when)
                if rank >= ranks.get((table, key), (-1, -1)):
                    ranks[table, key], found[table][key] = rank, values
    return found


def _recognised(rowid: int | None, record: Sequence[Any]) -> tuple[str, tuple[Any, ...]] | None:
    """The table that a record is of, and its values, if one's checksum fits."""
    for table, columns in COLUMNS.items():
        if len(record) != len(columns) + 1 or (rowid is None) != (table == "curves"):
            continue
        values = [
            float(value) if name in REAL and table != "meta" and type(value) is int else value
            for name, value in zip(columns, record, strict=False)
        ]
        if table in INTEGER_KEY and values[0] is None:
            values[0] = rowid
        if row_sum(table, values) == record[-1]:
            return table, tuple(values)
    return None


def _cells(pages: Pages, number: int, when: int, page: bytes) -> Iterator[tuple[int | None, list[Any]]]:
    """The records of a page, each with its row's number; None where the table has none."""
    head = 100 if number == 1 else 0
    kind = page[head]
    if kind not in (TABLE_LEAF, INDEX_LEAF, INDEX_INNER):
        return
    (count,) = struct.unpack(">H", page[head + 3 : head + 5])
    array = head + (12 if kind == INDEX_INNER else 8)
    for i in range(min(count, pages.size // 4)):
        try:
            (at,) = struct.unpack(">H", page[array + 2 * i : array + 2 * i + 2])
            at += 4 if kind == INDEX_INNER else 0
            length, at = _varint(page, at)
            rowid = None
            if kind == TABLE_LEAF:
                rowid, at = _varint(page, at)
            yield rowid, _record(_payload(pages, when, page, at, length, kind == TABLE_LEAF))
        except NOT_ROWS:
            continue


def _payload(pages: Pages, when: int, page: bytes, at: int, length: int, table: bool) -> bytes:
    """A cell's content, with what lies on pages of its own."""
    usable = pages.usable
    most = usable - 35 if table else (usable - 12) * 64 // 255 - 23
    if length <= most:
        return page[at : at + length]
    if length > len(pages.versions) * pages.size:
        raise ValueError("longer than the file")
    least = (usable - 12) * 32 // 255 - 23
    local = least + (length - least) % (usable - 4)
    local = local if local <= most else least
    parts, left = [page[at : at + local]], length - local
    (following,) = struct.unpack(">I", page[at + local : at + local + 4])
    while left > 0:
        content = pages.at(following, when)
        parts.append(content[4 : 4 + min(left, usable - 4)])
        left -= usable - 4
        (following,) = struct.unpack(">I", content[:4])
    return b"".join(parts)


def _record(payload: bytes) -> list[Any]:
    """The values of a record."""
    end, at = _varint(payload, 0)
    kinds = []
    while at < end:
        kind, at = _varint(payload, at)
        kinds.append(kind)
    values: list[Any] = []
    for kind in kinds:
        size = (0, 1, 2, 3, 4, 6, 8, 8, 0, 0)[kind] if kind < 10 else (kind - 12) // 2
        raw = payload[at : at + size]
        if kind in (10, 11) or len(raw) != size:
            raise ValueError("no record")
        at += size
        if kind == 0:
            values.append(None)
        elif kind <= 6:
            values.append(int.from_bytes(raw, "big", signed=True))
        elif kind == 7:
            values.append(struct.unpack(">d", raw)[0])
        elif kind in (8, 9):
            values.append(kind - 8)
        else:
            values.append(raw.decode("utf-8") if kind % 2 else raw)
    return values


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of 1 to 9 bytes, and where it ends."""
    value = 0
    for i in range(8):
        byte = data[at + i]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + i + 1
    return (value << 8 | data[at + 8]) & (2**64 - 1), at + 9
