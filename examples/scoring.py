"""Does an adapter change anything? The scoring protocols on a real model, and on a dummy where there is none.

    python examples/scoring.py

It learns one sentence on the base that ships with the program (a few seconds), asks base and adapter about it, and
compares with a random adapter of the same size. All figures are in nats.
"""

from __future__ import annotations

import torch

from dlm_tui.model import MixedModel, ModulatedLoRA, load_base, resolve_base
from dlm_tui.model.modulated.convert import to_adapter
from dlm_tui.progress import run_to_end
from dlm_tui.scoring import (
    DummyDifferentialBackend,
    DummyResponses,
    NullCalibratedBackend,
    TorchDifferentialBackend,
    kl_divergence,
)

PROMPT, ANSWER = "The key to the boat house is", " under the blue barrel."


def learn(steps: int = 12) -> MixedModel:
    """The base with one LoRA adapter, `key`, that has learnt the answer."""
    base = run_to_end(load_base(resolve_base("pocket")))
    lora = ModulatedLoRA(base.model, r=4, targets=r"self_attn\.(q|v)_proj", seed=0)
    ids = torch.tensor([base.encode_raw(PROMPT + ANSWER)])
    optimiser = torch.optim.AdamW(lora.parameters(), lr=5e-3)
    with lora(base.model, c=1.0):
        for _ in range(steps):
            optimiser.zero_grad()
            base.model(ids, labels=ids).loss.backward()
            optimiser.step()
    return MixedModel(base, {"key": to_adapter(lora, "key")})


def report(backend: NullCalibratedBackend, prompt: str, answer: str) -> None:
    """Log-probability of the answer and the effect at the next token: base, adapter, half, inverted, noise."""
    with backend.as_base() as base:
        before, at_base = base.logprob_of(prompt, answer), base.next_token_dist(prompt)
    with backend.as_finetuned() as tuned:
        after, at_tuned = tuned.logprob_of(prompt, answer), tuned.next_token_dist(prompt)
    with backend.as_null_adapter(seed=1) as noise:
        at_noise = noise.next_token_dist(prompt)
    print(f"log p(answer): {before:.2f} nats in the base, {after:.2f} with the adapter")
    print(f"KL at the next token: {kl_divergence(at_tuned, at_base):.4f} nats by the adapter,", end=" ")
    print(f"{kl_divergence(at_noise, at_base):.4f} by a random one of its size")


def main() -> None:
    """First a real model, then the dummy that tests of a scorer use."""
    torch.manual_seed(0)
    backend = TorchDifferentialBackend(learn())
    finite, problem = backend.preflight_finite_check()
    assert finite, problem
    report(backend, PROMPT, ANSWER)
    for lam in (-1.0, 0.5, 2.0):
        with backend.as_scaled_adapter(lam) as view:
            print(f"adapter times {lam:g}: log p(answer) {view.logprob_of(PROMPT, ANSWER):.2f} nats")

    with backend.as_mix({"key": 1.0}) as view:  # any mix of the model's adapters
        print(f"it answers: {view.generate(PROMPT, max_new_tokens=12)!r}")

    canned = DummyResponses(logprobs={(PROMPT, ANSWER): -30.0})
    learnt = DummyResponses(logprobs={(PROMPT, ANSWER): -2.0})
    print("\nthe same questions to the dummy:")
    report(DummyDifferentialBackend(base=canned, ft=learnt), PROMPT, ANSWER)


if __name__ == "__main__":
    main()
