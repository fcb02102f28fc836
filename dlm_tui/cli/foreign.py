"""Commands and flags of the `dlm` tool that this program does not have, each with what to use instead."""

from __future__ import annotations

from collections.abc import Sequence

COMMANDS = {
    "init": "`dlm-tui new PATH` writes a document to start from",
    "preference": "`dlm-tui section DOC add --type preference` writes the pairs, `dlm-tui train` trains on them",
    "synth": "write instruction sections with `dlm-tui section DOC add`, or let folders teach (training.sources)",
    "harvest": "`dlm-tui label` adds a prompt with its right answer to the document and retrains the gate",
    "push": "`dlm-tui pack` puts a document and what it learned into one file to hand on",
    "pull": "`dlm-tui unpack` takes a packed document apart on this machine",
    "migrate": "documents of every version are read as they are, nothing has to be migrated",
    "cache": "rows are tokenised in memory at every run, so there is no token cache to look after",
    "templates": "`dlm-tui new --help` lists the templates; `dlm-tui new PATH --template NAME` uses one",
}
"""Command of the `dlm` tool -> what to use instead."""

_LOCKS = "the base is compared at every training, and `dlm-tui show` tells what is in force"
FLAGS = {
    "train": {
        "--fresh": "every training starts from the base, unless --resume asks for the interrupted one",
        "--watch": "the workbench watches the document: train there with ctrl+t after a save",
        "--repl": "`dlm-tui repl DOC` asks the trained adapters",
        "--strict-lock": _LOCKS,
        "--update-lock": _LOCKS,
        "--ignore-lock": _LOCKS,
        "--policy": "sources_policy in the frontmatter says it",
        "--seed": "training.seed in the frontmatter is the seed",
    },
    "prompt": {
        "--backend": "answers are computed here; `dlm-tui serve --backend llama.cpp` serves through llama.cpp",
        "--image": "only text is read",
        "--audio": "only text is read",
        "--temp": "use --temperature",
    },
    "export": {
        "--merged": "use --target merged, or --target ollama for one merged GGUF",
        "--no-imatrix": "no importance matrix is used unless --imatrix asks for one",
        "--adapter-mix-method": "adapters are mixed exactly, so there is no method to choose",
        "--name": "the name in Ollama follows the document; `ollama cp` gives another",
        "--no-template": "the Modelfile always has the base's own template",
        "--sway-json": "`dlm-tui score` measures effects, `dlm-tui drift` what freezing the gate costs",
    },
    "pack": {
        "--include-base": "bases are not packed: the other machine fetches or finds its own",
        "--sign": "`dlm-tui verify` checks a pack's hashes; sign the file with a tool of your choice",
    },
}
"""Command of this program -> flag that the `dlm` tool's has -> what to use instead."""


def instead_of_command(name: str) -> str | None:
    """A sentence for a command of the `dlm` tool that is none here."""
    instead = COMMANDS.get(name)
    return None if instead is None else f"there is no command {name!r} here: {instead}"


def instead_of_flag(command: str, arguments: Sequence[str]) -> str | None:
    """A sentence for the first argument that is a flag of the `dlm` tool's command and none here."""
    for argument in arguments:
        if argument == "--":
            return None
        flag = argument.partition("=")[0]
        if instead := FLAGS.get(command, {}).get(flag):
            return f"`{command}` has no {flag} here: {instead}"
    return None
