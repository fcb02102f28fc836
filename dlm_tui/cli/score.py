"""`dlm-tui score DOC PROMPT`: does an adapter change anything, and more than noise would?"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from dlm_tui.cli.belonging import belong
from dlm_tui.cli.path_option import given_path
from dlm_tui.cli.score_reports import MAX_TOKENS, given, suite_report, sweep_report, text_report, views_report
from dlm_tui.document.seeds import seed_in_range
from dlm_tui.errors import UsageError
from dlm_tui.input import read_prompt, read_text_file
from dlm_tui.plain_numbers import number

_GRID = "-2,-1.5,-1,-0.5,0,0.5,1,1.5,2"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The prompt, the views, the nulls, and the two other reports."""
    parser.add_argument("prompt", metavar="PROMPT", nargs="?", help="default: standard input")
    parser.add_argument("--completion", metavar="TEXT", help="also the log-probability of this answer, token by token")
    parser.add_argument(
        "--views",
        metavar="LIST",
        help="of base, gated, uniform, static and adapter names; default: gated and each adapter",
    )
    parser.add_argument(
        "--mix",
        metavar="SPEC",
        action="append",
        default=[],
        help="one more view, such as a:1.5,b:-0.5 or the name of a saved mix; repeatable",
    )
    parser.add_argument(
        "--null", type=int, default=32, metavar="K", help="random adapters to compare with (32); few nulls claim few σ"
    )
    parser.add_argument("--seed", type=int, default=None, metavar="S", help="default: the document's training.seed")
    parser.add_argument("--heat", action="store_true", help="answer under the first view, score that answer")
    parser.add_argument("--suite", action="store_true", help="instead of a prompt: every adapter over all sections")
    parser.add_argument("--sweep", metavar="ADAPTER", help="answers and effects over a grid of coefficients")
    parser.add_argument("--grid", metavar="LIST", help=f"of --sweep, as --grid=-1,0,1 ({_GRID})")
    parser.add_argument("--chosen", metavar="TEXT", help="of --sweep: follow the log-probability of this answer")
    parser.add_argument("--rejected", metavar="TEXT", help="of --sweep: and that of this one")
    parser.add_argument("--csv", action="store_true", help="of --sweep: c, kl, js, chosen, rejected as a table")
    parser.add_argument(
        "--lambda", dest="scale", type=float, default=1.0, metavar="L", help="scale every view's mix (1)"
    )
    parser.add_argument(
        "--null-view", type=int, action="append", default=[], metavar="SEED", help="one more view: a random adapter"
    )
    parser.add_argument("--rank-scale", type=float, metavar="R", help="of --null-view: √R times as large (1)")
    parser.add_argument(
        "--text",
        metavar="FILE",
        type=given_path,
        help="perplexity of a held-out text under every view, without a prompt",
    )
    parser.add_argument("--max-tokens", type=int, metavar="N", help=f"of --sweep and --heat ({MAX_TOKENS})")
    belong(parser, _mode, {"null": "PROMPT --suite", "seed": "PROMPT --suite", "scale": "PROMPT --text"})


def _mode(args: argparse.Namespace) -> str:
    """What is scored; two at once are refused later."""
    for flag in ("suite", "sweep", "text"):
        if getattr(args, flag):
            return f"--{flag}"
    return "PROMPT"


def run(args: argparse.Namespace) -> int:
    """Print the scores; all values are nats, z is the normal deviate among null adapters."""
    from dlm_tui.cli.open_session import open_session

    if args.null < 0:
        raise UsageError("--null must not be negative")
    if args.suite and (args.prompt is not None or args.completion or args.sweep or args.heat):
        raise UsageError("--suite takes no prompt: it runs over the sections of the document")
    if args.sweep and (args.completion or args.views or args.mix or args.heat):
        raise UsageError("--sweep shows one adapter: it takes no views, mixes, completion or heat")
    if args.heat and args.completion is not None:
        raise UsageError("--heat scores the answer it makes itself: leave --completion out")
    if args.text and (args.prompt is not None or args.completion or args.sweep or args.heat or args.suite):
        raise UsageError("--text scores a file: it takes no prompt, completion, sweep, heat or suite")
    if not math.isfinite(args.scale):
        raise UsageError("--lambda must be a finite number")
    if (args.chosen or args.rejected or args.csv or args.grid is not None) and not args.sweep:
        raise UsageError("--grid, --chosen, --rejected and --csv belong to --sweep")
    if args.rank_scale is not None and not args.null_view:
        raise UsageError("--rank-scale belongs to --null-view")
    if args.max_tokens is not None and not (args.sweep or args.heat):
        raise UsageError("--max-tokens belongs to --sweep and --heat")
    if (args.sweep or args.suite) and args.null_view:
        raise UsageError("--null-view is one more view: leave --sweep and --suite out")
    if args.suite and (args.views or args.mix):
        raise UsageError("--suite scores every adapter: it takes no views and mixes")
    if args.rejected and not args.chosen:
        raise UsageError("--rejected needs --chosen beside it")
    if args.completion == "":
        raise UsageError("the completion is empty")
    grid = _grid(args.grid if args.grid is not None else _GRID)
    text = read_text_file(args.text) if args.text else None
    prompt = None if args.suite or args.text else read_prompt(args.prompt)
    _refuse_at_once(args)
    session = open_session(args)
    seed = seed_in_range(session.document.training.seed if args.seed is None else args.seed)
    if text is not None:
        return text_report(args, session, text)
    if args.suite:
        return suite_report(args, session, seed)
    if args.sweep:
        return sweep_report(args, session, str(prompt), grid)
    return views_report(args, session, str(prompt), seed)


def _refuse_at_once(args: argparse.Namespace) -> None:
    """Numbers out of their range, and mixes that the document knows nothing of. Raises UsageError, NullScaleError."""
    from dlm_tui.document import load
    from dlm_tui.document.named_mixes import mix_of_argument
    from dlm_tui.model import Sampling
    from dlm_tui.scoring.protocols import null_scale

    Sampling(max_tokens=given(args.max_tokens, MAX_TOKENS))
    null_scale(1.0, given(args.rank_scale, 1.0))
    document = load(Path(args.document))
    for spec in args.mix:
        mix_of_argument(document, spec, document.routing_names, signed=True, versions=True)


def _grid(text: str) -> list[float]:
    try:
        grid = [number(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--grid must be numbers separated by commas, not {text!r}") from None
    if not all(abs(c) < float("inf") for c in grid):
        raise UsageError("--grid must hold finite numbers")
    return grid
