"""`python -m assets.recipe`: makes the embedded base again, from nothing but the seed."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from . import build, card, sweep

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Parses the options and runs what they ask for."""
    parser = argparse.ArgumentParser(prog="python -m assets.recipe", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=HERE.parent / "base", help="folder for the model (default assets/base)"
    )
    parser.add_argument("--work", type=Path, default=Path("build/recipe"), help="folder for the checkpoint")
    parser.add_argument("--threads", type=int, default=build.Recipe().threads, help="processor threads")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--card", action="store_true", help="only measure the model in --out and write its card")
    what.add_argument("--sweep", action="store_true", help="only repeat the comparison of sizes")
    args = parser.parse_args()
    recipe = build.Recipe(threads=args.threads)
    table = HERE / "sweep.json"
    if args.sweep:
        sweep.run(table, recipe)
        return
    started = time.monotonic()
    if not args.card:
        seconds = build.build(recipe, args.out, args.work)
        build.say(f"trained in {seconds:.0f} s")
    card.write_card(args.out, recipe, table)
    size = sum(path.stat().st_size for path in args.out.iterdir())
    print(json.dumps({"out": str(args.out), "bytes": size, "seconds": round(time.monotonic() - started)}))


if __name__ == "__main__":
    main()
