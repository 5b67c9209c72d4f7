"""Damage to files: real ones are changed a little, at random, in ways that have broken readers.

All randomness comes from the generator that is handed in: one seed, one case.
"""

from __future__ import annotations

import copy
import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any

__all__ = ["HOSTILE", "damaged", "damaged_json", "damaged_safetensors", "damaged_zip"]

NUMBERS = (
    0, 1, -1, 2, 3, 7, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**63 - 1,
    2**63, 2**64 - 1, 2**64, 10**6, 10**9, 10**12, -(2**31), -(2**63), 10**30,
)  # fmt: skip

DEEP = 3000
"""Levels of nesting: more than Python's parsers take, few enough to write often."""

HOSTILE: tuple[Any, ...] = (
    *NUMBERS, None, True, False, 0.5, -1.5, 1e308, float("nan"), float("inf"), "", "0", "..", "/",
    "../../../../etc/passwd", "/etc/passwd", "file:///etc/passwd", "http://127.0.0.1:1/x", "\0",
    "a\0b", "\ud800", "\u202e", "\x1b[31m", "{}", "[]", "%s%n", "${HOME}", "{{7*7}}",
    "<script>alert(1)</script>", "__import__('os').system('true')", "x" * 10_000, [], {}, [[]],
    [None], [0] * 1000, [-1], [10**12, 10**12], {"": ""}, {"a": {"b": {"c": None}}}, "auto",
    "torch.float32", "float8_e4m3fn", "nowhere--modeling.Evil", "modeling.Evil",
)  # fmt: skip

Damage = Callable[[bytearray, random.Random], None]


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Bytes with one to four places changed."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        rng.choice(DAMAGES)(found, rng)
    return bytes(found)


def damaged_json(data: bytes, rng: random.Random) -> bytes:
    """A JSON document with values replaced, removed or added; sometimes damaged as bytes, too."""
    if rng.random() < 0.2:
        return damaged(data, rng)
    document = json.loads(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        document = _edited(document, rng)
    text = json.dumps(document)
    if rng.random() < 0.02:
        level = "[" if rng.random() < 0.5 else '{"a":'
        text = text.replace("null", level * DEEP, 1) if "null" in text else level * DEEP
    encoded = text.encode("utf-8", "surrogatepass")
    return damaged(encoded, rng) if rng.random() < 0.05 else encoded


def damaged_safetensors(data: bytes, rng: random.Random) -> bytes:
    """Damage to the header, whose length is mostly corrected, or to the file as bytes."""
    if rng.random() < 0.3:
        return damaged(data, rng)
    length = int.from_bytes(data[:8], "little")
    header = damaged_json(data[8 : 8 + length], rng)
    said = len(header) if rng.random() < 0.9 else rng.choice(NUMBERS) % 2**64
    return said.to_bytes(8, "little") + header + data[8 + length :]


def damaged_zip(data: bytes, rng: random.Random) -> bytes:
    """Damage to a member that is packed again, or to the archive as bytes."""
    if rng.random() < 0.3:
        return damaged(data, rng)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(sorted(members))
    # arrays keep what decides about them in the first bytes
    head = members[name][:128]
    members[name] = damaged(head, rng) + members[name][128:]
    if rng.random() < 0.1:
        members[str(rng.choice(HOSTILE))[:200]] = members.pop(name)
    packed = io.BytesIO()
    packing = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(packed, "w", packing) as out:
        for member, content in members.items():
            with out.open(member.encode("utf-8", "replace").decode() or "x", "w") as stream:
                stream.write(content)
    return packed.getvalue()


def _edited(document: Any, rng: random.Random) -> Any:
    """The document with one node changed; the root itself now and then."""
    places = list(_places(document))
    if not places or rng.random() < 0.02:
        return _hostile(rng)
    holder, key = rng.choice(places)
    match rng.randrange(6):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[str(rng.choice(HOSTILE))] = holder.pop(key)
        case 2:
            _, other = rng.choice(places)
            source = rng.choice([h for h, _ in places])
            holder[key] = json.loads(json.dumps(source)) if source is not holder else str(other)
        case 3 if isinstance(holder[key], int | float) and holder[key] == holder[key]:
            holder[key] = _changed(holder[key], rng)
        case _:
            holder[key] = _hostile(rng)
    return document


def _hostile(rng: random.Random) -> Any:
    """A copy: a list put into itself by a later change would never end."""
    return copy.deepcopy(rng.choice(HOSTILE))


def _changed(number: float, rng: random.Random) -> float:
    return rng.choice((number + 1, number - 1, -number, number * 2, number * 1000, number / 3))


def _places(document: Any) -> Any:
    """Every (container, key) of a document."""
    pending = [document] if isinstance(document, dict | list) else []
    while pending:
        holder = pending.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        for key in keys:
            yield holder, key
            if isinstance(holder[key], dict | list):
                pending.append(holder[key])


# -- bytes ------------------------------------------------------------------------------------


def _flip(data: bytearray, rng: random.Random) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _put(data: bytearray, rng: random.Random) -> None:
    at = _at(data, rng)
    number = rng.choice(NUMBERS)
    size, code = rng.choice(((1, "B"), (2, "H"), (4, "I"), (8, "Q")))
    data[at : at + size] = struct.pack("<" + code, number % (1 << (8 * size)))


def _cut(data: bytearray, rng: random.Random) -> None:
    at = _at(data, rng)
    del data[at : at + _length(data, rng)]


def _end(data: bytearray, rng: random.Random) -> None:
    del data[_at(data, rng) :]


def _again(data: bytearray, rng: random.Random) -> None:
    at = _at(data, rng)
    data[at:at] = data[at : at + _length(data, rng)]


def _noise(data: bytearray, rng: random.Random) -> None:
    at = _at(data, rng)
    data[at:at] = rng.randbytes(rng.choice((1, 2, 8, 64)))


def _swap(data: bytearray, rng: random.Random) -> None:
    one, other, size = _at(data, rng), _at(data, rng), _length(data, rng)
    data[one : one + size] = data[other : other + size]


DAMAGES: tuple[Damage, ...] = (_flip, _flip, _put, _put, _cut, _end, _again, _noise, _swap)


def _at(data: bytearray, rng: random.Random) -> int:
    """A place, in half of all cases near the beginning, where formats keep their structure."""
    most = len(data) if rng.random() < 0.5 else min(len(data), 256)
    return rng.randrange(most + 1)


def _length(data: bytearray, rng: random.Random) -> int:
    return rng.randrange(1, max(2, min(len(data), rng.choice((4, 32, 1024)))))
