"""Collecting an importance matrix: the squared inputs of every matrix while the model reads a text under a mix."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dlm_tui.document import Document, Row, training_rows
from dlm_tui.export.quantisation.imatrix import CHUNK_TOKENS, ImportanceMatrix, from_sums, read_imatrix
from dlm_tui.export.requests import ExportRefused
from dlm_tui.input import with_home
from dlm_tui.model import Base, MixedModel
from dlm_tui.progress import Progress
from dlm_tui.small_files import read_file, read_head
from dlm_tui.system_errors import cause

DOCUMENT = "the document's own prompts and answers"
_TEXT_BYTES = 64 << 20
_FEW_TOKENS = 16


def document_sequences(document: Document, base: Base) -> list[list[int]]:
    """The document's rows as token ids: answers in the chat form, preferences with the chosen one."""
    return list(_pieces(_row_ids(row, base) for row in training_rows(document)))


def text_sequences(path: Path, base: Base) -> list[list[int]]:
    """A text file as token ids in pieces of 512. Raises ExportRefused when it cannot be read or is no text."""
    try:
        if path.stat().st_size > _TEXT_BYTES:
            raise ExportRefused(f"{path} is larger than {_TEXT_BYTES >> 20} MiB: a text of some 100 kB is enough")
        text = read_file(path, _TEXT_BYTES).decode("utf-8")
    except OSError as error:
        raise ExportRefused(f"{path} cannot be read: {cause(error)}") from error
    except UnicodeDecodeError as error:
        raise ExportRefused(f"{path} is neither a text in UTF-8 nor an importance matrix") from error
    return list(_pieces([base.encode_raw(text, limit=None)]))


@dataclass(frozen=True)
class ImportanceSource:
    """What `--imatrix` names: `matrix` when it is a file that holds one, else the sequences to run."""

    dataset: str
    sequences: list[list[int]] = field(default_factory=list)
    matrix: ImportanceMatrix | None = None
    path: Path | None = None


def open_source(given: str, document: Document, base: Base) -> ImportanceSource:
    """`auto`, a text file or an importance matrix, read. Raises ExportRefused with one sentence."""
    if given == "auto":
        return ImportanceSource(DOCUMENT, document_sequences(document, base))
    path = with_home(given)
    if path.suffix in (".dat", ".gguf") or _begins_as_gguf(path):
        return ImportanceSource(path.name, matrix=read_imatrix(path), path=path)
    return ImportanceSource(path.name, text_sequences(path, base))


def _begins_as_gguf(path: Path) -> bool:
    try:
        return read_head(path, 4) == b"GGUF"
    except OSError:
        return False  # the text reader says what is wrong with it


def _row_ids(row: Row, base: Base) -> list[int]:
    """A row as it is trained."""
    if row.kind == "text":
        return base.passage(row.text)
    question, answer = (
        (row.prompt, row.chosen) if row.kind == "preference" else (row.messages[0][1], row.messages[-1][1])
    )
    return base.conversation([{"role": "user", "content": question}, {"role": "assistant", "content": answer}])[0]


def _pieces(sequences: Iterable[Sequence[int]]) -> Iterable[list[int]]:
    for ids in sequences:
        for start in range(0, len(ids), CHUNK_TOKENS):
            yield list(ids[start : start + CHUNK_TOKENS])


def collect(
    model: MixedModel,
    gguf_name: Callable[[str], str | None],
    sequences: Sequence[Sequence[int]],
    coefficients: Tensor | None,
    dataset: str,
) -> Generator[Progress, None, ImportanceMatrix]:
    """Run the model over `sequences` under the mix `coefficients` [N] and sum the squared inputs of every matrix.

    `gguf_name` maps `….q_proj.weight` to its name in the file; matrices without one, and the output layer (as in
    llama.cpp), are left out. Progress counts tokens. Raises ExportRefused for a text of next to no tokens and for
    inputs that are not finite.
    """
    total = sum(len(ids) for ids in sequences)
    if total < _FEW_TOKENS:
        raise ExportRefused(f"{dataset}: {total} tokens are too few for an importance matrix")
    row = coefficients.reshape(1, -1) if coefficients is not None else None
    watch = _Watch()
    handles = [
        module.register_forward_pre_hook(watch.hook(name))
        for path, module in model.base.model.named_modules()
        if isinstance(module, nn.Linear)
        and (name := gguf_name(f"{path}.weight")) is not None
        and name.startswith("blk.")
    ]
    done = 0
    try:
        for ids in sequences:
            with torch.no_grad():
                model.reference.forward(torch.tensor([list(ids)]), None, row)
            done += len(ids)
            yield Progress("importance", done, total)
    finally:
        for handle in handles:
            handle.remove()
    sums = {name: value.float().cpu().numpy().reshape(1, -1) for name, value in watch.sums.items()}
    counts = {name: np.array([float(number)], dtype=np.float32) for name, number in watch.counts.items()}
    return from_sums(sums, counts, dataset, total)


class _Watch:
    """Running sums in float64; queries, keys and values share one input, which is squared once."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self._last: tuple[Tensor, Tensor] | None = None

    def hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def look(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            x = inputs[0]
            if self._last is None or self._last[0] is not x:
                self._last = x, x.detach().reshape(-1, x.shape[-1]).double().square().sum(dim=0)
            squares = self._last[1]
            before = self.sums.get(name)
            self.sums[name] = squares if before is None else before + squares
            self.counts[name] = self.counts.get(name, 0) + x.numel() // x.shape[-1]

        return look
