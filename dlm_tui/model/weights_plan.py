"""In what form the weights of a base are held, and where: chosen by the memory there is, before they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dlm_tui.model.config_check import largest_bytes, quantised_bytes, stored_elements, stored_types
from dlm_tui.model.memory import at_least, at_most, available_memory, limits_room, refuse_narrow_limits
from dlm_tui.model.quantised import bits_of, quantisation_config, require_library, stored_quantisation
from dlm_tui.model.registry import BaseSource, BaseUnavailable
from dlm_tui.model.stored import bytes_beside

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_OFFLOAD_SHARE = 0.8
_MAPS = 2
"""How often a file is mapped while it is read: by safetensors itself, and by torch."""


class WeightsPlan:
    """What a base's weights become in this process.

    `dtype` is the type that was asked for, or auto; `place` a device. With `as_stored` float32 computes on the pages of
    bfloat16 files; `offload` is the folder in which accelerate leaves what has no room, None where all has. `stored_as`
    is the kind in which the files are quantised, `quantise` the one that they are quantised as while they are read.
    `as_stored` and `offload` stand once `settle` was called.
    """

    def __init__(
        self,
        source: BaseSource,
        files: Sequence[Path],
        config: Mapping[str, Any],
        *,
        dtype: str,
        device: str,
        as_stored: bool,
    ) -> None:
        """Raises BaseUnavailable for files that cannot be quantised as it was asked for, and for a missing library."""
        self.dtype = dtype
        self.stored_as = stored_quantisation(config)
        if self.stored_as is not None and source.quantize not in (None, self.stored_as):
            raise BaseUnavailable(
                f"the base {source.title} is stored as {self.stored_as} and cannot be quantised as {source.quantize}:"
                " open it as it is (--quantize none), or the base that it was made from"
            )
        self.quantise = source.quantize if self.stored_as is None else None
        self.offload: Path | None = None
        if self.quantisation is not None:
            require_library(self.quantisation)
        item = DTYPES.get(dtype, torch.float32).itemsize
        four_bits = quantised_bytes(files, 4, item) + largest_bytes(files, item)
        self._needed = stored_elements(files) * item
        if self.quantisation is not None:
            bits = bits_of(self.quantisation)
            self._needed = quantised_bytes(files, bits, item) + largest_bytes(files, item)
        self.place = _place(self._needed) if device == "auto" else device
        types = stored_types(files)
        size = sum(file.stat().st_size for file in files)
        self._maps = _MAPS * size
        # weights of the type that is stored are pages of the file until they are copied, when it is mapped once only
        self._mapped = size if types == {"F32"} and dtype == "float32" else self._maps
        self._room = min(available_memory(), limits_room(self._mapped))
        can_stay = dtype == "float32" and self.place == "cpu" and types == {"BF16"} and self.quantise is None
        self.as_stored = can_stay and (as_stored or self._needed > self._room)
        self.stays_cached = size <= available_memory()
        self._four_bits_fit = four_bits <= self._room
        self._source = source

    @property
    def quantisation(self) -> str | None:
        """The kind that the weights have in memory; None for numbers."""
        return self.stored_as or self.quantise

    def library_arguments(self) -> dict[str, Any]:
        """What the library is told besides the type: it puts quantised layers in their place while it reads them, as
        they cannot be moved, and leaves on the disk what has no room, but for a share that is for what is computed."""
        if self.offload is not None:
            room = int(min(available_memory(), limits_room(self._maps)) * _OFFLOAD_SHARE)
            return {"device_map": "auto", "max_memory": {"cpu": room}, "offload_folder": str(self.offload)}
        told: dict[str, Any] = {}
        if self.quantisation is not None:
            told["device_map"] = {"": self.place}
        if self.quantise is not None:
            told["quantization_config"] = quantisation_config(self.quantise)
        return told

    def refuse_without_maps(self) -> None:
        """Raises BaseUnavailable where a limit of the shell leaves no room for the maps of the files alone."""
        refuse_narrow_limits(0, self._maps)

    def settle(self, folder: Path) -> str:
        """Choose among what was left open; the sentence of what will be slow, "" where nothing will.

        Raises BaseUnavailable, with what would take less, where no form of the weights fits.
        """
        if self.as_stored:
            beside = bytes_beside(folder)
            self.as_stored = beside <= min(self._room, self._needed // 2)  # else it has no room, or takes as much
            if self.as_stored:
                self._needed = (self._needed + beside) // 2
        if self.place == "cpu" and not self.as_stored and self.quantisation is None and self._needed > self._room:
            self.offload = self._source.offload
        less = "" if self._from_disk else self._less()
        if self.place == "cpu" and not self._from_disk:
            refuse_narrow_limits(self._needed, self._mapped, less if limits_room(self._maps) else "")
        elif not self.as_stored:
            self.refuse_without_maps()
        return self._slow(less) if self.place == "cpu" else ""

    @property
    def _from_disk(self) -> bool:
        return self.as_stored or self.offload is not None

    def _slow(self, less: str) -> str:
        """What a person has to know of a base that does not fit; pages of a file can come and go."""
        free = available_memory()
        if self._needed <= free:
            return ""
        takes = f"the base {self._source.title} takes {at_least(self._needed)} of memory, and {at_most(free)} are free"
        if self._from_disk:
            return f"{takes}: its weights are read from the disk again and again, which is slow"
        raise BaseUnavailable(f"{takes}; close other programs, {less}")

    def _less(self) -> str:
        """What takes less memory. A quantised base cannot be left on the disk; four bits are named where they fit."""
        slow = "which is slow, or use a smaller base"
        if self.stored_as is not None:
            return f"leave the base that this one was made from on the disk with --offload FOLDER, {slow}"
        if self.quantise is not None:
            fewer = bits_of(self.quantise) > 4 and self._four_bits_fit
            bits = "keep it in 4 bits with --quantize nf4, " if fewer else ""
            return f"{bits}leave it as it is on the disk with --quantize none --offload FOLDER, {slow}"
        bits = "keep it in 4 bits with --quantize nf4, " if self._four_bits_fit else ""
        return (
            f"{bits}leave it on the disk with --offload FOLDER, {slow} (one stored as bfloat16 is computed on its"
            " file's pages)"
        )


def _place(needed: int) -> str:
    """Where `needed` bytes of weights go: to the GPU where they fit."""
    return "cuda" if torch.cuda.is_available() and torch.cuda.mem_get_info()[0] > needed else "cpu"
