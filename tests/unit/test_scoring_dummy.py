"""The backend without a model: canned answers, made-up ones that never change, and the rules of the protocols."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from dlm_tui.errors import DlmTuiError
from dlm_tui.scoring import (
    DifferentialBackend,
    DummyDifferentialBackend,
    DummyResponses,
    Model,
    NullCalibratedBackend,
    PreflightCheckable,
    RollingLogprob,
    ScalableDifferentialBackend,
    ScoringBackend,
    TokenDist,
    js_divergence,
    kl_divergence,
)


def backend(base: DummyResponses | None = None, ft: DummyResponses | None = None) -> DummyDifferentialBackend:
    return DummyDifferentialBackend(base=base or DummyResponses(), ft=ft or DummyResponses())


def dist(ids: list[int], probs: list[float], vocab: int = 10, tail: float | None = None) -> TokenDist:
    return TokenDist(np.array(ids, dtype=np.int64), np.log(probs).astype(np.float32), vocab, tail)


def test_it_follows_all_protocols() -> None:
    dummy = backend()
    for protocol in (
        DifferentialBackend,
        ScalableDifferentialBackend,
        NullCalibratedBackend,
        PreflightCheckable,
    ):
        assert isinstance(dummy, protocol)
    with dummy.as_base() as view:
        assert isinstance(view, Model) and isinstance(view, ScoringBackend)
        view.close()


def test_canned_answers_by_face() -> None:
    kept = RollingLogprob(np.array([1, 2]), np.array([-0.5], np.float32), 2, -0.5)
    base = DummyResponses(generations={"q": "plain"}, logprobs={("q", "a"): -4.0}, rolling={"t": kept})
    ft = DummyResponses(generations={"q": "warm"}, logprobs={("q", "a"): -1.0}, token_dists={"q": dist([3], [0.9])})
    dummy = backend(base, ft)
    with dummy.as_base() as view:
        assert view.generate("q", max_new_tokens=4) == "plain"
        assert view.logprob_of("q", "a") == -4.0
        assert view.logprob_of("q", "other") == -10.0
        assert view.rolling_logprob("t") is kept
    with dummy.as_finetuned() as view:
        assert view.generate("q", max_new_tokens=4) == "warm"
        assert view.logprob_of("q", "a") == -1.0
        assert view.next_token_dist("q").token_ids.tolist() == [3]
        with pytest.raises(KeyError, match="'ft' has no canned generation for prompt 'unknown'"):
            view.generate("unknown", max_new_tokens=4)


def test_one_view_at_a_time_and_none_after_its_block() -> None:
    dummy = backend()
    with dummy.as_base() as view:
        with pytest.raises(RuntimeError, match="'base' is still open"), dummy.as_finetuned():
            pass
        assert view.logprob_of("p", "c") == -10.0
    with pytest.raises(RuntimeError, match="after its block"):
        view.logprob_of("p", "c")
    with pytest.raises(ZeroDivisionError), dummy.as_null_adapter(1):
        raise ZeroDivisionError
    with dummy.as_finetuned(), pytest.raises(RuntimeError, match="after its block"):
        view.next_token_dist("p")


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_null_scales_must_be_positive_and_finite(value: float) -> None:
    dummy = backend()
    with (
        pytest.raises(ValueError, match="rank_scale must be positive and finite"),
        dummy.as_null_adapter(1, 0.02, value),
    ):
        pass
    with pytest.raises(DlmTuiError, match="init_scale must be positive and finite"), dummy.as_null_adapter(1, value):
        pass
    with dummy.as_base():
        pass


def test_null_noise_is_seeded_and_grows_with_the_root_of_the_rank() -> None:
    dummy = backend()

    def effects(rank_scale: float) -> list[float]:
        found = []
        for seed in range(200):
            with dummy.as_base() as view:
                base = view.next_token_dist("prompt")
            with dummy.as_null_adapter(seed, 0.05, rank_scale) as view:
                found.append(kl_divergence(view.next_token_dist("prompt"), base) ** 0.5)
        return found

    one, four = effects(1.0), effects(4.0)
    assert np.mean(four) / np.mean(one) == pytest.approx(2.0, rel=0.1)
    assert one == effects(1.0) and len(set(one)) == 200
    with dummy.as_null_adapter(3, 0.1) as view:
        assert view.logprob_of("p", "c") != -10.0
        assert view.rolling_logprob("three words here").total_logprob != -4.0


def test_blends_are_exact_at_the_ends_and_between_in_the_middle() -> None:
    base = DummyResponses(logprobs={("q", "a"): -4.0}, token_dists={"q": dist([0, 1], [0.8, 0.1], tail=np.log(0.1))})
    ft = DummyResponses(logprobs={("q", "a"): -2.0}, token_dists={"q": dist([2, 1], [0.6, 0.3], tail=np.log(0.1))})
    dummy = backend(base, ft)
    with dummy.as_base() as view:
        plain = view.next_token_dist("q")
    effects = []
    for lam in (0.0, 0.25, 0.5, 1.0):
        with dummy.as_scaled_adapter(lam) as view:
            blended = view.next_token_dist("q")
            effects.append(js_divergence(blended, plain))
            assert view.logprob_of("q", "a") == pytest.approx(-4.0 + 2.0 * lam)
            listed = np.exp(blended.logprobs.astype(np.float64)).sum() + np.exp(blended.tail_logprob or -np.inf)
            assert listed == pytest.approx(1.0, abs=1e-6)
    assert effects[0] == 0.0 and effects == sorted(effects)
    with dummy.as_finetuned() as view:
        assert js_divergence(view.next_token_dist("q"), blended) == 0.0
    with dummy.as_scaled_adapter(0.5) as view:
        assert view.rolling_logprob("three words here").total_logprob == pytest.approx(-3.5)


def test_made_up_answers_are_reasonable() -> None:
    dummy = backend()
    with dummy.as_base() as view:
        base = [view.next_token_dist(prompt) for prompt in ("a", "b", "c")]
        cut = view.next_token_dist("a", top_k=3)
        with pytest.raises(ValueError, match="zero tokens"):
            view.rolling_logprob("  ")
        with pytest.raises(ValueError, match="zero tokens"):
            view.logprob_of("p", "")
        assert view.rolling_logprob("word").total_logprob == 0.0
        assert view.rolling_logprob("word").perplexity == 1.0
    with dummy.as_finetuned() as view:
        ft = view.next_token_dist_batch(["a", "b", "c"])
    assert all(kl_divergence(after, before) > 0.05 for after, before in zip(ft, base, strict=True))
    assert len({tuple(before.token_ids) for before in base}) == 3
    assert len(cut.token_ids) == 3
    mass = np.exp(cut.logprobs.astype(np.float64)).sum() + np.exp(cut.tail_logprob or -np.inf)
    assert mass == pytest.approx(1.0, abs=1e-6)


def test_cache_statistics_and_views_do_not_mix() -> None:
    base = DummyResponses(logprobs={("q", "a"): -4.0})
    dummy = backend(base)
    for _ in range(3):
        with dummy.as_base() as view:
            assert view.logprob_of("q", "a") == -4.0
    with dummy.as_finetuned() as view:
        assert view.logprob_of("q", "a") == -10.0
    stats = dummy.cache_stats
    assert (stats.hits, stats.misses, stats.entries) == (2, 2, 2)
    base.logprobs["q", "a"] = -1.0
    dummy.clear_cache()
    with dummy.as_base() as view:
        assert view.logprob_of("q", "a") == -1.0


def test_preflight_names_the_view() -> None:
    assert backend().preflight_finite_check() == (True, "")
    broken = TokenDist(np.array([0, 1]), np.array([np.nan, -1.0], np.float32), 10)
    good, reason = backend(ft=DummyResponses(token_dists={"preflight": broken})).preflight_finite_check()
    assert not good and "'ft'" in reason and "1 of 2" in reason


PROGRAM = """
import sys
from dlm_tui.scoring import DummyDifferentialBackend, DummyResponses, kl_divergence
dummy = DummyDifferentialBackend(base=DummyResponses(), ft=DummyResponses())
with dummy.as_null_adapter(5) as view:
    d = view.next_token_dist("Grüße 🙂")
    print(d.token_ids.tolist(), [float(x) for x in d.logprobs], view.logprob_of("a", "b"))
with dummy.as_finetuned() as view:
    print(view.rolling_logprob("some words to score").token_ids.tolist(), kl_divergence(d, view.next_token_dist("x")))
print("torch" in sys.modules)
"""


def test_other_processes_make_up_the_same_answers_without_torch() -> None:
    runs = [
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={"PYTHONHASHSEED": salt, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for salt in ("1", "2")
    ]
    assert runs[0] == runs[1]
    assert runs[0].splitlines()[-1] == "False"


class OneByOne(ScoringBackend):
    """A backend that writes only what it has to."""

    def logprob_of(self, prompt: str, completion: str) -> float:
        return -1.0

    def rolling_logprob(self, text: str) -> RollingLogprob:
        return RollingLogprob(np.zeros(1, np.int64), np.zeros(0, np.float32), 1, 0.0)

    def next_token_dist(self, prompt: str, *, top_k: int = 256) -> TokenDist:
        return dist([len(prompt)], [1.0], vocab=top_k)


def test_a_backend_that_inherits_the_batch_is_complete() -> None:
    found = OneByOne().next_token_dist_batch(["a", "bbb"], top_k=7)
    assert [(int(one.token_ids[0]), one.vocab_size) for one in found] == [(1, 7), (3, 7)]
    dummy = backend()
    assert dummy.safe_for_concurrent_views is False
    with dummy.as_finetuned() as view:
        assert view.id == view.name == "ft"
        batch = view.next_token_dist_batch(["one", "two"], top_k=3)
        assert [one.token_ids.tolist() for one in batch] == [
            view.next_token_dist(prompt, top_k=3).token_ids.tolist() for prompt in ("one", "two")
        ]


def test_preflight_gives_a_reason_for_a_view_that_raises_or_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    dummy = backend()
    with dummy.as_base():
        good, reason = dummy.preflight_finite_check()
    assert not good and reason.startswith("view 'base' cannot be asked: ViewActive")
    assert dummy.preflight_finite_check() == (True, "")

    class Broken(dict[str, TokenDist]):
        def get(self, key: str, default: object = None) -> TokenDist:  # type: ignore[override]
            raise OSError("the file is gone")

    good, reason = backend(ft=DummyResponses(token_dists=Broken())).preflight_finite_check()
    assert not good and "the file is gone" in reason


def test_views_that_differ_in_the_last_digits_are_two() -> None:
    dummy = backend(base=DummyResponses(logprobs={("p", "c"): -1.0}), ft=DummyResponses(logprobs={("p", "c"): -2.0}))
    found = []
    for lam in (0.12345678, 0.12345634):
        with dummy.as_scaled_adapter(lam) as view:
            found.append(view.logprob_of("p", "c"))
    assert found == [pytest.approx(-1.12345678, abs=1e-12), pytest.approx(-1.12345634, abs=1e-12)]
    assert found[0] != found[1]
    with dummy.as_null_adapter(1, 0.12345678) as view:
        first = view.logprob_of("p", "c")
    with dummy.as_null_adapter(1, 0.12345634) as view:
        assert view.logprob_of("p", "c") != first


def test_a_canned_answer_for_the_empty_text_counts() -> None:
    empty = RollingLogprob(np.zeros(0, np.int64), np.zeros(0, np.float32), 0, 0.0)
    dummy = backend(base=DummyResponses(rolling={"": empty}))
    with dummy.as_base() as view:
        assert view.rolling_logprob("") == empty
    with dummy.as_finetuned() as view, pytest.raises(ValueError, match="zero tokens"):
        view.rolling_logprob("")
