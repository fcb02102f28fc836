"""A safetensors file without the library: small, whole, and of the shapes that are asked for."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence


def tensor_bytes(shapes: Mapping[str, Sequence[int]], value: float = 0.5) -> bytes:
    """Float32 tensors of these shapes, every number `value`."""
    header, data = {}, b""
    for name, shape in shapes.items():
        numbers = struct.pack("<f", value) * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [len(data), len(data) + len(numbers)]}
        data += numbers
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data
