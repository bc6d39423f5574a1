"""A network that is trained as a plain classifier, with a head that is fitted to each new task."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.func import functional_call

from metalearn.checks import MOST_OF_A_WIDTH, MOST_STEPS, check_choice, check_number, check_whole
from metalearn.episode import Episode
from metalearn.errors import ConfigError
from metalearn.inner import HeadLearner, Learner, MetaLoss, NormPolicy
from metalearn.inner.ambient import current
from metalearn.inner.head_calls import watching
from metalearn.inner.inner_loop import ExecutionName, InnerLoop, check_steps, optional, setting
from metalearn.inner.losses import LossFunction
from metalearn.inner.parts import HEAD_TEXT, choose_head
from metalearn.inner.soft_means import REFINEMENTS_TEXT, SoftMeansLearner, check_company
from metalearn.inner.solvers import FittedHead
from metalearn.inner.solvers.prototypes import fit_prototypes
from metalearn.inner.solvers.softmax_heads import fit_cosine, fit_logistic, fit_softmax
from metalearn.inner.solvers.solved_head import HeadFit
from metalearn.inner.unit_features import UnitHeadLearner
from metalearn.modules.episodic.base import MetaModule
from metalearn.modules.episodic.scores import Metrics
from metalearn.modules.episodic.training import TrainingStep
from metalearn.modules.training.outer import Scheduler

__all__ = ["Baseline", "BaselineLoop"]

ClassifierName = Literal["linear", "cosine", "logistic_regression", "nearest_centroid"]


@dataclass(frozen=True)
class BaselineLoop(InnerLoop):
    """The options of :class:`Baseline`."""

    inner_steps: int = setting(1, "the head is there after one step.")
    norm: NormPolicy = setting(
        "running",
        'whose batch statistics normalise a task: those of the training (``"running"``), or of each set, as for '
        "``metalearn.MAML``.",
    )
    classifier: ClassifierName = setting(
        "linear",
        'the head of a new task. ``"linear"`` takes gradient steps from zero (Baseline). ``"cosine"`` does so on directions, in '
        'training too (Baseline++). ``"logistic_regression"`` is solved to the end (Tian et al. 2020). ``"nearest_centroid"`` '
        "are the class means (SimpleShot).",
        partial(check_choice, choices=get_args(ClassifierName)),
    )
    classes: int | None = setting(
        None,
        "how many classes the training split has. ``None`` for as many as the network has outputs, whose head then tells them.",
        optional(partial(check_whole, least=2, most=MOST_OF_A_WIDTH**2)),
    )
    head: str = setting("head", HEAD_TEXT)
    unit_features: bool = setting(False, "divide the features of a new task by their norm; cosines always do.")
    head_steps: int = setting(100, "how many gradient steps a linear or cosine head takes.", check_steps)
    head_lr: float = setting(0.1, "the size of these steps.", partial(check_number, remedy="use 0.1", above=0))
    head_decay: float = setting(
        0.001, "the weight decay of a linear head.", partial(check_number, remedy="use 0.001", least=0)
    )
    inverse_penalty: float = setting(
        1.0, "``C`` of the logistic regression, as in scikit-learn.", partial(check_number, remedy="use 1.0", above=0)
    )
    scale: float = setting(
        10.0,
        "what cosines are multiplied by; and half of it squared distances from class means, where ``refinements`` move these.",
        partial(check_number, remedy="use 10.0", above=0),
    )
    refinements: int = setting(0, REFINEMENTS_TEXT, partial(check_whole, least=0, most=MOST_STEPS))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_company(self.refinements, self.norm)
        if self.refinements and self.classifier != "nearest_centroid":
            raise ConfigError(
                f"refinements is {self.refinements}, but classifier is {self.classifier!r}, which has no class means to move; "
                "use classifier='nearest_centroid', or refinements=0"
            )

    def make_fit(self) -> HeadFit:
        """What makes the head of a task."""
        if self.classifier == "cosine":
            return partial(fit_cosine, steps=self.head_steps, rate=self.head_lr, scale=self.scale)
        if self.classifier == "logistic_regression":
            return partial(fit_logistic, inverse_penalty=self.inverse_penalty)
        if self.classifier == "nearest_centroid":
            return partial(fit_prototypes, scale=self.scale / 2) if self.refinements else fit_prototypes
        return partial(fit_softmax, steps=self.head_steps, rate=self.head_lr, decay=self.head_decay)


class Baseline(MetaModule):
    """Train a plain classifier of all training classes, and fit a new head to each task (Chen et al. 2019).

    Training is ordinary classification of all examples of a batch: nothing adapts. Their labels must be the numbers of
    training classes, which data modules give with ``options.class_labels``. Validation, test and :meth:`adapt` keep the features,
    which are what the network's head gets, and fit a head to the support set as ``classifier`` says.

    A pretrained network needs no training: ``test`` measures it as it is, and so any network that another algorithm has trained.

    Args:
        backbone: any network ``[n, ...] -> [n, ways]`` whose last layer is a ``torch.nn.Linear`` with a bias.

    Raises:
        ConfigError: an argument is out of range, or the backbone has no such head.

    Example:
        >>> import torch
        >>> from metalearn import MLP, Baseline, Batch
        >>> module = Baseline(MLP(outputs=20, inputs=8), classifier="logistic_regression")
        >>> support = Batch(torch.randn(10, 8), torch.arange(5).repeat(2))
        >>> module.adapt(support, ways=5)(torch.randn(4, 8)).shape
        torch.Size([4, 5])
    """

    options_class = BaselineLoop

    def __init__(
        self,
        backbone: nn.Module,
        classifier: ClassifierName = "linear",
        classes: int | None = None,
        head: str = "head",
        unit_features: bool = False,
        head_steps: int = 100,
        head_lr: float = 0.1,
        head_decay: float = 0.001,
        inverse_penalty: float = 1.0,
        scale: float = 10.0,
        loss: LossFunction = "cross_entropy",
        execution: ExecutionName = "auto",
        norm: NormPolicy = "running",
        outer_optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=1e-3),
        outer_scheduler: Scheduler = None,
        tasks_at_once: int | None = None,
        memory_limit: float | None = None,
        kernels: bool = True,
        metrics: Metrics = None,
        refinements: int = 0,
    ) -> None:
        options = BaselineLoop.of(locals())
        directions = unit_features or classifier == "cosine"
        learner: Any = UnitHeadLearner if directions else HeadLearner
        if refinements:
            learner = partial(SoftMeansLearner, rounds=0, eval_rounds=refinements, scale=scale / 2, unit=unit_features)
        super().__init__(
            backbone,
            options,
            learner=partial(learner, head=head, needed_by="Baseline"),
            solver=make_baseline_solver,
            outer_optimizer=outer_optimizer,
            outer_scheduler=outer_scheduler,
            metrics=metrics,
            loss_order=1,
        )
        self._head, self._scale = choose_head(backbone, head), scale if classifier == "cosine" else None
        self.training_head = None if classes is None else nn.Linear(self._find_head().in_features, classes)
        self._training = TrainingStep(self._runner, self._reader, classes)

    def setup(self, stage: str) -> None:
        """Also refuse data whose labels are not those of training classes."""
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        if stage == "fit" and hasattr(data, "num_classes") and hasattr(getattr(data, "options", None), "class_labels"):
            own = self.training_head or self._find_head()
            check_training_classes(data, own.out_features, "backbone" if self.training_head is None else "classes")

    def meta_loss(self, episode: Episode, ways: int | None = None) -> MetaLoss:
        """The mean loss of a plain classification of all examples, and the query outputs ``[B, n, classes]``."""
        support, query = episode
        tasks, n = query.y.shape[:2]
        x, y = torch.cat([support.x, query.x], 1).flatten(0, 1), torch.cat([support.y, query.y], 1).flatten(0, 1)
        outputs = self._classify(x)
        loss = self.adaptation.task_loss({}, outputs, y)
        return MetaLoss(loss, outputs.detach().unflatten(0, (tasks, -1))[:, -n:])

    def _find_head(self) -> nn.Linear:
        layer = self.backbone.get_submodule(self._head)
        assert isinstance(layer, nn.Linear)  # the solver has seen to it
        return layer

    def _classify(self, x: Tensor) -> Tensor:
        """Outputs ``[n, classes]`` of training classes, by the network itself: in training its running statistics move on."""
        kept = {} if current().recording else {name: value.clone() for name, value in self.backbone.named_buffers()}
        head = self._find_head()
        with watching(head) as calls:
            outputs: Tensor = functional_call(self.backbone, kept, (x,))
        classifier = self.training_head or head
        if classifier is head and self._scale is None:
            return outputs
        features = calls.inputs[0][0][0]
        unused = 0.0 * outputs.sum()  # so that every parameter has a gradient, as DDP needs it
        if self._scale is None:
            logits: Tensor = classifier(features)
            return logits + unused
        unused = unused + 0.0 * classifier.bias.sum()
        return self._scale * F.linear(F.normalize(features, dim=-1), F.normalize(classifier.weight, dim=-1)) + unused


def make_baseline_solver(options: InnerLoop, learner: Learner) -> FittedHead:
    """The solver of :class:`Baseline`."""
    assert isinstance(options, BaselineLoop)
    return FittedHead(learner, options.head, options.make_fit(), "Baseline")


def check_training_classes(data: object, outputs: int, argument: str) -> None:
    """Raise unless training examples are labelled by their class, and there are outputs for all of them.

    Args:
        data: a data module of classes.
        outputs: of the classifier.
        argument: that says how many, for the message.

    Raises:
        ConfigError: they are not, or there are not.
    """
    if not data.options.class_labels:  # type: ignore[attr-defined]
        raise ConfigError(
            "options.class_labels is false, but Baseline trains on the classes themselves, and the labels of a task mean "
            "nothing outside of it; use --data.options.class_labels true"
        )
    classes = data.num_classes("train")  # type: ignore[attr-defined]
    if outputs < classes:
        raise ConfigError(
            f"{argument} has {outputs} outputs, but the training split has {classes} classes; use --model.classes {classes}"
        )
