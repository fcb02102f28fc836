"""The targets that are GGUF files: Ollama and llama-server."""

from __future__ import annotations

import json
import shutil
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dlm_tui.export.architectures import is_of_text, read_architecture
from dlm_tui.export.concatenate import LoraPair, change_embedding, check_finite, folded
from dlm_tui.export.export_context import Common, ExportContext, Trial, alike_note, chats, effective_dtype, read_alike
from dlm_tui.export.gate_files import write_gate
from dlm_tui.export.gguf_adapter import plan_adapter, write_adapter
from dlm_tui.export.gguf_model import plan_model, write_model
from dlm_tui.export.gguf_tokenizer import read_tokenizer
from dlm_tui.export.live_check import check_gate_files
from dlm_tui.export.metadata_check import check_adapter_metadata, check_metadata
from dlm_tui.export.mix_check import MIX, Directions
from dlm_tui.export.modelfile import (
    CONVERSATION,
    FAMILY_TOP_P,
    WITH_SYSTEM,
    Parameters,
    by_template,
    go_template,
    held,
    modelfile,
    stop_words,
)
from dlm_tui.export.modelfile_reader import keeps
from dlm_tui.export.parity import ODD_TEXTS, ParityJob
from dlm_tui.export.prompts import SENTENCES
from dlm_tui.export.quantisation.imatrix import read_imatrix, write_imatrix
from dlm_tui.export.quantisation.importance import collect, open_source
from dlm_tui.export.reader_check import (
    check_copy,
    check_llama_server_script,
    check_modelfile,
    modelfile_commands,
    wrong,
)
from dlm_tui.export.requests import ExportRefused
from dlm_tui.export.scripts import llama_server_script, shell
from dlm_tui.export.stored_weights import read_back
from dlm_tui.export.suitability import takes_images
from dlm_tui.export.weights import (
    UNTIED_NOTE,
    PartOfWeights,
    UntiedWeights,
    module_name,
    open_weights,
    ties_output,
)
from dlm_tui.export.weights_check import check_adapter, check_gguf
from dlm_tui.files import write_atomic
from dlm_tui.model import Base
from dlm_tui.model.chat import ChatTemplateError, Message, chat_messages, rendered_plainly
from dlm_tui.progress import Progress

_METADATA_BYTES = 100
"""About what one token costs in the tokenizer's part of a GGUF."""


def _as_stored(pairs: Mapping[str, LoraPair]) -> dict[str, LoraPair]:
    """The additions the way round that the weights lie in the checkpoint."""
    return {module: pair.turned if pair.tokens else pair for module, pair in pairs.items()}


def _of_text(pairs: Mapping[str, LoraPair], base: Base) -> dict[str, LoraPair]:
    """Those on the text model of a base that takes images, which alone becomes a GGUF; all of another base."""
    every = not takes_images(base)
    return {module: pair for module, pair in pairs.items() if every or is_of_text(f"{module}.weight")}


class _Gguf(Common):
    """What both targets read from the base."""

    def __init__(self, context: ExportContext, apart: Mapping[str, Mapping[str, LoraPair]] | None = None) -> None:
        """`apart` are adapters that are written beside the mix."""
        super().__init__()
        self.context = context
        base = context.session.base
        self.config: dict[str, Any] = json.loads(base.config.to_json_string(use_diff=False))
        model: Any = base.model
        self.pairs = _of_text(context.pairs, base)
        if takes_images(base):
            # the configuration of the text alone need not know
            self.config["tie_word_embeddings"] = ties_output(model)
            self.notes.append("a GGUF holds the base's text model alone: it takes no images")
        # llama.cpp knows a tied output layer by the embedding's name, and would add the embedding's addition there, too
        changed = any(change_embedding(pairs) for pairs in (self.pairs, *(apart or {}).values()))
        untied = changed and bool(self.config.get("tie_word_embeddings"))
        if untied:
            self.config["tie_word_embeddings"] = False
            self.notes.append(UNTIED_NOTE)
        self.architecture = read_architecture(
            base.config.to_dict() | {"tie_word_embeddings": self.config.get("tie_word_embeddings")}
        )
        self.tokenizer = read_tokenizer(base.tokenizer, self.architecture.vocab, base.stop_ids)
        embedding = module_name(model, model.get_input_embeddings())
        needed = {f"{module}.weight" for module in (*self.pairs, embedding)}
        self.source = open_weights(base.source.path, model, needed)
        if takes_images(base):
            self.source = PartOfWeights(self.source, is_of_text)
        if untied:
            self.source = UntiedWeights(self.source, f"{embedding}.weight", "lm_head.weight")
        self.merged = _as_stored(self.pairs)
        assert context.request.quant is not None  # for_document saw to it
        self.quant = context.request.quant
        given = context.request.imatrix
        self._weighing = open_source(given, context.session.document, base) if given is not None else None
        self.importance = self._weighing.matrix if self._weighing is not None else None
        self.reach = self.architecture.context_length
        self.most_alike = read_alike(base)
        self.most_served = min(self.reach, self.most_alike)
        """Tokens of the longest context that it may be started with."""
        self.notes += alike_note(base, "llama.cpp")
        if self.reach < self.most_alike:
            self.notes.append(
                f"llama.cpp is started with {self.reach} of {base.context_length} tokens: it knows no sliding window in"
                " this family, and reads alike as far as that reaches"
            )
        self.window = min(self.window, self.reach)
        self.nbytes = len(self.tokenizer.tokens) * _METADATA_BYTES

    def trial(self, model: Path, prompts: list[list[int]], loras: list[tuple[Path, float]]) -> Trial:
        """llama.cpp over `prompts`, with the texts that try the tokenizer, against what its own weights say."""
        export = ParityJob(
            runtime="llama.cpp",
            model=model,
            prompts=prompts,
            dtype=self._rounding(),
            vocab=self.architecture.vocab,
            loras=loras,
            texts=(*ODD_TEXTS, *SENTENCES, *chats(self.context)),
        )
        # start script and Modelfile set neither cache nor attention
        as_read = replace(export, as_read=True, texts=(), context=self.served)
        if effective_dtype(self.context, self.quant) == "f32":
            return Trial(export, as_read=as_read)  # stored as it is: the workbench's own answers are the reference
        return Trial(export, replace(export, runtime="stored gguf", config=self.config, texts=()), as_read)

    @property
    def served(self) -> int:
        """Tokens that it is started with: what the document was trained for, where that is possible."""
        return min(self.context.context_length, self.most_served)

    def _rounding(self) -> str:
        """llama.cpp looks GELU up in a table of float16, so families that use it are never nearer than that."""
        dtype = effective_dtype(self.context, self.quant)
        return "f16" if dtype == "f32" and self.architecture.family.activation != "silu" else dtype

    @property
    def weighed(self) -> bool:
        """Whether an importance matrix was asked for."""
        return self._weighing is not None

    def weigh(self, folder: Path) -> Generator[Progress, None, None]:
        """The importance matrix, collected under the exported mix or as it was given, beside the weights."""
        source = self._weighing
        if source is None:
            return
        if source.path is not None:
            shutil.copyfile(source.path, folder / self._imatrix(source.path))
        else:
            model = self.context.session.model
            row = model.coefficients(self.context.mix.mapping())
            self.importance = yield from collect(
                model, self.architecture.gguf_name, source.sequences, row, source.dataset
            )
            write_imatrix(folder / "imatrix.gguf", self.importance)
        assert self.importance is not None
        self.figures["imatrix"] = {
            "source": source.dataset,
            "tensors": len(self.importance.means),
            "tokens": sum(len(ids) for ids in source.sequences) or None,
        }

    @staticmethod
    def _imatrix(given: Path | None) -> str:
        """The name of the importance matrix beside the weights."""
        return f"imatrix{(given.suffix if given is not None else '') or '.gguf'}"

    def check_files(self, folder: Path) -> None:
        """The importance matrix, where one was asked for."""
        if (source := self._weighing) is None:
            return
        path = folder / self._imatrix(source.path)
        if source.path is not None:
            check_copy(path, source.path)
        elif self.importance is not None:
            found = read_imatrix(path).means
            for name, meant in self.importance.means.items():
                if name not in found or not np.array_equal(found[name].reshape(meant.shape), meant):
                    raise wrong(path, f"has other numbers for {name}")

    def write_weights(self, path: Path, *, merged: bool) -> Generator[Progress, None, None]:
        """The base, or base and mix, as one file."""
        identity = self.context.session.base.identity
        name = f"{identity.id} with {self.context.served_name}" if merged else identity.id
        mix = self.merged if merged else None
        yield from write_model(
            path, self.source, self.architecture, self.tokenizer, self.quant,
            name=name, mix=mix, importance=self.importance,
        )  # fmt: skip

    def check_model(self, path: Path, pairs: Mapping[str, LoraPair]) -> Generator[Progress, None, dict[str, Any]]:
        """What the file says of itself, then its tensors: the base with `pairs` in it."""
        base = self.context.session.base
        check_metadata(path, base.config, base.tokenizer, self.quant, base.stop_ids)
        source, directions = self.source, self._directions()
        return (yield from check_gguf(path, source, self.architecture, pairs, directions, importance=self.importance))

    def check_adapter(self, path: Path, pairs: Mapping[str, LoraPair]) -> None:
        """What an adapter's file says of itself, then its matrices."""
        check_adapter_metadata(path, self.context.session.base.config)
        check_adapter(path, self.architecture, pairs)

    def _directions(self) -> Directions:
        """The mix and every adapter of the document: the file may be off along none of them."""
        adapters = {name: folded(adapter) for name, adapter in self.context.session.model.adapters.items()}
        return {MIX: self.merged, **{name: _as_stored(pairs) for name, pairs in adapters.items()}}


class OllamaTarget(_Gguf):
    """One merged GGUF and a Modelfile; as the legacy variant, base and adapter apart."""

    def __init__(self, context: ExportContext) -> None:
        super().__init__(context)
        self.says_system = True
        self.legacy = context.request.legacy_adapter
        self.weights = f"base.{self.quant}.gguf" if self.legacy else f"model.{self.quant}.gguf"
        mix = None if self.legacy else self.merged
        tensors = plan_model(self.source, self.architecture, self.quant, mix, self.importance)
        if self.legacy:
            tensors += plan_adapter(self.pairs, self.architecture)
            self.notes.append("ADAPTER works only in Ollama before 0.34.1; newer versions refuse it")
        system = context.session.document.system_prompt or ""
        if '"""' in system:
            self.notes.append('a Modelfile cannot hold three quotes in a row: in SYSTEM they are written as "" "')
        if not all(map(keeps, system)):
            self.notes.append(
                "a Modelfile cannot hold characters that cannot be seen: in SYSTEM blanks and line ends of other kinds"
                " are written as plain ones, and what joins characters is left out"
            )
        self.nbytes += sum(tensor.nbytes for tensor in tensors)
        self.figures = {
            "merged": not self.legacy,
            "legacy_adapter": self.legacy,
            "ollama_name": context.served_name,
            "mix_rank": context.rank,
        }

    def write(self, folder: Path) -> Generator[Progress, None, None]:
        """GGUF first, Modelfile last."""
        yield from self.weigh(folder)
        yield from self.write_weights(folder / self.weights, merged=not self.legacy)
        if self.legacy:
            path = folder / "adapter.gguf"
            yield from write_adapter(path, self.pairs, self.architecture, name=self.context.served_name)
        write_atomic(folder / "Modelfile", self._modelfile().encode())
        yield Progress("Modelfile", 1, 1)

    def check_files(self, folder: Path) -> None:
        """The Modelfile leads to the files that are tried."""
        super().check_files(folder)
        adapter = "adapter.gguf" if self.legacy else None
        meant = self._parameters()
        check_modelfile(folder / "Modelfile", self.weights, adapter, {
            "stop": meant.stops,
            "temperature": [repr(meant.temperature)],
            "top_p": [repr(meant.top_p)],
            "num_ctx": [str(meant.num_ctx)],
        }, template=self._template(), system=self._system)  # fmt: skip

    def trials(self, folder: Path, workspace: Path, prompts: list[list[int]]) -> list[Trial]:
        """The files that `FROM` and `ADAPTER` name."""
        loras = [(folder / "adapter.gguf", 1.0)] if self.legacy else []
        return [self.trial(folder / self.weights, prompts, loras)]

    def check_weights(self, folder: Path) -> Generator[Progress, None, dict[str, Any] | None]:
        """How the Modelfile asks, then the model with the mix in it, or the base and the adapter file."""
        self._check_modelfile(folder)
        if self.legacy:
            self.check_adapter(folder / "adapter.gguf", self.pairs)
        return (yield from self.check_model(folder / self.weights, {} if self.legacy else self.merged))

    def command(self, folder: Path) -> str:
        """Create the model and talk to it."""
        name = self.context.served_name
        return f"{shell(['ollama', 'create', name, '-f', folder / 'Modelfile'])} && {shell(['ollama', 'run', name])}"

    def _parameters(self) -> Parameters:
        base, export = self.context.session.base, self.context.session.document.frontmatter.export
        return Parameters(
            temperature=export.default_temperature or (0.6 if base.source.reasoning else 0.7),
            top_p=export.default_top_p or FAMILY_TOP_P.get(base.source.family, 0.9),
            num_ctx=self.served,
            stops=stop_words(base.source.family, list(base.tokenizer.all_special_tokens)),
        )

    def _modelfile(self) -> str:
        session, mix = self.context.session, self.context.mix
        document = session.document
        weights = ", ".join(f"{name} {weight!r}" for name, weight in mix.weights)
        comments = [
            "written by dlm-tui",
            f"dlm_id {document.dlm_id}, base_model {session.base.identity.id}, quant {self.quant}",
            f"{mix.gate_mode}: {weights}",
        ]
        if self.legacy:
            comments.append("legacy variant: ADAPTER needs Ollama before 0.34.1")
        return modelfile(
            comments,
            self.weights,
            self._parameters(),
            adapter="adapter.gguf" if self.legacy else None,
            template=self._template(),
            system=self._system,
        )

    @property
    def _system(self) -> str | None:
        """What the Modelfile holds of the document's system prompt."""
        return held(self.context.session.document.system_prompt or "") or None

    def _template(self) -> str | None:
        """The chat template in Ollama's language; None leaves the embedded one to Ollama."""
        session = self.context.session
        try:
            rendered = session.base.renderer.text(CONVERSATION, generate=True)
            asked = session.document.system_prompt is not None
            with_system = session.base.renderer.text(WITH_SYSTEM, generate=True) if asked else None
        except ChatTemplateError:
            return None
        return go_template(rendered, with_system, **self._ends())

    def _ends(self) -> dict[str, str]:
        """What the runtime puts in front of a text, and the end-of-text token."""
        base = self.context.session.base
        front = "".join(base.tokenizer.convert_ids_to_tokens(base.renderer.prefix))
        return {"front": front, "end": base.tokenizer.eos_token or ""}

    def _check_modelfile(self, folder: Path) -> None:
        """Raises ExportRefused where SYSTEM and TEMPLATE, or the template in the GGUF, ask otherwise than the
        workbench. What is said in them `check_files` has looked at, also where nobody can be asked."""
        renderer = self.context.session.base.renderer
        said = dict(modelfile_commands(folder / "Modelfile"))
        question = CONVERSATION[0]["content"]
        messages = chat_messages((), question, said.get("system"))
        meant = chat_messages((), question, self._system)
        try:
            wanted = renderer.text(meant, generate=True)
        except ChatTemplateError:
            return  # nobody can be asked by it
        try:
            if (template := said.get("template")) is not None:
                asked = by_template(template, messages, **self._ends())
            else:
                asked = by_embedded(folder / self.weights, messages)
        except ValueError as error:
            raise ExportRefused(f"the Modelfile is not what was written: its TEMPLATE is {error}") from error
        except ChatTemplateError as error:
            raise ExportRefused(
                f"the chat template in {self.weights} takes nothing that the Modelfile says: {error}; mend the base's"
                " chat_template"
            ) from error
        if asked != wanted:
            raise ExportRefused(
                "the Modelfile does not ask as the workbench does: its SYSTEM or TEMPLATE, or the chat template in"
                f" {self.weights}, is another"
            )


def by_embedded(path: Path, messages: Sequence[Message]) -> str:
    """What a runtime makes of a question by the template in a GGUF, which knows no more than that file.

    Raises ChatTemplateError where that cannot be.
    """
    values = read_back(path).values()
    tokens = values["tokenizer.ggml.tokens"]
    ids = {name: values.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")}
    variables = {
        f"{name}_token": str(tokens[number])
        for name, number in ids.items()
        if isinstance(number, int) and isinstance(tokens, list)
    }
    return rendered_plainly(str(values.get("tokenizer.chat_template", "")), messages, variables)


class LlamaServerTarget(_Gguf):
    """Base, mix and every adapter as GGUF, a start script, and the gate beside them."""

    script = "llama-server_launch.sh"

    def __init__(self, context: ExportContext) -> None:
        model = context.session.model
        self.names = [name for name in context.session.document.routing_names if name in model.names]
        self.adapters = {}
        for name in self.names:
            check_finite(name, model.adapters[name])
            self.adapters[name] = _of_text(folded(model.adapters[name]), context.session.base)
        super().__init__(context, self.adapters)
        self.weights = f"base.{self.quant}.gguf"
        tensors = plan_model(self.source, self.architecture, self.quant, None, self.importance)
        for pairs in (self.pairs, *self.adapters.values()):
            tensors += plan_adapter(pairs, self.architecture)
        self.nbytes += sum(tensor.nbytes for tensor in tensors)
        self.figures = {"merged": False, "mix_rank": context.rank, "lora_ids": self._ids()}
        if context.session.gate is None:
            self.notes.append("no gate lies beside the files, because the document has none that can be used")

    def _ids(self) -> dict[str, int]:
        """llama-server's numbers of the adapters, in the order of the start script; the mix before them is 0."""
        return {name: number for number, name in enumerate(self.names, start=1)}

    def write(self, folder: Path) -> Generator[Progress, None, None]:
        """Base, mix, adapters, gate, script."""
        yield from self.weigh(folder)
        yield from self.write_weights(folder / self.weights, merged=False)
        served = self.context.served_name
        yield from write_adapter(folder / "mix.gguf", self.pairs, self.architecture, name=served)
        for name, pairs in self.adapters.items():
            yield from write_adapter(folder / f"adapter.{name}.gguf", pairs, self.architecture, name=name)
        session = self.context.session
        if session.gate is not None:
            static = self.context.mix.mapping()
            write_gate(folder, session.gate, session.base.identity, self._ids(), static)
        loras = [("mix.gguf", 1.0), *((f"adapter.{name}.gguf", 0.0) for name in self.names)]
        path = folder / self.script
        system = session.document.system_prompt is not None  # also where the live server beside the script says it
        script = llama_server_script(self.weights, loras, self.served, system=system)
        write_atomic(path, script.encode())
        path.chmod(0o755)
        yield Progress(self.script, 1, 1)

    def check_files(self, folder: Path) -> None:
        """The start script, and the gate beside it."""
        super().check_files(folder)
        loras = [("mix.gguf", 1.0), *((f"adapter.{name}.gguf", 0.0) for name in self.adapters)]
        check_llama_server_script(folder / self.script, self.weights, loras, self.served)
        check_gate_files(folder, self.context.session, self.names, self.context.mix.mapping())

    def check_weights(self, folder: Path) -> Generator[Progress, None, dict[str, Any] | None]:
        """The base, the mix and every adapter."""
        self.check_adapter(folder / "mix.gguf", self.pairs)
        for name, pairs in self.adapters.items():
            self.check_adapter(folder / f"adapter.{name}.gguf", pairs)
        return (yield from self.check_model(folder / self.weights, {}))

    def trials(self, folder: Path, workspace: Path, prompts: list[list[int]]) -> list[Trial]:
        """The stacked mix at scale 1, then the adapters one by one at the weights of the mix."""
        weights = self.context.mix.mapping()
        apart = [(folder / f"adapter.{name}.gguf", weights.get(name, 0.0)) for name in self.names]
        return [
            self.trial(folder / self.weights, prompts, [(folder / "mix.gguf", 1.0)]),
            self.trial(folder / self.weights, prompts, [pair for pair in apart if pair[1] != 0.0]),
        ]

    def command(self, folder: Path) -> str:
        """Start the server."""
        return shell(["bash", folder / self.script])
