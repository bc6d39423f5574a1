"""A network adapted to one task."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.errors import ConfigError, MetalearnError
from metalearn.inner.ambient import own_kernels
from metalearn.inner.learner import Learner
from metalearn.inner.network.copying import deepcopy_state
from metalearn.inner.norm.moments import Moments
from metalearn.inner.norm.policies import PerStep
from metalearn.inner.rules import Params
from metalearn.shipping.checksum import find_meta_checksum
from metalearn.shipping.description import Description, Origin, check_names, choose_policy
from metalearn.shipping.export import export_onnx, export_program, make_example
from metalearn.shipping.files import write_adapted
from metalearn.shipping.loading import find_learner
from metalearn.shipping.queries import check_queries, explain_queries
from metalearn.shipping.restoring import restore
from metalearn.shipping.statistics import choose_statistics, name_statistics, record_statistics, run_independently
from metalearn.shipping.tensors import TensorTable, register_network
from metalearn.shipping.whole import find_whole

__all__ = ["AdaptedModel"]


class AdaptedModel(nn.Module):
    """What :meth:`MetaModule.adapt` returns: ``adapted(x)`` gives the logits of one task's queries.

    It holds its own copies of all tensors, so it stays what it is when the module is trained on. It works in any grad mode and
    leaves the module that it came from as it was.

    ``parameters()`` are the tensors that adapted. All others are buffers. The names in ``state_dict()`` are those of the network.
    Layers are always in evaluation mode. A call keeps no graph, unless a parameter or the queries ask for a gradient.

    Attributes:
        names: of the classes, if somebody has said them: a list of texts, which ``save`` and ``export`` keep.
        preprocessing: how images are read, as ``ImageSpec.to_dict`` says it; ``None`` for other data.
        image_statistics: what training images are like, where the module knows it.
        examples: how many it was adapted to; ``None`` where a file does not say it.

    Example:
        >>> import torch
        >>> from metalearn import ANIL, MLP, AdaptedModel, Batch
        >>> module = ANIL(MLP(outputs=5, inputs=8), inner_steps=3)
        >>> adapted = module.adapt(Batch(torch.randn(5, 8), torch.arange(5)))
        >>> isinstance(adapted, AdaptedModel), adapted.probabilities(torch.randn(4, 8)).shape
        (True, torch.Size([4, 5]))
        >>> [name for name, _ in adapted.named_parameters()]
        ['head.weight', 'head.bias']
    """

    _support: Tensor

    def __init__(
        self,
        learner: Learner,
        params: Params,
        support: Tensor,
        steps: int,
        ways: int | None = None,
        classes: bool = True,
        operators: Sequence[str] = (),
        origin: Origin | None = None,
        shares: AdaptedModel | None = None,
    ) -> None:
        super().__init__()
        self.names: list[str] | None = None
        self._origin = origin or Origin()
        self.preprocessing, self.image_statistics = self._origin.preprocessing, self._origin.image_statistics
        self.examples: int | None = len(support)
        self._meta_model = find_meta_checksum(learner)
        self._ways, self._classes, self._steps = ways, classes, steps
        self._operators = tuple(operators)
        self._statistics: dict[str, tuple[str, str]] | None = None
        """Under which names the statistics stand that a query is normalised by; ``None`` if they are taken from examples."""
        self._alone = False  # whether they serve a query that comes alone, and no others
        if isinstance(learner.policy, PerStep):  # which training would go on to write
            self.norm_statistics = copy.deepcopy(learner.policy.kept)
            learner = learner.under(PerStep(self.norm_statistics))
        self._learner = learner
        self._table = TensorTable(self)
        self._called = tuple(params), tuple(learner.buffers())
        register_network(self._table, learner, params, None if shares is None else shares._table)
        self._shared = () if shares is None else tuple(name for name, _ in self.named_buffers())
        self.register_buffer("_support", support.detach().clone(), persistent=False)
        self.eval()

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__)  # Python 3.10 has no default one

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return deepcopy_state(self, self._learner.backbone, memo)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As any module's. Tensors that are shared with other models become this model's own first."""
        self._table.unshare(self._shared)
        self._shared = ()
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def __repr__(self) -> str:
        moved, total = (sum(value.numel() for value in of) for of in (self.parameters(), self.params.values()))
        return f"AdaptedModel({type(self._learner.backbone).__name__}, {moved:,} of {total:,} numbers adapted)"

    @property
    def params(self) -> dict[str, Tensor]:
        """The tensors of the network by name, after adaptation. They are those that a call uses, not copies."""
        return dict(self._table.read(self._called[0]))

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[n, N]`` of queries ``x`` ``[n, ...]``.

        Under the norm policy ``"transductive"`` queries are normalised by their own statistics, all of a call together. A single
        query has none: it is normalised by those of the support set, as under ``"support"``, which is said once. See
        :meth:`independent` for a model that answers alike in any company.

        Raises:
            ShapeError: there are no queries, they are not finite, or the network cannot take them.
        """
        if torch.compiler.is_compiling():
            return self._run(x)
        x = check_queries(x, self._support)
        asked = x.requires_grad or any(value.requires_grad for value in self.params.values())
        try:
            with torch.set_grad_enabled(torch.is_grad_enabled() and asked):
                return self._run(x)
        except (RuntimeError, ValueError, IndexError, AssertionError, TypeError) as error:
            if isinstance(error, (MetalearnError, torch.OutOfMemoryError)):
                raise
            raise explain_queries(x, self._support, error) from error

    def probabilities(self, x: Tensor) -> Tensor:
        """Class probabilities ``[n, N]`` of queries ``x`` ``[n, ...]``.

        Raises:
            ConfigError: the network was adapted to values, not to class labels.
        """
        if not self._classes:
            raise ConfigError(
                "probabilities are asked of a network that was adapted to targets which are no class labels; use adapted(x), its "
                "outputs"
            )
        outputs: Tensor = self(x)
        return outputs.softmax(1)

    def independent(self) -> AdaptedModel:
        """The same model, whose answer to a query does not depend on the queries that come with it.

        Batch normalisation takes the statistics of the support set at the adapted weights. They are computed here, once, and are
        buffers from then on: ``running_mean`` and ``running_var`` of the layers. So ``network.load_state_dict(...)`` takes the
        state dict of what is returned, and ``network.eval()`` then gives the same answers without this package. This needs a
        network that normalises once in each layer, and an algorithm that adds nothing to it, as cosines do.

        Under the policies ``"support"``, ``"running"`` and ``"per_step"`` answers stay what they are.

        Returns:
            a model with tensors of its own, or this one if it is so already.

        Example:
            >>> import torch
            >>> from metalearn import MAML, Batch, Conv4
            >>> module = MAML(Conv4(ways=5, hidden=4), inner_steps=1)
            >>> adapted = module.adapt(Batch(torch.rand(5, 1, 28, 28), torch.arange(5))).independent()
            >>> queries = torch.rand(3, 1, 28, 28)
            >>> torch.allclose(adapted(queries)[:1], adapted(queries[:1]), atol=1e-5)
            True
        """
        if self._statistics is not None:
            return self if not self._alone else self._copy(alone=False)
        other = self._copy(alone=False)
        other._modules.pop("norm_statistics", None)
        other._support = self._support[:0].clone()
        other._take_statistics(record_statistics(self._learner, self._read_tensors(), self._support, self._steps))
        return other

    def save(self, path: str | Path, independent: bool = True) -> Path:
        """Write what adapted to a ``.safetensors`` file, with all that is needed to use it: no code, and nothing pickled.

        Beside these tensors the file holds the statistics of batch normalisation, the classes' ``names``, ``preprocessing``, and
        checksums of itself and of the meta-model. It appears whole or not at all. Where all parameters of a network of ours
        adapted, the file needs no checkpoint beside it.

        Args:
            path: of the file.
            independent: whether the answers of the loaded model are those of :meth:`independent`. With ``False`` a model of the
                policy ``"transductive"`` stays one.

        Returns:
            the path.

        Raises:
            ConfigError: its answers need the support set.
            DataError: the file cannot be written.
        """
        policy, model = choose_policy(self._learner, independent), self.independent()
        parameters = {name: value.detach() for name, value in model.named_parameters()}
        buffers = {name: model._table[name] for pair in (model._statistics or {}).values() for name in pair}
        whole = find_whole(self._learner.backbone, self._origin.backbone, parameters)
        if whole is not None:
            own = self._learner.backbone.state_dict().keys()  # without the tensors of an adapter
            buffers |= {name: value for name, value in model.state_dict().items() if name in own - parameters.keys()}
        return write_adapted(Path(path), parameters | buffers, replace(model._describe(policy), backbone=whole))

    @classmethod
    def load(cls, path: str | Path, source: Any = None) -> AdaptedModel:
        """Read what :meth:`save` wrote. Nothing in the file is run.

        Args:
            path: of the file.
            source: the module that was adapted, or its checkpoint: a file, or the name of a shipped one. ``None`` will do for a
                file that holds the whole network.

        Raises:
            CheckpointError: the file is damaged or none of ours, was adapted from another meta-model, or needs one.
        """
        restored, saved = restore(path, None if source is None else find_learner(source))
        model = cls(
            restored.learner, restored.params, restored.support, saved.steps, saved.ways, saved.classes, (), saved.origin()
        )  # fmt: skip
        model._alone, model.names, model.examples = saved.policy != "independent", saved.names, saved.examples
        model._meta_model = saved.meta_model
        model._take_statistics(restored.moments)
        return model

    def exported(self) -> torch.export.ExportedProgram:
        """The network as a program of ``torch.export``, for any number of queries; it answers as :meth:`independent`.

        Raises:
            ConfigError: torch cannot trace the network.
        """
        return export_program(self.independent(), make_example(self._support))

    def export(self, path: str | Path) -> Path:
        """Write the network as an ONNX file, for any number of queries; it answers as :meth:`independent`.

        The input ``x`` is what the network takes, the output ``logits`` what it gives. The file's metadata ``metalearn`` is a
        JSON text. It has the names of the classes, and how images become ``x``.

        Returns:
            the path.

        Raises:
            ConfigError: a package is missing, or the network has an operator that ONNX lacks.
            DataError: the file cannot be written.
        """
        model = self.independent()
        return export_onnx(Path(path), model, make_example(self._support), model._describe("independent"))

    def _take_statistics(self, moments: Mapping[str, Moments]) -> None:
        """Normalise queries by these from now on."""
        self._statistics = {name: name_statistics(name) for name in moments}
        for name, pair in moments.items():
            for buffer, value in zip(name_statistics(name), pair, strict=True):
                self._table.add_buffer(buffer, value.detach().clone())

    @torch.compiler.disable
    def _run(self, x: Tensor) -> Tensor:
        tensors = self._read_tensors()
        if self._statistics is not None and (not self._alone or len(x) == 1):
            pairs = self._statistics.items()
            moments = {name: (self._table[mean], self._table[var]) for name, (mean, var) in pairs}
            outputs = run_independently(self._learner, tensors, moments, x, self._steps)
        else:
            learner = choose_statistics(self._learner, x)
            with learner.running("evaluating") as running, own_kernels(*self._operators):
                support, query = running.encode(tensors, self._support, x)
                outputs = running.query_logits(tensors, support, query, self._steps)
        return outputs if self._ways is None else outputs[:, : self._ways]

    def _read_tensors(self) -> Params:
        """All that a call of the network needs; buffers are copies, since a layer may write to them."""
        adapted, buffers = self._called
        return {name: value.clone() for name, value in self._table.read(buffers).items()} | self._table.read(adapted)

    def _copy(self, alone: bool) -> AdaptedModel:
        """A model with copies of all tensors, over the same layers."""
        other = object.__new__(type(self))
        memo: dict[int, Any] = {id(self): other, id(self._learner): self._learner}
        other.__dict__.update(copy.deepcopy(self.__getstate__(), memo))
        other._alone, other._shared = alone, ()
        return other

    def _describe(self, policy: str) -> Description:
        check_names(self.names)
        return Description(
            algorithm=self._origin.algorithm, network=type(self._learner.backbone).__name__, policy=policy, steps=self._steps,
            ways=self._ways, classes=self._classes, names=self.names, preprocessing=self.preprocessing,
            meta_model=self._meta_model, shape=list(self._support.shape[1:]),
            dtype=str(self._support.dtype).removeprefix("torch."),
            normalisations=list(self._statistics or {}),
            image_statistics=self.image_statistics, examples=self.examples,
        )  # fmt: skip
