"""The configuration file: one TOML file in the user's configuration directory.

theme = "dlm-dark"            # dlm-dark, dlm-light, ansi-dark, ansi-light or any theme Textual ships
editor = "vi"                 # instead of $VISUAL or $EDITOR; may hold {line} and {file}

[generate]                    # what a document begins with; alt+o changes all but dtype for the open one
max_tokens = 128              # 1 to 4096
dtype = "float32"             # or bfloat16, where the base can: answers read half the bytes, rounded; gates stay exact
temperature = 0.0             # 0 is greedy
top_p = 1.0
seed = 0
samples = 1                   # answers of one view that are drawn at once, each with the next seed

[live]
explain = true                # token pulls and trajectory while the insight pane is shown
score = true                  # effect size after a typing pause while the insight pane is shown
pause = 0.6                   # seconds without typing that count as a pause
nulls = 16                    # random adapters the effect size is compared with

[serve]
port = 8321                   # where alt+s serves; 0 chooses a free one
keep_prompts = 0              # the text of the last so many requests is kept, to look at and to label

[look]
palette = ["#e69f00"]         # colours of the adapters, in order, for dark themes: #rrggbb, teal, ansi_cyan
answer_width = 34             # narrowest column of the side-by-side answers, cells

[keys]
"prompt.answer" = "ctrl+g"    # any id of the help panel (F1)
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from platformdirs import user_config_path, user_state_path

from dlm_tui.app.keys import BY_ID, KEY_NAMES, KEYS, display, key_name, keys_of
from dlm_tui.document.toml_file import TomlFileError, read_toml
from dlm_tui.errors import UsageError
from dlm_tui.files import write_through_links
from dlm_tui.input import with_home
from dlm_tui.meant import meant
from dlm_tui.refused_field import place_of, refusal
from dlm_tui.system_errors import cause

APP_NAME = "dlm-tui"
MOST_SAMPLES = 16
"""Samples of one view that are drawn at once."""
_MaxTokens = Annotated[int, Meta(ge=1, le=4096)]
_Temperature = Annotated[float, Meta(ge=0.0, le=10.0)]
_TopP = Annotated[float, Meta(gt=0.0, le=1.0)]
_Seed = Annotated[int, Meta(ge=0, lt=2**31)]
_Samples = Annotated[int, Meta(ge=1, le=MOST_SAMPLES)]


class ConfigError(UsageError):
    """The configuration file cannot be used; the sentence names the file and the key."""


class SamplingSettings(msgspec.Struct, kw_only=True, frozen=True):
    """How the tokens of an answer are chosen; `samples` answers of a view are drawn, with seed, seed + 1 and so on."""

    max_tokens: _MaxTokens = 128
    temperature: _Temperature = 0.0
    top_p: _TopP = 1.0
    seed: _Seed = 0
    samples: _Samples = 1


class Generate(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How answers are written, where nothing else was chosen for the document."""

    max_tokens: _MaxTokens = 128
    dtype: Literal["float32", "bfloat16"] = "float32"
    temperature: _Temperature = 0.0
    top_p: _TopP = 1.0
    seed: _Seed = 0
    samples: _Samples = 1

    def sampling(self) -> SamplingSettings:
        """What a document begins with."""
        return SamplingSettings(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
            samples=self.samples,
        )


class Live(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What is worked out while typing."""

    explain: bool = True
    score: bool = True
    pause: Annotated[float, Meta(ge=0.05, le=10.0)] = 0.6
    nulls: Annotated[int, Meta(ge=0, le=64)] = 16


class Serve(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The server that the screen starts."""

    port: Annotated[int, Meta(ge=0, le=65535)] = 8321
    keep_prompts: Annotated[int, Meta(ge=0, le=100_000)] = 0


class Look(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Colours and widths."""

    palette: list[str] = []
    answer_width: Annotated[int, Meta(ge=16, le=200)] = 34


class Config(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """All settings; every one has a default."""

    theme: str = "dlm-dark"
    editor: str = ""
    generate: Generate = msgspec.field(default_factory=Generate)
    live: Live = msgspec.field(default_factory=Live)
    serve: Serve = msgspec.field(default_factory=Serve)
    look: Look = msgspec.field(default_factory=Look)
    keys: dict[str, str] = {}


def config_path() -> Path:
    """`config.toml` in the user's configuration directory (XDG_CONFIG_HOME is respected)."""
    return user_config_path(APP_NAME, appauthor=False) / "config.toml"


def state_path() -> Path:
    """Where typed text and recents are kept: in `DLM_HOME` when it is set, else in the user's state directory."""
    if home := os.environ.get("DLM_HOME"):
        return with_home(home).absolute() / APP_NAME
    return user_state_path(APP_NAME, appauthor=False)


def load_config(path: Path | None = None) -> Config:
    """Read and check the file; a missing one gives the defaults. Raises ConfigError naming the key that is wrong."""
    path = path or config_path()
    try:
        data = read_toml(path)
    except FileNotFoundError:
        return Config()
    except NotADirectoryError as error:
        raise ConfigError(f"{path} cannot be read: {cause(error)}") from None
    except TomlFileError as error:
        raise ConfigError(str(error)) from None
    return parse_config(data, str(path))


def parse_config(data: dict[str, Any], place: str) -> Config:
    """Check a parsed file. Raises ConfigError."""
    try:
        config = msgspec.convert(data, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{place}: {place_of(error) or 'the file'}: {refusal(error, Config)}") from None
    check_editor(config.editor, place)
    config.look.palette = _paint_colors(config.look.palette, place)
    config.keys = _spell_keys(config.keys, place)
    check_theme(config.theme, place)
    check_keys(config.keys, place)
    return config


def check_theme(name: str, place: str) -> None:
    """Refuse a theme that does not exist. Raises ConfigError."""
    from dlm_tui.app.themes import THEME_NAMES

    if name not in THEME_NAMES:
        near = meant(name, THEME_NAMES) or f"; there are {', '.join(THEME_NAMES)}"
        raise ConfigError(f"{place}: theme: there is no theme {name!r}{near}")


def _spell_keys(remapped: Mapping[str, str], place: str) -> dict[str, str]:
    spelled: dict[str, str] = {}
    for key_id, text in remapped.items():
        names: list[str] = []
        for written in filter(str.strip, text.split(",")):
            name = key_name(written)
            if name is None:
                near = meant(written, KEY_NAMES) or "; one is written as ctrl+y, alt+shift+left, f6, pagedown or ?"
                raise ConfigError(f"{place}: keys.{key_id}: there is no key {written.strip()!r}{near}")
            names.append(name)
        spelled[key_id] = ",".join(names)
    return spelled


def check_editor(command: str, place: str) -> None:
    """Refuse a command that cannot be cut into words. Raises ConfigError."""
    try:
        shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"{place}: editor: {str(error).lower()} in {command}") from None


def _paint_colors(palette: Sequence[str], place: str) -> list[str]:
    from dlm_tui.app.themes import paint_color

    colors: list[str] = []
    for index, text in enumerate(palette):
        color = paint_color(text)
        if color is None:
            raise ConfigError(
                f"{place}: look.palette[{index}]: there is no colour {text!r}; "
                "one is #rrggbb, a name of CSS (teal), or one of the terminal's own (ansi_cyan)"
            )
        colors.append(color)
    return colors


def check_keys(remapped: dict[str, str], place: str) -> None:
    """Refuse unknown ids, empty keys and two bindings of one place on one key. Raises ConfigError."""
    for key_id in remapped:
        if key_id not in BY_ID:
            raise ConfigError(f"{place}: keys.{key_id}: there is no binding with this id; F1 lists them")
        if not keys_of(BY_ID[key_id], remapped):
            raise ConfigError(f"{place}: keys.{key_id}: no key is given")
    taken: dict[tuple[str, str], str] = {}
    for key in KEYS:
        for pressed in keys_of(key, remapped):
            other = taken.setdefault((key.where, pressed), key.id)
            if other != key.id:
                culprit = key.id if key.id in remapped else other
                rival = other if culprit == key.id else key.id
                raise ConfigError(f"{place}: keys.{culprit}: {display(pressed)} already belongs to {rival}")


def ensure_config_file(path: Path | None = None) -> Path:
    """The path of the file, written with the documented defaults as comments if it does not exist yet."""
    path = path or config_path()
    if not path.exists():
        lines = [line[4:] if line.startswith("    ") else line for line in (__doc__ or "").splitlines()[2:]]
        body = "\n".join(f"# {line}" if line else "" for line in lines).strip() + "\n"
        write_through_links(path, body.encode())
    return path
