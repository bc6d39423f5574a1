"""The memory modes: the same gradient, nothing kept of a step, one line where one does not fit."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn import ANIL, MAML, Episode, MemoryLimitError, MetaModule
from metalearn.inner.inner_loop import ExecutionName
from tests.modules.episodic.test_meta_gradient import largest_error, plain_loop
from tests.networks import TinyConv, noise_episode


@pytest.mark.parametrize("execution", ["sequential", "vectorized"])
@pytest.mark.parametrize("memory", ["remat", "mixed"])
@pytest.mark.parametrize("kind", [MAML, ANIL])
def test_the_gradient_is_that_of_a_plain_loop(kind: type[MetaModule], memory: str, execution: str) -> None:
    torch.manual_seed(0)
    net, episode = TinyConv().double(), noise_episode()
    expected = plain_loop(copy.deepcopy(net), episode, 5, 0.3, False, "head" if kind is ANIL else "")
    module = kind(net, inner_steps=5, inner_lr=0.3, memory=memory, execution=execution)  # type: ignore[call-arg]
    assert largest_error(module.meta_gradient(episode), expected) < 1e-9
    assert module.choice is not None
    assert (module.choice.memory, module.choice.name) == (memory, execution)


@pytest.mark.parametrize("memory", ["remat", "mixed"])
def test_learned_step_sizes_and_other_rules_keep_their_gradient(memory: str) -> None:
    """Against the mode that keeps the graph, itself held against plain loops elsewhere."""
    torch.manual_seed(0)
    net, episode = TinyConv().double(), noise_episode()
    grads = []
    for mode in ("store", memory):
        module = MAML(
            copy.deepcopy(net), inner_steps=3, inner_lr="learn_per_step", initial_inner_lr=0.05, inner_optimizer="adam",
            inner_weight_decay=0.1, inner_clip_norm=0.5, support_chunk=4, memory=mode,  # type: ignore[arg-type]
        ).double()  # fmt: skip
        grads.append(module.meta_gradient(episode))
    assert largest_error(grads[1], grads[0]) < 1e-9


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(3, 8), nn.Dropout(0.5), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@pytest.mark.parametrize("execution", ["sequential", "vectorized"])
def test_recomputed_steps_keep_their_dropout_masks(execution: ExecutionName) -> None:
    """From the same random state both modes draw the same masks, so the gradients are the same; and so is what comes after."""
    torch.manual_seed(0)
    net, episode = Dropping().double(), noise_episode(shape=(3,))
    grads, after = [], []
    for memory in ("store", "remat"):
        module = MAML(copy.deepcopy(net), inner_steps=4, inner_lr=0.3, memory=memory, execution=execution)  # type: ignore[arg-type]
        module.meta_gradient(episode)  # the choice is made
        assert module.choice is not None
        assert (module.choice.memory, module.choice.name) == (memory, execution)
        torch.manual_seed(5)
        grads.append(module.meta_gradient(episode))
        after.append(torch.rand(1))
    assert largest_error(grads[1], grads[0]) < 1e-12
    assert after[0] == after[1]


def test_tasks_have_masks_of_their_own() -> None:
    torch.manual_seed(0)
    one = noise_episode(tasks=1, shape=(3,))
    same = Episode(*(type(role)(role.x.repeat(2, 1, 1), role.y.repeat(2, 1)) for role in one))
    module = MAML(Dropping().double(), inner_steps=1, execution="vectorized")
    logits = module.meta_loss(same).logits
    assert module.choice is not None
    assert module.choice.name == "vectorized"
    assert not module.choice.threads  # the generator is the process's
    assert not torch.equal(logits[0], logits[1])


class Squared(nn.Module):
    """Uses an operator without a forward-over-reverse derivative (pytorch#123996)."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x.flatten(1))
        return y * F.mse_loss(y, torch.zeros_like(y))


def test_an_operator_that_mixed_mode_cannot_do_falls_back(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    net, episode = Squared().double(), noise_episode(shape=(3,))
    expected = plain_loop(copy.deepcopy(net), episode, 2, 0.3, False)
    module = MAML(net, inner_steps=2, inner_lr=0.3, memory="mixed", execution="sequential")
    with caplog.at_level("INFO"):
        assert largest_error(module.meta_gradient(episode), expected) < 1e-9
    lines = [record.getMessage() for record in caplog.records if "memory is" in record.getMessage()]
    assert len(lines) == 1
    assert "memory is 'remat', because 'mixed' is not exact here" in lines[0]


PEAK = """
import resource, sys, torch
from metalearn import MAML, Batch, Conv4, Episode
torch.set_num_threads(1)
steps, memory = int(sys.argv[1]), sys.argv[2]
def role(n): return Batch(torch.randn(1, n, 1, 28, 28), torch.arange(5).repeat(n // 5)[None])
module = MAML(Conv4(5), inner_steps=steps, inner_lr=0.01, memory=memory, execution="sequential")
module.meta_gradient(Episode(role(5), role(5)))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def peak(steps: int, memory: str) -> int:
    """Peak resident memory in MiB, of a process of its own."""
    done = subprocess.run([sys.executable, "-c", PEAK, str(steps), memory], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


@pytest.mark.long
def test_a_further_step_costs_one_iterate() -> None:
    """Conv4 with 64 filters has 0.45 MB of weights; a step's graph would be some 3 MB, and 10 without our operators."""
    for memory in ("remat", "mixed"):
        assert (peak(22, memory) - peak(2, memory)) / 20 < 0.7, memory


class Filling(nn.Module):
    """Runs out of memory from some moment on: that of the host by asking for it, that of a GPU by what torch raises then."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 3)
        self.full: str | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.full == "host":
            torch.empty(1 << 50)
        if self.full == "gpu":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self.linear(x.flatten(1))


@pytest.mark.parametrize("full", ["host", "gpu"])
@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        ({"memory": "store"}, "use memory='remat'"),
        ({"memory": "remat", "tasks_at_once": 2}, "support_chunk"),
        ({"memory": "remat", "execution": "sequential"}, "support_chunk"),
    ],
)
def test_running_out_of_memory_says_what_to_try(full: str, arguments: dict[str, Any], remedy: str) -> None:
    net, episode = Filling(), noise_episode(dtype=torch.float32)
    module = MAML(net, inner_steps=1, **arguments)
    module.training_step(episode, 0)
    net.full = full
    with pytest.raises(MemoryLimitError, match=f"does not fit into memory; .*{remedy}") as caught:
        module.training_step(episode, 0)
    assert "\n" not in str(caught.value)
