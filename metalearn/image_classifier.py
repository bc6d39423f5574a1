"""A classifier of a user's own classes of images, adapted from a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metalearn.datamodules.episodes.likeness import Statistics, find_unlikeness
from metalearn.datamodules.sources.folders import list_images, read_queries, read_support
from metalearn.datamodules.sources.images import ImageSpec, to_float
from metalearn.episode import Batch
from metalearn.errors import CheckpointError
from metalearn.modules import MetaModule
from metalearn.shipping import AdaptedModel, load

__all__ = ["ImageClassifier", "adapt_to_folder", "load_module"]


@dataclass(frozen=True)
class ImageClassifier:
    """A network that was adapted to a user's classes of images.

    Attributes:
        names: the names of the classes.
        spec: how images are read.
        adapted: the adapted network.
        support: how many images it was adapted to.
        statistics: what the training images are like, where the checkpoint says it.
        unlike: how the images that it was adapted to differ from the training images; ``None`` where nothing is seen.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> from metalearn import MAML, Batch, Conv4
        >>> from metalearn.datamodules import ImageSpec
        >>> from metalearn.image_classifier import ImageClassifier
        >>> module = MAML(Conv4(ways=2))
        >>> adapted = module.adapt(Batch(torch.rand(4, 1, 28, 28), torch.tensor([0, 0, 1, 1])))
        >>> spec = ImageSpec(channels=1, size=28)
        >>> classifier = ImageClassifier(["cat", "dog"], spec, adapted, support=4)
        >>> classifier(np.zeros((3, 1, 28, 28), np.uint8)).shape
        (3, 2)
    """

    names: list[str]
    spec: ImageSpec
    adapted: AdaptedModel
    support: int
    statistics: Statistics | None = None
    unlike: str | None = None

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Class probabilities ``[n, N]`` of uint8 images ``[n, C, H, W]`` as :func:`read_queries` gives them."""
        return np.asarray(self.adapted.probabilities(to_float(images, self.spec)).numpy())

    def classify_folder(self, folder: str | Path) -> dict[Path, str]:
        """The class of every image in a folder and all folders below it.

        Raises:
            DataError: there are none, or one cannot be read.
        """
        images, paths = read_queries(Path(folder), self.spec)
        return {path: self.names[index] for path, index in zip(paths, self(images).argmax(-1), strict=True)}

    def independent(self) -> ImageClassifier:
        """The classifier whose answer to an image does not depend on the images that come with it.

        See :meth:`AdaptedModel.independent`. What :meth:`save` and :meth:`export` write answers so.
        """
        return replace(self, adapted=self.adapted.independent())

    def save(self, path: str | Path) -> Path:
        """Write what adapted to a ``.safetensors`` file, with the classes' names and how images are read.

        Returns:
            the path.

        Raises:
            DataError: the file cannot be written.
        """
        return self._labelled().save(path)

    @classmethod
    def load(cls, path: str | Path, source: Any = None) -> ImageClassifier:
        """Read what :meth:`save` wrote. Nothing in the file is run.

        Args:
            path: of the file.
            source: the module that was adapted, or its checkpoint. ``None`` will do for a file that holds the whole network.

        Raises:
            CheckpointError: the file is damaged or none of ours, was adapted from another meta-model, needs one, or is of no
                classes of images.
        """
        adapted = AdaptedModel.load(path, source)
        if adapted.preprocessing is None:
            raise CheckpointError(
                f"adapted model {path} does not say how images are read, so it is of other data; use AdaptedModel.load(path) "
                "with tensors of your own"
            )
        spec = ImageSpec.from_dict(adapted.preprocessing)
        unnamed = cls([], spec, adapted, adapted.examples or 0, adapted.image_statistics)
        outputs = unnamed(np.zeros((1, spec.channels, spec.size, spec.size), np.uint8)).shape[1]
        names = [f"class {index}" for index in range(outputs)] if adapted.names is None else adapted.names
        if len(names) != outputs:
            raise CheckpointError(
                f"adapted model {path} has {len(names)} names of classes for {outputs} outputs; set adapted.names to a name for "
                "each, and save it anew"
            )
        return replace(unnamed, names=names)

    def export(self, path: str | Path) -> Path:
        """Write the network as an ONNX file; see :meth:`AdaptedModel.export`.

        Returns:
            the path.

        Raises:
            ConfigError: a package is missing, or the network has an operator that ONNX lacks.
            DataError: the file cannot be written.
        """
        return self._labelled().export(path)

    def _labelled(self) -> AdaptedModel:
        self.adapted.names, self.adapted.preprocessing = self.names, self.spec.to_dict()
        return self.adapted


def adapt_to_folder(
    checkpoint: str | Path, support: str | Path, steps: int | None = None, rescale_steps: float | None = None
) -> ImageClassifier:
    """Adapt a checkpoint to labelled images: a sub-folder per class, of which there may be fewer or more than in training.

    With more classes than the checkpoint tells apart, the head starts from the mean of its rows, see
    :meth:`~metalearn.modules.MetaModule.adapt`. There several steps of the checkpoint's sizes may be too long; compare
    ``rescale_steps=0.5``.

    Args:
        checkpoint: a file, or the name of a shipped one.
        support: the folder of labelled images.
        steps: how many inner steps; those of the checkpoint's evaluation otherwise.
        rescale_steps: what the inner step sizes are multiplied by, above 0.

    Raises:
        MetalearnError: the checkpoint, the folder or an image cannot be used, the network cannot be widened, it has no step
            sizes, or a number is out of range.
    """
    module, spec = load_module(checkpoint)
    if rescale_steps is not None:
        module.rescale_steps(rescale_steps)
    images, labels, names = read_support(Path(support), spec)
    adapted = module.adapt(Batch(to_float(images, spec), torch.from_numpy(labels)), steps=steps, ways=len(names))
    adapted.names = names
    statistics = module.image_statistics
    files = [file for files_of_class in list_images(Path(support)).values() for file in files_of_class]
    unlike = find_unlikeness(images, files, spec, statistics)
    return ImageClassifier(names, spec, adapted, len(labels), statistics, unlike)


def load_module(path: str | Path) -> tuple[MetaModule, ImageSpec]:
    """The module of a checkpoint, in ``eval()`` on the CPU, and how it reads images.

    Raises:
        CheckpointError: the checkpoint cannot be read, is of a foreign class, or was not trained on images.
    """
    module = load(path)
    if not isinstance(module, MetaModule):
        raise CheckpointError(
            f"checkpoint {path} is of {type(module).__name__}, which does not adapt to tasks; use one of an episodic algorithm, "
            "such as MAML"
        )
    if module.image_spec is None:
        raise CheckpointError(
            f"checkpoint {path} does not say how its images are read, so it was not trained on images by a data module of ours; "
            "use load_from_checkpoint(path) and adapt() with your own tensors"
        )
    return module, ImageSpec.from_dict(module.image_spec)
