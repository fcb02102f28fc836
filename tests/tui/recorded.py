"""An engine and jobs without a model: events follow from the request by fixed rules, so every run is the same."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from dlm_tui.document.comparison import AnswerMoved, Moved, VersionComparison
from dlm_tui.engine.client import EngineFailed, EngineGone, ExitInfo
from dlm_tui.engine.protocol import (
    Compare,
    Compared,
    Drift,
    Drifted,
    DriftReport,
    Evaluate,
    Evaluated,
    EvaluateJob,
    EvaluationReport,
    Event,
    Exported,
    ExportJob,
    ExportReport,
    Failed,
    GateTrained,
    Generate,
    Generated,
    GetStatus,
    Hello,
    Imported,
    ImportJob,
    JobRequest,
    Log,
    Looked,
    Message,
    MisroutedPrompt,
    Mixed,
    Open,
    Opened,
    Progress,
    Reload,
    Route,
    Routed,
    RunSet,
    Score,
    Scored,
    SetAnswered,
    SetDone,
    Status,
    Stopped,
    SweepJob,
    SweepReport,
    Swept,
    Token,
    TokenAttribution,
    Trained,
    TrainGate,
    TrainJob,
    TrainReport,
    ViewDone,
    ViewScore,
)
from dlm_tui.export.cost_table import FormatCost
from dlm_tui.export.report import DriftFigures, ParityFigures
from dlm_tui.gate.report import ChangedPrompt, MixCost
from dlm_tui.model.views import View, resolve_view
from dlm_tui.training.report import AdapterOutcome, TrainedGate
from dlm_tui.training.sweep_report import TrialReport

NAMES = ("knowledge", "tone", "style")


def hints(name: str) -> str:
    """The letters that pull towards an adapter in this made-up gate."""
    return {"knowledge": "wht", "tone": "pls", "style": "rim"}[name]


def gate(prompt: str, names: Sequence[str], sharpness: float) -> dict[str, float]:
    """Weights that depend on the letters of the prompt: a stand-in for a gate, smooth in every keystroke."""
    scores = [
        sharpness * sum(prompt.lower().count(letter) for letter in hints(name)) / (len(prompt) + 1) for name in names
    ]
    total = sum(math.exp(score) for score in scores)
    return {name: math.exp(score) / total for name, score in zip(names, scores, strict=True)}


class World:
    """What survives an engine: which adapters are trained and how sharp the gate is."""

    def __init__(self, trained: bool = True) -> None:
        self.trained = trained
        self.sharpness = 12.0
        self.words = 6
        self.dtype = ""  # what answers are decoded in
        self.no_exports: dict[str, str] = {}  # targets that the base cannot have
        self.open_marks = False  # only a route that settles it says that a prompt is unlike the others
        self.holds_at: int | None = None  # the word before which `hold` is cleared, once
        self.dropped = 0
        self.run_last: dict[str, float] | None = None  # the mix that was run last
        self.runs = 0
        self.version = 1
        self.requests: list[Message] = []
        self.fail_open: str | None = None
        self.fail_job: Failed | None = None
        self.open_warning = ""
        self.kept = ""
        self.hold = asyncio.Event()
        self.hold.set()
        self.slow_route: asyncio.Event | None = None
        self.slow_prompt: str | None = None
        self.train_report = train_report()
        self.gate_end: Event | None = None
        self.train_end: Event | None = None  # instead of the report
        self.looks: list[Looked] = []  # taken while the first adapter trains
        self.prefill: asyncio.Event | None = None
        self.measuring: asyncio.Event | None = None
        self.parity: ParityFigures | None = None
        self.comparison: list[FormatCost] = []
        self.drift: DriftFigures | None = None
        self.notes: list[str] = []
        self.registered: str | None = "dlm-harbour:v0001"
        self.register_error: str | None = None
        self.on_trained: Callable[[], None] = lambda: None


class RecordedEngine:
    """The Engine protocol over a World."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.hello: Hello | None = None
        self.log: deque[str] = deque(maxlen=100)
        self._exit: asyncio.Future[ExitInfo] = asyncio.get_running_loop().create_future()
        self._ids = 0
        self._cancelled: set[int] = set()
        self._latest_route = 0

    async def start(self) -> Hello:
        self.hello = Hello(protocol=1, versions={"torch": "2"}, device="cpu", dtype="float32", pid=1)
        return self.hello

    def die(self, signal: str = "SIGKILL") -> None:
        """End as a killed child does."""
        if not self._exit.done():
            self._exit.set_result(ExitInfo(None, signal, ["Killed"]))

    async def stream(self, request: Message) -> AsyncIterator[Event]:
        self._ids += 1
        request.id = self._ids
        self.world.requests.append(request)
        if isinstance(request, Route):
            self._latest_route = request.id
        async for event in self._answer(request):
            if self._exit.done():
                raise EngineGone("the engine ended by SIGKILL")
            if request.id in self._cancelled:
                yield Stopped(id=request.id, reason="cancelled")
                return
            if isinstance(request, Route) and request.id < self._latest_route:
                yield Stopped(id=request.id, reason="superseded")
                return
            event.id = request.id
            yield event

    async def ask(self, request: Message) -> Event:
        last: Event | None = None
        async for event in self.stream(request):
            last = event
        if isinstance(last, Failed):
            raise EngineFailed(last.kind, last.text)
        assert last is not None
        return last

    async def cancel(self, request: Message) -> None:
        self._cancelled.add(request.id)

    async def wait_exit(self) -> ExitInfo:
        return await asyncio.shield(self._exit)

    async def close(self) -> None:
        if not self._exit.done():
            self._exit.set_result(ExitInfo(0, None))

    def weights(self, prompt: str) -> dict[str, float]:
        """The gate's weights of a prompt in this world."""
        return gate(prompt, NAMES, self.world.sharpness if self.world.trained else 0.0)

    async def _answer(self, request: Message) -> AsyncIterator[Event]:
        await asyncio.sleep(0)
        match request:
            case Open() | Reload():
                if self.world.fail_open:
                    yield Failed(kind="MissingModel", text=self.world.fail_open)
                    return
                yield Progress(stage="load", text="reading the base", done=1, total=2, eta=3.0)
                await self._measured()
                yield self._opened()
            case Route():
                slow = self.world.slow_route is not None and self.world.slow_prompt in (None, request.prompt)
                if slow and not request.explain and self.world.slow_route is not None:
                    await self.world.slow_route.wait()
                yield self._routed(request)
            case Generate():
                async for event in self._generate(request):
                    yield event
            case RunSet():
                async for event in self._run_set(request):
                    yield event
            case Score():
                yield Progress(stage="score", done=2, total=8, eta=6.0)
                await self._measured()
                slope = 2.0 if request.completion and "friend" in request.completion else -3.0
                views = [
                    ViewScore(
                        view=view.name,
                        kl=0.42 / (1 + index),
                        js=0.1,
                        z=5.1 - 2 * index,
                        logprob=-40.0 + slope * index if request.completion else None,
                    )
                    for index, view in enumerate(request.views)
                ]
                yield Scored(prompt=request.prompt, views=views, null_mean=0.012, null_std=0.004, nulls=request.nulls)
            case TrainGate():
                for step in range(1, 4):
                    yield Progress(
                        stage="gate",
                        scope="gate",
                        done=step,
                        total=3,
                        loss=1.0 / step,
                        loss_kind="gate",
                        entropy=0.9 - 0.1 * step,
                        eta=12.0 / step,
                    )
                    await self.world.hold.wait()
                self.world.sharpness += 6.0
                self.world.runs += 1
                mean = self.weights("what tide")
                yield self.world.gate_end or GateTrained(
                    mode="trained", reason="36 probes", run_id=self.world.runs, loss=0.3, entropy=0.6,
                    mean_weights=mean, seconds=0.8,
                )  # fmt: skip
            case Evaluate():
                yield Progress(stage="fold", done=1, total=5, eta=8.2)
                await self._measured()
                yield Evaluated(report=EVALUATION)
            case Compare():
                yield Progress(stage="live", done=1, total=2)
                await self._measured()
                yield Compared(result=comparison(request.before, request.after))
            case Drift():
                yield Progress(stage="answers", done=30, total=40, eta=70.0)
                await self._measured()
                yield Drifted(report=DRIFT)
            case GetStatus():
                yield Status(rss=851_443_712, threads=2, tier="fused", uptime=75.0, device="cpu", dtype="float32")
            case _:
                yield Failed(kind="UsageError", text=f"not recorded: {type(request).__name__}")

    async def _measured(self) -> None:
        if self.world.measuring is not None:
            await self.world.measuring.wait()

    def _opened(self) -> Opened:
        trained = self.world.trained
        return Opened(
            adapters=list(NAMES) if trained else [],
            versions=dict.fromkeys(NAMES, self.world.version) if trained else {},
            gate="trained" if trained else "none",
            gate_reason="" if trained else "no gate has been trained yet",
            base="pocket",
            tier="fused",
            device="cpu",
            parameters=2_100_000,
            static=dict.fromkeys(NAMES, 1 / 3) if trained else {},
            warning=self.world.open_warning,
            kept=self.world.kept,
            no_exports=self.world.no_exports,
            dtype=self.world.dtype,
        )

    def _routed(self, request: Route) -> Routed:
        weights = self.weights(request.prompt)
        entropy = -sum(w * math.log(w) for w in weights.values())
        words = request.prompt.split(" ")
        attributions, trajectory, at = [], [], 0
        for index, word in enumerate(words):
            text = word if index == 0 else " " + word
            attribution = {name: 0.05 * sum(word.lower().count(letter) for letter in hints(name)) for name in NAMES}
            attributions.append(TokenAttribution(text=text, start=at, end=at + len(text), attribution=attribution))
            at += len(text)
            trajectory.append(self.weights(" ".join(words[: index + 1])))
        return Routed(
            prompt=request.prompt,
            weights=weights,
            entropy=entropy,
            normalised_entropy=entropy / math.log(3),
            mode="trained" if self.world.trained else "none",
            tokens=len(words),
            ood_score=0.2,
            is_ood="zzz" in request.prompt or (self.world.open_marks and request.settled),
            settled=request.settled or request.explain or not self.world.open_marks,
            attributions=attributions if request.explain else None,
            trajectory=trajectory if request.explain else None,
        )

    def word(self, request: Generate, view: View, sample: int, step: int) -> str:
        """A word of an answer; the seed is heard where answers are sampled."""
        heard = f" {request.seed + sample}" if request.temperature else ""
        return f"{view.name}{heard} word{step} "

    async def _run_set(self, request: RunSet) -> AsyncIterator[Event]:
        """Answers that are others after every training, each with its own log-probability."""
        total, runs = len(request.prompts) * len(request.views), self.world.runs
        former = {(item.prompt, item.view) for item in request.former}
        for index, prompt in enumerate(request.prompts):
            yield Progress(stage="prompts", done=index * len(request.views), total=total, eta=3.0)
            await self.world.hold.wait()
            weights = self.weights(prompt)
            for view, number in zip(request.views, request.seeds or [request.seed] * len(request.views), strict=True):
                seed = f" by {number}" if number else ""
                told = f"{view.name}{seed} says {prompt}" + (f" after {runs} trainings" if index else "")
                mix = resolve_view(view, NAMES if self.world.trained else (), weights)
                yield SetAnswered(
                    prompt=index, view=view.name, seed=number, text=told, token_ids=[index + 1, runs + 1],
                    reason="stop", weights=weights, mix=mix, logprob=-2.0 - index,
                    former_logprob=-2.0 - index - runs if (index, view.name) in former else None,
                )  # fmt: skip
        versions = dict.fromkeys(NAMES, self.world.version) if self.world.trained else {}
        yield SetDone(versions=versions, base="pocket", seconds=0.4, seed=request.seed)

    async def _generate(self, request: Generate) -> AsyncIterator[Event]:
        weights = self.weights(request.prompt)
        trained = NAMES if self.world.trained else ()
        yield Mixed(mixes={view.name: resolve_view(view, trained, weights) for view in request.views}, weights=weights)
        if self.world.prefill is not None:
            yield Progress(stage="prefill", done=128, total=300, eta=2.0)
            await self.world.prefill.wait()
        rows = [(view, sample) for view in request.views for sample in range(request.samples)]
        for step in range(self.world.words):
            if step == self.world.holds_at:
                self.world.hold.clear()
            await self.world.hold.wait()
            await asyncio.sleep(0)
            for view, sample in rows:
                yield Token(
                    view=view.name,
                    text=self.word(request, view, sample, step),
                    heat=0.8 * step if request.heat else None,
                    sample=sample,
                    token_ids=[step],
                )
        for view, sample in rows:
            text = "".join(self.word(request, view, sample, step) for step in range(self.world.words))
            mix = resolve_view(view, trained, weights)
            yield ViewDone(
                view=view.name,
                text=text,
                tokens=self.world.words,
                reason="stop",
                mix=mix,
                sample=sample,
                seed=request.seed + sample,
                prompt_tokens=self.tokens(request),
                run_tokens=self.tokens(request) if mix != self.world.run_last else len(request.prompt.split()),
            )
            self.world.run_last = mix
        yield Generated(
            weights=weights, seconds=0.3, seed=request.seed, dropped=self.world.dropped, prefill_seconds=0.2
        )

    def tokens(self, request: Generate) -> int:
        """A token for every word that is asked, past turns included."""
        said = [text for turn in request.before for text in (turn.prompt, turn.answer)]
        return sum(len(text.split()) for text in (*said, request.prompt))


def swept(written: bool = False) -> SweepReport:
    """What four trials of two settings came to; the third is the best."""
    figures = ((2.31, 0.02), (2.30, 0.02), (1.87, 0.41), (1.92, 0.47))
    grid = [(rate, rank) for rate in ("1e-4", "3e-4") for rank in ("8", "16")]
    return SweepReport(
        run_id=7,
        by="loss",
        folds=5,
        seed=42,
        trials=[
            TrialReport(
                settings={"learning_rate": rate, "lora_r": rank},
                loss=loss,
                base_loss=2.4,
                effect=effect,
                accuracy=0.92,
                log_loss=0.31,
            )
            for (rate, rank), (loss, effect) in zip(grid, figures, strict=True)
        ],
        best=2,
        works=40,
        fresh=40,
        notes=[],
        seconds=12.0,
        written={"adapters.knowledge.lora_r": "8"} if written else None,
        reason="learning_rate 3e-4, lora_r 8: held-out loss 1.87 nats per token, the lowest of 4 trials over 5 folds",
    )


class RecordedJob:
    """A training or an export that takes as long as the test wants."""

    def __init__(self, world: World, request: JobRequest) -> None:
        self.world, self.request = world, request
        self.log: deque[str] = deque()
        self._stop = asyncio.Event()

    async def events(self) -> AsyncIterator[Event]:
        yield Log(text="loading the base")
        if self.world.fail_job:
            yield self.world.fail_job
            return
        scopes = [*NAMES, "gate"] if isinstance(self.request, TrainJob) else ["weights", "manifest"]
        for index, scope in enumerate(scopes):
            loss = 2.0 - 0.4 * index if isinstance(self.request, TrainJob) else None
            kind = "gate" if scope == "gate" else "sft"
            yield Progress(
                stage="train" if loss else "write",
                scope=scope,
                done=index + 1,
                total=len(scopes),
                loss=loss,
                loss_kind=kind,
                eta=4.0 - index,
            )
            for look in self.world.looks if isinstance(self.request, TrainJob) and index == 0 else ():
                yield look
            yield Log(text=f"{scope}: done")
            hold = asyncio.ensure_future(self.world.hold.wait())
            stop = asyncio.ensure_future(self._stop.wait())
            await asyncio.wait({hold, stop}, return_when=asyncio.FIRST_COMPLETED)
            for task in (hold, stop):
                task.cancel()
            if self._stop.is_set():
                yield Stopped(reason="cancelled")
                return
        if isinstance(self.request, EvaluateJob):
            yield Evaluated(report=EVALUATION)
        elif isinstance(self.request, ImportJob):
            self.world.on_trained()
            yield Imported(name=self.request.name, version=1, rank=8, declared=True)
        elif isinstance(self.request, SweepJob):
            yield Swept(report=swept(self.request.write))
        elif isinstance(self.request, TrainJob):
            self.world.version += self.world.trained
            self.world.trained = True
            self.world.runs += 1
            self.world.sharpness += 3.0
            self.world.on_trained()
            yield self.world.train_end or Trained(report=self.world.train_report)
        elif isinstance(self.request, ExportJob):
            folder = self.request.out or str(Path("exports") / self.request.target)
            command = f"vllm serve base --lora-modules mix={folder}"
            report = ExportReport(folder=folder, next_command=command, parity=self.world.parity, drift=self.world.drift)
            report.notes = list(self.world.notes)
            if self.request.compare:
                report = ExportReport(folder="", next_command="", comparison=self.world.comparison)
            if self.request.register:
                report.registered, report.register_error = self.world.registered, self.world.register_error
            yield Exported(report=report)

    async def cancel(self) -> str:
        self._stop.set()
        return "stopped when asked"


EVALUATION = EvaluationReport(
    folds=5,
    prompts=36,
    adapters=list(NAMES),
    samples=dict.fromkeys(NAMES, 12),
    accuracy=0.92,
    log_loss=0.31,
    ece=0.04,
    ece_bins=10,
    held_out_entropy=0.4,
    confusion={"knowledge": {"knowledge": 12, "tone": 0, "style": 0},
               "tone": {"knowledge": 1, "tone": 11, "style": 0},
               "style": {"knowledge": 0, "tone": 2, "style": 10}},
    confused_lines={"tone": {"knowledge": [9]}},
    mean_weights={"knowledge": 0.35, "tone": 0.34, "style": 0.31},
    mean_entropy=0.42,
    normalised_entropy=0.38,
    gate="trained",
    collapsed=None,
    collapse_floor=0.1,
    cold_start=None,
    temperature=None,
    ood=None,
    verdict="healthy",
    misrouted=[
        MisroutedPrompt(
            line=9, adapter="tone", routed="knowledge", weight=0.2, weights={}, prompt="Say good morning"
        )
    ],
)  # fmt: skip
DRIFT = DriftReport(
    prompts=36,
    training_prompts=36,
    saved_prompts=0,
    answers=36,
    answer_tokens=24,
    adapters=list(NAMES),
    frozen=MixCost(mix={"knowledge": 0.35, "tone": 0.34, "style": 0.31}, kl=0.21, kl_max=1.2, changed_answers=0.3),
    uniform=MixCost(mix={"knowledge": 0.33, "tone": 0.33, "style": 0.33}, kl=0.25, kl_max=1.3, changed_answers=0.36),
    best_static=MixCost(mix={"knowledge": 0.5, "tone": 0.3, "style": 0.2}, kl=0.17, kl_max=1.1, changed_answers=None),
    kept=0.16,
    verdict="Freezing keeps most of what the gate learned.",
    most_changed=[ChangedPrompt(prompt="Say good morning", line=9, kl=1.2, weights={})],
)


def comparison(before: str, after: str) -> VersionComparison:
    """What moved between two gates, or two versions of an adapter."""
    found = VersionComparison(before=before, after=after)
    if before.startswith("gate"):
        calm, other = {"knowledge": 0.7, "tone": 0.2, "style": 0.1}, {"knowledge": 0.1, "tone": 0.2, "style": 0.7}
        found.moved = [Moved("what is high water", calm, calm, True), Moved("rime me a mast", calm, other)]
    else:
        found.answers = [
            AnswerMoved(text="what is high water", saved=True, before=0.5, after=0.75),
            AnswerMoved(text="How deep is it?", saved=False, before=0.2, after=1.4, before_gain=0.31, after_gain=2.25),
        ]
    return found


def train_report(
    gate_warning: str = "", gate_error: str | None = None, mode: str = "trained", reason: str = "36 probes"
) -> TrainReport:
    """A training of all adapters and of the gate; with `gate_error` the gate was not trained."""
    outcome = AdapterOutcome(run_id=1, version=1, steps=4, train_loss=0.5, val_loss=None)
    gate = TrainedGate(
        mode=mode, reason=reason, run_id=3, loss=0.3, entropy=0.6,
        mean_weights=dict.fromkeys(NAMES, 1 / 3), warning=gate_warning,
    )  # fmt: skip
    return TrainReport(
        dlm_id="d", seed=7, adapters=dict.fromkeys(NAMES, outcome), gate=None if gate_error else gate,
        gate_error=gate_error, notes=[], seconds=1.0,
    )  # fmt: skip
