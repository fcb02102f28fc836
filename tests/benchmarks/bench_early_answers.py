"""What the looks at an adapter cost while it trains on the embedded base: with and without them, in turns."""

from __future__ import annotations

from functools import partial

import torch

from dlm_tui.document import parse_bytes
from dlm_tui.training.adapter_work import AdapterWork, train_adapter
from dlm_tui.training.early_answers import early_prompts, plan_looks
from dlm_tui.training.phases import Finetuned, Step
from dlm_tui.training.plan import plan_training
from dlm_tui.training.rows import tokenised
from tests.benchmarks import harness
from tests.benchmarks.harness import Row, at_most, paired, reported

_SECTION = (
    "::instruction::\n### Q\nWhat does boat {0} carry to the harbour?\n### A\nCrates of salt and {0} barrels.\n\n"
)


def rows(quick: bool) -> list[Row]:
    """A short training has a goal; for the shortest, of a second, the cost is told."""
    return [measure(60, quick, 1.1), measure(12, quick, None)]


def measure(sections: int, quick: bool, goal: float | None) -> Row:
    """Trainings on so many sections, paired; without a goal the row only reports."""
    base = harness.pocket_base()
    head = "---\ndlm_id: 01KTESTTESTTESTTESTTESTTES\nbase_model: pocket\ntraining: {num_epochs: 3}\n---\n"
    text = head + "".join(_SECTION.format(number) for number in range(sections))
    plan = plan_training(parse_bytes(text.encode()), base_modules=base.source.target_modules)
    (adapter,) = plan.adapters
    given = tokenised(adapter.rows, plan.sequence_len, base)
    asked = early_prompts(adapter.rows, given, base)
    looked = AdapterWork(plan=plan, adapter=adapter, rows=given, asked=asked)
    left_alone = AdapterWork(plan=plan, adapter=adapter, rows=given)
    looks: list[Step] = []
    watched = train_adapter(base, looked, lambda step: looks.append(step) if step.look is not None else None)
    expected = 1 + len(plan_looks(plan, adapter, given, asked).steps)
    if len(looks) != expected or not _same(watched, train_adapter(base, left_alone, _nobody)):
        raise AssertionError("looks are missing, or they change what is learned")
    timing = paired(
        partial(train_adapter, base, looked, _nobody),
        partial(train_adapter, base, left_alone, _nobody),
        rounds=3 if quick else 9,
        warmup=0,
    )
    exact = f"{expected} looks with {len(asked)} answers each; the same bytes are learned"
    name = f"train on {len(given.train)} short rows with early answers"
    if goal is None:
        return reported(name, timing, "without them", exact)
    return at_most(name, timing, "without them", goal, exact)


def _same(one: Finetuned, other: Finetuned) -> bool:
    return one.tensors.keys() == other.tensors.keys() and all(
        torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items()
    )


def _nobody(step: Step) -> None:
    """Nobody listens."""
