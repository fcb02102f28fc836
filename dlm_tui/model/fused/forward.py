"""The fused tier: one hand-written forward for every described family, several times quicker than the library's.

It computes what transformers computes, with fused projections, a preallocated cache and rotary tables. It is only
used for a base after a self-check against the reference (see `backend_selection`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from dlm_tui.model.backbone import KVCache
from dlm_tui.model.base import Base
from dlm_tui.model.fused.compiled_decode import MOST_TOKENS, Addition, CompiledDecode, project
from dlm_tui.model.fused.cuda_graph import DecodeGraphs
from dlm_tui.model.fused.kv_cache import FusedKVCache, Plan
from dlm_tui.model.fused.weights import FusedExperts, FusedLayer, FusedLinear, FusedWeights
from dlm_tui.model.head import Head
from dlm_tui.model.linear import linear_for
from dlm_tui.model.mixer import Mixer
from dlm_tui.model.pages import release_pages
from dlm_tui.model.stored import widened_product

_ALL_NEAR = (False,)


class FusedBackbone:
    """Hidden states of a base under per-row mixes; no gradients.

    Without coefficients, or when all are 0, no adapter arithmetic runs at all. In a mixed batch a row of zeros gets
    exactly 0.0 added at every layer, so it equals the same row of the same batch run without adapters (only the sign
    of a zero may differ).
    """

    tier = "fused"

    def __init__(
        self,
        base: Base,
        weights: FusedWeights,
        mixer: Mixer,
        *,
        compiled: bool = False,
        uses_bf16_weights: bool = False,
    ) -> None:
        """`compiled`: up to `MOST_TOKENS` tokens at a time go through the compiled step (see `step.fits`).

        `uses_bf16_weights`: that step reads the weights as bfloat16; it shares its caches with one that does not.
        """
        self.base = base
        self.weights = weights
        self.mixer = mixer
        self.hidden_size = base.hidden_size
        self.vocab_size = base.vocab_size
        self._linear = linear_for(weights.device, weights.dtype)
        self._head = Head(base, self._to_vocabulary, weights.dtype)
        with torch.no_grad():
            self._additions = [tuple(self._addition(group) for group in layer.groups) for layer in weights.layers]
            self._tokens = mixer.stack(weights.embedding_name) if mixer.members(weights.embedding_name) else None
        self.reads = torch.bfloat16 if uses_bf16_weights else weights.dtype
        """What a weight is read as for a few tokens; everything else is in the weights' own dtype."""
        self._step = CompiledDecode(weights, self._additions, uses_bf16_weights=uses_bf16_weights) if compiled else None
        # one token at a time a GPU mostly waits for the host to launch some thousand kernels; recorded, they are one
        recorded = weights.device.type == "cuda" and weights.switch is None  # a recorded step has one rotary table
        self.graphs = DecodeGraphs(self, record=True) if recorded else None

    @property
    def device(self) -> torch.device:
        return self.weights.device

    @property
    def columns(self) -> int:
        return self.mixer.columns

    def new_cache(self, batch: int, capacity: int = 0) -> FusedKVCache:
        weights = self.weights
        shape = (len(weights.layers), weights.kv_heads, weights.head_dim)
        return FusedKVCache(batch, capacity, shape, weights.dtype, weights.device)

    @torch.no_grad()
    def forward(
        self,
        ids: Tensor,
        cache: KVCache | None = None,
        coefficients: Tensor | None = None,
        *,
        lengths: Sequence[int] | None = None,
    ) -> Tensor:
        batch, count = ids.shape
        kv = cache if cache is not None else self.new_cache(batch, count)
        if not isinstance(kv, FusedKVCache):
            raise TypeError("this cache belongs to another tier")
        plan = kv.plan(count, batch, lengths)
        if self.weights.switch is None:
            hidden = self._pass(ids, kv, plan, coefficients)
        else:
            far = self._turned(kv, plan, coefficients, self.weights.switch)
            hidden = self._pass(ids, kv, plan, coefficients, far)
            kv.note(ids, plan)
        kv.advance(plan)
        return hidden

    def _pass(
        self,
        ids: Tensor,
        kv: FusedKVCache,
        plan: Plan,
        coefficients: Tensor | None,
        far: Sequence[bool] = _ALL_NEAR,
    ) -> Tensor:
        batch, count = ids.shape
        if self._step is not None and batch * count <= MOST_TOKENS:
            hidden = self._forward_decode(self._step, ids, kv, plan, coefficients, far)
            return self._norm(hidden, self.weights.norm)
        if self.graphs is not None and count == 1:
            return self.graphs.step(ids, kv, self.mixer.expand(coefficients))
        return self.run(ids, kv, plan, self.mixer.expand(coefficients), far)

    def run(
        self,
        ids: Tensor,
        cache: FusedKVCache,
        plan: Plan,
        ranks: list[Tensor] | None,
        far: Sequence[bool] = _ALL_NEAR,
    ) -> Tensor:
        """Hidden states [B, T, H] of `ids` [B, T], product by product; `ranks` as the mixer expands coefficients, `far`
        [B or 1] which rows are longer than the weights' switch."""
        hidden = self._forward_prefill(self._embed(ids, ranks), cache, plan, ranks, far)
        return self._norm(hidden, self.weights.norm)

    def _turned(self, kv: FusedKVCache, plan: Plan, coefficients: Tensor | None, switch: int) -> list[bool]:
        """Which rows are longer than `switch` with their new tokens. What is held of a row that comes to the other side
        of it is run again: its keys were turned by the other table, and all that follows from them is another."""
        wanted = [held + more > switch for held, more in zip(kv.lengths, plan.new, strict=True)]
        for row, far in enumerate(wanted):
            if (held := kv.lengths[row]) and kv.far[row] != far:
                own = coefficients[row : row + 1] if coefficients is not None else None
                fresh = self.new_cache(1, held)
                self._pass(torch.tensor([kv.tokens[row]]), fresh, fresh.plan(held, 1, None), own, [far])
                kv.kv[:, :, row, :, :held] = fresh.kv[:, :, 0, :, :held]
            kv.far[row] = far
        return wanted

    def _embed(self, ids: Tensor, ranks: list[Tensor] | None) -> Tensor:
        ids = ids.to(self.device)
        hidden = functional.embedding(ids, self.weights.embedding).to(self.weights.dtype)
        if self._tokens is not None and ranks is not None:
            hidden = self._tokens.add(hidden, ids, ranks[self._tokens.layout])
        scale = self.weights.embedding_scale
        return hidden if scale == 1.0 else hidden * torch.tensor(scale, dtype=hidden.dtype, device=hidden.device)

    def _forward_decode(
        self,
        step: CompiledDecode,
        ids: Tensor,
        cache: FusedKVCache,
        plan: Plan,
        coefficients: Tensor | None,
        far: Sequence[bool],
    ) -> Tensor:
        """All layers for few tokens, compiled. Padding takes part, too: what it leaves behind is overwritten."""
        ranks = self.mixer.expand(coefficients)
        hidden = self._embed(ids, ranks)
        batch, count, width = hidden.shape
        mix = coefficients if ranks is not None else None
        rows = torch.arange(batch).repeat_interleave(count)
        positions = plan.positions.expand(batch, count).reshape(-1)
        hidden = hidden.reshape(-1, width)
        if len(set(far)) == 1:
            return step.run(hidden, rows, positions, cache, mix, far[0]).view(batch, count, width)
        for side in (False, True):
            own = torch.tensor(far)[rows] == side
            hidden[own] = step.run(hidden[own], rows[own], positions[own], cache, mix, side)
        return hidden.view(batch, count, width)

    def _rotation(self, plan: Plan, far: Sequence[bool]) -> tuple[Tensor, Tensor]:
        """cos and sin [tables, B or 1, T, 1, R], so that one table row serves all heads of a token."""
        if len(set(far)) == 1:
            cos, sin = (part[:, plan.positions].unsqueeze(3) for part in self.weights.rope(plan.longest, far[0]))
            return cos, sin
        near, behind = self._rotation(plan, [False]), self._rotation(plan, [True])
        which = torch.tensor(far, device=self.device)[:, None, None, None]
        return torch.where(which, behind[0], near[0]), torch.where(which, behind[1], near[1])

    def _forward_prefill(
        self, hidden: Tensor, kv: FusedKVCache, plan: Plan, ranks: list[Tensor] | None, far: Sequence[bool]
    ) -> Tensor:
        """All layers for many tokens, product by product."""
        weights = self.weights
        cos, sin = self._rotation(plan, far)
        for number, layer in enumerate(weights.layers):
            added = self._additions[number]
            x = self._norm(hidden, layer.attention_norm)
            q, k, v = self._heads(self._project(x, layer.qkv, added[0], ranks), layer, cos, sin)
            mixed = self._attend(q, *kv.write(number, k, v, plan), plan.mask_within(layer.spec.window))
            change = self._norm(self._project(mixed, layer.out, added[1], ranks), layer.attention_out_norm)
            hidden = torch.add(hidden, change, alpha=weights.residual_scale)
            change = self._norm(self._mlp(self._norm(hidden, layer.mlp_norm), layer, added, ranks), layer.mlp_out_norm)
            hidden = torch.add(hidden, change, alpha=weights.residual_scale)
        return hidden

    def _mlp(
        self, x: Tensor, layer: FusedLayer, added: tuple[Addition | None, ...], ranks: list[Tensor] | None
    ) -> Tensor:
        if layer.experts is not None:
            return self._mix_experts(x, layer.experts)
        assert layer.gate_up is not None and layer.down_proj is not None  # a layer has experts or these
        gate_up = self._project(x, layer.gate_up, added[2], ranks)
        return self._project(self._gated(gate_up), layer.down_proj, added[3], ranks)

    def _gated(self, gate_up: Tensor) -> Tensor:
        """activation(gate) · up of [..., 2I]."""
        gate, up = gate_up.chunk(2, dim=-1)
        if self.weights.activation == "silu":
            return functional.silu(gate).mul_(up)
        return functional.gelu(gate, approximate="tanh").mul_(up)

    def _mix_experts(self, x: Tensor, experts: FusedExperts) -> Tensor:
        """Every token through the experts that its router prefers; each expert runs once, on its tokens."""
        tokens = x.reshape(-1, x.shape[-1])
        shares = torch.softmax(functional.linear(tokens, experts.router).float(), dim=-1)
        shares, chosen = torch.topk(shares, experts.top_k, dim=-1)
        if experts.normalised:
            shares = shares / shares.sum(dim=-1, keepdim=True)
        shares = shares.to(tokens.dtype)
        result = torch.zeros_like(tokens)
        for expert in chosen.unique().tolist():
            token, place = torch.where(chosen == expert)
            inner = self._gated(self._base_product(tokens[token], experts.gate_up[expert]))
            outer = self._base_product(inner, experts.down_proj[expert])
            result.index_add_(0, token, outer * shares[token, place, None])
        return result.view(x.shape)

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        return self._head(hidden)

    def _norm(self, x: Tensor, weight: Tensor | None) -> Tensor:
        """The root mean square norm; x itself where the family has no norm in this place."""
        return functional.rms_norm(x, (x.shape[-1],), weight, self.weights.eps) if weight is not None else x

    def _to_vocabulary(self, hidden: Tensor) -> Tensor:
        rows = hidden.reshape(-1, hidden.shape[-1])
        if self._step is not None and self.weights.head_bias is None and len(rows) <= MOST_TOKENS:
            return project(rows, self._step.head).view(*hidden.shape[:-1], -1)
        return self._product(hidden, self.weights.head, self.weights.head_bias)

    def _project(self, x: Tensor, group: FusedLinear, addition: Addition | None, ranks: list[Tensor] | None) -> Tensor:
        y = self._base_product(x, group)
        if addition is None or ranks is None:
            return y
        inner = self._linear(x, addition.lora_A, None).mul_(ranks[addition.layout])
        for lora_B, (start, end, low, high) in zip(addition.lora_Bs, addition.blocks, strict=True):
            y[..., start:end] += self._linear(inner[..., low:high], lora_B.T, None)
        return y

    def _base_product(self, x: Tensor, group: FusedLinear) -> Tensor:
        """x [..., in] times the group's weights, each of which may lie in a place of its own where they are narrow."""
        if len(group.weights) == 1:
            return self._product(x, group.weights[0], group.bias)
        y = x.new_empty(*x.shape[:-1], sum(group.widths))
        for part, weight in zip(y.split(list(group.widths), dim=-1), group.weights, strict=True):
            part.copy_(self._product(x, weight))
        return y if group.bias is None else y.add_(group.bias)

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [..., in] times a weight of the base, transposed, plus bias."""
        if self.weights.is_as_stored:
            return widened_product(x, weight, bias, linear=self._linear)
        return self._linear(x, weight, bias)

    def _heads(self, qkv: Tensor, layer: FusedLayer, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys (both rotated) and values [B, T, heads, D] from the fused projection."""
        batch, count = qkv.shape[:2]
        heads, kv_heads, width = self.weights.heads, self.weights.kv_heads, self.weights.head_dim
        query_norm, key_norm = layer.query_norm, layer.key_norm
        if query_norm is not None and len(query_norm) != width:
            last = (heads + kv_heads) * width
            queries = self._norm(qkv[..., : heads * width], query_norm)
            qkv = torch.cat([queries, self._norm(qkv[..., heads * width : last], key_norm), qkv[..., last:]], dim=-1)
            query_norm = key_norm = None
        split = qkv.view(batch, count, heads + 2 * kv_heads, width)
        both, values = split[:, :, : heads + kv_heads], split[:, :, heads + kv_heads :]
        if query_norm is not None:
            both = torch.cat(
                [self._norm(both[:, :, :heads], query_norm), self._norm(both[:, :, heads:], key_norm)], dim=2
            )
        if layer.spec.rope >= 0:
            both = _rotated(both, cos[layer.spec.rope], sin[layer.spec.rope])
        return both[:, :, :heads], both[:, :, heads:], values

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Attention of `queries` [B, T, heads, D] over keys and values [B, kv heads, S, D] → [B, T, heads·D]."""
        batch, count, heads, width = queries.shape
        kv_heads, scale = keys.shape[1], self.weights.attention_scale
        if self.weights.softcap:
            return self._attend_capped(queries, keys, values, mask)
        if count == 1:
            # all heads that share keys look at the same positions: they become the queries of one head
            folded = queries.reshape(batch, kv_heads, heads // kv_heads, width)
            mixed = functional.scaled_dot_product_attention(folded, keys, values, attn_mask=mask, scale=scale)
            return mixed.reshape(batch, 1, heads * width)
        mixed = functional.scaled_dot_product_attention(
            queries.transpose(1, 2),
            keys,
            values,
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=heads != kv_heads,
            scale=scale,
        )
        return mixed.transpose(1, 2).reshape(batch, count, heads * width)

    def _attend_capped(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """`_attend` with scores drawn towards 0 by cap · tanh(score / cap), which the library's attention lacks."""
        batch, count, heads, width = queries.shape
        group = heads // keys.shape[1]
        folded = queries.transpose(1, 2).unflatten(1, (keys.shape[1], group))
        scores = folded @ keys.unsqueeze(2).transpose(-1, -2) * self.weights.attention_scale
        scores = torch.tanh(scores / self.weights.softcap) * self.weights.softcap
        if mask is None and count > 1:
            mask = torch.ones(count, keys.shape[2], dtype=torch.bool, device=keys.device).tril()
        if mask is not None:
            # [B or 1, 1, 1, T, S], whichever of these the mask has already
            mask = mask.view(-1, 1, 1, *mask.shape[-2:])
            scores = scores.masked_fill(~mask, -torch.inf)
        mixed = torch.softmax(scores.float(), dim=-1).to(values.dtype) @ values.unsqueeze(2)
        return mixed.flatten(1, 2).transpose(1, 2).reshape(batch, count, heads * width)

    def _addition(self, group: FusedLinear) -> Addition | None:
        """The pairs of all parts of a group as one: rows of `lora_A` part by part, one `lora_B` for each."""
        members = [self.mixer.members(name) for name in group.names]
        pairs = [pair for part in members for _, pair in part]
        if not pairs:
            return None
        device, dtype = self.weights.device, self.weights.dtype
        lora_Bs, blocks = [], []
        start = rank = 0
        for width, part in zip(group.widths, members, strict=True):
            if part:
                lora_B = torch.cat([pair.lora_B.detach().float().T * pair.scale for _, pair in part])
                lora_Bs.append(lora_B.to(device, dtype).contiguous())
                blocks.append((start, start + width, rank, rank + lora_B.shape[0]))
                rank += lora_B.shape[0]
            start += width
        lora_A = torch.cat([pair.lora_A.detach().float() for pair in pairs])
        for pair in pairs:
            # the adapter file's pages are not needed again until the next swap
            release_pages(pair.lora_A)
            release_pages(pair.lora_B)
        columns = [number for part in members for number, pair in part for _ in range(pair.rank)]
        layout = self.mixer.layout(columns)
        return Addition(
            lora_A.to(device, dtype).contiguous(), tuple(lora_Bs), tuple(blocks), layout, self.mixer.layouts[layout]
        )


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The first R values of every head of x [B, T, heads, D] rotated; `cos` and `sin` [B or 1, T, 1, R]."""
    width = cos.shape[-1]
    turned = x[..., :width]
    swapped = turned.unflatten(-1, (2, width // 2)).flip(-2).flatten(-2)
    turned = torch.addcmul(turned * cos, swapped, sin)
    return turned if width == x.shape[-1] else torch.cat([turned, x[..., width:]], dim=-1)
