"""The arguments that data modules share: said once, and seen in every signature, in the help and in a run's configuration."""

from __future__ import annotations

import inspect
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from lightning.pytorch.cli import LightningArgumentParser

import metalearn.datamodules
from metalearn import ConfigError
from metalearn.checks import check_whole
from metalearn.datamodules import BilevelDataModule, EpisodicDataModule, GlyphsDataModule, OmniglotDataModule
from metalearn.datamodules.episodes.arguments import Argument, ImageArguments, Unpack, select, spell_out
from metalearn.docstrings import read_arguments

DATA = [
    kind
    for name in metalearn.datamodules.__all__
    for kind in [getattr(metalearn.datamodules, name)]
    if issubclass(kind, (EpisodicDataModule, BilevelDataModule)) and kind not in (EpisodicDataModule, BilevelDataModule)
]


class GradedArguments(ImageArguments, total=False):
    """An option made on the spot."""

    level: Annotated[int, Argument(3, "how hard the tasks are.", partial(check_whole, least=1, most=9))]


class GradedGlyphs(GlyphsDataModule):
    """Letters that are graded."""

    @spell_out(GradedArguments, tasks_per_batch=2)
    def __init__(self, **arguments: Unpack[GradedArguments]) -> None:
        super().__init__(**select(arguments, ImageArguments))
        self.level = arguments["level"]


def test_an_option_made_on_the_spot_is_one_line_of_its_kind() -> None:
    parameters = inspect.signature(GradedGlyphs).parameters
    assert list(parameters)[-5:] == ["level", "options", "num_workers", "cache_dir", "train_seed"]
    assert parameters["level"].default == 3
    assert parameters["level"].annotation is int
    assert parameters["tasks_per_batch"].default == 2
    assert read_arguments(GradedGlyphs.__doc__ or "")["level"] == "how hard the tasks are."
    assert GradedGlyphs(3, 2, level=5).level == 5
    with pytest.raises(ConfigError, match="level is 0, but it must be a whole number, at least 1; use level=1"):
        GradedGlyphs(level=0)


def test_an_option_made_on_the_spot_is_seen_by_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(EpisodicDataModule, "data", subclass_mode=True)
    path = f"{__name__}.GradedGlyphs"
    with pytest.raises(SystemExit):
        parser.parse_args([f"--data.help={path}"])
    shown = capsys.readouterr().out
    assert "how hard the tasks are. (type: int, default: 3)" in " ".join(shown.split())
    config = parser.parse_args([f"--data={path}", "--data.level=7"])
    assert yaml.safe_load(parser.dump(config))["data"]["init_args"]["level"] == 7


@pytest.mark.parametrize("kind", DATA)
def test_every_argument_has_a_text_of_its_own(kind: type) -> None:
    texts = read_arguments(kind.__doc__ or "")
    signature = inspect.signature(kind)
    assert list(texts) == list(signature.parameters)
    assert not [text for text in texts.values() if "DataModule" in text or len(text) < 8]
    assert not [parameter for parameter in signature.parameters.values() if parameter.kind is parameter.VAR_KEYWORD]
    first = (kind.__doc__ or "").splitlines()[0]
    assert first.endswith(".")
    assert len(first) < 120


def test_the_arguments_are_taken_by_place_and_by_name(tmp_path: Path) -> None:
    by_place = OmniglotDataModule(str(tmp_path), 3, [1, 2], 4, 5, 60, 7, 8, 9, 20, False)
    by_name = OmniglotDataModule(
        root=str(tmp_path), ways=3, shots=[1, 2], queries=4, tasks_per_batch=5, train_tasks=60, val_tasks=7, test_tasks=8,
        seed=9, image_size=20, rotations=False,
    )  # fmt: skip

    def facts(data: Any) -> list[Any]:
        return [data.root, data.recipe, data.tasks_per_batch, data.tasks, data.seed, data.image_spec, data.rotations]

    assert facts(by_place) == facts(by_name)
    for wrong, message in (({"wayz": 3}, "unexpected keyword argument 'wayz'"), ({"root": "x"}, "multiple values")):
        with pytest.raises(TypeError, match=f"OmniglotDataModule: .*{message}"):
            OmniglotDataModule(str(tmp_path), **wrong)  # type: ignore[arg-type]
