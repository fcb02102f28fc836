"""Every key, in one table: bindings, footer, help panel and the configuration file all read it."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from textual.binding import Binding
from textual.keys import KEY_NAME_REPLACEMENTS, _character_to_key, key_to_character

from dlm_tui.app.layout import PANES

Where = Literal["app", "desk", "answers", "talk", "outline", "runs", "jobs", "insight", "dialog"]
GROUPS = ("Prompt", "Mix", "Train", "Export", "View", "Program", "Dialogs")
WHERE_TEXT: dict[Where, str] = {
    "app": "",
    "desk": "in the mix",
    "answers": "in the answers",
    "talk": "in the conversation",
    "outline": "in the document",
    "runs": "in the runs",
    "jobs": "in the jobs",
    "insight": "in the insight",
    "dialog": "in dialogs",
}


@dataclass(frozen=True)
class Key:
    """One binding: a stable id, default keys (comma separated), the action, and how it is explained.

    Single letters reach the app only when no text is being edited. `footer` is the rank in the footer, `edge` that
    among the words on the top edge of `panes` (of the pane named by `where` if none are named): 0 is given up last,
    None means that it is not shown there.
    """

    id: str
    keys: str
    action: str
    label: str
    description: str
    group: str
    where: Where = "app"
    footer: int | None = None
    edge: int | None = None
    panes: tuple[str, ...] = ()


KEYS: tuple[Key, ...] = (
    Key("prompt.answer", "ctrl+g", "answer", "Answer", "Answer the prompt with the mix on the desk", "Prompt",
        footer=0),
    Key("prompt.compare", "ctrl+o", "compare", "Compare", "Answer under base, gated and every adapter at once",
        "Prompt", footer=1),
    Key("prompt.reroll", "alt+a,full_stop", "reroll", "Again", "Ask again what the answers were asked under, with new "
        "seeds", "Prompt", footer=11),
    Key("prompt.sampling", "alt+o", "sampling", "Sampling", "Temperature, top-p, tokens, seed and number of samples of "
        "the next answers", "Prompt", edge=3, panes=("prompt",)),
    Key("prompt.answers", "alt+h,H", "answers", "Answers", "Find an answer that was given before, and bring it back",
        "Prompt", edge=4, panes=("prompt",)),
    Key("talk.follow", "alt+u,F", "follow_up", "Follow up", "Ask the prompt behind the answer or the conversation that "
        "is shown", "Prompt", footer=12, edge=1, panes=("answers", "talk")),
    Key("talk.show", "alt+w,W", "talk", "Turns", "The conversation in the place of the answers, and back", "Prompt",
        edge=12, panes=("answers", "talk")),
    Key("talk.open", "alt+c,C", "conversations", "Conversations", "Open, save or forget a conversation of earlier",
        "Prompt", edge=5, panes=("talk",)),
    Key("talk.up", "up,k", "mark_turn(-1)", "", "Mark the turn before", "Prompt", "talk"),
    Key("talk.down", "down,j", "mark_turn(1)", "", "Mark the turn after", "Prompt", "talk"),
    Key("talk.fork", "f,enter", "at_turn('fork')", "Fork", "Ask otherwise in the place of the marked turn, which stays",
        "Prompt", "talk", footer=0, edge=0),
    Key("talk.next_branch", "right,n", "at_turn('next')", "Next branch", "What was asked otherwise in this place",
        "Prompt", "talk", footer=6, edge=3),
    Key("talk.previous_branch", "left", "at_turn('previous')", "", "The branch before", "Prompt", "talk"),
    Key("talk.hold", "o", "at_turn('hold')", "Hold mix", "Answer every turn under the mix of the first one, or let it "
        "go", "Prompt", "talk", footer=5, edge=2),
    Key("talk.new", "b", "at_turn('new')", "Begin anew", "The next follow-up begins a new conversation; this one stays",
        "Prompt", "talk", footer=7, edge=4),
    Key("talk.copy", "y", "at_turn('copy')", "Copy", "Copy the answer of the marked turn", "Prompt", "talk", footer=8,
        edge=7),
    Key("talk.label", "l", "teach('label')", "Label", "Use the answer of the marked turn as the right one for a label",
        "Prompt", "talk", footer=3, edge=6),
    Key("talk.keep", "K", "teach('keep')", "Keep", "Keep the marked turn as a section of the document", "Prompt",
        "talk", footer=1, edge=8),
    Key("talk.better", "B", "teach('better')", "Better", "Say that the marked turn has a better answer than another "
        "branch", "Prompt", "talk", footer=2, edge=9),
    Key("talk.edit", "e", "teach('edit')", "Edit", "Change the answer of the marked turn and keep it as it should be",
        "Prompt", "talk", footer=4, edge=10),
    Key("prompt.label", "ctrl+l,alt+l", "label", "Label", "Say which adapter this prompt belongs to; adds a section "
        "and retrains the gate", "Prompt", footer=3),
    Key("prompt.undo_label", "u", "undo_label", "Undo", "Take the last change of the document back", "Prompt"),
    Key("prompt.new", "ctrl+n,alt+n", "new_prompt", "New", "Start a new prompt; the old one goes to the history",
        "Prompt", edge=0, panes=("prompt",)),
    Key("prompt.history", "ctrl+r,slash", "history", "History", "Search the prompts asked before", "Prompt", edge=1,
        panes=("prompt",)),
    Key("prompt.sets", "f9", "prompt_sets", "Sets", "Named sets of prompts, kept beside the document", "Prompt", edge=2,
        panes=("prompt",)),
    Key("teach.pick", "alt+x", "pick", "Pick", "Draw answers to a prompt or a set, pick the better of two blind",
        "Prompt"),
    Key("prompt.focus", "i", "focus_prompt", "Prompt", "Go to the prompt", "Prompt"),
    Key("mix.mode", "x", "mix_mode", "Mode", "Gate, uniform or custom mix", "Mix", footer=8, edge=0, panes=("desk",)),
    Key("mix.reset", "r", "mix_reset", "Reset", "Back to the gate alone", "Mix", "desk", footer=6, edge=4),
    Key("mix.undo", "backspace,alt+z", "screen.mix_undo", "Undo", "Take the last change of the mix back", "Mix",
        "desk", footer=5, edge=6),
    Key("mix.named", "n", "screen.named_mixes", "Named", "Save the mix under a name; recall, compare or export "
        "saved ones", "Mix", "desk", footer=3, edge=7),
    Key("mix.up", "up,k", "cursor(-1)", "", "Select the adapter above", "Mix", "desk"),
    Key("mix.down", "down,j", "cursor(1)", "", "Select the adapter below", "Mix", "desk"),
    Key("mix.less", "left", "nudge(-0.1)", "", "Fader down by 0.1", "Mix", "desk"),
    Key("mix.more", "right", "nudge(0.1)", "", "Fader up by 0.1", "Mix", "desk"),
    Key("mix.much_less", "shift+left", "nudge(-0.5)", "", "Fader down by 0.5", "Mix", "desk"),
    Key("mix.much_more", "shift+right", "nudge(0.5)", "", "Fader up by 0.5", "Mix", "desk"),
    Key("mix.solo", "s", "press_part('solo')", "Solo", "Only this adapter, as trained", "Mix", "desk", footer=0),
    Key("mix.mute", "m", "press_part('mute')", "Mute", "Leave this adapter out", "Mix", "desk", footer=1),
    Key("mix.pin", "p", "press_part('pin')", "Pin", "Hold this adapter where it is while the gate moves the others",
        "Mix", "desk", footer=2),
    Key("mix.sweep", "w", "sweep", "Sweep", "Answers and divergence of this adapter from -2 to 2", "Mix", "desk",
        footer=4, edge=5),
    Key("train.all", "ctrl+t,alt+m", "train", "Train", "Train every adapter, then the gate, in the background", "Train",
        footer=2),
    Key("train.dialog", "alt+p,M", "train_dialog", "Train as", "Choose what to train and how: LoRA or PiSSA, "
        "selection, rank, both signs", "Train"),
    Key("train.gate", "f5,alt+g,g", "train_gate", "Train gate", "Train only the gate, in seconds", "Train", footer=9),
    Key("train.adapters", "alt+k,a", "adapters", "Adapters", "Versions of the adapters: go back, compare, keep, drop",
        "Train"),
    Key("train.take_in", "alt+r,o", "take_in", "Take in", "Use the adapters and the gate that were trained elsewhere",
        "Train"),
    Key("train.preferences", "alt+j", "train_preferences", "Train preferences", "Train the adapters that have enough "
        "preferences; the marked set shows before and after", "Train"),
    Key("train.sweep", "alt+y,Y", "try_settings", "Try settings", "Try settings on held-out sections; write the best "
        "into the document", "Train"),
    Key("train.evaluate", "alt+v,v", "evaluate", "Judge gate", "Judge the gate by folds: accuracy, confusion, "
        "calibration", "Train", footer=10),
    Key("export.now", "f8,e", "export", "Export", "Export with the last used settings", "Export", footer=4),
    Key("export.dialog", "E", "export_dialog", "Export as", "Choose target, quantisation, mix and destination",
        "Export"),
    Key("export.drift", "alt+d,d", "drift", "Drift", "What freezing the gate for an export costs", "Export"),
    Key("serve.toggle", "alt+s,S", "serve", "Serve", "Answer OpenAI clients, each request routed; press again to stop",
        "Export"),
    Key("serve.traffic", "alt+t,T", "traffic", "Traffic", "The last served requests with their weights; take or label "
        "one", "Export"),
    Key("view.jump", "f2", "jump", "Jump", "Show a letter on every pane; press it to go there", "View", footer=6),
    Key("view.next_page", "f4,right_square_bracket", "page(1)", "Next page", "Next page of the lower or right part",
        "View"),
    Key("view.previous_page", "left_square_bracket", "page(-1)", "", "Previous page", "View"),
    Key("view.narrower", "alt+left,less_than_sign", "resize('width', -2)", "", "Left part narrower", "View"),
    Key("view.wider", "alt+right,greater_than_sign", "resize('width', 2)", "", "Left part wider", "View"),
    Key("view.shorter", "alt+up,minus", "resize('height', -1)", "", "Prompt shorter", "View"),
    Key("view.taller", "alt+down,plus", "resize('height', 1)", "", "Prompt taller", "View"),
    Key("view.reset", "0", "reset_layout", "", "All panes back to their usual size", "View"),
    Key("view.next_answer", "right,n", "next_answer(1)", "Next", "Next answer", "View", "answers", edge=0),
    Key("view.previous_answer", "left", "next_answer(-1)", "Previous", "Previous answer", "View", "answers", edge=2),
    Key("view.columns", "c", "toggle_columns", "Columns", "Answers side by side or one at a time", "View", "answers",
        footer=2, edge=2),
    Key("view.heat", "h", "toggle_heat", "Heat", "Tint answer tokens by how much the mix prefers them over the base",
        "View", "answers", footer=1, edge=1),
    Key("answers.temperature", "t", "screen.other_temperature", "Temperature", "Ask again at the next temperature",
        "Prompt", "answers", footer=7, edge=8),
    Key("answers.diff", "d", "screen.compare_words", "Diff", "Compare this answer with another one, word by word",
        "View", "answers", footer=8, edge=9),
    Key("answers.find", "f", "find", "Find", "Find text in the answers; Enter and the arrows go on, Esc ends it",
        "View", "answers", footer=9, edge=10),
    Key("answers.older", "o", "screen.older_answers(1)", "Older", "The answers to this prompt that were asked for "
        "earlier", "View", "answers", footer=6, edge=6),
    Key("answers.newer", "O", "screen.older_answers(-1)", "Newer", "The answers to this prompt that were asked for "
        "later", "View", "answers", edge=7),
    Key("answers.label", "l,enter", "label_answer", "Label", "Use this answer as the right one for a label", "Prompt",
        "answers", footer=0, edge=4),
    Key("answers.keep", "K", "teach('keep')", "Keep", "Keep this answer as a section of the document", "Prompt",
        "answers", footer=3),
    Key("answers.better", "B", "teach('better')", "Better", "Say that this answer is better than another one", "Prompt",
        "answers", footer=4),
    Key("answers.edit", "e", "teach('edit')", "Edit", "Change this answer and keep it as it should be", "Prompt",
        "answers", footer=5),
    Key("view.copy", "y", "copy", "Copy", "Copy the answer, or the command of the last export", "View", edge=5,
        panes=("answers",)),
    Key("view.screenshot", "P", "save_screenshot", "Screenshot", "Save the screen as an SVG file", "View"),
    Key("outline.add", "a", "change_section('add')", "Add", "Add a section to the document", "View", "outline",
        footer=0, edge=0),
    Key("outline.edit", "e", "change_section('edit')", "Edit", "Change the text of the section", "View", "outline",
        footer=2, edge=1),
    Key("outline.retag", "t", "change_section('retag')", "Retag", "Give the section to another adapter", "View",
        "outline", footer=3, edge=2),
    Key("outline.open", "enter", "open_section", "Editor", "Open the section in $EDITOR at its line", "View", "outline",
        footer=1, edge=4),
    Key("outline.delete", "delete,x", "change_section('delete')", "Delete", "Take the section out", "View", "outline",
        footer=5, edge=5),
    Key("runs.toggle", "space", "toggle_chart", "Chart", "Entropy and weights over runs, or loss of the current run",
        "View", "runs", footer=0, edge=0),
    Key("runs.details", "enter", "run_details", "Details", "How the adapters in force were trained, and what their "
        "selections chose", "View", "runs", footer=1),
    Key("runs.overlay", "o", "overlay_runs", "Overlay", "Lay runs over one another: losses, gate, settings that "
        "differ", "View", "runs", footer=1, edge=1),
    Key("jobs.cancel", "delete,x", "cancel_job", "Cancel job", "Stop the running job, or take the marked one out of "
        "the line", "Train", "jobs", footer=0, edge=0),
    Key("jobs.pause", "p", "pause_line", "Pause", "Stop what runs, to go on later, and hold the line; press again to "
        "go on", "Train", "jobs", footer=1, edge=1),
    Key("jobs.earlier", "shift+up,K", "move_job(-1)", "Earlier", "Let the marked job wait for one less", "Train",
        "jobs", footer=3, edge=4),
    Key("jobs.later", "shift+down,J", "move_job(1)", "Later", "Let the marked job wait for one more", "Train", "jobs",
        footer=4, edge=5),
    Key("jobs.result", "enter", "show_result", "Result", "What came of the marked job", "Train", "jobs", footer=2,
        edge=2),
    Key("view.zoom", "f3,z", "zoom", "Zoom", "Show this pane alone, or everything again", "View", footer=7, edge=3,
        panes=PANES),
    Key("engine.restart", "f12,R", "restart_engine", "Restart engine", "Start the engine again after it failed",
        "Program"),
    Key("app.cancel", "escape", "cancel", "", "Stop the answer; else leave the prompt; else, pressed twice, the job",
        "Program"),
    Key("app.palette", "ctrl+p", "command_palette", "More", "Search all commands", "Program"),
    Key("app.quit", "f10,q", "quit", "Quit", "Leave; asks whether running jobs go on", "Program"),
    Key("app.help", "f1,question_mark", "help", "Help", "All keys", "Program"),
    Key("dialog.close", "escape", "close", "Close", "Close the dialog without doing anything", "Dialogs", "dialog"),
    Key("dialog.quit", "f10", "app.leave", "Quit", "Leave the program; asks whether running jobs go on", "Dialogs",
        "dialog"),
    Key("dialog.accept", "ctrl+g", "accept", "Accept", "Do what the dialog offers", "Dialogs", "dialog"),
    Key("dialog.delete", "f4,delete", "delete", "Delete", "Delete the marked entry", "Dialogs", "dialog"),
    Key("dialog.back", "b", "back", "Back", "All adapters back to before the last training", "Dialogs", "dialog"),
    Key("dialog.mark", "space", "mark", "Mark", "Mark the entry: a version gets a fader and a place in Compare",
        "Dialogs", "dialog"),
    Key("dialog.keep", "k", "keep", "Keep", "Keep the marked version when others are pruned", "Dialogs", "dialog"),
    Key("dialog.moved", "c", "moved", "Moved", "What moved between two versions or two gates: press it on both",
        "Dialogs", "dialog"),
    Key("dialog.run", "f6", "run", "Run", "Run the highlighted set of prompts; write the file", "Dialogs", "dialog"),
    Key("dialog.sort", "s", "sort", "Sort", "Sort by the next column", "Dialogs", "dialog"),
    Key("dialog.expect", "e", "expect", "Expect", "Say what is expected of the answer", "Dialogs", "dialog"),
    Key("dialog.file", "f7", "file", "File", "Read a set from CSV or JSONL, or write one; write results", "Dialogs",
        "dialog"),
    Key("dialog.compare", "ctrl+o", "compare", "Compare", "Answer under the marked mixes", "Dialogs", "dialog"),
    Key("dialog.export", "f5,alt+e", "export", "Export", "Export the marked entry", "Dialogs", "dialog"),
    Key("dialog.beside", "f9", "beside", "Beside", "Lay the entry beside what is shown", "Dialogs", "dialog"),
    Key("runs.curve", "m", "next_curve", "Curve", "Of runs: loss, validation loss, gate loss, entropy, mean weights",
        "Dialogs", "dialog"),
    Key("runs.smooth", "a", "smooth", "Smooth", "Of runs: smooth the curves, more, not at all", "Dialogs", "dialog"),
    Key("runs.log", "l", "logarithmic", "Log", "Of runs: logarithms or values", "Dialogs", "dialog"),
    Key("runs.earlier", "left", "move_cursor(-1)", "", "Of runs: the cursor to an earlier step", "Dialogs", "dialog"),
    Key("runs.later", "right", "move_cursor(1)", "", "Of runs: the cursor to a later step", "Dialogs", "dialog"),
    Key("runs.csv", "w", "save_csv", "CSV", "Of runs: every point, beside the document", "Dialogs", "dialog"),
    Key("runs.svg", "v", "save_svg", "SVG", "Of runs: the chart, beside the document", "Dialogs", "dialog"),
    Key("dialog.first", "1", "pick(1)", "First", "The first of two answers is better", "Dialogs", "dialog"),
    Key("dialog.second", "2", "pick(2)", "Second", "The second of two answers is better", "Dialogs", "dialog"),
    Key("dialog.skip", "0", "pick(0)", "Neither", "Neither of two answers is better", "Dialogs", "dialog"),
    Key("dialog.save", "f3", "save", "Save", "Save the marked entry to the file that is named", "Dialogs", "dialog"),
    Key("trials.write", "f2", "write_best", "Write the best", "Of tried settings: put the best into the document",
        "Dialogs", "dialog"),
    Key("dialog.copy", "f8", "copy_command", "Copy", "Copy the command that the dialog shows", "Dialogs", "dialog"),
)  # fmt: skip

BY_ID: dict[str, Key] = {key.id: key for key in KEYS}

_NAMES = {
    "slash": "/", "question_mark": "?", "left_square_bracket": "[", "right_square_bracket": "]", "minus": "-",
    "full_stop": ".", "plus": "+", "less_than_sign": "<", "greater_than_sign": ">", "escape": "esc", "space": "space",
    "left": "\u2190", "right": "\u2192", "up": "\u2191", "down": "\u2193", "delete": "del", "enter": "enter",
}  # fmt: skip

_MODIFIERS = {"alt", "ctrl", "hyper", "meta", "shift", "super"}
_SPELLED = {shown: name for name, shown in _NAMES.items()}
KEY_NAMES = {
    "backspace", "delete", "down", "end", "enter", "escape", "home", "insert", "left", "pagedown", "pageup", "right",
    "space", "tab", "up", *(f"f{number}" for number in range(1, 25)), *map(_character_to_key, string.punctuation),
}  # fmt: skip
"""What keys of more than one letter are called."""

_UNICODE = {name: unicode_name for unicode_name, name in KEY_NAME_REPLACEMENTS.items()}


def bindings_for(where: Where) -> list[Binding]:
    """The Textual bindings of one place."""
    return [Binding(key.keys, key.action, key.description, show=False, id=key.id) for key in KEYS if key.where == where]


def keys_of(key: Key, remapped: Mapping[str, str]) -> list[str]:
    """The keys in force for a binding."""
    return [part.strip() for part in remapped.get(key.id, key.keys).split(",") if part.strip()]


def key_name(written: str) -> str | None:
    """A key as Textual calls it, of how people write it ("Ctrl+Y", "^y", "F6", "?", "esc"); None if there is none."""
    text = written.strip()
    if text.startswith("^") and len(text) > 1:
        text = f"ctrl+{text[1:]}"
    before, plus, name = text.rpartition("+")
    if plus and not name and (not before or before.endswith("+")):  # the key + itself
        before, name = before[:-1], "+"
    modifiers = sorted(part.strip().lower() for part in before.split("+")) if before else []
    name = name.strip()
    if len(name) == 1 and name.isprintable():
        name = _SPELLED.get(name) or _character_to_key(name)
        if modifiers == ["shift"] and name.isalpha() and len(name) == 1:
            return name.upper()  # with Shift alone a letter is another letter
        name = name.lower() if modifiers else name
    else:
        name = _SPELLED.get(name.lower(), name.lower())
        if name not in KEY_NAMES:
            return None
    return "+".join([*modifiers, name]) if _MODIFIERS.issuperset(modifiers) else None


def is_text(key: str) -> bool:
    """Whether a key types a character where text is edited, so that it is no binding there."""
    character = key_to_character(_UNICODE.get(key, key))
    return character is not None and character.isprintable()


def display(key: str) -> str:
    """A key as a person writes it: `^g`, `F8`, `alt+<-`."""
    *modifiers, name = key.split("+") if key != "+" else ["+"]
    shown = _NAMES.get(name, name.upper() if name.startswith("f") and name[1:].isdigit() else name)
    if modifiers == ["ctrl"]:
        return f"^{shown}"
    return "+".join([*modifiers, shown])
