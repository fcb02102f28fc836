"""The targets that are Hugging Face folders: peft, vllm, merged. They work for every base."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from dlm_tui.child import python_words
from dlm_tui.export.concatenate import LoraPair, change_embedding
from dlm_tui.export.export_context import (
    Common,
    ExportContext,
    Trial,
    alike_note,
    chats,
    effective_dtype,
    read_alike,
    save_tokenizer,
)
from dlm_tui.export.merged_folder import DTYPES, loaded_dtype, merged_dtype, planned_bytes, stored_dtype, write_merged
from dlm_tui.export.parity import ParityJob
from dlm_tui.export.peft_folder import target_shapes, vllm_rank, write_peft
from dlm_tui.export.reader_check import (
    check_adapter_settings,
    check_configuration,
    check_copy,
    check_tokenizer_files,
    check_vllm_files,
)
from dlm_tui.export.requests import ExportRefused
from dlm_tui.export.scripts import VLLM_PORT, shell, vllm_script, vllm_words
from dlm_tui.export.suitability import takes_images
from dlm_tui.export.weights import UNTIED_NOTE, UntiedWeights, module_name, open_weights, ties_output
from dlm_tui.export.weights_check import check_merged, check_peft
from dlm_tui.files import json_bytes, write_atomic
from dlm_tui.model.quantised import TORCHAO_INT8, library_of
from dlm_tui.progress import Progress
from dlm_tui.system_errors import naming

VLLM_DTYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
"""vLLM's own choice ("auto") would read a float32 base as float16."""

CHAT_TEMPLATE = "chat_template.jinja"
"""Where transformers writes a tokenizer's chat template."""
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
"""What a base that takes images prepares them by."""
SERVED = "mixed"
"""The name by which vLLM is asked for the adapter."""

_ASK = (
    "import sys; from {library} import {model} as M; from transformers import AutoTokenizer as T; "
    "m, t = M.from_pretrained(sys.argv[1]{how}), T.from_pretrained(sys.argv[1]); "
    "print(t.decode(m.generate(**t(sys.argv[2], return_tensors='pt'), max_new_tokens=64)[0]))"
)

_FOUR_BITS = "__import__('transformers').BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type='{}')"
_QUANTISED = {
    "nf4": _FOUR_BITS.format("nf4"),
    "fp4": _FOUR_BITS.format("fp4"),
    "int8": "__import__('transformers').BitsAndBytesConfig(load_in_8bit=True)",
    TORCHAO_INT8: (
        "__import__('transformers').TorchAoConfig(__import__('torchao.quantization').quantization.Int8WeightOnlyConfig())"
    ),
}
"""How transformers is told to load the base so, in the command that asks the adapter."""


def _linears(context: ExportContext) -> dict[str, tuple[int, int]]:
    """Every linear layer of the base and its (out, in), and the token embedding where the mix changes it."""
    from torch import nn

    found = {m: (p.lora_B.shape[0], p.lora_A.shape[1]) for m, p in context.pairs.items() if p.tokens}
    for name, module in context.session.base.model.named_modules():
        if isinstance(module, nn.Linear):
            found[name] = (module.out_features, module.in_features)
        elif type(module).__name__ == "Conv1D":
            weight: Any = module.weight
            found[name] = (int(weight.shape[1]), int(weight.shape[0]))
    return found


def _read_in(dtype: str, export: ParityJob) -> Trial:
    """`export` computes in float32; its reader computes in the type that the configuration it loads says."""
    if dtype == "f32":
        return Trial(export)
    return Trial(export, as_read=replace(export, load_dtype="auto", dtype=dtype))


class PeftTarget(Common):
    """One PEFT folder with the tokenizer."""

    def __init__(self, context: ExportContext) -> None:
        super().__init__()
        self.context = context
        self.linears = _linears(context)
        shapes = target_shapes(context.pairs, self.linears).values()
        self.nbytes = 4 * context.rank * sum(rows + columns for rows, columns in shapes)
        self.figures = {"merged": False, "mix_rank": context.rank}
        base = context.session.base
        self.dtype = loaded_dtype(base.source.path, open_weights(base.source.path, base.model, ()))
        if context.request.quant is not None:
            self.notes.append(f"--quant {context.request.quant} changes nothing: an adapter is written in float32")
        if base.source.quantize is not None and (kind := base.quantisation) is not None:
            self.notes.append(
                f"the base was quantised as {kind} by {library_of(kind)}: other programs have these numbers where they"
                " load it so, too"
            )

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

    def check_files(self, folder: Path) -> None:
        """The tokenizer, and the base that the adapter asks for."""
        place, context = folder / self.adapter, self.context
        modules = {module.rpartition(".")[2] for module in context.pairs}
        check_tokenizer_files(place, context.session.base, chats(context))
        check_adapter_settings(place, context.loadable_base, context.loadable_revision, context.rank, sorted(modules))

    def trials(self, folder: Path, workspace: Path, prompts: list[list[int]]) -> list[Trial]:
        """The base as PEFT loads it from its folder, in float32 and in the type that its configuration says."""
        base = self.context.session.base
        if base.source.path is None:
            return []
        export = ParityJob(
            runtime="transformers",
            model=base.source.path,
            adapter=folder / self.adapter,
            prompts=prompts,
            dtype=effective_dtype(self.context, "f32"),
            vocab=base.vocab_size,
            quantize=base.source.quantize,
        )
        return [Trial(export) if base.quantisation else _read_in(self.dtype, export)]

    def check_weights(self, folder: Path) -> Generator[Progress, None, dict[str, Any] | None]:
        """Every matrix of the adapter. PEFT itself adds up what the folder holds."""
        check_peft(folder / self.adapter / "adapter_model.safetensors", self.context.pairs)
        yield from ()
        return None

    def command(self, folder: Path) -> str:
        """Ask the adapter something through PEFT."""
        asked = self.context.session.base.source.quantize
        how = f", quantization_config={_QUANTISED[asked]}" if asked is not None else ""
        code = _ASK.format(library="peft", model="AutoPeftModelForCausalLM", how=how)
        return shell([*python_words("-c", code), folder, "Hello"])


class VllmTarget(PeftTarget):
    """The same folder under adapters/mixed, with vLLM's settings and a start script."""

    script = "vllm_launch.sh"

    def __init__(self, context: ExportContext) -> None:
        if change_embedding(context.pairs):
            raise ExportRefused(
                "the mix changes the token embedding, which was never tried in vLLM: use the target peft or merged"
            )
        super().__init__(context)
        self.max_rank = vllm_rank(context.rank)
        self.figures = {**self.figures, "max_lora_rank": self.max_rank}
        self.notes += alike_note(context.session.base, "vLLM")

    @property
    def adapter(self) -> str:
        return "adapters/mixed"

    def _words(self, adapter: str) -> list[str]:
        context = self.context
        return vllm_words(
            context.loadable_base,
            context.loadable_revision,
            adapter,
            self.max_rank,
            read_alike(context.session.base),
            SERVED,
            VLLM_DTYPES[self.dtype],
            self._template(adapter),
            base_served=self._base_served,
        )

    @property
    def _base_served(self) -> str:
        """The name by which vLLM is asked for the base alone."""
        return self.context.served_name.partition(":")[0]

    def _template(self, adapter: str) -> str | None:
        """The chat template beside the adapter, where vLLM would else read another one, or none, with the base."""
        own = self.context.session.base.renderer.has_own_template
        return None if own else f"{adapter}/{CHAT_TEMPLATE}"

    def write(self, folder: Path) -> Generator[Progress, None, None]:
        """Adapter and tokenizer, then settings and script."""
        yield from super().write(folder)
        config = {
            "dtype": VLLM_DTYPES[self.dtype],
            "environment": {},
            "host": "127.0.0.1",
            "lora_modules": [{"adapter_version": self.context.version, "name": SERVED, "path": self.adapter}],
            "max_lora_rank": self.max_rank,
            "max_model_len": read_alike(self.context.session.base),
            "model": self.context.loadable_base,
            "port": VLLM_PORT,
            "revision": self.context.loadable_revision,
            "served_model_name": self._base_served,
            "target": "vllm",
        }
        write_atomic(folder / "vllm_config.json", json_bytes(config))
        path = folder / self.script
        system = self.context.session.document.system_prompt is not None
        write_atomic(path, vllm_script(self._words(self.adapter), system=system).encode())
        path.chmod(0o755)
        yield Progress(self.script, 1, 1)

    def check_files(self, folder: Path) -> None:
        """Those of an adapter, then what vLLM is started with."""
        super().check_files(folder)
        context = self.context
        check_vllm_files(
            folder / self.script, context.loadable_base, context.loadable_revision, self.adapter, SERVED,
            VLLM_DTYPES[self.dtype], read_alike(context.session.base), self._template(self.adapter),
            base_served=self._base_served, version=context.version,
        )  # fmt: skip

    def command(self, folder: Path) -> str:
        """Serve base and adapter; the adapter is asked for as model `mixed`."""
        return shell([*self._words(str(folder / self.adapter)), "--port", str(VLLM_PORT)])


class MergedTarget(Common):
    """A complete model folder with the mix in its weights."""

    def __init__(self, context: ExportContext) -> None:
        super().__init__()
        self.context = context
        base = context.session.base
        model: Any = base.model
        self.config: dict[str, Any] = model.config.to_dict()
        if context.request.quant is not None:
            merged_dtype(context.request.quant)
        self.pairs = {module: self._oriented(module, pair) for module, pair in context.pairs.items()}
        self.source = open_weights(base.source.path, base.model, {f"{module}.weight" for module in self.pairs})
        if change_embedding(context.pairs) and ties_output(model):
            if takes_images(base):
                raise ExportRefused(
                    "the mix changes the token embedding of a base that takes images, which was never tried as a "
                    "folder of its own: use the target peft"
                )
            embedding, output = (
                module_name(model, one) for one in (model.get_input_embeddings(), model.get_output_embeddings())
            )
            self.source = UntiedWeights(self.source, f"{embedding}.weight", f"{output}.weight")
            self.config["tie_word_embeddings"] = False
            self.notes.append(UNTIED_NOTE)
        self.quant = context.request.quant or stored_dtype(self.source)
        self.nbytes = planned_bytes(self.source, self.quant)
        self.figures = {"merged": True, "mix_rank": context.rank}

    def _oriented(self, module: str, pair: LoraPair) -> LoraPair:
        """The addition the way round that the layer stores its weight."""
        conv = type(self.context.session.base.target_module(module)).__name__ == "Conv1D"
        return pair.turned if conv or pair.tokens else pair

    def write(self, folder: Path) -> Generator[Progress, None, None]:
        """Weights, config, generation settings, tokenizer."""
        yield from write_merged(folder, self.source, self.pairs, self.config, self.quant)
        generation = getattr(self.context.session.base.model, "generation_config", None)
        if generation is not None:
            write_atomic(folder / "generation_config.json", json_bytes(generation.to_diff_dict()))
        save_tokenizer(self.context, folder)
        for name, origin in self._processors().items():
            shutil.copyfile(origin, folder / name)
        yield Progress("tokenizer", 1, 1)

    def check_files(self, folder: Path) -> None:
        """Tokenizer and configurations: those of the base, with what the export changes on purpose."""
        base = self.context.session.base
        changed = {
            "dtype": str(DTYPES[self.quant][0]).removeprefix("torch."),
            "tie_word_embeddings": self.config.get("tie_word_embeddings"),
        }
        check_tokenizer_files(folder, base, chats(self.context))
        model: Any = base.model
        check_configuration(folder, model.config, getattr(base.model, "generation_config", None), changed)
        processors = self._processors()
        for name in _PROCESSORS:
            check_copy(folder / name, processors.get(name))

    def _processors(self) -> dict[str, Path]:
        """What is copied of the base's folder, by its name."""
        origin = self.context.session.base.source.path
        return {name: origin / name for name in _PROCESSORS if origin is not None and (origin / name).is_file()}

    def trials(self, folder: Path, workspace: Path, prompts: list[list[int]]) -> list[Trial]:
        """The folder in float32 and as it is stored; the base with the mix in it is the reference."""
        base = self.context.session.base
        export = ParityJob(runtime="transformers", model=folder, prompts=prompts, dtype="f32", vocab=base.vocab_size)
        rounding = effective_dtype(self.context, self.quant)
        if base.source.path is None or rounding == "f32":
            return [_read_in(self.quant, replace(export, dtype=rounding))]
        pairs = workspace / "pairs.safetensors"
        tensors = {
            f"{module}.{side}": getattr(pair, side).contiguous()
            for module, pair in self.pairs.items()
            for side in ("lora_A", "lora_B")
        }
        with naming(pairs):
            save_file(tensors, pairs)
        dtype = str(DTYPES[self.quant][0]).removeprefix("torch.")
        stored = replace(export, runtime="base and pairs", model=base.source.path, adapter=pairs, load_dtype=dtype)
        return [replace(_read_in(self.quant, export), stored=stored)]

    def check_weights(self, folder: Path) -> Generator[Progress, None, dict[str, Any] | None]:
        """Every tensor of the folder."""
        return (yield from check_merged(folder, self.source, self.pairs, DTYPES[self.quant][0]))

    def command(self, folder: Path) -> str:
        """Ask the model something through transformers."""
        code = _ASK.format(library="transformers", model="AutoModelForCausalLM", how="")
        return shell([*python_words("-c", code), folder, "Hello"])
