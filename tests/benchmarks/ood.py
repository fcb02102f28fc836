"""`python -m tests.benchmarks.ood [BASE]`: which statistic tells foreign prompts from the demo's own kinds.

For each statistic, of the demo's probes on the embedded base or on the base in BASE (a folder or GGUF file): how many
of forty foreign prompts it catches, how many of thirty new prompts of the known kinds it flags, how many of the
beginnings of these thirty (two tokens or more, as when they are typed), and how well it separates foreign from known at
any limit (area under the curve). The limit is what 95 % of the held-out probes stay below, where
nothing else is said.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dlm_tui.assets import asset
from dlm_tui.document import Document, load
from dlm_tui.gate.calibration import stratified_folds
from dlm_tui.gate.network import GateNetwork, Standardiser
from dlm_tui.gate.ood import fit_ood
from dlm_tui.gate.probes import trained_probes
from dlm_tui.gate.surprise import Surprise
from dlm_tui.gate.training import fit_document
from dlm_tui.model import MixedModel, load_base, resolve_base
from dlm_tui.progress import run_to_end
from tests.benchmarks.ood_prompts import FOREIGN, LIKE

Score = Callable[[Tensor], Tensor]
Fit = Callable[[Tensor, Tensor], Score]
"""Rows [n, H] float64 and their labels [n] to a function from rows to distances, larger for stranger ones."""
FOLDS = 5


@dataclass(frozen=True)
class Told:
    """Of n prompts: mean hidden states [n, H] float64; predicted tokens, Σ −log p and Σ (log p)² [n, 3] float64."""

    means: Tensor
    surprises: Tensor

    @property
    def surprise(self) -> Tensor:
        """Mean surprise per token [n] in nats."""
        return self.surprises[:, 1] / self.surprises[:, 0]


def tell(model: MixedModel, prompts: Sequence[str], *, beginnings: bool = False) -> Told:
    """Of each prompt, or of every beginning of each that has two tokens or more and is not the whole."""
    means, surprises = [], []
    for prompt in prompts:
        ids = torch.tensor([model.base.encode_raw(prompt)])
        hidden = model.backbone.forward(ids)
        log_p = torch.log_softmax(model.backbone.logits(hidden[:, :-1]).double(), dim=-1)
        news = -log_p.gather(2, ids[:, 1:, None])[0, :, 0]
        for count in range(2, ids.shape[1]) if beginnings else (ids.shape[1],):
            part = news[: count - 1]
            means.append(hidden[0, :count].double().mean(dim=0))
            surprises.append(torch.tensor([count - 1, part.sum(), part.square().sum()], dtype=torch.float64))
    return Told(torch.stack(means), torch.stack(surprises))


def ledoit_wolf(rows: Tensor) -> Tensor:
    """The shrunk covariance [H, H] of centred rows (Ledoit and Wolf 2004)."""
    n, size = rows.shape
    sample = rows.T @ rows / n
    target = sample.diagonal().mean()
    identity = torch.eye(size, dtype=rows.dtype)
    distance = (sample - target * identity).square().sum()
    noise = ((rows.square().T @ rows.square()) / n - sample.square()).sum() / n
    share = float((noise / distance).clamp(0, 1))
    return (1 - share) * sample + share * target * identity


def mahalanobis(rows: Tensor, labels: Tensor) -> Score:
    mean = rows.mean(dim=0)
    inverse = torch.linalg.inv(ledoit_wolf(rows - mean))
    return lambda x: (((x - mean) @ inverse) * (x - mean)).sum(dim=1).sqrt()


def distance_in_use(rows: Tensor, labels: Tensor) -> Score:
    detector = fit_ood(rows, labels.tolist(), 0)
    assert detector is not None
    return detector.distance


def class_mahalanobis(rows: Tensor, labels: Tensor) -> Score:
    means = torch.stack([rows[labels == label].mean(dim=0) for label in labels.unique()])
    inverse = torch.linalg.inv(ledoit_wolf(rows - means[torch.searchsorted(labels.unique(), labels)]))

    def score(x: Tensor) -> Tensor:
        apart = x[:, None] - means
        return torch.einsum("nch,hk,nck->nc", apart, inverse, apart).min(dim=1).values.sqrt()

    return score


def nearest(count: int, *, cosine: bool) -> Fit:
    def fit(rows: Tensor, labels: Tensor) -> Score:
        standard = Standardiser.fit(rows)

        def place(x: Tensor) -> Tensor:
            changed = standard.apply(x).double()
            return changed / changed.norm(dim=1, keepdim=True) if cosine else changed

        known = place(rows)
        return lambda x: torch.cdist(place(x), known).topk(count, largest=False).values.mean(dim=1)

    return fit


def whitened_nearest(count: int) -> Fit:
    """Distance to the nearest training prompts under the shrunk covariance of all."""

    def fit(rows: Tensor, labels: Tensor) -> Score:
        mean = rows.mean(dim=0)
        root = torch.linalg.cholesky(torch.linalg.inv(ledoit_wolf(rows - mean)))
        return lambda x: torch.cdist(x @ root, rows @ root).topk(count, largest=False).values.mean(dim=1)

    return fit


def networks(fit_gate: Callable[[Tensor, Tensor], GateNetwork]) -> dict[str, Fit]:
    def energy(rows: Tensor, labels: Tensor) -> Score:
        network = fit_gate(rows, labels)
        return lambda x: -torch.logsumexp(network.logits(x.float()), dim=1).double().detach()

    def softmax(rows: Tensor, labels: Tensor) -> Score:
        network = fit_gate(rows, labels)
        return lambda x: 1 - network(x.float()).max(dim=1).values.double().detach()

    def inside(rows: Tensor, labels: Tensor) -> Score:
        network = fit_gate(rows, labels)

        def hidden(x: Tensor) -> Tensor:
            return torch.nn.functional.gelu(network.first(x.float())).double().detach()

        score = mahalanobis(hidden(rows), labels)
        return lambda x: score(hidden(x))

    return {"energy of the gate": energy, "1 − largest weight": softmax, "Mahalanobis inside the gate": inside}


def area(foreign: Tensor, like: Tensor) -> float:
    above = (foreign[:, None] > like[None]).double() + 0.5 * (foreign[:, None] == like[None]).double()
    return float(above.mean())


@dataclass(frozen=True)
class Lists:
    """The probes, new prompts of their kinds and the beginnings of these, foreign ones."""

    own: Told
    like: Told
    begun: Told
    foreign: Told


def report(name: str, limit: float, like: Tensor, begun: Tensor, foreign: Tensor) -> None:
    caught, flagged, early = (f"{int((part > limit).sum())} of {len(part)}" for part in (foreign, like, begun))
    print(f"| {name} | {caught} | {flagged} | {early} | {area(foreign, like):.3f} |")


def main() -> int:
    """Print the table as Markdown."""
    document = load(asset("demo") / "harbour.dlm")
    named = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    base = run_to_end(load_base(resolve_base(document.base_model, named), device="cpu", as_stored=True))
    model = MixedModel(base, {})
    probes = trained_probes(document)
    labels = torch.tensor([probe.label for probe in probes])
    own = tell(model, [probe.prompt for probe in probes])
    lists = Lists(own, tell(model, LIKE), tell(model, LIKE, beginnings=True), tell(model, FOREIGN))
    print("| statistic | foreign caught | own kinds flagged | their beginnings | area |\n|---|---|---|---|---|")
    print_distances(document, lists, labels)
    print_surprises(lists, labels)
    return 0


def print_distances(document: Document, lists: Lists, labels: Tensor) -> None:
    """Statistics of the embeddings alone."""
    own = lists.own.means
    probes = trained_probes(document)
    folds = torch.tensor(stratified_folds(labels.tolist(), FOLDS, 0))

    def fit_gate(rows: Tensor, truth: Tensor) -> GateNetwork:
        chosen = [probe for probe, row in zip(probes, own, strict=True) if any(torch.equal(row, one) for one in rows)]
        return run_to_end(fit_document(document, rows.float(), chosen, 0)).network

    fits: dict[str, Fit] = {
        "Mahalanobis, 32 axes": distance_in_use,
        "Mahalanobis, Ledoit–Wolf": mahalanobis,
        "the same to the nearest adapter's mean": class_mahalanobis,
        "nearest prompt, standardised": nearest(1, cosine=False),
        "nearest prompt, cosine": nearest(1, cosine=True),
        "nearest three prompts, cosine": nearest(3, cosine=True),
        "nearest prompt, Ledoit–Wolf": whitened_nearest(1),
        **networks(fit_gate),
    }
    for name, fit in fits.items():
        held = torch.cat([fit(own[folds != k], labels[folds != k])(own[folds == k]) for k in range(FOLDS)])
        score = fit(own, labels)
        limit = float(torch.quantile(held, 0.95))
        report(name, limit, *(score(part.means) for part in (lists.like, lists.begun, lists.foreign)))


def print_surprises(lists: Lists, labels: Tensor) -> None:
    """How surprised the base is, and together with the distance: the last row is what the gate stores and asks."""
    parts = (lists.like, lists.begun, lists.foreign)
    limit = float(torch.quantile(lists.own.surprise, 0.95))
    report("surprise, mean per token", limit, *(part.surprise for part in parts))
    detector = fit_ood(lists.own.means, labels.tolist(), 0, lists.own.surprises)
    assert detector is not None and detector.surprised is not None
    scale = detector.surprised

    def excess(told: Told) -> Tensor:
        count, total, _ = told.surprises.unbind(dim=1)
        return (total - count * scale.mean) / (count.sqrt() * scale.deviation)

    report("surprise, in standard errors", float(torch.quantile(excess(lists.own), 0.95)), *map(excess, parts))

    apart_limit, excess_limit = (float(torch.quantile(x, 0.95)) for x in (detector.held_out, excess(lists.own)))

    def either(told: Told) -> Tensor:
        return torch.maximum(detector.distance(told.means) / apart_limit, excess(told) / excess_limit)

    report("either of 32 axes and surprise in standard errors, 95 % each", 1.0, *map(either, parts))

    def joint(told: Told) -> Tensor:
        pairs = zip(detector.distance(told.means), told.surprises, strict=True)
        return torch.tensor([scale.strangeness(float(d), Surprise(int(s[0]), float(s[1]))) for d, s in pairs])

    report("surprise above 97.5 %, or 1.5 times the farthest distance", 1.0, *map(joint, parts))


if __name__ == "__main__":
    sys.exit(main())
