"""Gates of earlier trainings, asked about the same prompts."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from dlm_tui.document.comparison import Moved
from dlm_tui.gate.gate import Gate, HasIdentity, load_gate
from dlm_tui.gate.router import PromptRouter
from dlm_tui.progress import Progress
from dlm_tui.store import Store
from dlm_tui.store.errors import GateFileError
from dlm_tui.store.former_gates import gate_of_run


def load_former_gate(store: Store, run: int | None, base: HasIdentity) -> Gate:
    """The gate that a training run made (None: the one in force). Raises UsageError, ForeignGate, GateFileError."""
    gate = load_gate(gate_of_run(store, run), base.identity, base.hidden_size)
    if gate is None:
        raise GateFileError("There is no gate yet; train one.")
    return gate


def compare_gates(
    router: PromptRouter, before: Gate, after: Gate, prompts: Sequence[tuple[str, bool]]
) -> Generator[Progress, None, list[Moved]]:
    """The weights of both gates for each (prompt, whether it is saved); the prompt is embedded once."""
    found: list[Moved] = []
    for number, (text, saved) in enumerate(prompts):
        yield Progress("live", number, len(prompts))
        embedding = yield from router.embed(text)
        first, second = (dict(zip(one.names, one.weights(embedding).tolist(), strict=True)) for one in (before, after))
        found.append(Moved(text, first, second, saved))
    return found
