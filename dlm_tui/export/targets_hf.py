"""The targets that are Hugging Face folders: peft, vllm, merged. They work for every base."""

from __future__ import annotations

import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

from dlm_tui.export.concatenate import LoraPair
from dlm_tui.export.export_context import Common, ExportContext, effective_dtype, save_tokenizer
from dlm_tui.export.merged_folder import merged_dtype, planned_bytes, stored_dtype, write_merged
from dlm_tui.export.parity import ParityJob
from dlm_tui.export.peft_folder import target_shapes, vllm_rank, write_peft
from dlm_tui.export.requests import ExportRefused
from dlm_tui.export.scripts import shell, vllm_script, vllm_words
from dlm_tui.export.weights import open_weights
from dlm_tui.files import json_bytes, write_atomic
from dlm_tui.progress import Progress

_ASK = (
    "import sys; from {library} import {model} as M; from transformers import AutoTokenizer as T; "
    "m, t = M.from_pretrained(sys.argv[1]), T.from_pretrained(sys.argv[1]); "
    "print(t.decode(m.generate(**t(sys.argv[2], return_tensors='pt'), max_new_tokens=64)[0]))"
)


def _linears(context: ExportContext) -> dict[str, tuple[int, int]]:
    """Every linear layer of the base and its (out, in)."""
    from torch import nn

    found = {}
    for name, module in context.session.base.model.named_modules():
        if isinstance(module, nn.Linear):
            found[name] = (module.out_features, module.in_features)
        elif type(module).__name__ == "Conv1D":
            weight: Any = module.weight
            found[name] = (int(weight.shape[1]), int(weight.shape[0]))
    return found


class PeftTarget(Common):
    """One PEFT folder with the tokenizer."""

    def __init__(self, context: ExportContext) -> None:
        super().__init__()
        self.context = context
        self.linears = _linears(context)
        shapes = target_shapes(context.pairs, self.linears).values()
        self.nbytes = 4 * context.rank * sum(rows + columns for rows, columns in shapes)
        self.figures = {"merged": False, "mix_rank": context.rank}

    @property
    def adapter(self) -> str:
        """Where below the export the adapter lies."""
        return "."

    def write(self, folder: Path) -> Generator[Progress, None, None]:
        """Adapter, then tokenizer."""
        base = self.context.loadable_base
        write_peft(folder / self.adapter, self.context.pairs, self.linears, base, self.context.loadable_revision)
        yield Progress("adapter_model.safetensors", 1, 2)
        save_tokenizer(self.context, folder / self.adapter)
        yield Progress("tokenizer", 2, 2)

    def jobs(self, folder: Path, prompts: list[list[int]]) -> list[ParityJob]:
        """The base as PEFT loads it from its folder."""
        base = self.context.session.base
        if base.source.path is None:
            return []
        return [
            ParityJob(
                runtime="transformers",
                model=base.source.path,
                adapter=folder / self.adapter,
                prompts=prompts,
                dtype=effective_dtype(self.context, "f32"),
                vocab=base.vocab_size,
            )
        ]

    def command(self, folder: Path) -> str:
        """Ask the adapter something through PEFT."""
        code = _ASK.format(library="peft", model="AutoPeftModelForCausalLM")
        return shell([sys.executable, "-c", code, folder, "Hello"])


class VllmTarget(PeftTarget):
    """The same folder under adapters/mixed, with vLLM's settings and a start script."""

    script = "vllm_launch.sh"

    def __init__(self, context: ExportContext) -> None:
        super().__init__(context)
        self.max_rank = vllm_rank(context.rank)
        self.figures = {**self.figures, "max_lora_rank": self.max_rank}

    @property
    def adapter(self) -> str:
        return "adapters/mixed"

    def _words(self, adapter: str) -> list[str]:
        context = self.context
        return vllm_words(
            context.loadable_base, context.loadable_revision, adapter, self.max_rank, context.context_length, "mixed"
        )

    def write(self, folder: Path) -> Generator[Progress, None, None]:
        """Adapter and tokenizer, then settings and script."""
        yield from super().write(folder)
        config = {
            "dtype": "auto",
            "environment": {},
            "host": "127.0.0.1",
            "lora_modules": [{"adapter_version": self.context.version, "name": "mixed", "path": self.adapter}],
            "max_lora_rank": self.max_rank,
            "max_model_len": self.context.context_length,
            "model": self.context.loadable_base,
            "port": 8000,
            "revision": self.context.loadable_revision,
            "served_model_name": self.context.served_name.partition(":")[0],
            "target": "vllm",
        }
        write_atomic(folder / "vllm_config.json", json_bytes(config))
        path = folder / self.script
        write_atomic(path, vllm_script(self._words(self.adapter)).encode())
        path.chmod(0o755)
        yield Progress(self.script, 1, 1)

    def command(self, folder: Path) -> str:
        """Serve base and adapter; the adapter is asked for as model `mixed`."""
        return shell([*self._words(str(folder / self.adapter)), "--port", "8000"])


class MergedTarget(Common):
    """A complete model folder with the mix in its weights."""

    def __init__(self, context: ExportContext) -> None:
        super().__init__()
        self.context = context
        base = context.session.base
        self.config: dict[str, Any] = base.config.to_dict()
        if self.config.get("quantization_config"):
            raise ExportRefused("a quantised base cannot be merged exactly; the targets peft and vllm work for it")
        if context.request.quant is not None:
            merged_dtype(context.request.quant)
        self.pairs = {module: self._oriented(module, pair) for module, pair in context.pairs.items()}
        self.source = open_weights(base.source.path, base.model, {f"{module}.weight" for module in self.pairs})
        self.quant = context.request.quant or stored_dtype(self.source)
        self.nbytes = planned_bytes(self.source, self.quant)
        self.figures = {"merged": True, "mix_rank": context.rank}

    def _oriented(self, module: str, pair: LoraPair) -> LoraPair:
        """GPT-2's Conv1D stores its weight as [in, out], so its addition is the transpose."""
        if type(self.context.session.base.target_module(module)).__name__ != "Conv1D":
            return pair
        return LoraPair(pair.lora_B.T.contiguous(), pair.lora_A.T.contiguous())

    def write(self, folder: Path) -> Generator[Progress, None, None]:
        """Weights, config, generation settings, tokenizer."""
        yield from write_merged(folder, self.source, self.pairs, self.config, self.quant)
        generation = getattr(self.context.session.base.model, "generation_config", None)
        if generation is not None:
            write_atomic(folder / "generation_config.json", json_bytes(generation.to_diff_dict()))
        save_tokenizer(self.context, folder)
        yield Progress("tokenizer", 1, 1)

    def jobs(self, folder: Path, prompts: list[list[int]]) -> list[ParityJob]:
        """The folder as transformers loads it."""
        return [
            ParityJob(
                runtime="transformers",
                model=folder,
                prompts=prompts,
                dtype=effective_dtype(self.context, self.quant),
                vocab=self.context.session.base.vocab_size,
            )
        ]

    def command(self, folder: Path) -> str:
        """Ask the model something through transformers."""
        code = _ASK.format(library="transformers", model="AutoModelForCausalLM")
        return shell([sys.executable, "-c", code, folder, "Hello"])
