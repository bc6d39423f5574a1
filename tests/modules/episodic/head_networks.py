"""Networks that do more than end in their head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Net(nn.Module):
    """A body of 5 features, and a head with 3 outputs."""

    def __init__(self, head: nn.Module | None = None) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 5), nn.Tanh())
        self.head = nn.Linear(5, 3) if head is None else head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Scaled(Net):
    def __init__(self) -> None:
        super().__init__(nn.Linear(5, 3, bias=False))
        self.scale = nn.Parameter(torch.tensor(4.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.head(F.normalize(self.body(x), dim=-1))


class LogSoftmax(Net):
    def forward(self, x: Tensor) -> Tensor:
        return (2.0 * super().forward(x)).log_softmax(-1)


class TwoBranches(Net):
    def __init__(self) -> None:
        super().__init__()
        self.skip = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.skip(x).tanh()


class ChangedInPlace(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).mul_(3.0)


class ChangedByData(Net):
    """In place, past autograd's version counter."""

    def forward(self, x: Tensor) -> Tensor:
        found = super().forward(x)
        found.data.mul_(3.0)
        return found


class Keyword(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(input=self.body(x))


class Twice(Net):
    def __init__(self) -> None:
        super().__init__(nn.Linear(5, 5))
        self.out = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.head(self.head(self.body(x)).tanh()))


class MultiCrop(Net):
    def forward(self, x: Tensor) -> Tensor:
        z = self.body(x)
        return torch.stack([self.head(z), self.head(-0.5 * z)]).mean(0)


class Functional(Net):
    """Never calls its head."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.body(x), F.normalize(self.head.weight, dim=-1), self.head.bias)


class ReadsHead(Net):
    """Features depend on the head's weight."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x) * self.head.weight.norm())


class ReadsHeadDetached(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x) * self.head.weight.detach().norm())


class HeadReadsBody(Net):
    """The head holds the body out of sight, and uses its weight."""

    class Head(nn.Module):
        def __init__(self, other: nn.Linear) -> None:
            super().__init__()
            self.linear, self.others = nn.Linear(5, 3), [other]

        def forward(self, z: Tensor) -> Tensor:
            return self.linear(z) * self.others[0].weight.norm()

    def __init__(self) -> None:
        super().__init__()
        self.head = self.Head(self.body[0])  # type: ignore[arg-type]


class Told(Net):
    """The network sets something in its head before it calls it."""

    class Head(nn.Linear):
        heat: Tensor

        def forward(self, z: Tensor) -> Tensor:
            return super().forward(z) * self.heat

    def __init__(self) -> None:
        super().__init__(self.Head(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        self.head.heat = x.square().mean().sqrt()  # type: ignore[assignment]
        return super().forward(x)


class Bilinear(Net):
    def __init__(self) -> None:
        super().__init__(nn.Bilinear(5, 4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x), x)


class Tied(nn.Module):
    """The output layer shares the weight of an embedding, in which a layer of the body begins."""

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.first, self.mix, self.head = nn.Linear(4, 3, bias=False), nn.Linear(3, 4), nn.Linear(4, 3, bias=bias)
        self.head.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(self.first(x).tanh()))


class Attending(nn.Module):
    """A head that pools tokens by attention."""

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.asks, self.out = nn.Parameter(torch.randn(5)), nn.Linear(5, 3)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.out(((tokens @ self.asks).softmax(-1).unsqueeze(-1) * tokens).sum(-2))

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(1, 5), self.Head()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x[..., None]).tanh())


class Cosine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.scale = nn.Parameter(torch.randn(3, 5)), nn.Parameter(torch.tensor(3.0))

    def forward(self, z: Tensor) -> Tensor:
        return self.scale * F.linear(F.normalize(z, dim=-1), F.normalize(self.weight, dim=-1))


class Checkpointed(Net):
    saves = True

    def forward(self, x: Tensor) -> Tensor:
        z = self.body(x)
        found: Tensor = checkpoint(self.head, z, use_reentrant=False) if self.saves else self.head(z)
        return found


class Writing(nn.Module):
    """Writes to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3)

    def forward(self, z: Tensor) -> Tensor:
        return self.linear(z.mul_(2.0))


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / (1.0 + weight.norm())


def parametrized() -> nn.Module:
    head = nn.Linear(5, 3)
    nn.utils.parametrize.register_parametrization(head, "weight", Halved())
    return Net(head)


def writing() -> nn.Module:
    net = Net(Writing())
    net.body = nn.Sequential(nn.Linear(4, 5))
    return net


def by_index() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
