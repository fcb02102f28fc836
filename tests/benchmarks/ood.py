"""`python -m tests.benchmarks.ood [BASE]`: which statistic tells foreign prompts from the demo's own kinds.

For each statistic, of the demo's probes on the embedded base or on the base in BASE (a folder or GGUF file): how many
of forty foreign prompts it catches, how many of thirty new prompts of the known kinds it flags, and how well it
separates the two at any limit (area under the curve). The limit is what 95 % of the held-out probes stay below.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dlm_tui.assets import asset
from dlm_tui.document import Document, load
from dlm_tui.gate.calibration import stratified_folds
from dlm_tui.gate.network import GateNetwork, Standardiser
from dlm_tui.gate.ood import fit_ood
from dlm_tui.gate.probes import trained_probes
from dlm_tui.gate.training import fit_document
from dlm_tui.model import MixedModel, load_base, resolve_base
from dlm_tui.progress import run_to_end
from tests.benchmarks.ood_prompts import FOREIGN, LIKE

Score = Callable[[Tensor], Tensor]
Fit = Callable[[Tensor, Tensor], Score]
"""Rows [n, H] float64 and their labels [n] to a function from rows to distances, larger for stranger ones."""
FOLDS = 5


def embed(model: MixedModel, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Mean hidden states [n, H] and mean surprise per token [n] in nats."""
    means, surprises = [], []
    for prompt in prompts:
        ids = torch.tensor([model.base.encode_raw(prompt)])
        hidden = model.backbone.forward(ids)
        means.append(hidden[0].double().mean(dim=0))
        log_p = torch.log_softmax(model.backbone.logits(hidden[:, :-1]).double(), dim=-1)
        surprises.append(-log_p.gather(2, ids[:, 1:, None]).mean())
    return torch.stack(means), torch.stack(surprises)


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


def in_use(rows: Tensor, labels: Tensor) -> Score:
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


def report(name: str, held: Tensor, like: Tensor, foreign: Tensor) -> None:
    limit = torch.quantile(held, 0.95)
    caught, flagged = int((foreign > limit).sum()), int((like > limit).sum())
    print(f"| {name} | {caught} of {len(foreign)} | {flagged} of {len(like)} | {area(foreign, like):.3f} |")


def main() -> int:
    """Print the table as Markdown."""
    document = load(asset("demo") / "harbour.dlm")
    named = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    base = run_to_end(load_base(resolve_base(document.base_model, named), device="cpu", as_stored=True))
    model = MixedModel(base, {})
    probes = trained_probes(document)
    labels = torch.tensor([probe.label for probe in probes])
    own, own_surprise = embed(model, [probe.prompt for probe in probes])
    like, like_surprise = embed(model, LIKE)
    foreign, foreign_surprise = embed(model, FOREIGN)
    print_table(document, own, labels, like, foreign)
    report("surprise of the prompt under the base", own_surprise, like_surprise, foreign_surprise)
    return 0


def print_table(document: Document, own: Tensor, labels: Tensor, like: Tensor, foreign: Tensor) -> None:
    probes = trained_probes(document)
    folds = torch.tensor(stratified_folds(labels.tolist(), FOLDS, 0))

    def fit_gate(rows: Tensor, truth: Tensor) -> GateNetwork:
        chosen = [probe for probe, row in zip(probes, own, strict=True) if any(torch.equal(row, one) for one in rows)]
        return run_to_end(fit_document(document, rows.float(), chosen, 0)).network

    fits: dict[str, Fit] = {
        "Mahalanobis, 32 axes (in use)": in_use,
        "Mahalanobis, Ledoit–Wolf": mahalanobis,
        "the same to the nearest adapter's mean": class_mahalanobis,
        "nearest prompt, standardised": nearest(1, cosine=False),
        "nearest prompt, cosine": nearest(1, cosine=True),
        "nearest three prompts, cosine": nearest(3, cosine=True),
        "nearest prompt, Ledoit–Wolf": whitened_nearest(1),
        **networks(fit_gate),
    }
    print("| statistic | foreign caught | own kinds flagged | area |\n|---|---|---|---|")
    for name, fit in fits.items():
        held = torch.cat([fit(own[folds != k], labels[folds != k])(own[folds == k]) for k in range(FOLDS)])
        score = fit(own, labels)
        report(name, held, score(like), score(foreign))


if __name__ == "__main__":
    sys.exit(main())
