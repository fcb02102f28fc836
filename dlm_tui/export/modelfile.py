"""The Modelfile for Ollama. What comes from the document or the tokenizer is quoted, never interpreted."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dlm_tui.export.modelfile_reader import keeps

FAMILY_STOPS = {
    "chatml": ("<|im_end|>", "<|endoftext|>", "<|im_start|>"),
    "qwen3thinking": ("<|im_end|>", "<|endoftext|>", "<|im_start|>"),
    "smollm3": ("<|im_end|>", "<|end_of_text|>", "<|im_start|>"),
    "llama3": ("<|eot_id|>", "<|end_of_text|>", "<|start_header_id|>", "<|eom_id|>"),
    "gemma2": ("<end_of_turn>", "<eos>", "<start_of_turn>"),
    "phi3": ("<|end|>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>"),
    "phi4mini": ("<|end|>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>"),
    "olmo2": ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>"),
    "mistral": ("</s>", "[/INST]", "[INST]"),
}
FAMILY_TOP_P = {"qwen3thinking": 0.95, "smollm3": 0.95}

_CHATML = "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
_PLAIN = (
    '{{{{- range .Messages }}}}{{{{ .Content }}}}{{{{ if eq .Role "assistant" }}}}{end}'
    '{{{{ else if eq .Role "system" }}}}\n\n{{{{ else }}}}\n{{{{ end }}}}{{{{ end }}}}'
)
# with blanks around a text, which some templates take off
CONVERSATION = (
    {"role": "user", "content": " one\n"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three "},
)
WITH_SYSTEM = ({"role": "system", "content": "zero"}, *CONVERSATION)
_SEPARATORS = str.maketrans({"\v": "\n", "\f": "\n", "\x85": "\n", "\u2028": "\n", "\u2029": "\n"})


@dataclass(frozen=True)
class Parameters:
    """Sampling defaults of the model: temperature and top_p are plain numbers, num_ctx tokens."""

    temperature: float
    top_p: float
    num_ctx: int
    stops: tuple[str, ...]


def quoted(text: str) -> str:
    '''`"""…"""`, the only quoting in which Ollama keeps line feeds and quotes, around what it can hold of the text.'''
    return f'"""{held(text)}"""'


def held(text: str) -> str:
    """The text as a Modelfile can hold it.

    Ollama looks for the closing quotes at every line end, once white space is trimmed off, and has no escape for them:
    a run of three quotes or more is broken up by a blank after every second one. It leaves out what cannot be seen:
    other kinds of blanks and line ends are written as the plain ones.
    """
    plain = (" " if unicodedata.category(char) == "Zs" else char for char in text.translate(_SEPARATORS))
    return re.sub(r'""(?=")', '"" ', "".join(char for char in plain if keeps(char)))


def comment(text: str) -> str:
    """One comment line, whatever line breaks and control characters `text` has."""
    return "# " + "".join(char if char.isprintable() else " " for char in text)


def stop_words(family: str, special_tokens: Sequence[str]) -> tuple[str, ...]:
    """The family's list, then the tokenizer's own special tokens, without repeats and without what cannot be quoted."""
    words = dict.fromkeys((*FAMILY_STOPS.get(family, ()), *special_tokens))
    return tuple(word for word in words if word and '"' not in word and word.isprintable())


def go_template(rendered: str | None, with_system: str | None = None, *, front: str = "", end: str = "") -> str | None:
    """Ollama's own template language for a chat template, only where it was seen to render `CONVERSATION` the same way,
    and `WITH_SYSTEM` where that is given.

    `front` is what the runtime itself puts before a text, `end` the end-of-text token: they tell the form of a base
    that has no template of its own. Otherwise None: Ollama then uses the template embedded in the GGUF.
    """
    for template in (_CHATML, *([_PLAIN.format(end=end)] if "{{" not in end else [])):
        same = rendered == by_template(template, CONVERSATION, front=front, end=end)
        if (
            template == held(template)
            and same
            and with_system in (None, by_template(template, WITH_SYSTEM, front=front, end=end))
        ):
            return template
    return None


def by_template(template: str, messages: Sequence[Mapping[str, str]], *, front: str = "", end: str = "") -> str:
    """What Ollama makes of a conversation by a template of `go_template`, with what the runtime puts in front.

    Raises ValueError for any other template.
    """
    if template == _CHATML:
        turns = (f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in messages)
        return "".join(turns) + "<|im_start|>assistant\n"
    if template == _PLAIN.format(end=end):
        after = {"assistant": end, "system": "\n\n"}
        return front + "".join(message["content"] + after.get(message["role"], "\n") for message in messages)
    raise ValueError("not a template that is written here")


def modelfile(
    comments: Sequence[str],
    weights: str,
    parameters: Parameters,
    *,
    adapter: str | None = None,
    template: str | None = None,
    system: str | None = None,
) -> str:
    """The whole file. `weights` and `adapter` are file names in the same folder, `system` is the text as it is said."""
    blocks = [[comment(line) for line in comments], [f"FROM ./{weights}"]]
    if adapter is not None:
        blocks[1].append(f"ADAPTER ./{adapter}")
    if template is not None:
        blocks.append([f"TEMPLATE {quoted(template)}"])
    blocks.append(
        [
            *(f'PARAMETER stop "{word}"' for word in parameters.stops),
            f"PARAMETER temperature {parameters.temperature!r}",
            f"PARAMETER top_p {parameters.top_p!r}",
            f"PARAMETER num_ctx {parameters.num_ctx}",
        ]
    )
    if system:
        blocks.append([f"SYSTEM {quoted(system)}"])
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"
