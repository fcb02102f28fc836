"""Steering: a PiSSA adapter that answers one way at +C and the other way at −C, in two rounds that compose exactly.

    python examples/steering.py

Each round is an ordinary training of a document with one preference pair, signed, on the base that ships with the
program. The first round stays in the store as `mood@1`; the second is `mood`. All figures are in nats.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from dlm_tui.document import load
from dlm_tui.model import PiSSAHistoryBake, Sampling, load_base, resolve_base
from dlm_tui.model.modulated.convert import pissa_from_adapter
from dlm_tui.progress import Progress, run_to_end
from dlm_tui.scoring import score_views, sweep
from dlm_tui.session import Session
from dlm_tui.store import AdapterKind, KindChoices, Store
from dlm_tui.training import TrainRequest, train_document

PAIRS = (
    ("I am late again.", "No harm done, dear friend!", "You are always late."),
    ("The soup is cold.", "I will warm it for you at once.", "Then eat it cold."),
)
KIND = AdapterKind(parameterization="pissa", selection="cho_rej_min_std", signed=True, coefficient=2.0)
HEAD = """---
dlm_id: 01KSTEER1NGEXAMP1ESTEER1NG
dlm_version: 15
base_model: pocket
training:
  num_epochs: 15
  adapters:
    mood: {lora_r: 32, lora_dropout: 0.0, learning_rate: 0.05}
---
"""


def round_of(path: Path, home: Path, pair: tuple[str, str, str], choices: KindChoices) -> None:
    """Train the adapter on one pair: another version in the document's store."""
    prompt, chosen, rejected = pair
    path.write_text(
        f"{HEAD}::preference#mood::\n### Prompt\n{prompt}\n### Chosen\n{chosen}\n### Rejected\n{rejected}\n"
    )
    document = load(path)
    base = run_to_end(load_base(resolve_base(document.base_model)))
    request = TrainRequest(document=document, store=Store(home, document.dlm_id), base=base, choices=choices)

    def say(step: Progress) -> None:
        if step.stage == "note":
            print(step.text)

    train_document(request, say)


def tokens(session: Session, text: str) -> list[int]:
    """An answer as token ids."""
    return list(session.base.tokenizer(text, add_special_tokens=False)["input_ids"])


def show_sweep(session: Session, pair: tuple[str, str, str]) -> None:
    """Both sides and the effect of the version in force over c."""
    prompt, chosen, rejected = pair
    sides = tokens(session, chosen), tokens(session, rejected)
    ids, sampling = session.base.chat(prompt), Sampling(max_tokens=8, temperature=0.0)
    for point in run_to_end(sweep(session.model, ids, "mood", (-2.0, -1.0, 0.0, 1.0, 2.0), sampling, sides=sides)):
        print(f"c {point.c:+.0f}: chosen {point.chosen:.2f}, rejected {point.rejected:.2f}, effect {point.kl:.3f}")


@torch.no_grad()
def compose(session: Session) -> None:
    """Both rounds at once in the program's mixer, and as a kept history on the plain model: the same numbers."""
    mix = {"mood@1": 2.0, "mood": 2.0}
    model = session.model_for([mix])
    for prompt, chosen, _ in PAIRS:
        ids = session.base.chat(prompt)
        score = run_to_end(score_views(model, ids, {"both": mix}, tokens(session, chosen), nulls=0)).views["both"]
        print(f"both rounds at +2: {chosen!r} {score.base_logprob:.2f} in the base, {score.logprob:.2f} here")
    probe = torch.tensor([session.base.chat(PAIRS[0][0])])
    mixed = model.reference.logits(model.reference.forward(probe, None, model.coefficients(mix).unsqueeze(0)))
    rounds = [(pissa_from_adapter(session.base.model, model.adapters[name]), c) for name, c in mix.items()]
    history = PiSSAHistoryBake(session.base.model, rounds)
    kept = session.base.model(probe).logits
    history.remove()
    print(f"largest difference of a logit to the kept history: {float((mixed - kept).abs().max()):.1e}")


def main() -> None:
    """Two rounds, the sweep of the second, both together."""
    with tempfile.TemporaryDirectory() as folder:
        path, home = Path(folder) / "mood.dlm", Path(folder) / "home"
        round_of(path, home, PAIRS[0], KindChoices(every=KIND))
        round_of(path, home, PAIRS[1], KindChoices())  # the store remembers the kind
        session = run_to_end(Session.open(path, home))
        show_sweep(session, PAIRS[1])
        compose(session)


if __name__ == "__main__":
    main()
