"""What holds of every episodic algorithm, driven from one list."""

from __future__ import annotations

import copy
import inspect
import math
import re
from pathlib import Path

import pytest
import torch

import metalearn
from metalearn import Batch, ConfigError, MetaModule
from metalearn.cli import main
from tests.algorithms import ALGORITHMS, KINDS, Smooth
from tests.modules.episodic.test_evaluation import NoiseTasks, trainer
from tests.networks import TinyConv, noise_episode

every = pytest.mark.parametrize("name", ALGORITHMS)


def network(dtype: torch.dtype = torch.float64) -> Smooth:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Smooth().to(dtype)


def test_every_algorithm_is_in_the_list() -> None:
    values = [getattr(metalearn, name) for name in metalearn.__all__]
    exported = {value for value in values if inspect.isclass(value) and issubclass(value, MetaModule)}
    assert set(KINDS) == exported - {MetaModule}


@every
@pytest.mark.parametrize("frozen", ["", "body.1.bias"])
def test_the_meta_gradient_is_that_of_a_plain_loop(name: str, frozen: str) -> None:
    """One task after another and all at once; where a tensor is frozen, it neither adapts nor gets a gradient."""
    algorithm, episode, net = ALGORITHMS[name], noise_episode(2), network()
    for key, value in net.named_parameters():
        value.requires_grad_(key != frozen)
    expected = algorithm.meta_gradient(copy.deepcopy(net), episode)
    for execution in ("sequential", "vectorized"):
        found = algorithm.make(net, execution=execution).double().meta_gradient(episode)
        assert {key for key in found if key.startswith("backbone.")} == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=algorithm.error, atol=algorithm.error)


@every
def test_a_run_learns_evaluates_reports_and_reloads(name: str, tmp_path: Path) -> None:
    """Evaluation changes no weight, no mode and no random state; a checkpoint alone gives the module back."""
    algorithm, data = ALGORITHMS[name], NoiseTasks()
    module = algorithm.make_cheap(TinyConv())
    run = trainer(tmp_path)
    run.fit(module, datamodule=data)
    before, rng = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    modes = [layer.training for layer in module.modules()]
    (result,) = run.test(module, datamodule=data, verbose=False)
    run.validate(module, datamodule=data, verbose=False)
    assert run.predict(module, datamodule=data)
    assert all(math.isfinite(result[key]) for key in ("test/acc", "test/acc_ci95", "test/loss"))
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(module.state_dict()[key], value) for key, value in before.items())
    assert [layer.training for layer in module.modules()] == modes
    assert module.summary_facts("test")
    run.save_checkpoint(tmp_path / "module.ckpt")
    torch.load(tmp_path / "module.ckpt", weights_only=True)
    again = algorithm.kind.load_from_checkpoint(tmp_path / "module.ckpt", backbone=TinyConv())
    assert again.hparams == module.hparams
    assert again.state_dict().keys() == before.keys()
    episode = noise_episode(1, dtype=torch.float32)
    support = Batch(episode.support.x[0], episode.support.y[0])
    torch.testing.assert_close(again.adapt(support)(episode.query.x[0]), module.adapt(support)(episode.query.x[0]))


@every
def test_tasks_of_any_shape_count_alike(name: str) -> None:
    """A batch of tasks that differ in classes and examples has the mean of their losses, and a prediction for each."""
    module = ALGORITHMS[name].make_cheap(network()).double()
    tasks = [noise_episode(1, ways=ways, shots=shots, seed=shots) for ways, shots in ((3, 2), (2, 1), (3, 1))]
    alone = [float(module.training_step([task], 0).detach()) for task in tasks]
    assert float(module.training_step(tasks, 0).detach()) == pytest.approx(sum(alone) / 3, rel=1e-9)
    assert [shares.shape[2] for shares in module.predict_step(tasks, 0)] == [3, 2, 3]


@every
def test_bf16_trains_and_fp16_is_refused(name: str, tmp_path: Path) -> None:
    algorithm = ALGORITHMS[name]
    module = algorithm.make_cheap(TinyConv())
    before = copy.deepcopy(module.state_dict())
    run = trainer(tmp_path, precision="bf16-mixed", max_steps=2, limit_val_batches=0)
    run.fit(module, datamodule=NoiseTasks())
    assert all(bool(value.isfinite().all()) for value in module.state_dict().values())
    assert any(not torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert {value.dtype for value in module.parameters()} == {torch.float32}
    support = noise_episode(1, dtype=torch.float32).support
    with torch.autocast("cpu", torch.float16), pytest.raises(ConfigError, match="float16"):
        module.adapt(Batch(support.x[0], support.y[0]))


@pytest.mark.parametrize("name", [kind.__name__ for kind in KINDS])
def test_the_help_says_what_each_argument_does(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as end:
        main(["fit", "--model.help", name])
    assert end.value.code == 0
    entries = dict(re.findall(r"^  (\w+) (.*?)(?=\n  \w|\n\n|\Z)", capsys.readouterr().out, re.DOTALL | re.MULTILINE))
    for argument in inspect.signature(getattr(metalearn, name)).parameters:
        assert len(entries[argument].split()) > 4, argument
        assert "see :class:" not in entries[argument]
