"""Changes to files that keep enough of their structure to get past the first check of a reader.

Every function takes a generator of random numbers and the content of a good file, and returns another content.
"""

from __future__ import annotations

import gzip
import io
import json
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

Mutation = Callable[[random.Random, bytes], bytes]

_WHOLE = (0, 1, 2, 3, 7, 8, 16, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**63)
_REAL = (0.0, -0.0, 1.0, -1.0, 1e-30, 1e30, -1e30, 3.4e38, float("inf"), float("-inf"), float("nan"))
_TEXT = (
    *(b"", b" ", b"0", b"-1", b"1e999", b"10**400", b"9" * 400, b"nan", b"inf", b"\\", b"\\\\", b"a\\b"),
    *(b"\x1b[2J", b"\xff\xfe", b"../../x", b"x" * 3000, b"%s%n", "\u202e".encode(), b"\0\0"),
)


# --- bytes ------------------------------------------------------------------------------------------------


def any_bytes(rng: random.Random, content: bytes) -> bytes:
    """Change a few places without regard for what they are."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        rng.choice(_CHANGES)(rng, data)
    return bytes(data)


def _flip(rng: random.Random, data: bytearray) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _number(rng: random.Random, data: bytearray) -> None:
    packed = number(rng)
    at = rng.randrange(len(data) + 1)
    data[at : at + len(packed)] = packed


def _text(rng: random.Random, data: bytearray) -> None:
    text, at = rng.choice(_TEXT), rng.randrange(len(data) + 1)
    data[at : at + rng.choice((0, len(text)))] = text


def _cut(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data) + 1)
    del data[at : at + rng.choice((1, 2, 4, 16, len(data)))]


def _again(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = data[at : at + rng.choice((1, 4, 16, 256))] * rng.choice((1, 2, 50))


_CHANGES = (_flip, _flip, _number, _number, _text, _cut, _again)


def number(rng: random.Random) -> bytes:
    """Return a whole or real number of 1 to 8 bytes that readers stumble over."""
    order = rng.choice("<>")
    if rng.random() < 0.3:
        return struct.pack(order + rng.choice("fd"), rng.choice(_REAL))
    size, value = rng.choice((1, 2, 4, 8)), rng.choice(_WHOLE) * rng.choice((1, 1, -1))
    return (value % 2 ** (8 * size)).to_bytes(size, "little" if order == "<" else "big")


def fields(places: tuple[tuple[int, str], ...], order: str = "<") -> Mutation:
    """Return a change of the fields of a header, each given by its offset and its format."""

    def change(rng: random.Random, content: bytes) -> bytes:
        data = bytearray(content)
        for offset, kind in rng.choices(places, k=rng.choice((1, 1, 2, 3))):
            if kind in "fd":
                packed = struct.pack(order + kind, rng.choice(_REAL))
            else:
                size = struct.calcsize(kind)
                packed = (rng.choice(_WHOLE) * rng.choice((1, 1, -1)) % 2 ** (8 * size)).to_bytes(size, "little")
            data[offset : offset + len(packed)] = packed
        return bytes(data)

    return change


def one_of(*mutations: Mutation) -> Mutation:
    """Return a mutation that is one of some; those that do not fit the content give way to a change of bytes."""

    def change(rng: random.Random, content: bytes) -> bytes:
        try:
            return rng.choice(mutations)(rng, content)
        except Exception:  # a file that was changed before may have lost the structure that this one looks for
            return any_bytes(rng, content)

    return change


# --- containers -------------------------------------------------------------------------------------------


def packed(inside: Mutation) -> Mutation:
    """Return a change of what a gzip file holds, packed again; of another file, a change of itself."""

    def change(rng: random.Random, content: bytes) -> bytes:
        if content[:2] != b"\x1f\x8b":
            return inside(rng, content)
        again = gzip.compress(inside(rng, gzip.decompress(content)), 1, mtime=0)
        odd = rng.random()
        if odd < 0.05:
            return again[: -rng.randrange(1, 12)]
        if odd < 0.1:
            return again + gzip.compress(bytes(rng.choice((0, 100, 10**7))), 9, mtime=0)
        return again + b"junk" if odd < 0.13 else again

    return change


def archive(rng: random.Random, content: bytes) -> bytes:
    """Change one member of a zip archive, its name or its way of storage, and write the archive again."""
    with zipfile.ZipFile(io.BytesIO(content)) as old:
        members = [(info.filename, old.read(info)) for info in old.infolist()]
    n = rng.randrange(len(members))
    name, data = members[n]
    what = rng.random()
    if what < 0.8:
        data = any_bytes(rng, data)
    elif what < 0.9:
        name = rng.choice(("../" + name, name + "x", "\x1b[2J", "x" * 300, ""))
    else:
        data = bytes(rng.choice((0, 10**6, 3 * 10**7)))
    members[n] = name, data
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as new:
        for name, data in members:
            new.writestr(zipfile.ZipInfo(name), data)
    return out.getvalue()


# --- JSON -------------------------------------------------------------------------------------------------

_SNIPPETS = (
    *("1" + "0" * 400, "9" * 5000, "-1e999", "1e999", "1e308", "NaN", "Infinity", "-Infinity", "1e-400", "0.5"),
    *("null", "true", "false", "0", "-1", "1", "2", "65536", "18446744073709551616", "1.0", "-0.0"),
    *("{}", "[]", '""', '"x"', '"1"', '"\\ud800"', '"\\u001b[2J"', '"\\u202e"', '"<script>"', '"=1+1"', '"../../x"'),
    *('"/etc/passwd"', '"' + "x" * 50_000 + '"', "[1, 2, 3]", '{"1": 1}', "[[[[1]]]]", "[null]", '{"a": null}'),
    *("[" * 3000 + "]" * 3000, "[" * 100_000 + "]" * 100_000, '{"a":' * 5000 + "1" + "}" * 5000),
)


def json_text(rng: random.Random, content: bytes) -> bytes:
    """Replace, remove, double or rename a value somewhere in a JSON text."""
    tree = json.loads(content)
    raw: dict[str, str] = {}
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        tree = _changed(rng, tree, raw)
    text = json.dumps(tree, ensure_ascii=rng.random() < 0.5)
    for mark, snippet in raw.items():
        text = text.replace(f'"{mark}"', snippet)
    odd = rng.random()
    encoding = "utf-16" if odd < 0.02 else "utf-8-sig" if odd < 0.04 else "utf-8"
    encoded = text.encode(encoding, "surrogatepass")
    return any_bytes(rng, encoded) if odd > 0.95 else encoded


def _changed(rng: random.Random, tree: Any, raw: dict[str, str]) -> Any:
    places: list[tuple[Any, Any]] = []
    pending = [tree]
    while pending:
        node = pending.pop()
        inside = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, value in inside:
            places.append((node, key))
            pending.append(value)
    mark = f"@{len(raw)}@"
    raw[mark] = rng.choice(_SNIPPETS)
    if not places or rng.random() < 0.02:
        return mark
    node, key = rng.choice(places)
    what = rng.random()
    if what < 0.65:
        node[key] = mark
    elif what < 0.8:
        del node[key]
    elif what < 0.9 and isinstance(node, dict):
        node[rng.choice((key.upper(), key + "x", "", "x" * 200))] = node.pop(key)
    elif isinstance(node, dict):  # the same key twice: the snippet ends the first value and begins the second
        raw[mark] = f"{json.dumps(node[key])}, {json.dumps(key)}: {raw[mark]}"
        node[key] = mark
    else:
        node.extend([node[key]] * rng.choice((1, 10, 1000)))
    return tree


def tensors(rng: random.Random, content: bytes) -> bytes:
    """Change the header of a safetensors file, or the JSON that stands in its metadata as text."""
    length = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + length], content[8 + length :]
    tree = json.loads(header)
    texts = [key for key, value in tree.get("__metadata__", {}).items() if value[:1] in "{["]
    if texts and rng.random() < 0.7:
        key = rng.choice(texts)
        changed = json_text(rng, tree["__metadata__"][key].encode())
        tree["__metadata__"][key] = changed.decode("utf-8", "replace")
        header = json.dumps(tree, ensure_ascii=False).encode("utf-8", "replace")
    else:
        header = json_text(rng, header)
    header += b" " * (-len(header) % 8)
    if rng.random() < 0.1:
        data = any_bytes(rng, data)
    return len(header).to_bytes(8, "little") + header + data


# --- pictures ---------------------------------------------------------------------------------------------

_CHUNKS = (b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"iCCP", b"gAMA", b"tRNS", b"PLTE", b"acTL", b"fcTL", b"IDAT", b"aaAa")


def png(rng: random.Random, content: bytes) -> bytes:
    """Change, add or leave out a chunk, with the right checksum."""
    if content[:4] == b"\x89PNG":
        pieces, at = [], 8
        while at < len(content):
            length = int.from_bytes(content[at : at + 4], "big")
            pieces.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
            at += length + 12
        n = rng.randrange(len(pieces))
        kind, data = pieces[n]
        what = rng.random()
        if kind == b"IDAT" and what < 0.5:
            data = zlib.compress(any_bytes(rng, zlib.decompress(data)) + bytes(rng.choice((0, 10**6))))
        elif what < 0.7:
            data = fields(((0, "I"), (4, "I"), (8, "B"), (9, "B"), (12, "B")))(rng, data)
        elif what < 0.85:
            pieces.insert(n, (rng.choice(_CHUNKS), any_bytes(rng, data or b"x\0\0" + zlib.compress(bytes(10**6)))))
        elif what < 0.95:
            data = any_bytes(rng, data)
        pieces[n if pieces[n][0] == kind else n + 1] = kind, data
        if what >= 0.95:
            del pieces[n]
        written = [
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in pieces
        ]
        return content[:8] + b"".join(written)
    raise ValueError("no PNG")


def tiff(rng: random.Random, content: bytes) -> bytes:
    """Change entries of the first directory, or where the next one stands."""
    order = {b"II": "<", b"MM": ">"}[content[:2]]
    big = b"+" in content[2:4]
    start, count_kind, word, each = (8, "Q", "Q", 20) if big else (4, "H", "I", 12)
    room = 2 ** (8 * struct.calcsize(word))
    data = bytearray(content)
    (at,) = struct.unpack_from(order + word, data, start)
    (count,) = struct.unpack_from(order + count_kind, data, at)
    entries = at + struct.calcsize(order + count_kind)
    for _ in range(rng.choice((1, 1, 2))):
        entry = entries + each * rng.randrange(count)
        what = rng.random()
        if what < 0.6:
            value = rng.choice(_WHOLE)
            if rng.random() < 0.5 and order == ">":  # a short stands at the left
                struct.pack_into(">H", data, entry + each - struct.calcsize(word), value % 2**16)
            else:
                struct.pack_into(order + word, data, entry + each - struct.calcsize(word), value % room)
        elif what < 0.8:
            struct.pack_into(order + word, data, entry + 4, rng.choice(_WHOLE) % room)
        elif what < 0.9:
            struct.pack_into(order + "H", data, entry + 2, rng.choice((0, 1, 2, 3, 4, 5, 6, 11, 12, 16, 200)))
        elif what < 0.95:
            struct.pack_into(order + "H", data, entry, rng.choice((254, 256, 258, 259, 262, 274, 277, 284, 317, 339)))
        else:
            link = rng.choice((at, 8, room - 1, len(data) - 2))
            struct.pack_into(order + word, data, entries + each * count, link)
    return bytes(data)


def jpeg(rng: random.Random, content: bytes) -> bytes:
    """Change, double, leave out or exchange segments, with the right length most of the time."""
    if content[:2] != b"\xff\xd8":
        raise ValueError("no JPEG")
    pieces, at = [], 2
    while content[at + 1] != 0xDA:
        length = int.from_bytes(content[at + 2 : at + 4], "big")
        pieces.append((content[at : at + 2], content[at + 4 : at + 2 + length]))
        at += 2 + length
    scans = content[at:]
    n, what = rng.randrange(len(pieces)), rng.random()
    marker, data = pieces[n]
    if what < 0.4:
        pieces[n] = marker, any_bytes(rng, data)
    elif what < 0.5:
        pieces[n] = b"\xff" + bytes([rng.choice((0xC0, 0xC1, 0xC2, 0xC4, 0xC9, 0xDB, 0xDD, 0xE1, 0xEE, 0xFE))]), data
    elif what < 0.6:
        del pieces[n]
    elif what < 0.7:
        pieces.insert(n, pieces[n])
    elif what < 0.8:
        pieces.insert(n, rng.choice(pieces))
    else:
        scans = any_bytes(rng, scans)
    written = b""
    for marker, data in pieces:
        length = len(data) + 2 if rng.random() < 0.98 else rng.choice(_WHOLE)
        written += rng.choice((b"", b"", b"", b"\xff")) + marker + (length % 2**16).to_bytes(2, "big") + data
    return content[:2] + written + scans


# --- arrays and DICOM -------------------------------------------------------------------------------------

_DICTS = (
    *(b"'<f4'", b"'|O'", b"'<c8'", b"'>i2'", b"'<f16'", b"'|V3'", b"[('a','<f4')]", b"'<M8[ns]'", b"'|S5'"),
    *(b"True", b"None", b"(3,)", b"(0, 4)", b"(-1, 4)", b"(10**9, 10**9)", b"(2147483648, 2)", b"(2, 3, 4, 5)"),
    *(b"((((1,2))))", b"(" * 500 + b")" * 500, b"'" + b"x" * 5000 + b"'", b"9" * 5000, b"1e999", b"__import__('os')"),
)


def npy(rng: random.Random, content: bytes) -> bytes:
    """Change a value in the header's dictionary."""
    length = int.from_bytes(content[8:10], "little")
    header, data = content[10 : 10 + length], content[10 + length :]
    values = list(re.finditer(rb"'[<>|][^']*'|True|False|\([^)]*\)", header))
    value = rng.choice(values)
    header = header[: value.start()] + rng.choice(_DICTS) + header[value.end() :]
    length = len(header) if rng.random() < 0.9 else rng.choice(_WHOLE) % 65536
    version = content[6:8] if rng.random() < 0.9 else rng.choice((b"\2\0", b"\3\0", b"\7\7"))
    size = length.to_bytes(2 if version[:1] == b"\1" else 4, "little")
    return content[:6] + version + size + header + data


_LONG = (b"OB", b"OW", b"OF", b"SQ", b"UT", b"UN", b"UC", b"UR", b"OL", b"OD")
_DEFLATED = b"1.2.840.10008.1.2.1.99"


def dicom(rng: random.Random, content: bytes) -> bytes:
    """Change elements of a file in explicit little-endian order: a value, its kind, its length; or deflate all."""
    at, elements = 132, []
    while at < len(content):
        kind = content[at + 4 : at + 6]
        start = at + (12 if kind in _LONG else 8)
        length = int.from_bytes(content[at + 6 : at + 8] if start - at == 8 else content[at + 8 : at + 12], "little")
        if length == 2**32 - 1:  # encapsulated pixels, to the end
            length = len(content) - start
        if length > len(content) - start:
            raise ValueError("not explicit")
        elements.append((content[at : at + 4], kind, content[start : start + length]))
        at = start + length
    for _ in range(rng.choice((1, 1, 2, 3))):
        n = rng.randrange(len(elements))
        tag, kind, value = elements[n]
        what = rng.random()
        if what < 0.35:
            value = rng.choice((*_TEXT, value + b"\\" + value, b"\\".join([value] * 3)))
        elif what < 0.55:
            value = number(rng)
        elif what < 0.7:
            value = any_bytes(rng, value)
        elif what < 0.8:
            kind = rng.choice((b"SQ", b"UN", b"DS", b"US", b"UI", b"PN", b"OB", b"AT", b"FD", b"ZZ"))
        elif what < 0.9:
            elements.insert(n, elements[n])
        if what < 0.9:
            elements[n] = tag, kind, value
        elif len(elements) > 1:
            del elements[n]
    written = []
    for tag, kind, value in elements:
        size = len(value) if rng.random() < 0.98 else rng.choice(_WHOLE)
        size = 2**32 - 1 if value[:4] == b"\xfe\xff\x00\xe0" and rng.random() < 0.95 else size
        length = (
            bytes(2) + (size % 2**32).to_bytes(4, "little") if kind in _LONG else (size % 2**16).to_bytes(2, "little")
        )
        written.append(tag + kind + length + value)
    if rng.random() < 0.05:  # pydicom unpacks a deflated data set as a whole
        meta = [part for part in written if part[:2] == b"\2\0"]
        rest = b"".join(part for part in written if part[:2] != b"\2\0") + bytes(rng.choice((0, 10**8)))
        syntax = b"\2\0\x10\0UI" + len(_DEFLATED).to_bytes(2, "little") + _DEFLATED
        packer = zlib.compressobj(9, wbits=-15)
        meta = [syntax if part[:4] == b"\2\0\x10\0" else part for part in meta]
        return content[:132] + b"".join(meta) + packer.compress(rest) + packer.flush()
    return content[:132] + b"".join(written)
