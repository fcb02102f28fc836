"""Products of frozen layers through oneDNN against float64, there and back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from dlm_tui.model import stored
from dlm_tui.model.environment import CHILD_ENVIRONMENT
from dlm_tui.model.linear import OneDnnLinear, onednn_works
from dlm_tui.model.onednn import frozen_linears, through_onednn
from dlm_tui.model.stored import OneDnnStoredLinear, StoredLinear

pytestmark = pytest.mark.skipif(not onednn_works(torch.float32), reason="oneDNN's linear is not right on this machine")


def layer(kind: type[nn.Linear], bias: bool) -> nn.Linear:
    torch.manual_seed(0)
    made = nn.Linear(48, 70, bias=bias)
    if kind is StoredLinear:
        made.weight.data = made.weight.data.bfloat16()
        made.__class__ = StoredLinear
    return made.requires_grad_(False)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("kind", "quick"), [(nn.Linear, OneDnnLinear), (StoredLinear, OneDnnStoredLinear)])
def test_products_and_gradients_are_those_of_float64(
    monkeypatch: pytest.MonkeyPatch, kind: type[nn.Linear], quick: type[nn.Linear], bias: bool
) -> None:
    monkeypatch.setattr(stored, "_BLOCK_ELEMENTS", 48 * 32)  # three blocks, the last one shorter
    linear = layer(kind, bias)
    x = torch.randn(2, 5, 48, requires_grad=True)
    pull = torch.randn(2, 5, 70)
    with through_onednn(frozen_linears(linear)):
        assert type(linear) is quick
        found = linear(x)
        found.backward(pull)
    assert type(linear) is kind
    wide = x.detach().double().requires_grad_()
    wanted = nn.functional.linear(wide, linear.weight.double(), linear.bias.double() if bias else None)
    wanted.backward(pull.double())
    assert x.grad is not None and wide.grad is not None
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(x.grad.double(), wide.grad, atol=1e-5, rtol=1e-5)
    with torch.no_grad(), through_onednn(frozen_linears(linear)):
        torch.testing.assert_close(linear(x).double(), wanted, atol=1e-5, rtol=1e-5)


def test_a_layer_that_learns_is_left_alone() -> None:
    model = nn.Sequential(layer(nn.Linear, True), nn.Linear(70, 4))
    assert frozen_linears(model) == [model[0]]


def test_layers_are_the_librarys_own_again_after_an_error() -> None:
    linear = layer(nn.Linear, False)
    with pytest.raises(ValueError, match="halfway"), through_onednn([linear]):
        raise ValueError("halfway")
    assert type(linear) is nn.Linear


_MANY_LENGTHS = """
from pathlib import Path
import torch
from dlm_tui.model.linear import onednn_linear

def own_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))

weights = [torch.randn(1024, 256), torch.randn(256, 1024), torch.randn(768, 256), torch.randn(256, 512)]
with torch.no_grad():
    for length in range(2, 302):
        if length == 10:
            before = own_bytes()
        for weight in weights:
            onednn_linear(torch.randn(length, weight.shape[1]), weight)
print((own_bytes() - before) >> 20)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="no /proc here")
def test_prompts_of_many_lengths_take_no_more_memory_than_a_few() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in CHILD_ENVIRONMENT}
    grown = subprocess.run(
        [sys.executable, "-c", _MANY_LENGTHS], env=environment | CHILD_ENVIRONMENT, check=True, capture_output=True
    )
    assert int(grown.stdout) < 100  # MiB; it is 600 with both caches as they are by themselves, above 300 with either
