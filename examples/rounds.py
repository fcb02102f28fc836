"""Kept rounds of adapters, composed exactly: a second round learns on top of a first one that is kept.

    python examples/rounds.py

Both rounds are LoRA adapters on the base that ships with the program. `HistoryBake` keeps the first one on the model
at its own coefficient while the second is trained; afterwards both together answer as their sum does, in any order.
"""

from __future__ import annotations

import torch

from dlm_tui.model import Base, HistoryBake, ModulatedLoRA, load_base, resolve_base
from dlm_tui.progress import run_to_end

ROUNDS = ("The harbour master's dog is called Barnacle.", "The tide bell rings three times at noon.")
TARGETS = r"self_attn\.(q|v)_proj"


def loss_of(base: Base, text: str) -> torch.Tensor:
    """The mean loss of the text's tokens, nats."""
    ids = torch.tensor([base.encode_raw(text)])
    loss: torch.Tensor = base.model(ids, labels=ids).loss
    return loss


def learn(base: Base, text: str, seed: int, steps: int = 10) -> ModulatedLoRA:
    """A round that has learnt the text, on top of whatever is on the model."""
    lora = ModulatedLoRA(base.model, r=4, targets=TARGETS, seed=seed)
    optimiser = torch.optim.AdamW(lora.parameters(), lr=2e-3)
    with lora(base.model, c=1.0):
        for _ in range(steps):
            optimiser.zero_grad()
            torch.autograd.backward(loss_of(base, text))
            optimiser.step()
    return lora


@torch.no_grad()
def main() -> None:
    """Two rounds, then both kept at their coefficients."""
    base = run_to_end(load_base(resolve_base("pocket")))
    untouched = [float(loss_of(base, text)) for text in ROUNDS]
    with torch.enable_grad():
        first = learn(base, ROUNDS[0], seed=1)
        kept = HistoryBake(base.model, [(first, 1.0)])
        second = learn(base, ROUNDS[1], seed=2)
    kept.remove()
    for coefficients in ((1.0, 1.0), (1.0, 0.0), (-1.0, 1.0)):
        both = HistoryBake(base.model, list(zip((first, second), coefficients, strict=True)))
        figures = [float(loss_of(base, text)) for text in ROUNDS]
        both.remove()
        print(f"c = {coefficients}: loss {figures[0]:.2f} and {figures[1]:.2f} nats per token", end="")
        print(f" (base {untouched[0]:.2f} and {untouched[1]:.2f})")
    assert [float(loss_of(base, text)) for text in ROUNDS] == untouched, "the base is never changed"


if __name__ == "__main__":
    main()
