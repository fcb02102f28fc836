"""The options that only llama.cpp has, refused before anything is exported or opened where they make no sense."""

from __future__ import annotations

import argparse
import math

from dlm_tui.plain_numbers import number_option, whole_option


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How it computes, and what it makes of the gate's weights."""
    parser.add_argument(
        "--grid", type=grid_step, metavar="STEP", help="llama.cpp: round the weights, so that equal mixes share a batch"
    )
    parser.add_argument(
        "--threads", type=thread_count, metavar="N", help="llama.cpp: compute threads (default: all cores)"
    )


def grid_step(text: str) -> float:
    """A part of 1 of which a whole number makes 1. Raises ArgumentTypeError."""
    step = number_option(text)
    if not (0 < step <= 0.5 and math.isclose(round(1 / step) * step, 1.0, rel_tol=1e-6)):
        raise argparse.ArgumentTypeError(f"it is a whole part of 1, as 0.5, 0.25 or 0.05 are, not {text!r}")
    return step


def thread_count(text: str) -> int:
    """At least one. Raises ArgumentTypeError."""
    count = whole_option(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"it is at least 1, not {count}")
    return count
