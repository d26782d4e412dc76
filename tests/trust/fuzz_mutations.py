"""Mutations of real files: of their bytes, and of what their formats hold.

A change of a byte seldom gets past a checksum. So what lies in an archive is changed too and packed
again with right checksums, and documents are changed as trees. `random.Random` decides everything:
the same seed gives the same file.
"""

import gzip
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import lru_cache
from random import Random
from typing import Any

import numpy as np

Mutation = Callable[[Random, bytes], bytes]

HOSTILE_TEXT = (
    "", "\x1b[2J", "\x1b]0;x\x07", "a\x00b", "\ud800", "[/red]", "$\\frac{$", "=1+1", "@x",
    "</script><script>", "{{x}}", "%s%n", "é" * 300, "x" * 5000, "../../etc/x", "mrla_b_resnet8",
    "NaN", "0x_", "2001-01-01 99:99:99", "!!python/object:os.system x", "𝕏", "\u202e", "a" * 130,
)  # fmt: skip
HOSTILE_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3, 255, 256, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1,
    2**63, 2**64 - 100, -(2**63), 10**9, 10**12, 10**30, 0.5, -0.5, 1e-320, 1e308, float("nan"),
    float("inf"), float("-inf"), [], {}, [[]], [{}], {"": 0}, [0] * 1000, [None], "0", "1", "keep",
    "skip", "affine", *HOSTILE_TEXT,
)  # fmt: skip
# Text that no writer of JSON writes.
RAW = (
    "9" * 5000, "-" + "9" * 400, "1e999", "1E400", "-0", "0x10", "01", "1_0", "'a'", "[" * 3000,
    "[" * 300 + "]" * 300, '{"a":' * 300 + "1" + "}" * 300, "/* */1", "\\u12", '"\\ud800"', "\x00",
)  # fmt: skip
WORDS = (
    b"[", b"]", b"{", b"}", b":", b",", b'"', b"'", b"\n", b"\t", b"#", b"- ", b"? ", b"&a ",
    b"*a ", b"!!", b"!!binary ", b"!!timestamp ", b"<<: ", b"|", b">", b"%", b"0x_", b"1e999",
    b".inf", b".nan", b"~", b"null", b"true", b"9" * 5000, b"[" * 600, b"{a: " * 600, b"- " * 600,
    b"=", b"[[stage]]\n", b"[stage]\n", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80",
    b"1979-05-27", b"'''", b'"""', b"a.b.c = 1\n", b"\\", b"x" * 3000, b"(?=a)", b"(.*.*)*",
    b"{1000}",
)  # fmt: skip
INTEGERS = (
    0,
    1,
    -1,
    127,
    128,
    255,
    2**15,
    2**16 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63,
    2**64 - 1,
)


def some_bytes(random: Random, content: bytes) -> bytes:
    """One to eight changes of bytes anywhere."""
    data = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        at = random.randrange(len(data) + 1)
        kind = random.randrange(9)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << random.randrange(8)
        elif kind == 1 and data:
            data[at % len(data)] = random.randrange(256)
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + random.choice((1, 2, 4, 16, 256))]
        elif kind == 4:
            data[at:at] = random.randbytes(random.choice((1, 2, 4, 16, 256)))
        elif kind == 5:
            data[at:at] = data[at : at + random.choice((4, 64, 1024))]
        elif kind == 6:
            data[at : at + 8] = bytes(min(8, len(data) - at))
        elif kind == 7:
            size, order = random.choice("BHIQ"), random.choice("<>")
            width = struct.calcsize(size)
            value = random.choice(INTEGERS) % 2 ** (8 * width)
            data[at : at + width] = struct.pack(order + size, value)
        else:
            other = random.randrange(len(data) + 1)
            data[at : at + 64] = data[other : other + 64]
    return bytes(data)


def some_words(random: Random, content: bytes) -> bytes:
    """Words of YAML, TOML and CSV put in, and lines moved, doubled and taken out."""
    lines = content.split(b"\n")
    for _ in range(random.choice((1, 1, 2, 4))):
        at = random.randrange(len(lines))
        kind = random.randrange(7)
        word = random.choice(WORDS)
        if kind == 0:
            lines.insert(at, random.choice(lines))
        elif kind == 1:
            lines.pop(at)
        elif kind == 2:
            place = random.randrange(len(lines[at]) + 1)
            lines[at] = lines[at][:place] + word + lines[at][place:]
        elif kind == 3:
            separator = random.choice((b":", b"=", b","))
            lines[at] = lines[at].partition(separator)[0] + separator + b" " + word
        elif kind == 4:
            lines[at] = random.choice((b" ", b"  ", b"\t")) + lines[at]
        elif kind == 5:
            value = json.dumps(random.choice(HOSTILE_VALUES)).encode()
            separator = random.choice((b":", b"=", b","))
            lines[at] = lines[at].partition(separator)[0] + separator + b" " + value
        else:
            lines.insert(at, word)
        lines = lines or [b""]
    return b"\n".join(lines)


def changed_tree(random: Random, tree: Any, values: tuple[Any, ...] = HOSTILE_VALUES) -> Any:
    """Nested dicts and lists with one to four nodes replaced, taken out, renamed or doubled."""
    holder = [tree]
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        places = list(_places(holder))
        container, key = random.choice(places)
        kind = random.randrange(8)
        if kind <= 3:
            container[key] = _copied(random.choice(values))
        elif kind == 4:
            other, place = random.choice(places)
            container[key] = _copied(other[place])
        elif kind == 5 and container is not holder:
            del container[key]
        elif kind == 6 and isinstance(container, dict):
            name = random.choice((*HOSTILE_TEXT, *map(str, container), str(key) + "s"))
            container[name] = container.pop(key)
        elif isinstance(container, list):
            container.insert(random.randrange(len(container) + 1), _copied(container[key]))
        if not holder:
            holder.append(None)
        holder = [holder[0]]
    return holder[0]


def _places(value: Any) -> Any:
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in list(pairs):
        yield value, key
        if isinstance(item, dict | list):
            yield from _places(item)


def _copied(value: Any) -> Any:
    """Dicts and lists copied, what else is in them as it is."""
    if isinstance(value, dict):
        return {name: _copied(item) for name, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def some_json(random: Random, content: bytes) -> bytes:
    """A JSON document changed as a tree, as text, or by words that no writer writes."""
    try:
        tree = json.loads(content)
    except ValueError:
        return some_bytes(random, content)
    if random.random() < 0.15:
        return some_bytes(random, content)
    text = json.dumps(changed_tree(random, tree))
    if random.random() < 0.15:
        mark = random.choice((": ", ", ", "1", "0", '"'))
        text = text.replace(mark, mark + random.choice(RAW), random.choice((1, 2)))
    return text.encode("utf-8", "surrogatepass")


def changed_header(random: Random, content: bytes) -> bytes:
    """The header of a .npy array changed as text, its length right."""
    if content[:6] != b"\x93NUMPY" or len(content) < 10:
        return some_bytes(random, content)
    length = struct.unpack("<H", content[8:10])[0]
    header, data = content[10 : 10 + length], content[10 + length :]
    words = (b"-1", b"0", b"1", b"4294967296", b"(", b")", b"True", b"'|O'", b"'<U9'", b"'<M8'",
             b"'<f2'", b"'<c16'", b"'>f4'", b"'<u8'", b"'|b1'", b"'|V8'", b"9" * 3000)  # fmt: skip
    if random.random() < 0.5:
        place = random.randrange(len(header) or 1)
        header = header[:place] + random.choice(words) + header[place + random.randrange(8) :]
    else:
        header = some_bytes(random, header)
    return content[:8] + struct.pack("<H", min(len(header), 65535)) + header + data


def other_array(random: Random, content: bytes) -> bytes:
    """An array with other values, of another type or shape; else its bytes or header changed."""
    if random.random() < 0.3:
        return random.choice((some_bytes, changed_header))(random, content)
    try:
        array = _other(random, np.load(io.BytesIO(content)))
    except Exception:  # text, or an array whose header was changed before
        return some_bytes(random, content)
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _other(random: Random, array: Any) -> Any:
    """An array with other values, of another type or shape."""
    kinds = ("u1", "i1", "?", "f2", "f4", "f8", "u2", "u8", "i8", ">i4", "c8", "U3", "S3", "M8[s]")
    kind = random.randrange(5)
    with np.errstate(all="ignore"):
        if kind == 0:
            array = array.astype(random.choice(kinds))
        elif kind == 1 and array.size:
            flat = array.reshape(-1).copy()
            values = [v for v in HOSTILE_VALUES if isinstance(v, int | float)]
            for _ in range(random.choice((1, 3))):
                try:
                    flat[random.randrange(flat.size)] = random.choice(values)
                except (OverflowError, ValueError):
                    flat[random.randrange(flat.size)] = 0
            array = flat.reshape(array.shape)
        elif kind == 2:
            shapes = [(-1,), (1, -1), (-1, 1), array.shape[::-1], (0,), (), (1, *array.shape)]
            shape = random.choice(shapes)
            array = array.reshape(shape) if -1 in shape or shape == (1, *array.shape) else (
                np.zeros(shape, array.dtype))  # fmt: skip
        elif kind == 3 and array.ndim:
            array = np.concatenate([array, array]) if random.random() < 0.5 else array[:-1]
        else:
            array = np.full(array.shape, random.choice((np.nan, np.inf, -1.0, 2.0**64, 1e-320)))
    return array


def in_zip(inner: Mutation) -> Mutation:
    """A change of members of a zip archive, packed again; else of the archive's own bytes."""

    def mutate(random: Random, content: bytes) -> bytes:
        if random.random() < 0.25:
            return some_bytes(random, content)
        members = list(_members(content))
        for _ in range(random.choice((1, 1, 2))):
            at = random.randrange(len(members))
            name, data = members[at]
            kind = random.randrange(12)
            if kind == 0:
                members.pop(at)
            elif kind == 1:
                members[at] = (random.choice(members)[0], data)
            elif kind == 2:
                members[at] = (name, random.choice(members)[1])
            elif kind == 3:
                members.append((random.choice(("../x", "x.npy", "é.npy", name)), data))
            else:
                members[at] = (name, inner(random, data))
            if not members:
                break
        kinds = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA)
        (kind,) = random.choices(kinds, (10, 10, 1))  # LZMA takes ten times as long
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", kind) as archive:
            for name, data in members:
                archive.writestr(zipfile.ZipInfo(name), data, kind)
        return buffer.getvalue()

    return mutate


@lru_cache(maxsize=8)
def _members(content: bytes) -> tuple[tuple[str, bytes], ...]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return tuple((name, archive.read(name)) for name in archive.namelist())


def in_gzip(inner: Mutation) -> Mutation:
    """A change of what is compressed; else of the compressed bytes."""

    def mutate(random: Random, content: bytes) -> bytes:
        if random.random() < 0.3:
            return some_bytes(random, content)
        return gzip.compress(inner(random, gzip.decompress(content)), 1)

    return mutate


def in_safetensors(random: Random, content: bytes) -> bytes:
    """The header of a safetensors file changed as JSON, also the JSON in it; else some bytes."""
    if random.random() < 0.25:
        return some_bytes(random, content)
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    metadata = header.get("__metadata__", {})
    if metadata and random.random() < 0.6:
        key = random.choice(list(metadata))
        metadata[key] = some_json(random, metadata[key].encode()).decode(errors="replace")
        text = json.dumps(header).encode()
    else:
        text = some_json(random, json.dumps(header).encode())
    return len(text).to_bytes(8, "little") + text + data


def in_torch(random: Random, content: bytes) -> bytes:
    """The objects of a torch file changed and saved again; else the members of its archive."""
    import torch

    if random.random() < 0.5:
        return in_zip(some_bytes)(random, content)
    stored = _plain(_stored(content))
    tensor = torch.ones(3)
    values = (
        *HOSTILE_VALUES, tensor, tensor.to_sparse(), tensor.to("meta"), tensor.double(),
        tensor.half(), tensor.bool(), tensor.to(torch.complex64), tensor[:1].expand(10**9),
        torch.full((3,), torch.nan), torch.zeros(0), torch.nn.Parameter(tensor), torch.float32,
        torch.Size([1]), (), {1: tensor}, {"weight": tensor}, [tensor], {"a": {"b": tensor}},
    )  # fmt: skip
    if (
        isinstance(stored, dict)
        and isinstance(stored.get("ela_probe"), str)
        and (random.random() < 0.5)
    ):
        text = some_json(random, stored["ela_probe"].encode()).decode(errors="replace")
        stored["ela_probe"] = text
    else:
        stored = changed_tree(random, stored, values)
    buffer = io.BytesIO()
    torch.save(stored, buffer)
    return buffer.getvalue()


@lru_cache(maxsize=8)
def _stored(content: bytes) -> Any:
    import torch

    return torch.load(io.BytesIO(content), weights_only=True)


def _plain(value: Any) -> Any:
    """Nested mappings as dicts and sequences as lists, so that they can be changed."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def in_png(random: Random, content: bytes) -> bytes:
    """A chunk of a PNG changed, its checksum right; of any other image some bytes."""
    if content[:8] != b"\x89PNG\r\n\x1a\n" or random.random() < 0.3:
        return some_bytes(random, content)
    chunks, at = [], 8
    while at + 8 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    place = random.randrange(len(chunks))
    kind, data = chunks[place]
    if random.random() < 0.2:
        kind = random.choice((b"tRNS", b"PLTE", b"zTXt", b"iTXt", b"iCCP", b"acTL", b"IDAT"))
    chunks[place] = (kind, some_bytes(random, data))
    packed = b"".join(
        len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
        for kind, data in chunks
    )
    return content[:8] + packed
