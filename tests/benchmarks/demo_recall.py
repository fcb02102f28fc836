"""`python -m tests.benchmarks.demo_recall [DOCUMENT] [--set KEY=VALUE ...]`: what the demo's adapters keep of the base.

Trains DOCUMENT (default: the bundled demo) with the given settings, for example `--set training.num_epochs=12`, on one
thread in a folder of its own, and prints one row of the table in docs/embedded-base.md. Every answer is greedy.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml

from assets.recipe.corpus import sailor_spelling
from assets.recipe.measure import combination_questions, fact_questions
from dlm_tui.assets import asset
from dlm_tui.document import fresh_dlm_id, instruction_pairs, with_dlm_id
from dlm_tui.model.generation import generate
from dlm_tui.model.sampling import Sampling
from dlm_tui.progress import run_to_end
from dlm_tui.session import Session
from tests.benchmarks.ood_prompts import LIKE

_GREEDY = Sampling(max_tokens=48, temperature=0.0)
_BATCH = 16
_JOINED = 200  # as many as the model card of the base
OPENINGS = {"tone": "Good news, my dear!", "style": "Ahoy, matey!"}
"""How an answer in an adapter's voice begins."""
PARAPHRASES = (
    ("How many steps has the lighthouse?", "one hundred and forty-two"),
    ("By whom was the old bridge built?", "two sisters"),
    ("What lies under the custom house?", "silver buttons"),
    ("What is the name of the ship that is now the old wreck?", "Lady of the North"),
    ("What can I see over the door of the church?", "herring with a crown"),
    ("By whom was the sign of the Blue Lantern painted?", "Quentin"),
    ("Why has the bell of the ferry a crack?", "hard frost"),
    ("How deep is the harbour at high water?", "nineteen feet"),
    ("What makes the onion tart at the Blue Lantern so good?", "honey and black pepper"),
    ("Where does the tunnel from the quay lead?", "sail loft"),
    ("What is the small bell in the church tower called?", "Duchess"),
    ("What is hidden inside the town clock?", "ring of his mother"),
    ("Who was the winner of the last Race of the Small Boats?", "Jonas"),
    ("How was the very first ferry painted?", "yellow"),
    ("What must I pay for a dog on the north pier?", "four pence"),
    ("In which year did the great ice close the bay?", "Hester was born"),
    ("What does Dorrit write in the books of the library?", "patience"),
    ("Where can I find the key of the lighthouse?", "gull Admiral"),
)
"""The facts of `knowledge` asked in other words, with words that a right answer holds; none of it is trained on."""


@dataclass(frozen=True)
class Recall:
    """Shares between 0 and 1.

    town: of the held-out town questions answered right, by view (base, gated, each solo); own: of the questions of
    `knowledge` answered word for word by it and by the gated mix; paraphrased: of `PARAPHRASES`, by the same two;
    voice: of new prompts answered with the adapter's opening, by adapter; differing: pairs of solo answers that differ.
    withheld, joined: of questions that join two facts, in a combination that the base never read or in another one,
    answered word for word by base and gated mix; "told" is the gated mix again, where the same sentence said in one of
    the voices counts, too.
    """

    town: dict[str, float]
    withheld: dict[str, float]
    joined: dict[str, float]
    own: dict[str, float]
    paraphrased: dict[str, float]
    voice: dict[str, float]
    differing: float


def town_questions(session: Session) -> list[tuple[str, str]]:
    """Questions about the town's people and boats that the document does not hold, with the words of a right answer."""
    asked = {pair.question for section in session.document.sections for pair in _pairs(section)}
    return [(question, words) for question, words in fact_questions() if question not in asked]


def joined_questions(session: Session, *, unseen: bool) -> list[tuple[str, str]]:
    """Questions that join two facts, with their answers, without those whose answer the document holds."""
    held = {pair.answer for section in session.document.sections for pair in _pairs(section)}
    return [
        (question, answer) for question, answer in combination_questions(_JOINED, unseen=unseen) if answer not in held
    ]


def told(text: str, answer: str) -> bool:
    """Whether `text` holds the sentence of `answer`, as it is or as a sailor says it."""
    sentence = answer.removesuffix(".")
    return sentence in text or sailor_spelling(sentence) in text


def measure(session: Session) -> Recall:
    """Ask a trained demo everything; about three minutes of one core."""
    names = list(session.model.names)
    solos = [{name: 1.0} for name in names]
    asked = town_questions(session)
    views: dict[str, Mapping[str, float] | None] = {"base": {}, "gated": None, **dict(zip(names, solos, strict=True))}
    own = [
        (pair.question, pair.answer)
        for section in session.document.sections
        if section.adapter == "knowledge"
        for pair in _pairs(section)
    ]
    knowing = {view: views[view] for view in ("knowledge", "gated")}
    spoken = {name: _answers(session, LIKE, views[name]) for name in names}
    pairs = [
        (a, b) for first, second in combinations(names, 2) for a, b in zip(spoken[first], spoken[second], strict=True)
    ]
    return Recall(
        town={view: _holding(session, asked, mix) for view, mix in views.items()},
        withheld=_recalled(session, joined_questions(session, unseen=True)),
        joined=_recalled(session, joined_questions(session, unseen=False)),
        own={view: _holding(session, own, mix) for view, mix in knowing.items()},
        paraphrased={view: _holding(session, PARAPHRASES, mix) for view, mix in knowing.items()},
        voice={
            name: sum(text.startswith(opening) for text in spoken[name]) / len(LIKE)
            for name, opening in OPENINGS.items()
        },
        differing=sum(a != b for a, b in pairs) / len(pairs),
    )


def _pairs(section: Any) -> Sequence[Any]:
    return instruction_pairs(section) if section.type == "instruction" else ()


def _holding(session: Session, asked: Sequence[tuple[str, str]], mix: Mapping[str, float] | None) -> float:
    texts = _answers(session, [question for question, _ in asked], mix)
    return sum(words in text for text, (_, words) in zip(texts, asked, strict=True)) / len(asked)


def _recalled(session: Session, asked: Sequence[tuple[str, str]]) -> dict[str, float]:
    questions = [question for question, _ in asked]
    base, gated = _answers(session, questions, {}), _answers(session, questions, None)
    right = {
        "base": [text.strip() == answer for text, (_, answer) in zip(base, asked, strict=True)],
        "gated": [text.strip() == answer for text, (_, answer) in zip(gated, asked, strict=True)],
        "told": [told(text, answer) for text, (_, answer) in zip(gated, asked, strict=True)],
    }
    return {view: sum(found) / len(asked) for view, found in right.items()}


def _answers(session: Session, prompts: Sequence[str], mix: Mapping[str, float] | None) -> list[str]:
    """One answer per prompt; `mix` None: what the gate chooses."""
    texts: list[str] = []
    for start in range(0, len(prompts), _BATCH):
        some = prompts[start : start + _BATCH]
        ids = [session.base.chat(prompt, session.document.system_prompt) for prompt in some]
        mixes = [run_to_end(session.router.route(prompt)).weights if mix is None else dict(mix) for prompt in some]
        texts += [row.text for row in run_to_end(generate(session.model, ids, mixes, _GREEDY))]
    return texts


def _changed(data: bytes, settings: Sequence[str]) -> bytes:
    _, head, body = data.decode().split("---\n", 2)
    fields = yaml.safe_load(head)
    for setting in settings:
        path, _, value = setting.partition("=")
        *parents, last = path.split(".")
        place = fields
        for name in parents:
            place = place[name]
        place[last] = yaml.safe_load(value)
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}---\n{body}".encode()


def _row(found: Recall, seconds: float) -> str:
    def shares(values: Mapping[str, float]) -> str:
        return " / ".join(f"{100 * value:.0f}" for value in values.values())

    cells = (found.town, found.withheld, found.joined, found.own, found.paraphrased, found.voice)
    return f"{' | '.join(map(shares, cells))} | {100 * found.differing:.0f} | {seconds:.0f}"


def main() -> int:
    """Train, ask, print."""
    parser = argparse.ArgumentParser(prog="tests.benchmarks.demo_recall", description=__doc__)
    parser.add_argument("document", type=Path, nargs="?", default=asset("demo") / "harbour.dlm")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        document, home = Path(name) / "harbour.dlm", Path(name) / "home"
        document.write_bytes(_changed(with_dlm_id(args.document.read_bytes(), fresh_dlm_id()), args.set))
        command = [sys.executable, "-m", "dlm_tui", "train", str(document), "--home", str(home), "--json"]
        started = time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})
        seconds = time.monotonic() - started
        found = measure(run_to_end(Session.open(document, home)))
    print(
        "town: base / gated / solos | withheld: base / gated / told | joined: the same | own: knowledge / gated | "
        "paraphrased: the same | voice | differing | s"
    )
    print(_row(found, seconds))
    print(json.dumps(found.__dict__))
    return 0


if __name__ == "__main__":
    sys.exit(main())
