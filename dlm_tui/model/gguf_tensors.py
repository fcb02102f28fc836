"""Reading the tensors of a GGUF file without its vocabulary, and its lists only where they are asked for.

The reader of the `gguf` package makes several arrays of every entry and every merge of the tokenizer: twenty seconds
and 700 MB for 262,144 entries, of which nothing that reads tensors needs one.
"""

from __future__ import annotations

from typing import Any, cast

import gguf
import numpy as np
from gguf import GGUFValueType

Value = int | float | bool | str | list[int] | list[float] | list[bool] | list[str]
_Field = tuple[int, list[Any], list[int], list[GGUFValueType]]


class TensorReader(gguf.GGUFReader):
    """Tensors and single values of a file, which is mapped; lists are passed over, as one part without contents."""

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> _Field:
        if GGUFValueType(raw_type) != GGUFValueType.ARRAY:
            return cast("_Field", super()._get_field_parts(orig_offs, raw_type))
        kind = GGUFValueType(self._get(orig_offs, np.uint32)[0])
        count, end = int(self._get(orig_offs + 4, np.uint64)[0]), orig_offs + 12
        if (scalar := self.gguf_scalar_to_np.get(kind)) is not None:
            end += count * np.dtype(scalar).itemsize
        elif kind == GGUFValueType.STRING:
            for _ in range(count):
                end += 8 + int(self._get(end, np.uint64)[0])
        else:
            return cast("_Field", super()._get_field_parts(orig_offs, raw_type))
        return end - orig_offs, [self.data[orig_offs:end]], [], [GGUFValueType.ARRAY, kind]

    def values(self) -> dict[str, Value]:
        """Every key and what it says, lists whole. Raises UnicodeDecodeError for bytes that are no text."""
        return {key: self._value(field) for key, field in self.fields.items() if not key.startswith("GGUF.")}

    def value(self, key: str) -> Value | None:
        """What one key says, None where it is not there."""
        field = self.fields.get(key)
        return None if field is None else self._value(field)

    def _value(self, field: gguf.ReaderField) -> Value:
        if field.types[0] is not GGUFValueType.ARRAY or len(field.types) < 2 or field.data:
            return cast("Value", field.contents())
        raw = np.asarray(field.parts[-1]).tobytes()
        if (scalar := self.gguf_scalar_to_np.get(field.types[1])) is not None:
            return cast("Value", np.frombuffer(raw, scalar, offset=12).tolist())
        found, at = [], 12
        while at < len(raw):
            start = at + 8
            at = start + int.from_bytes(raw[at:start], "little")
            found.append(raw[start:at].decode())
        return found
