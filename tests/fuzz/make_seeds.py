"""Writes the committed seeds: small valid files of every feature the readers know. Run: python3 make_seeds.py"""

import json
import pathlib
import struct

here = pathlib.Path(__file__).parent / "seeds"


def string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def array(kind, values):
    return struct.pack("<IQ", kind, len(values)) + b"".join(values)


KEYS = [
    (0, b"\x12"), (1, b"\xed"), (2, b"\x34\x12"), (3, b"\xcb\xed"), (4, b"\x78\x56\x34\x12"),
    (5, b"\x87\xa9\xcb\xed"), (6, struct.pack("<f", 0.5)), (7, b"\x01"), (8, string("hello")),
    (9, array(5, [struct.pack("<i", 7)] * 3)), (9, array(8, [string("a"), string("")])),
    (9, array(9, [array(7, [b"\x00", b"\x01"]), array(6, [])])),
    (10, struct.pack("<Q", 1 << 40)), (11, struct.pack("<q", -1)), (12, struct.pack("<d", 0.25)),
]


def gguf(version, keys, tensors, alignment=32):
    """tensors: (name, dims innermost first, type id, bytes)."""
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys))
    for name, (kind, value) in keys:
        out += string(name) + struct.pack("<I", kind) + value
    data = b""
    for name, dims, kind, n_bytes in tensors:
        out += string(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims)
        out += struct.pack("<IQ", kind, len(data))
        data += bytes(n_bytes) + bytes(-n_bytes % alignment)
    return out + (bytes(-len(out) % alignment) + data if tensors else b"")


def safetensors(header, n_bytes):
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + bytes(n_bytes)


def entry(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


named = [(f"k{i}", key) for i, key in enumerate(KEYS)]
tensors = [("blk.0.w", [32, 2], 8, 68), ("n", [3], 0, 12), ("e", [4, 2, 2], 1, 32)]
files = {
    "gguf_reader": {
        "empty": gguf(3, [], []),
        "keys": gguf(3, named, []),
        "tensors": gguf(3, named[:2], tensors),
        "version2": gguf(2, named[4:6], tensors[:1]),
        "aligned": gguf(3, [("general.alignment", (4, struct.pack("<I", 64)))], tensors, 64),
        "split": gguf(
            3,
            [("split.no", (2, b"\0\0")), ("split.tensors.count", (5, b"\3\0\0\0")), ("split.count", (2, b"\2\0"))],
            tensors[1:],
        ),
    },
    "safetensors_reader": {
        "empty": safetensors({}, 0),
        "one": safetensors({"t": entry("F32", [2, 3], 0, 24)}, 24),
        "many": safetensors(
            {
                "__metadata__": {"format": "pt"},
                "scalar": entry("I64", [], 0, 8),
                "none": entry("U8", [0, 4], 8, 8),
                "half": entry("BF16", [2, 2], 8, 16),
                "fp8": entry("F8_E4M3", [3], 16, 19),
            },
            19,
        ),
    },
}
for target, seeds in files.items():
    (here / target).mkdir(parents=True, exist_ok=True)
    for name, data in seeds.items():
        (here / target / name).write_bytes(data)
