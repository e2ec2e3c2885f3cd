"""Changes of bytes that a reader may meet: blind ones, and ones that keep JSON and safetensors well formed."""

import json
import random
import struct
from typing import Any

MAX_BYTES = 1 << 16
"""No input grows beyond this."""
EXTREMES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 255, 2**31, 2**63 - 1, 2**63, 10**30, -(10**30), 0.5, 1e308, float("nan"),
    float("inf"), "", "0", "a" * 5000, "../../outside", "/tmp/outside", "a\0b", "\ud800", "cuda", "F64", "image_folder",
    "․․", [], {}, [[]], [0] * 500,
)  # fmt: skip
JUNK = (b"\0", b"\xff" * 8, b"\x80\x04", b"[" * 20_000, b'{"a":' * 5000, b"../", b"1e999", b"\r\n", b"9" * 5000)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One to four changes; well-formed documents are mostly changed in their values, and stay well formed."""
    for _ in range(rng.randint(1, 4)):
        structured = rng.random() < 0.7
        data = (_structured(data, rng) if structured else None) or _blind(data, rng)
    return data[:MAX_BYTES]


def _blind(data: bytes, rng: random.Random) -> bytes:
    """Bits flipped, a stretch overwritten, cut out, repeated or put in, or the end cut off."""
    at = int(len(data) * rng.random() ** 2)  # more often near the head, where the structure is
    length = rng.choice((1, 2, 8, 64, 1000))
    stretch = data[at : at + length]
    match rng.randrange(6):
        case 0 if data:
            return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        case 1:
            return data[:at] + rng.randbytes(length) + data[at + length :]
        case 2:
            return data[:at] + data[at + length :]
        case 3:
            return data[:at] + stretch * rng.randint(2, 50) + data[at + length :]
        case 4:
            return data[:at]
    return data[:at] + rng.choice(JUNK) + data[at:]


def _structured(data: bytes, rng: random.Random) -> bytes | None:
    """None if the bytes are neither JSON nor safetensors."""
    try:
        if data[:1] in (b"{", b"["):
            return _changed_json(data, rng)
        (length,) = struct.unpack_from("<Q", data)
        if data[8:9] == b"{" and length < len(data):
            head = _changed_json(data[8 : 8 + length], rng)
            return struct.pack("<Q", len(head)) + head + data[8 + length :]
    except (ValueError, RecursionError, struct.error):
        pass
    return None


def _changed_json(data: bytes, rng: random.Random) -> bytes:
    tree = json.loads(data)
    places = list(_places(tree))
    if not places:
        return json.dumps(rng.choice(EXTREMES)).encode()
    branch, key = rng.choice(places)
    match rng.randrange(6):
        case 0:
            del branch[key]
        case 1 if isinstance(branch, dict):
            branch[rng.choice(("", "a", "x/y", str(key) + "0"))] = branch.pop(key)
        case 2:
            other, name = rng.choice(places)
            branch[key] = other[name]
        case 3 if type(branch[key]) is int:
            branch[key] += rng.choice((-1, 1, 2**16, -(2**16), 2**40))
        case _:
            branch[key] = rng.choice(EXTREMES)
    return json.dumps(tree).encode()


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything inside."""
    keys = tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    return [place for key in keys for place in ((tree, key), *_places(tree[key]))]
