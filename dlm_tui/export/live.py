"""`--target llama-server --gate live`: the gate is not frozen but taken along, with a server that asks it.

The server is the one of `dlm_tui/serving`: its files are copied as they are, so that there is one of it. They need
neither torch nor transformers.
"""

from __future__ import annotations

import ast
from collections.abc import Generator
from pathlib import Path
from typing import Any

import dlm_tui
from dlm_tui.export.export_context import ExportContext, effective_dtype
from dlm_tui.export.live_check import check_live_settings, check_program
from dlm_tui.export.live_trial import missing_package, try_server
from dlm_tui.export.prompts import SENTENCES
from dlm_tui.export.requests import ExportRefused
from dlm_tui.export.scripts import shell
from dlm_tui.export.targets_gguf import LlamaServerTarget
from dlm_tui.files import json_bytes, write_atomic
from dlm_tui.progress import Progress

SETTINGS = "live.json"
OOD = "ood.safetensors"
SCRIPT = "serve.py"
RUNTIME = "runtime"
LEAST_CONTEXT = 2048
"""Tokens that a conversation may have where the base allows it, however short the training rows are."""
PROBES = 8

START = "dlm_tui.serving.llama.standalone"
"""The module that the start script runs; what it imports of this program is what makes up the server."""

REQUIREMENTS = """httpx>=0.28
jinja2>=3.1
msgspec>=0.22
numpy>=2
prometheus_client>=0.26
safetensors>=0.8
starlette>=1.10
uvicorn>=0.54
xllamacpp>=2026.10
"""

_SCRIPT = '''"""Answers OpenAI clients with the model of this folder; the gate decides the mix of every request.

    python -m pip install -r requirements.txt
    python serve.py --port 8321
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "runtime"))

from dlm_tui.serving.llama.standalone import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(HERE))
'''


class LiveTarget(LlamaServerTarget):
    """What the static target writes, and the live gate: settings, the server, its start script and requirements."""

    def __init__(self, context: ExportContext) -> None:
        super().__init__(context)
        self.says_system = True
        self.figures |= {"server": SCRIPT}

    def write(self, folder: Path) -> Generator[Progress, None, None]:
        """The static files, then those of the server."""
        yield from super().write(folder)
        gate = self.context.session.gate
        assert gate is not None
        if gate.ood_score is not None:
            from safetensors.torch import save

            # llama.cpp tells no probabilities of a prompt's own tokens: this server marks by the distance alone
            tensors = {name: tensor.contiguous() for name, tensor in gate.ood_score.distance_tensors().items()}
            write_atomic(folder / OOD, save(tensors))
        write_atomic(folder / SETTINGS, json_bytes(self._settings()))
        write_program(folder)
        yield Progress(SCRIPT, 1, 1)

    def check_files(self, folder: Path) -> None:
        """Those of the static target, the settings of the server, and the server."""
        super().check_files(folder)
        check_live_settings(
            folder / SETTINGS, self.context.session, self.weights, self.names, self.context.mix.mapping(),
            self._live_context, self.most_served, self._probes(),
        )  # fmt: skip
        check_program(folder, program_files(), RUNTIME)

    def check_weights(self, folder: Path) -> Generator[Progress, None, dict[str, Any] | None]:
        """Those of the static target, then the server itself: what it decides goes into `routing` of the manifest."""
        weights = yield from super().check_weights(folder)
        context = self.context
        if (missing := missing_package(REQUIREMENTS)) is not None:
            if context.request.verify:
                raise ExportRefused(f"the export cannot be verified: {missing}, which {SCRIPT} needs, is not installed")
            yield Progress("note", text=f"{SCRIPT} was not tried: {missing} is not installed")
            return weights
        prompts = [*self._probes(), *SENTENCES[:2]]
        dtype = effective_dtype(context, self.quant)
        found = yield from try_server(folder, SCRIPT, context.session, self.names, prompts, dtype)
        self.figures |= {"routing": found}
        return weights

    @property
    def _live_context(self) -> int:
        """Tokens of prompt and answer together."""
        return min(self.most_served, max(self.served, LEAST_CONTEXT))

    def command(self, folder: Path) -> str:
        """Start the server."""
        return shell(["python", folder / SCRIPT])

    def _settings(self) -> dict[str, Any]:
        """What `dlm_tui.serving.llama.folder.LiveSettings` reads."""
        session = self.context.session
        document, base, gate = session.document, session.base, session.gate
        assert gate is not None
        exported = document.frontmatter.export
        temperature, top_p = exported.default_temperature, exported.default_top_p
        tokens = base.tokenizer.special_tokens_map.items()
        return {
            "format": 1,
            "base": base.identity.id,
            "base_gguf": self.weights,
            "hidden_size": base.hidden_size,
            "context_length": self._live_context,
            "adapters": [{"name": name, "file": f"adapter.{name}.gguf"} for name in self.names],
            "gate": "gate.safetensors",
            "gate_names": list(gate.names),
            "gate_mode": gate.mode,
            "gate_reason": gate.stale,
            "gate_enabled": document.gate_enabled,
            "ood": OOD if gate.ood_score is not None else None,
            "chat_template": base.renderer.template,
            "special_tokens": {
                name: [str(one) for one in found] if isinstance(found, (list, tuple)) else str(found)
                for name, found in tokens
            },
            "temperature": temperature if temperature is not None else (0.6 if base.source.reasoning else 0.7),
            "top_p": top_p if top_p is not None else 1.0,
            "system_prompt": document.system_prompt,
            "static_mix": self.context.mix.mapping(),
            "probes": self._probes(),
            "base_context": self.most_served,
            "document_sha256": document.sha256,
            "versions": self._versions(),
        }

    def _probes(self) -> list[str]:
        """A few of the document's prompts, spread over it: the cost of rounding the weights is measured with them."""
        from dlm_tui.gate import trained_probes

        prompts = [probe.prompt for probe in trained_probes(self.context.session.document)]
        return prompts[:: max(1, len(prompts) // PROBES)][:PROBES]

    def _versions(self) -> dict[str, int]:
        from dlm_tui.store import adapter_versions

        return {name: item.version for name, item in adapter_versions(self.context.session.store, self.names).items()}


def write_program(folder: Path) -> None:
    """The server's own files, its start script and what it needs."""
    for place, data in program_files().items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / place, data)


def program_files() -> dict[Path, bytes]:
    """What the server consists of, by its place in the folder: its modules in packages of the same names."""
    root, runtime = Path(dlm_tui.__file__).parent.parent, Path(RUNTIME)
    found = {}
    for name in runtime_modules():
        path = Path(*name.split(".")).with_suffix(".py")
        for package in path.parents[:-1]:
            # the packages here load their names on first use, of modules that are not in the folder
            found[runtime / package / "__init__.py"] = b""
        found[runtime / path] = (root / path).read_bytes()
    # it runs as a program of its own, so nothing imports it
    worker = Path("dlm_tui", "model", "chat_worker.py")
    found[runtime / worker] = (root / worker).read_bytes()
    return {**found, Path("requirements.txt"): REQUIREMENTS.encode(), Path(SCRIPT): _SCRIPT.encode()}


def runtime_modules(start: str = START) -> list[str]:
    """Every module of this program that `start` imports, itself or through others; imports for types are left out."""
    found: dict[str, None] = {}
    waiting = [start]
    while waiting:
        name = waiting.pop()
        if name not in found and (path := _source(name)) is not None:
            found[name] = None
            waiting += _imported(ast.parse(path.read_bytes()))
    return sorted(found)


def _source(name: str) -> Path | None:
    path = Path(dlm_tui.__file__).parent.parent.joinpath(*name.split(".")).with_suffix(".py")
    return path if path.is_file() else None


def _imported(tree: ast.AST) -> list[str]:
    """Names under `dlm_tui` that are imported outside of `if TYPE_CHECKING`: modules, and what is taken from them."""
    if isinstance(tree, ast.If) and isinstance(tree.test, ast.Name) and tree.test.id == "TYPE_CHECKING":
        return []
    names = []
    if isinstance(tree, ast.ImportFrom) and tree.module and tree.module.startswith("dlm_tui"):
        names = [tree.module, *(f"{tree.module}.{alias.name}" for alias in tree.names)]
    return [*names, *(name for node in ast.iter_child_nodes(tree) for name in _imported(node))]
