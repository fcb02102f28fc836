"""A prompt set of a document, run headless: what `check` and `sets run` share."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from dlm_tui.document.expectations import broken
from dlm_tui.document.prompt_sets import PromptCase, PromptSets
from dlm_tui.errors import UsageError
from dlm_tui.meant import meant
from dlm_tui.store.set_runs import SetAnswer, SetRun, SetRuns, run_to_score

if TYPE_CHECKING:
    from dlm_tui.model.views import View
    from dlm_tui.session import Session


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Which set, under which views, how answers are drawn."""
    parser.add_argument("--set", dest="set_name", metavar="NAME", help="which set; may be left out where there is one")
    parser.add_argument(
        "--views",
        metavar="LIST",
        help="of base, gated, uniform, static and adapter names, separated by commas (default: gated)",
    )
    parser.add_argument("--max-tokens", type=int, default=128, metavar="N", help="(128)")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (0)")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="(1)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="(0)")


def chosen_set(args: argparse.Namespace) -> tuple[str, list[PromptCase]]:
    """The set that is asked for. Raises UsageError, PromptSetsError."""
    sets = PromptSets(Path(args.document)).cases()
    name: str | None = args.set_name
    if name is None and len(sets) == 1:
        name = next(iter(sets))
    if name is None or name not in sets:
        known = ", ".join(sets) or "no set; `dlm-tui sets DOC import FILE --set NAME` reads one"
        if name is None:
            raise UsageError(f"name a set with --set: there is {known}")
        raise UsageError(f"there is no set {name!r}; there is {known}{meant(name, sets)}")
    cases = [case for case in sets[name] if case.prompt.strip()]
    if not cases:
        raise UsageError(f"the set {name!r} has no prompts")
    return name, cases


def document_runs(document: Path) -> SetRuns:
    """The runs of the document's sets, those of the screen among them."""
    from dlm_tui.app.state import StateFile

    return StateFile(document).set_runs


def run_set(args: argparse.Namespace, name: str, cases: list[PromptCase]) -> tuple[SetRun, list[SetRun]]:
    """Run the set, keep the run; it, and the runs before it, newest first. Raises what opening and answering raise."""
    from dlm_tui.cli.narration import Narration
    from dlm_tui.cli.open_session import open_session
    from dlm_tui.model import Sampling
    from dlm_tui.progress import Progress, run_to_end
    from dlm_tui.prompt_runs import PromptAnswer, run_prompts

    sampling = Sampling(max_tokens=args.max_tokens, temperature=args.temperature, top_p=args.top_p, seed=args.seed)
    session = open_session(args)
    views = _views(args.views, session)
    runs = document_runs(Path(args.document))
    earlier = runs.newest(name)
    run = SetRun(
        set_name=name,
        at="",
        base=session.base.identity.id,
        versions=dict(session.versions),
        seed=sampling.seed,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=sampling.max_tokens,
        answers=[],
    )
    former = run_to_score(earlier, run, [view.name for view in views])
    narration, answers = Narration(quiet=True), list[SetAnswer]()

    def take(step: Progress | PromptAnswer) -> None:
        if isinstance(step, Progress):
            narration(step)
            return
        case = cases[step.prompt]
        values = {key: value for key, value in vars(step).items() if key not in {"prompt", "seed"}}
        found = broken(case.expect, step.text, step.weights)
        answers.append(SetAnswer(prompt=case.prompt, expected=len(case.expect), broken=found, **values))

    before = former_ids([case.prompt for case in cases], former)
    run_to_end(run_prompts(session, [case.prompt for case in cases], views, sampling, before), take)
    at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    done = msgspec.structs.replace(run, at=at, answers=answers, former=former.run_id if former else None)
    return runs.keep(done), earlier


def former_ids(prompts: list[str], former: SetRun | None) -> dict[tuple[int, str], list[int]]:
    """The former answers' token ids, as `run_prompts` takes them."""
    known = {(answer.prompt, answer.view): answer.token_ids for answer in former.answers} if former else {}
    return {(prompts.index(prompt), view): ids for (prompt, view), ids in known.items() if prompt in prompts}


def _views(wanted: str | None, session: Session) -> list[View]:
    from dlm_tui.model.views import BASE, GATED, named_views

    if wanted is None:
        return [GATED if session.model.names else BASE]
    return named_views(wanted, session.model.names)
