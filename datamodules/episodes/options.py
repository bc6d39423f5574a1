"""What can be asked of episodes of images besides ways, shots and queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from metalearn.checks import check_flag, check_whole
from metalearn.errors import ConfigError

__all__ = ["EpisodeOptions", "refuse_image_options"]


@dataclass(frozen=True)
class EpisodeOptions:
    """Options of episodes that every data set of classes has; all are off by default.

    Attributes:
        balanced: every class of a task has the same number of shots; otherwise, where ``shots`` is a range, each class draws
            its own.
        within_groups: all classes of a task come from one group: an alphabet of Omniglot, a superclass of CIFAR-100 or
            tieredImageNet. The group is drawn first, uniformly among those with enough classes. Classes that are turned stay
            with those that are turned alike, where these are enough.
        rotations: training classes turned by 90, 180 and 270 degrees are classes of their own.
        unlabeled: images per class without a label, beside support and query (Ren et al. 2018). Episodes are then
            :class:`~metalearn.episode.SemiSupervisedEpisode`.
        distractors: classes that appear among the unlabeled images alone.
        class_labels: label training tasks by the numbers of their classes in the training split, from 0, as
            :class:`~metalearn.Baseline` needs them; those of validation and test keep ``0..N-1``. Turned classes have numbers of
            their own.
        normalize: subtract the mean of each channel over the training classes' images, and divide by its deviation.
        augment: torchvision v2 transforms (or any modules ``[C, H, W] -> [C, H, W]``) for training images, each image by
            itself, on the device.
        skip_broken: leave out images that cannot be read, and name them, instead of stopping at the first.
        test_tasks_file: a table of test tasks as written by ``python -m metalearn data tasks``; they replace the drawn ones.
        aligned: all classes of a task give the examples of the same numbers. Of Omniglot these are drawings by the same people,
            so that nobody has drawn both for the support set and for the query set.

    Raises:
        ConfigError: a value is out of range.

    Example:
        >>> from metalearn.datamodules import EpisodeOptions, OmniglotDataModule
        >>> options = EpisodeOptions(within_groups=True)
        >>> data = OmniglotDataModule("data/omniglot", ways=5, options=options)
        >>> data.options.within_groups
        True
    """

    balanced: bool = True
    within_groups: bool = False
    rotations: bool = False
    unlabeled: int = 0
    distractors: int = 0
    normalize: bool = False
    augment: Sequence[nn.Module] = ()
    skip_broken: bool = False
    test_tasks_file: str | None = None
    class_labels: bool = False
    aligned: bool = False

    def __post_init__(self) -> None:
        for name in ("balanced", "within_groups", "rotations", "aligned", "normalize", "skip_broken", "class_labels"):
            check_flag(name, getattr(self, name))
        check_whole("unlabeled", self.unlabeled, 0)
        check_whole("distractors", self.distractors, 0)
        if self.distractors and not self.unlabeled:
            raise ConfigError(
                f"distractors is {self.distractors}, but unlabeled is 0, so they would have no images; use unlabeled=5"
            )


def refuse_image_options(options: EpisodeOptions, what: str, names: Sequence[str]) -> None:
    """Raise if an option is set that is for images out of files.

    Args:
        options: of episodes.
        what: the examples are, for the message.
        names: of the options.

    Raises:
        ConfigError: such an option is set.
    """
    for name in names:
        if getattr(options, name):
            raise ConfigError(f"options.{name} is given, but it is for images out of files; leave it out for {what}")
