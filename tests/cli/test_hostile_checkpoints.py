"""Checkpoints of anyone's on the command line: nothing that they name is called, imported or written, and one line says so."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from metalearn import MAML
from metalearn.cli import main
from metalearn.errors import CheckpointError
from tests.cli.test_configs import SMALL, TINY

Checkpoint = dict[str, Any]
EVIL = "evil_of_a_checkpoint"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """The folder of a tiny run."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METALEARN_CACHE", str(cache))
        patch.chdir(folder)
        main(["fit", *SMALL, *TINY, "--test_after_fit", "false"])
    return folder / "runs" / "maml_glyphs_5w1s" / "version_0"


@pytest.fixture(scope="module")
def loaded(run: Path) -> Checkpoint:
    return dict(torch.load(run / "checkpoints" / "best.ckpt", weights_only=True))


@pytest.fixture
def good(loaded: Checkpoint) -> Checkpoint:
    return copy.deepcopy(loaded)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with a module that shows when it is imported or called, and a file that is not to be overwritten."""
    called = "Path('CALLED').touch()"
    (tmp_path / f"{EVIL}.py").write_text(
        "from pathlib import Path\nimport torch\nPath('IMPORTED').touch()\n"
        f"class X(torch.nn.Linear):\n    def __init__(self, *args, **kwargs):\n        {called}\n"
        f"def f(*args, **kwargs):\n    {called}\n"
    )
    (tmp_path / "victim.yaml").write_text("kept")
    for name in ("support/a/1.png", "support/b/1.png", "query/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(len(name)).integers(0, 255, (28, 28), np.uint8)
        Image.fromarray(noise).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    assert EVIL not in sys.modules


def refused(args: list[str], folder: Path, capsys: pytest.CaptureFixture[str], reason: str = "") -> str:
    """The one line of a command that ends with 2 and leaves nothing behind."""
    before = sorted(folder.rglob("*"))
    with pytest.raises(SystemExit) as caught:
        main(args)
    lines = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2
    (line,) = [line for line in lines if line.startswith("metalearn: error: ")]
    assert not any("Traceback" in line for line in lines)
    assert reason in line, line
    assert sorted(folder.rglob("*")) == before
    assert (folder / "victim.yaml").read_text() == "kept"
    return line


def in_config(change: Callable[[dict[str, Any]], Any]) -> Callable[[Checkpoint], None]:
    def apply(checkpoint: Checkpoint) -> None:
        config = yaml.safe_load(checkpoint["metalearn"]["config"])
        change(config)
        checkpoint["metalearn"]["config"] = yaml.safe_dump(config)

    return apply


def model(**values: Any) -> Callable[[Checkpoint], None]:
    return in_config(lambda config: config["model"]["init_args"].update(values))


def backbone(**values: Any) -> Callable[[Checkpoint], None]:
    return in_config(lambda config: config["model"]["init_args"]["backbone"].update(values))


def data(**values: Any) -> Callable[[Checkpoint], None]:
    return in_config(lambda config: config["data"]["init_args"].update(values))


def completion(images: Any, **values: Any) -> Callable[[Checkpoint], None]:
    arguments = {"images": images, **values}
    return in_config(
        lambda config: config.update(data={"class_path": "ImageCompletionEpisodes", "init_args": arguments})
    )


def entry(**values: Any) -> Callable[[Checkpoint], None]:
    return lambda checkpoint: checkpoint["metalearn"].update(values)


NAMED = {"class_path": f"{EVIL}.X", "init_args": {}}
BILLION = "a: &a [x, x]\n" + "".join(
    f"b{n}: &b{n} [*{'a' if n == 0 else f'b{n - 1}'}, *{'a' if n == 0 else f'b{n - 1}'}]\n" for n in range(60)
)
ATTACKS: dict[str, Callable[[Checkpoint], Any]] = {
    "trainer": in_config(lambda config: config.update(trainer={"callbacks": [f"{EVIL}.X"]})),
    "trainer as a name": in_config(lambda config: config.update(trainer=f"{EVIL}.X")),
    "another section": in_config(lambda config: config.update(seed_everything=1)),
    "model by name": in_config(lambda config: config.update(model=f"{EVIL}.X")),
    "model": in_config(lambda config: config.update(model=NAMED)),
    "model is our own function": in_config(lambda config: config["model"].update(class_path="metalearn.cli.main")),
    "model is a module's name": in_config(lambda config: config["model"].update(class_path="metalearn.MAML.os.system")),
    "model is a list": in_config(lambda config: config.update(model=[f"{EVIL}.X"])),
    "no model": in_config(lambda config: config.pop("model")),
    "data": in_config(lambda config: config.update(data=NAMED)),
    "data by name": in_config(lambda config: config.update(data=f"{EVIL}.X")),
    "data with a function": in_config(
        lambda config: config.update(data={"class_path": "FunctionEpisodes", "init_args": {"function": f"{EVIL}.f"}})
    ),
    "data within data": completion(NAMED), "data within data by name": completion(f"{EVIL}.X"),
    "images within data": completion({"class_path": "GlyphsDataModule", "init_args": {"options": NAMED}}),
    "size of images within data": completion({"class_path": "CUB200DataModule", "init_args": {"image_size": 10**6}}),
    "images of a batch within data": completion(
        {"class_path": "CUB200DataModule", "init_args": {"image_size": 1000}}, tasks_per_batch=9000
    ),
    "backbone": backbone(class_path=f"{EVIL}.X"),
    "backbone by name": model(backbone=f"{EVIL}.X"),
    "backbone fetches": backbone(
        class_path="torchvision.models._api.load_state_dict_from_url", init_args={"url": "file:///etc/passwd"}
    ),
    "backbone is a function": backbone(class_path="torchvision.models.resnet18", init_args={"weights": "DEFAULT"}),
    "backbone imports": backbone(class_path="torchvision.models.detection.ssd", init_args={}),
    "backbone by torch": backbone(class_path="torch.nn.Sequential", init_args={"args": NAMED}),
    "dict_kwargs": backbone(dict_kwargs={"weights": "DEFAULT"}),
    "weights": in_config(lambda config: config["model"]["init_args"]["backbone"]["init_args"].update(weights="DEFAULT")),
    "nested layer": backbone(
        class_path="torchvision.models.ResNet", init_args={"block": f"{EVIL}.f", "layers": [1, 1, 1, 1]}
    ),
    "nested norm": backbone(
        class_path="torchvision.models.resnet.ResNet",
        init_args={"block": "torchvision.models.resnet.BasicBlock", "layers": [1, 1, 1, 1], "norm_layer": f"{EVIL}.X"},
    ),
    "layer is a function": backbone(
        class_path="torchvision.models.ResNet", init_args={"block": "torchvision.models.resnet50", "layers": [1]}
    ),
    "outer optimizer": model(outer_optimizer=f"{EVIL}.f"),
    "outer optimizer's class": model(outer_optimizer=NAMED),
    "outer scheduler": model(outer_scheduler=f"{EVIL}.f"),
    "inner optimizer": model(inner_optimizer=f"{EVIL}.X"),
    "inner optimizer's class": model(inner_optimizer=NAMED),
    "inner optimizer under torch": model(inner_optimizer="torch.optim.x; import os"),
    "loss": model(loss=f"{EVIL}.f"),
    "loss's class": model(loss=NAMED),
    "class for a number": model(inner_steps=NAMED),
    "name for a truth": model(first_order=f"{EVIL}.X"),
    "list for a choice": model(norm=[f"{EVIL}.X"]),
    "unknown argument": model(callbacks=[f"{EVIL}.X"]),
    "options": data(options=f"{EVIL}.X"),
    "options with a class": data(options={"unlabeled": NAMED}),
    "steps": model(inner_steps=10**9),
    "steps at test": model(eval_inner_steps=10**9),
    "steps as digits": lambda c: c["metalearn"].update(
        config=c["metalearn"]["config"].replace("inner_steps: 1", "inner_steps: " + "9" * 5000)
    ),
    "width": in_config(lambda config: config["model"]["init_args"]["backbone"]["init_args"].update(hidden=10**9)),
    "width that is in bounds": in_config(
        lambda config: config["model"]["init_args"]["backbone"]["init_args"].update(hidden=9999)
    ),
    "depth": backbone(
        class_path="torchvision.models.ResNet",
        init_args={"block": "torchvision.models.resnet.BasicBlock", "layers": [10**8] * 4},
    ),
    "image size": in_config(
        lambda config: config["model"]["init_args"]["backbone"]["init_args"].update(image_size=200_000)
    ),
    "ways": data(ways=10**9),
    "tasks": data(tasks_per_batch=10**9),
    "images of a batch": data(tasks_per_batch=9000, queries=300),
    "test tasks": data(test_tasks=10**12),
    "workers": data(num_workers=10**6),
    "infinite": model(initial_inner_lr=math.inf),
    "yaml bomb": entry(config=BILLION),
    "yaml refers to itself": entry(config="model: &m {class_path: MAML, init_args: *m}"),
    "yaml merges": entry(config="a: &a {x: 1}\nmodel: {<<: *a}"),
    "yaml tag": entry(config="model: !!python/object/apply:os.system [touch CALLED]"),
    "yaml is deep": entry(config="[" * 100_000), "yaml is long": entry(config="model: MAML\n" * 100_000),
    "yaml is none": entry(config="\x00"), "config is a list": entry(config=[f"{EVIL}.X"]), "no config": entry(config=None),
    "run is a path": entry(run="../victim"), "run is absolute": entry(run="/tmp/victim"), "run is empty": entry(run=""),
    "run is hidden": entry(run=".."), "run is long": entry(run="x" * 300), "run has controls": entry(run="a\x1b[2Jb"),
    "run is a number": entry(run=3), "class is foreign": entry(class_path=f"{EVIL}.X"), "class is none": entry(class_path=3),
    "described backbone": entry(backbone=NAMED), "described as a list": entry(backbone=[NAMED]),
    "described arguments": entry(backbone={"class_path": "metalearn.Conv4", "init_args": torch.zeros(3)}),
    "image spec": entry(image_spec={"channels": 1, "size": 200_000, "invert": True}),
    "image spec of other names": entry(image_spec={"class_path": f"{EVIL}.X"}),
    "image spec without deviation": entry(image_spec={"channels": 1, "size": 28, "std": [0.0]}),
    "generator": entry(rng=torch.zeros(7)), "generator of zeros": entry(rng=torch.zeros(5056)),
    "entry is a list": lambda c: c.update(metalearn=["x"]), "oracles": entry(oracles={"gc_f": "x"}),
    "hyper-parameters": lambda c: c["hyper_parameters"].update(inner_optimizer=f"{EVIL}.X"),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_a_checkpoint_does_nothing(
    name: str, good: Checkpoint, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ATTACKS[name](good)
    torch.save(good, "x.ckpt")
    refused(["test", "--ckpt_path", "x.ckpt", "--trainer.accelerator", "cpu"], folder, capsys)


OF_THE_ENTRY = [name for name in ATTACKS if name.startswith(("described", "image spec", "run is", "class is", "hyper"))]


@pytest.mark.parametrize("name", OF_THE_ENTRY)
def test_adapting_does_nothing_more(
    name: str, good: Checkpoint, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ATTACKS[name](good)
    torch.save(good, "x.ckpt")
    refused(["predict", "--ckpt_path", "x.ckpt", "--support", "support", "--query", "query"], folder, capsys)


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_pickled_code_is_never_asked_for(
    command: str, good: Checkpoint, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (folder / "CALLED",)

    torch.save(good, "x.ckpt")
    refused([command, "--ckpt_path", "x.ckpt", "--weights_only", "false"], folder, capsys, "weights_only is False")
    torch.save({**good, "more": Evil()}, "x.ckpt")
    refused([command, "--ckpt_path", "x.ckpt"], folder, capsys, "cannot be read as plain tensors")


def test_weights_that_are_not_finite_are_named(
    good: Checkpoint, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good["state_dict"]["backbone.head.weight"][1, 2] = math.nan
    torch.save(good, "x.ckpt")
    for command in (["test"], ["validate"], ["predict"], ["predict", "--support", "support", "--query", "query"]):
        refused(
            [*command, "--ckpt_path", "x.ckpt"],
            folder,
            capsys,
            "not finite: 1 of the 80 numbers of backbone.head.weight",
        )


def test_other_weights_leave_no_folder(good: Checkpoint, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for value in (torch.zeros(5, 16, dtype=torch.int64), torch.zeros(5, 17), torch.zeros(5, 16, dtype=torch.complex64)):
        good["state_dict"]["backbone.head.weight"] = value
        torch.save(good, "x.ckpt")
        refused(["test", "--ckpt_path", "x.ckpt"], folder, capsys, "backbone.head.weight is")
        refused(["fit", *SMALL, *TINY, "--ckpt_path", "x.ckpt"], folder, capsys, "backbone.head.weight is")


def test_resuming_from_what_no_run_wrote(good: Checkpoint, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each part of the training state once; all their keys: tests/modules/training/test_resuming.py."""
    wrong: dict[str, Callable[[Checkpoint], Any]] = {
        "loops.fit_loop": lambda c: c["loops"]["fit_loop"].pop("epoch_progress"),
        "optimizer_states": lambda c: c["optimizer_states"][0]["state"][0].update(exp_avg=torch.zeros(3)),
        "lr_schedulers": lambda c: c["lr_schedulers"][0].update(base_lrs="x"),
        "without an optimiser's state": lambda c: c.pop("optimizer_states"),
        "entry 'metalearn'": lambda c: c.update(metalearn=3),
    }
    for reason, change in wrong.items():
        broken = copy.deepcopy(good)
        change(broken)
        torch.save(broken, "x.ckpt")
        refused(["fit", *SMALL, *TINY, "--ckpt_path", "x.ckpt"], folder, capsys, reason)


def test_evaluating_needs_no_optimizer(good: Checkpoint, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A newer torch has optimisers, and arguments of them, that this one does not know."""
    model(
        outer_optimizer={"class_path": "torch.optim.NewerThanThis", "init_args": {"unknown_here": True}},
        outer_scheduler={"class_path": "torch.optim.lr_scheduler.NewerLR", "init_args": {"unknown_here": 1}},
    )(good)
    del good["optimizer_states"], good["lr_schedulers"], good["callbacks"], good["loops"]
    torch.save(good, "x.ckpt")
    main(["test", "--ckpt_path", "x.ckpt", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"])
    assert "test accuracy" in capsys.readouterr().out


def test_what_writes_and_downloads_is_left_out(
    good: Checkpoint, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data(cache_dir=str(folder / "written"), options={"augment": [f"{EVIL}.X"], "normalize": False})(good)
    torch.save(good, "x.ckpt")
    main(
        ["validate", "--ckpt_path", "x.ckpt", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    )
    assert not (folder / "written").exists()
    config = {"class_path": "OmniglotDataModule", "init_args": {"root": "nowhere", "ways": 5, "download": True}}
    for change in (in_config(lambda given: given.update(data=config)), completion(config)):
        change(good)
        torch.save(good, "x.ckpt")
        capsys.readouterr()
        with pytest.raises(SystemExit):
            main(["test", "--ckpt_path", "x.ckpt", "--trainer.accelerator", "cpu"])
        assert "images_background is not in nowhere" in capsys.readouterr().err
        assert not (folder / "nowhere").exists()


def test_a_torchvision_network_given_by_its_class(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    resnet = {
        "class_path": "torchvision.models.ResNet",
        "init_args": {"block": "torchvision.models.resnet.BasicBlock", "layers": [1, 1, 1, 1], "num_classes": 5,
                      "norm_layer": "torch.nn.BatchNorm2d", "width_per_group": 64},
    }  # fmt: skip
    images = folder / "images"
    for label in range(15):
        for number in range(3):
            path = images / ("train", "val", "test")[label // 5] / f"class{label}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng([label, number]).integers(0, 255, (16, 16, 3), np.uint8)
            Image.fromarray(noise).save(path)
    (folder / "run.yaml").write_text(
        yaml.safe_dump(
            {
                "model": {"class_path": "MAML", "init_args": {"backbone": resnet, "inner_steps": 1, "inner_lr": 0.01}},
                "data": {
                    "class_path": "ImageFolderEpisodes",
                    "init_args": {"root": str(images), "image_size": 16, "shots": 1, "queries": 1, "num_workers": 0},
                },
            }
        )
    )
    main(["fit", "--config", "run.yaml", *TINY])
    best = "runs/run/version_0/checkpoints/best.ckpt"
    main(["test", "--ckpt_path", best, "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"])
    assert capsys.readouterr().out.count("test accuracy") == 2
    assert type(MAML.load_from_checkpoint(best).backbone).__name__ == "ResNet"


def test_a_class_of_ones_own_needs_ones_own_config(
    good: Checkpoint, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone(class_path="mine.Net", init_args={"width": 3})(good)
    torch.save(good, "x.ckpt")
    line = refused(["test", "--ckpt_path", "x.ckpt"], folder, capsys)
    assert (
        "names the class mine.Net, which is not built from a file unasked; add --config with the run's config.yaml"
        in line
    )
    entry(backbone={"class_path": "mine.Net", "init_args": {}})(good)
    torch.save(good, "x.ckpt")
    with pytest.raises(CheckpointError, match="backbone=YourNetwork"):
        MAML.load_from_checkpoint("x.ckpt")
