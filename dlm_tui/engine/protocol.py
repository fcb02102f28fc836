"""The wire between the screen and its children: one typed JSON object per line, both ways.

Requests carry an `id` chosen by the client; every event names the request it belongs to. A request ends with exactly
one of its final events (`Opened`, `Routed`, `Generated`, `SetDone`, `Scored`, `GateTrained`, `Evaluated`, `Compared`,
`Drifted`, `Status`, `Trained`, `Exported`, `Swept`, `Imported`), or with `Failed` or `Stopped`. Routing is latest wins:
a route that was overtaken ends with `Stopped`.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from dlm_tui.document import TrainerSettings
from dlm_tui.document.comparison import VersionComparison
from dlm_tui.export.cost_table import FormatCost

# The reports are part of the wire: the screen has them from here.
from dlm_tui.export.report import DriftFigures as DriftFigures
from dlm_tui.export.report import ExportReport as ExportReport
from dlm_tui.gate.report import DriftReport as DriftReport
from dlm_tui.gate.report import EvaluationReport as EvaluationReport
from dlm_tui.gate.report import MisroutedPrompt as MisroutedPrompt
from dlm_tui.model.views import View
from dlm_tui.progress import EarlyLook as EarlyLook
from dlm_tui.store import Turn as Turn
from dlm_tui.store.adapter_kind import KindChoices
from dlm_tui.training.report import TrainReport as TrainReport
from dlm_tui.training.sweep_report import By
from dlm_tui.training.sweep_report import SweepReport as SweepReport

PROTOCOL = 1


class Message(msgspec.Struct, kw_only=True, tag_field="type", forbid_unknown_fields=False):
    """Anything on the wire. `at` is when a job in line said it, in seconds since 1970; 0 where nobody noted that."""

    id: int = 0
    at: float = 0.0


# ---- requests to the engine ----


class Open(Message, tag="open"):
    """Load the base, the committed adapters and the gate of a document; `dtype` is what answers are decoded in."""

    document: str
    home: str
    base: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"


class Reload(Message, tag="reload"):
    """Read the document, the adapters and the gate again, keeping the base."""


class Route(Message, tag="route"):
    """Gate weights of a prompt; with `explain` also pulls and the trajectory.

    `settled`, and `explain` too: the mark of unlike prompts goes by all of the prompt. Without them it costs nothing.
    """

    prompt: str
    explain: bool = False
    settled: bool = False


class Generate(Message, tag="generate"):
    """Answer a prompt under several views at once, one batch row each.

    With `samples` every view has that many rows, the k-th (from 0) drawn with seed + k, exactly as it would be alone.
    `before` are the past turns of the conversation, oldest first. The gate is asked about `prompt` alone, which is the
    newest message, so a `Route` needs none of them.
    """

    prompt: str
    views: list[View]
    samples: int = 1
    before: list[Turn] = []
    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    heat: bool = False


class FormerAnswer(msgspec.Struct, kw_only=True):
    """The answer that a prompt (its index) had under a view before, as token ids."""

    prompt: int
    view: str
    token_ids: list[int]


class RunSet(Message, tag="run_set"):
    """Answer every prompt under every view, in batches, and score each answer and the one before; `seeds` gives each
    view a seed of its own."""

    prompts: list[str]
    views: list[View]
    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    seeds: list[int] = []
    former: list[FormerAnswer] = []


class Score(Message, tag="score"):
    """How much the views change the next token of a prompt, against `nulls` random adapters."""

    prompt: str
    views: list[View]
    completion: str | None = None
    nulls: int = 16


class TrainGate(Message, tag="train_gate"):
    """Train only the gate, here in the resident process, and use it at once."""

    seed: int | None = None


class Evaluate(Message, tag="evaluate"):
    """k-fold judgement of the gate."""

    folds: int = 5


class Compare(Message, tag="compare"):
    """What moved between two gates or two versions of one adapter, named as in `adapter compare`."""

    before: str
    after: str


class Drift(Message, tag="drift"):
    """What freezing the gate costs, over the training prompts and these prompts."""

    prompts: list[str] = []


class GetStatus(Message, tag="get_status"):
    """Memory, threads, tier and the like; also the empty request of the round-trip benchmark."""


class Cancel(Message, tag="cancel"):
    """Stop the request whose id is `target`; it ends with `Stopped`."""

    target: int


class TrainJob(Message, tag="train_job"):
    """To a job child: train adapters, each in its kind, then the gate; `calibration` is a file of prompt sets.

    `resume` goes on with the interrupted training. `trainer` takes the place of the side file's settings. `receipt` is
    a file of the store that is written in the change that puts the adapters in force: where it is there already, only
    what comes after that is left to do."""

    document: str
    home: str
    base: str | None = None
    adapters: list[str] | None = None
    gate_only: bool = False
    choices: KindChoices = KindChoices()
    calibration: str | None = None
    resume: bool = False
    checkpoint_steps: int | None = None
    trainer: TrainerSettings | None = None
    receipt: str | None = None


class EvaluateJob(Message, tag="evaluate_job"):
    """To a job child: k-fold judgement of the gate."""

    document: str
    home: str
    base: str | None = None
    folds: int = 5


class ExportJob(Message, tag="export_job"):
    """To a job child: export the document; `register` hands a finished export for Ollama to the `ollama` there is.

    `compare` measures what each format costs and exports nothing; cancelled, it answers with the lines it has.
    `comparison` is what was measured before this format was chosen, for the manifest."""

    document: str
    home: str
    base: str | None = None
    target: str = "peft"
    quant: str | None = None
    mix: str | None = None
    adapter: str | None = None
    signed: bool = False
    out: str | None = None
    verify: bool | None = None
    legacy_adapter: bool = False
    register: bool = False
    compare: bool = False
    comparison: list[FormatCost] = []


class SweepJob(Message, tag="sweep_job"):
    """To a job child: try settings, each as `PATH=V,V` below `training`, on held-out sections; one that was ended goes
    on with what is missing."""

    document: str
    home: str
    base: str | None = None
    settings: list[str] = []
    folds: int = 5
    by: By | None = None
    write: bool = False


class ImportJob(Message, tag="import_job"):
    """To a job child: take in an adapter that was trained elsewhere, as a new version of one that exists. `source` is a
    PEFT folder, a modulated checkpoint, or `hf:org/name`."""

    document: str
    home: str
    base: str | None = None
    name: str = ""
    source: str = ""


JobRequest = TrainJob | EvaluateJob | ExportJob | SweepJob | ImportJob
"""What a job child does."""

Request = (
    Open
    | Reload
    | Route
    | Generate
    | RunSet
    | Score
    | TrainGate
    | Evaluate
    | Compare
    | Drift
    | GetStatus
    | Cancel
    | JobRequest
)


# ---- events from a child ----


class Hello(Message, tag="hello"):
    """The first line a child writes."""

    protocol: int
    versions: dict[str, str]
    device: str
    dtype: str
    pid: int


class Progress(Message, tag="progress"):
    """A step of long work; `eta` in seconds if known, `loss` in the unit of its `loss_kind` (a key of `losses.UNITS`),
    `scope` an adapter or "gate"."""

    stage: str
    done: float = 0.0
    total: float = 0.0
    scope: str | None = None
    loss: float | None = None
    entropy: float | None = None
    eta: float | None = None
    text: str | None = None
    loss_kind: str | None = None


class Looked(Message, tag="looked"):
    """How the adapter `scope` answers in the middle of its training, and its loss on held-out rows."""

    scope: str
    look: EarlyLook


class Log(Message, tag="log"):
    """A line for the log pane."""

    text: str
    level: Literal["info", "warning", "error"] = "info"


class Opened(Message, tag="opened"):
    """The document is resident. `gate` as GateState.mode or "stale"; versions per adapter; `warning` tells what went
    wrong on the way without keeping the document from being used, else empty; `kept` how the base's weights are where
    that is not as usual: nf4, int8, …, "on disk"; `dtype` what answers are decoded in, as in Status;
    `no_exports` the targets that this base cannot be exported to, each with the reason."""

    adapters: list[str]
    versions: dict[str, int]
    gate: str
    gate_reason: str
    base: str
    tier: str
    device: str
    parameters: int
    static: dict[str, float]
    warning: str = ""
    kept: str = ""
    dtype: str = ""
    no_exports: dict[str, str] = {}


class TokenAttribution(msgspec.Struct, kw_only=True):
    """One prompt token: its text and, per adapter, how strongly it pulls that weight (weight units, first order)."""

    text: str
    start: int
    end: int
    attribution: dict[str, float]


class Routed(Message, tag="routed"):
    """Gate weights; entropy in nats and divided by ln N; `ood_score` in [0, 1], None without calibration.

    `settled`: score and mark go by all of the prompt; else a `Route` that is to settle them has more to tell.
    """

    prompt: str
    weights: dict[str, float]
    entropy: float
    normalised_entropy: float
    mode: str
    tokens: int
    truncated: bool = False
    ood_score: float | None = None
    is_ood: bool = False
    settled: bool = True
    attributions: list[TokenAttribution] | None = None
    trajectory: list[dict[str, float]] | None = None
    seconds: float = 0.0


class Mixed(Message, tag="mixed"):
    """What answers are computed with, before their first token: the mix of every view, and the gate's weights if one
    asks for them."""

    mixes: dict[str, dict[str, float]]
    weights: dict[str, float]


class Token(Message, tag="token"):
    """A piece of an answer, of the view's `sample`-th row. `heat` = log p(view) − log p(base) of this token, nats, when
    asked for. `token_ids` are those since the piece before: a character may need several."""

    view: str
    text: str
    heat: float | None = None
    sample: int = 0
    token_ids: list[int] = []


class ViewDone(Message, tag="view_done"):
    """One answer of a view is complete; `reason` is "stop", "length" or "context". `seed` is its own. Of its
    `prompt_tokens` `run_tokens` had to be run under this mix."""

    view: str
    text: str
    tokens: int
    reason: str
    mix: dict[str, float]
    sample: int = 0
    seed: int = 0
    prompt_tokens: int = 0
    run_tokens: int = 0


class Generated(Message, tag="generated"):
    """All views are complete. `dropped` of the past turns did not fit the context; `prefill_seconds` went into running
    what came before the answers."""

    weights: dict[str, float]
    seconds: float
    seed: int
    dropped: int = 0
    prefill_seconds: float = 0.0


class SetAnswered(Message, tag="set_answered"):
    """One prompt (its index) of a set under one view; fields as in `store.SetAnswer`."""

    prompt: int
    view: str
    seed: int
    text: str
    token_ids: list[int]
    reason: str
    weights: dict[str, float]
    mix: dict[str, float]
    logprob: float | None = None
    former_logprob: float | None = None


class SetDone(Message, tag="set_done"):
    """The set is through: under these adapter versions, on this base."""

    versions: dict[str, int]
    base: str
    seconds: float
    seed: int


class ViewScore(msgspec.Struct, kw_only=True):
    """Effect of a view on the next token: KL and JS to the base (nats), z against null adapters, completion logprob."""

    view: str
    kl: float
    js: float
    z: float | None = None
    logprob: float | None = None
    base_logprob: float | None = None


class Scored(Message, tag="scored"):
    """Scores of all views and the null distribution's mean and deviation (nats)."""

    prompt: str
    views: list[ViewScore]
    null_mean: float | None = None
    null_std: float | None = None
    nulls: int = 0


class GateTrained(Message, tag="gate_trained"):
    """The new gate is in force (`mode` trained or uniform), or was refused (`diverged`: the old one stays).

    `loss` in nats per prompt, `entropy` in nats.
    """

    mode: str
    reason: str
    run_id: int
    loss: float | None
    entropy: float | None
    mean_weights: dict[str, float]
    seconds: float
    warning: str = ""


class Evaluated(Message, tag="evaluated"):
    """The report of `dlm-tui eval --json`."""

    report: EvaluationReport


class Compared(Message, tag="compared"):
    """Saved prompts, and prompts or answers of the document, under both."""

    result: VersionComparison


class Drifted(Message, tag="drifted"):
    """The report of `dlm-tui drift --json`."""

    report: DriftReport


class Status(Message, tag="status"):
    """About the engine: resident bytes, compute threads, tier (`tier_reason`: why it is not the quickest, else empty),
    device, seconds since start; `dtype` is what answers are decoded in, `cache` the bytes of keys and
    values kept for the next prompt and answer, `ood` the statistics by which prompts are marked as unlike the training
    prompts (none: they are not)."""

    rss: int
    threads: int
    tier: str
    uptime: float
    device: str
    dtype: str = ""
    cache: int = 0
    tier_reason: str = ""
    ood: tuple[str, ...] = ()


class Trained(Message, tag="trained"):
    """A training job's result: the report of `dlm-tui train --json`."""

    report: TrainReport


class Exported(Message, tag="exported"):
    """An export job's result."""

    report: ExportReport


class Swept(Message, tag="swept"):
    """A sweep job's result: the report of `dlm-tui sweep --json`."""

    report: SweepReport


class Imported(Message, tag="imported"):
    """An import job's result: the adapter is in force. `declared`: the document was given a line for it; `notes` are
    sentences."""

    name: str
    version: int
    rank: int
    declared: bool = False
    notes: list[str] = []


class Stopped(Message, tag="stopped"):
    """Ended before its result: overtaken by a newer route, or cancelled; `text` says what a cancelled job left."""

    reason: Literal["superseded", "cancelled"]
    text: str = ""


class Failed(Message, tag="failed"):
    """Ended with an error; `kind` is the error class, `text` one sentence."""

    kind: str
    text: str


Event = (
    Hello
    | Progress
    | Looked
    | Log
    | Opened
    | Routed
    | Mixed
    | Token
    | ViewDone
    | Generated
    | SetAnswered
    | SetDone
    | Scored
    | GateTrained
    | Evaluated
    | Compared
    | Drifted
    | Status
    | Trained
    | Exported
    | Swept
    | Imported
    | Stopped
    | Failed
)

FINAL_EVENTS = (
    Opened,
    Routed,
    Generated,
    SetDone,
    Scored,
    GateTrained,
    Evaluated,
    Compared,
    Drifted,
    Status,
    Trained,
    Exported,
    Swept,
    Imported,
    Stopped,
    Failed,
)
"""Every request ends with exactly one of these."""


class _Envelope(msgspec.Struct):
    """What every line says about itself, whatever else is in it."""

    type: str
    id: int = 0


_FINAL_TAGS = frozenset(kind.__struct_config__.tag for kind in FINAL_EVENTS)
_encoder = msgspec.json.Encoder()
_requests: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)
_events: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


def encode(message: Message) -> bytes:
    """One line, ending in a line feed. JSON escapes keep line feeds inside strings out of the framing."""
    return _encoder.encode(message) + b"\n"


def decode_request(line: bytes) -> Request:
    """Raises msgspec.DecodeError on anything that is not a request."""
    return _requests.decode(line)


def decode_event(line: bytes) -> Event:
    """Raises msgspec.DecodeError on anything that is not an event."""
    return _events.decode(line)


def unreadable(line: bytes, error: msgspec.DecodeError) -> Failed | None:
    """The end of the request that an unreadable line was to end, so that nobody waits for it; None for other lines."""
    try:
        envelope = msgspec.json.decode(line, type=_Envelope)
    except msgspec.DecodeError:
        return None
    if envelope.type not in _FINAL_TAGS:
        return None
    return Failed(id=envelope.id, kind="UnreadableEvent", text=f"the answer {envelope.type!r} cannot be read: {error}")
