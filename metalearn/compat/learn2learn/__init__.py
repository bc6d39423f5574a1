"""learn2learn's tasks and learners as ours: its Tasksets in a LightningDataModule, its MAML as a LightningModule."""

from metalearn.compat.learn2learn.learner import from_learn2learn
from metalearn.compat.learn2learn.tasksets import TasksetDataModule

__all__ = ["TasksetDataModule", "from_learn2learn"]
