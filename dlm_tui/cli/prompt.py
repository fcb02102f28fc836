"""`dlm-tui prompt DOC PROMPT`: one answer under one view."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlm_tui.cli.answering import answer, ask
from dlm_tui.errors import DlmTuiError, UsageError
from dlm_tui.input import read_prompt
from dlm_tui.output import emit, put, say

if TYPE_CHECKING:
    from dlm_tui.document import Document
    from dlm_tui.model import Sampling
    from dlm_tui.model.views import View
    from dlm_tui.session import Session


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The prompt, the view and the sampling."""
    parser.add_argument("prompt", metavar="PROMPT", nargs="?", help="default: standard input")
    add_view_arguments(parser)


def add_view_arguments(parser: argparse.ArgumentParser) -> None:
    """Which adapters answer, and how tokens are drawn."""
    parser.add_argument("--gate", choices=("auto", "off"), default="auto", help="off means uniform weights")
    parser.add_argument("--adapter", metavar="NAME", help="only this adapter, as trained")
    parser.add_argument(
        "--mix", "--adapter-mix", metavar="SPEC", help="a fixed mix such as a:0.7,b:0.3, or the name of a saved one"
    )
    parser.add_argument("--signed", action="store_true", help="allow negative weights in --mix")
    parser.add_argument("--max-tokens", type=int, default=256, metavar="N", help="at most (256)")
    parser.add_argument(
        "--temperature", type=float, default=None, metavar="T", help="0 is greedy (the document's, else 0.7)"
    )
    parser.add_argument(
        "--top-p", type=float, default=None, metavar="P", help="nucleus of that probability (the document's, else 1)"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="bfloat16 reads the weights rounded to half the bytes, or says why not; gates stay in float32",
    )
    parser.add_argument("--seed", type=int, default=None, metavar="S", help="default: the document's training.seed")


def run(args: argparse.Namespace) -> int:
    """Stream the answer to stdout, or print it as JSON with the weights that made it."""
    from dlm_tui.cli.open_session import open_session

    prompt = read_prompt(args.prompt)
    refuse_at_once(args)
    session = open_session(args)
    told = tell(session, prompt, chosen_view(args, session), sampling_of(args, session), stream=not args.json)
    if args.json:
        emit(told)
    return 0


def refuse_at_once(args: argparse.Namespace) -> None:
    """What needs no base to be refused: two arguments that say which adapters answer, numbers out of their range, names
    that the document does not know. Raises UsageError, NamedMixesError, what `load` raises."""
    from dlm_tui.document import load
    from dlm_tui.document.names import refuse_unknown_adapter, split_version
    from dlm_tui.model import Sampling

    _refuse_two_mixes(args)
    Sampling(max_tokens=args.max_tokens, temperature=_or(args.temperature, 0.0), top_p=_or(args.top_p, 1.0))
    document = load(Path(args.document))
    if args.mix is not None:
        mix_view(document, args.mix, signed=args.signed)
    if args.adapter is not None:
        refuse_unknown_adapter(split_version(args.adapter)[0], document.routing_names)


def _refuse_two_mixes(args: argparse.Namespace) -> None:
    given = [name for name, value in (("--adapter", args.adapter), ("--mix", args.mix)) if value is not None]
    given += ["--gate off"] if args.gate == "off" else []
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} exclude each other")
    if args.signed and args.mix is None:
        raise UsageError("--signed belongs to --mix")


def sampling_of(args: argparse.Namespace, session: Session) -> Sampling:
    """The arguments' sampling, else the document's, else the base's usual one."""
    from dlm_tui.model import Sampling

    exported = session.document.frontmatter.export
    return Sampling(
        max_tokens=args.max_tokens,
        temperature=_or(args.temperature, exported.default_temperature, 0.6 if session.base.source.reasoning else 0.7),
        top_p=_or(args.top_p, exported.default_top_p, 1.0),
        seed=_or(args.seed, session.document.training.seed),
    )


def tell(session: Session, prompt: str, view: View, sampling: Sampling, *, stream: bool) -> dict[str, Any]:
    """Answer a prompt under a view, to stdout as it comes if `stream`; what `--json` prints about it."""
    question = ask(session, prompt, view, sampling)
    said = answer(session, question, lambda text, _: put(text, end="") if text and stream else None)
    if stream:
        put("")
    return {
        "prompt": prompt,
        "view": view.name,
        "weights": question.mix,
        "text": said.text,
        "tokens": len(said.token_ids),
        "reason": said.reason,
        "seed": sampling.seed,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "warnings": session.warnings,
    }


def mix_view(document: Document, mix: str, *, signed: bool) -> View:
    """The view of a mix that is written out, or saved under a name. Raises UsageError, NamedMixesError."""
    from dlm_tui.document.named_mixes import is_mix_name, mix_of_argument
    from dlm_tui.model.views import custom

    weights = mix_of_argument(document, mix, document.routing_names, signed=signed, versions=True)
    return custom(weights, name=f"mix:{mix.strip()}" if is_mix_name(mix) else "custom")


def chosen_view(args: argparse.Namespace, session: Session) -> View:
    """The view that the arguments ask for, which `refuse_at_once` let pass. Raises DlmTuiError for an adapter that is
    not trained."""
    from dlm_tui.document.names import split_version
    from dlm_tui.model.views import BASE, GATED, UNIFORM, solo

    if args.mix is not None:
        return mix_view(session.document, args.mix, signed=args.signed)
    if args.adapter is not None:
        if split_version(args.adapter)[1] is not None:
            return solo(args.adapter)
        if args.adapter not in session.model.names:
            raise DlmTuiError(f"adapter {args.adapter!r} is not trained yet; run `dlm-tui train`")
        return solo(args.adapter)
    if not session.model.names:
        say("no adapter is trained yet: this is the base alone")
        return BASE
    if not session.document.adapter_names:
        return solo("default")
    return GATED if args.gate == "auto" and session.document.gate_enabled else UNIFORM


def _or(*values: Any) -> Any:
    return next(value for value in values if value is not None)
