"""What a run writes of its options is what it was given, whatever types its classes have declared."""

from __future__ import annotations

import collections.abc
import numbers
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from torch import Tensor, nn

from metalearn.cli import main
from metalearn.cli.parser import Parser, instantiate
from metalearn.datamodules import GlyphsDataModule

TINY = ["--trainer.max_steps", "2", "--trainer.accelerator", "cpu", "--data.train_tasks", "4", "--data.tasks_per_batch", "2",
        "--data.val_tasks", "2", "--data.test_tasks", "2"]  # fmt: skip
VISION = "torchvision.transforms.v2"
NOTHING = nn.Identity()
HALF = np.float64(0.5)
NAMED, SEVERAL = {"a": NOTHING}, [NOTHING]


class Scaled(nn.Module):
    """A transform with arguments of abstract types, and a default that is an object."""

    def __init__(
        self,
        scale: numbers.Real,
        shape: collections.abc.Hashable = 3,
        inner: Any = NOTHING,
        several: Any = SEVERAL,
        named: Any = NAMED,
        half: numbers.Real = HALF,  # type: ignore[assignment]
    ) -> None:
        super().__init__()
        self.scale, self.shape, self.inner, self.several, self.named, self.half = (
            scale,
            shape,
            inner,
            several,
            named,
            half,
        )

    def forward(self, image: Tensor) -> Tensor:
        scaled: Tensor = self.inner(image) * float(self.scale)
        return scaled

    def extra_repr(self) -> str:
        return f"{self.scale!r}, {self.shape!r}, {self.several!r}, {self.named!r}, {float(self.half)!r}"


def augment(transform: dict[str, Any]) -> dict[str, Any]:
    return {"data": {"class_path": "GlyphsDataModule", "init_args": {"options": {"augment": [transform]}}}}


@pytest.mark.parametrize("transform", [
    {"class_path": f"{VISION}.RandomRotation", "init_args": {"degrees": 10.0}},
    {"class_path": f"{VISION}.RandomRotation", "init_args": {"degrees": 10}},
    {"class_path": f"{VISION}.RandomAffine", "init_args": {"degrees": 5, "shear": 2.5, "scale": [0.9, 1.1]}},
    {"class_path": f"{VISION}.RandomApply", "init_args": {
        "transforms": [{"class_path": f"{VISION}.RandomRotation", "init_args": {"degrees": 3}}]}},
    {"class_path": f"{VISION}.RandAugment"},
    {"class_path": f"{__name__}.Scaled", "init_args": {"scale": 2.5}},
    {"class_path": f"{__name__}.Scaled", "init_args": {"scale": 2, "shape": "round"}},
], ids=lambda transform: str(transform["class_path"]).rpartition(".")[2])  # fmt: skip
@pytest.mark.filterwarnings("error::jsonargparse._util.JsonargparseWarning")
def test_what_is_written_gives_the_same_objects(transform: dict[str, Any]) -> None:
    parser = Parser()
    parser.add_subclass_arguments(GlyphsDataModule, "data")
    given = parser.parse_object(augment(transform))
    before = repr(given)
    again = parser.parse_object(yaml.safe_load(parser.dump(given)))
    assert repr(given) == before  # what is passed in stays
    made, remade = (repr(instantiate(parser, config).data.options.augment) for config in (given, again))
    assert made == remade


def test_a_run_with_a_number_of_an_abstract_type_is_tested_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    turned = {"class_path": f"{VISION}.RandomRotation", "init_args": {"degrees": 10}}
    Path("turned.yaml").write_text(yaml.safe_dump(augment(turned)))
    main(["fit", "--config", "maml_glyphs_5w1s", "--config", "turned.yaml", *TINY])
    run = Path("runs/turned/version_0")
    options = yaml.safe_load((run / "config.yaml").read_text())["data"]["init_args"]["options"]
    assert options["augment"][0]["init_args"]["degrees"] == 10
    main(["test", "--ckpt_path", str(run / "checkpoints" / "best.ckpt")])
    main(["fit", "--config", str(run / "config.yaml"), "--ckpt_path", "last", "--trainer.max_steps", "4"])
    assert "Unable" not in capsys.readouterr().err
