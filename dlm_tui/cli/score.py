"""`dlm-tui score DOC PROMPT`: does an adapter change anything, and more than noise would?"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from dlm_tui.cli.belonging import belong
from dlm_tui.cli.path_option import given_path
from dlm_tui.counting import counted
from dlm_tui.document.seeds import seed_in_range
from dlm_tui.errors import UsageError
from dlm_tui.input import read_prompt, read_text_file
from dlm_tui.meant import meant
from dlm_tui.output import emit, say, shown
from dlm_tui.plain_numbers import number

_GRID = "-2,-1.5,-1,-0.5,0,0.5,1,1.5,2"
_MAX_TOKENS = 64
_Number = TypeVar("_Number", int, float)


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
    parser.add_argument("--max-tokens", type=int, metavar="N", help=f"of --sweep and --heat ({_MAX_TOKENS})")
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
        return _text(args, session, text)
    if args.suite:
        return _suite(args, session, seed)
    if args.sweep:
        return _sweep(args, session, str(prompt), grid)
    return _views(args, session, str(prompt), seed)


def _refuse_at_once(args: argparse.Namespace) -> None:
    """Numbers out of their range, and mixes that the document knows nothing of. Raises UsageError, NullScaleError."""
    from dlm_tui.document import load
    from dlm_tui.document.named_mixes import mix_of_argument
    from dlm_tui.model import Sampling
    from dlm_tui.scoring.protocols import null_scale

    Sampling(max_tokens=_given(args.max_tokens, _MAX_TOKENS))
    null_scale(1.0, _given(args.rank_scale, 1.0))
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


def _views(args: argparse.Namespace, session: Any, prompt: str, seed: int) -> int:
    from dlm_tui.cli.narration import Narration
    from dlm_tui.progress import run_to_end
    from dlm_tui.scoring import score_views

    views = _chosen(args, session)
    routed = run_to_end(session.router.route(prompt)) if any(view.kind == "gated" for view in views) else None
    if routed is not None and routed.note:
        say(routed.note)
    mixes = _scaled(args, {view.name: session.mix_of(view, routed.weights if routed else None) for view in views})
    nulls = {f"null {number}": number for number in args.null_view}
    ids = session.base.chat(prompt, session.document.system_prompt)
    completion = args.completion
    if args.heat:
        completion = _answer(args, session, ids, next(iter(mixes.values())), seed)
        say(f"answer of {views[0].name}: {completion}" if completion else f"{views[0].name} answers nothing")
    tokens = _tokens(session, completion) if completion else None
    if completion and not tokens:
        raise UsageError("the completion is empty")
    scores = run_to_end(
        score_views(
            session.model_for(mixes.values()),
            ids,
            mixes | {key: {} for key in nulls},
            tokens,
            nulls=args.null,
            seed=seed,
            null_views=nulls,
            rank_scale=_given(args.rank_scale, 1.0),
        ),
        Narration(quiet=True),
    )
    pieces = [session.base.tokenizer.decode([token]) for token in tokens or []]
    if args.json:
        emit(
            {
                "prompt": prompt,
                "tokens": len(ids),
                "completion": completion or None,
                "completion_tokens": len(pieces) if completion else None,
                "nulls": len(scores.null_kls),
                "seed": seed,
                "null_mean": scores.null_mean,
                "null_std": scores.null_std,
                "views": [_as_json(score, mixes.get(name, {}), pieces) for name, score in scores.views.items()],
            }
        )
        return 0
    for score in scores.views.values():
        print(_sentence(score))
        if score.logprob is not None and score.base_logprob is not None:
            print(f"  completion: {score.logprob:.2f} nats, {score.logprob - score.base_logprob:+.2f} against the base")
            print("  " + " ".join(f"{shown(p)!r}{h:+.2f}" for p, h in zip(pieces, score.heat or (), strict=True)))
    if scores.null_kls:
        print(
            f"noise: {len(scores.null_kls)} random adapters of the same shape and size change it by "
            f"{scores.null_mean:.4f} ± {scores.null_std:.4f} nats"
        )
    return 0


def _given(value: _Number | None, default: _Number) -> _Number:
    """An option that is refused where it would do nothing has no default in the parser."""
    return default if value is None else value


def _scaled(args: argparse.Namespace, mixes: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Every mix times λ; 0 is the base, 1 the mix itself, a negative one its opposite."""
    if args.scale == 1.0:
        return mixes
    return {
        f"{name} × {args.scale:g}": {adapter: value * args.scale for adapter, value in mix.items()}
        for name, mix in mixes.items()
    }


def _text(args: argparse.Namespace, session: Any, text: str) -> int:
    """Log-probability and perplexity of a text under the base and every view."""
    from dlm_tui.cli.narration import Narration
    from dlm_tui.progress import run_to_end
    from dlm_tui.scoring import score_text

    views = [view for view in _chosen(args, session) if view.kind != "base"]
    routed = run_to_end(session.router.route(text)) if any(view.kind == "gated" for view in views) else None
    mixes = _scaled(args, {view.name: session.mix_of(view, routed.weights if routed else None) for view in views})
    nulls = {f"null {number}": number for number in args.null_view}
    work = score_text(
        session.model_for(mixes.values()),
        session.base.encode_raw(text, limit=None),
        mixes,
        nulls,
        _given(args.rank_scale, 1.0),
    )
    scores = run_to_end(work, Narration(quiet=True))
    if args.json:
        rows = [
            {"view": s.view, "logprob": s.logprob, "tokens": s.tokens, "perplexity": s.perplexity}
            for s in scores.values()
        ]
        emit({"text": args.text, "views": rows})
        return 0
    for score in scores.values():
        print(
            f"{shown(score.view)}  perplexity {score.perplexity:.3f}  "
            f"({score.logprob:.2f} nats, {counted(score.tokens, 'token')})"
        )
    return 0


def _chosen(args: argparse.Namespace, session: Any) -> list[Any]:
    from dlm_tui.document.named_mixes import is_mix_name, mix_of_argument
    from dlm_tui.document.names import split_version
    from dlm_tui.model.views import BASE, GATED, VIEWS, custom, named_view, solo

    names = list(session.model.names)
    if args.views:
        views = [named_view(name.strip()) for name in args.views.split(",")]
        for view in views:
            if view.adapter is not None and split_version(view.adapter)[0] not in names:
                known = [*VIEWS, *(solo(name).name for name in names)]
                near = meant(view.name, known)
                raise UsageError(f"there is no view {view.name!r} (known: {', '.join(known)}){near}")
    else:
        gated = [GATED] if len(names) > 1 and session.document.gate_enabled else []
        views = [*gated, *(solo(name) for name in names)]
    for spec in args.mix:
        declared = session.document.routing_names
        mix = mix_of_argument(session.document, spec, declared, signed=True, versions=True)
        views.append(custom(mix, name=f"mix:{spec.strip()}" if is_mix_name(spec) else spec))
    if not views:
        say("no adapter is trained yet: this is the base alone")
        views = [BASE]
    return list({view.name: view for view in views}.values())


def _answer(args: argparse.Namespace, session: Any, ids: list[int], mix: dict[str, float], seed: int) -> str:
    from dlm_tui.model import Sampling
    from dlm_tui.model.generation import generate
    from dlm_tui.progress import run_to_end

    sampling = Sampling(max_tokens=_given(args.max_tokens, _MAX_TOKENS), temperature=0.0, seed=seed % 2**63)
    return str(run_to_end(generate(session.model_for([mix]), ids, [mix], sampling))[0].text)


def _tokens(session: Any, text: str) -> list[int]:
    return list(session.base.tokenizer(text, add_special_tokens=False)["input_ids"])


def _as_json(score: Any, mix: dict[str, float], pieces: list[str]) -> dict[str, Any]:
    heat = None
    if score.heat is not None:
        heat = [{"token": piece, "nats": value} for piece, value in zip(pieces, score.heat, strict=True)]
    return {
        "view": score.view,
        "mix": mix,
        "kl": score.kl,
        "js": score.js,
        "z": score.z,
        "logprob": score.logprob,
        "base_logprob": score.base_logprob,
        "heat": heat,
    }


def _sentence(score: Any) -> str:
    sigmas = "" if score.z is None else f", {_sigmas(score.z)}"
    return f"{shown(score.view)} changes the next token by {score.kl:.3f} nats{sigmas} (JS {score.js:.3f})"


def _sigmas(z: float) -> str:
    return f"{z:.1f}σ above noise" if z >= 0 else f"{-z:.1f}σ below noise"


def _suite(args: argparse.Namespace, session: Any, seed: int) -> int:
    from dlm_tui.cli.narration import Narration
    from dlm_tui.progress import Progress, run_to_end
    from dlm_tui.scoring import score_suite

    def report(step: Progress) -> None:
        if step.stage == "suite":  # not every prompt's own steps
            narration(step)

    narration = Narration(quiet=True)
    result = run_to_end(score_suite(session, nulls=args.null, seed=seed), report)
    if args.json:
        emit(result.as_json())
        return 0
    for item in result.skipped:
        say(f"line {item.line}: not scored, {item.reason}")
    for name, groups in result.adapters.items():
        for group, tally in groups.items():
            if tally is None:
                continue
            z = "" if tally.z is None else f", {_sigmas(tally.z)}"
            gain = "" if tally.gain is None else f", answers {tally.gain:+.3f} nats a token"
            print(
                f"{shown(name)} on {group} sections: {tally.kl:.3f} nats{z}{gain} ({counted(tally.prompts, 'prompt')})"
            )
    return 0


def _sweep(args: argparse.Namespace, session: Any, prompt: str, grid: list[float]) -> int:
    from dlm_tui.model import Sampling
    from dlm_tui.progress import run_to_end
    from dlm_tui.scoring import sweep

    ids = session.base.chat(prompt, session.document.system_prompt)
    sampling = Sampling(max_tokens=_given(args.max_tokens, _MAX_TOKENS), temperature=0.0)
    sides = (_tokens(session, args.chosen), _tokens(session, args.rejected or "")) if args.chosen else None
    points = run_to_end(sweep(session.model_for([{args.sweep: 1.0}]), ids, args.sweep, grid, sampling, sides=sides))
    if args.json:
        emit({"prompt": prompt, "adapter": args.sweep, "points": [asdict(point) for point in points]})
        return 0
    if args.csv:
        table = csv.writer(sys.stdout, lineterminator="\n")
        table.writerow(["c", "kl", "js", "chosen", "rejected"])
        table.writerows([p.c, p.kl, p.js, p.chosen, p.rejected] for p in points)
        return 0
    for point in points:
        both = "" if point.chosen is None else f"  chosen {point.chosen:.2f}"
        both += "" if point.rejected is None else f", rejected {point.rejected:.2f} nats"
        print(f"c = {point.c:+g}  {point.kl:.3f} nats{both}  {shown(point.text)}")
    return 0
