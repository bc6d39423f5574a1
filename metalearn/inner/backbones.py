"""Which networks an inner loop can adapt."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from metalearn.errors import ConfigError

__all__ = ["check_backbone"]


def check_backbone(backbone: object) -> None:
    """Raise unless ``backbone`` is a network that an eager second-order inner loop can differentiate."""
    if not isinstance(backbone, nn.Module):
        raise ConfigError(
            f"backbone is a {type(backbone).__name__}, but it must be a torch.nn.Module that maps [n, ...] to logits "
            "[n, ways]; pass for example metalearn.backbones.Conv4(ways=5)"
        )
    for name, layer in backbone.named_modules():
        where = "backbone" if not name else f"layer {name!r} of the backbone"
        if isinstance(layer, torch._dynamo.OptimizedModule) or layer._compiled_call_impl is not None:
            raise ConfigError(
                f"{where} is compiled, but torch.compile has no double backward, so second-order gradients would fail; pass the "
                "network as it was before, and compile=True for a step that is compiled whole"
            )
        if isinstance(layer, torch.jit.ScriptModule):
            raise ConfigError(
                f"{where} is TorchScript, which cannot be called with other weights than its own, as adaptation does; pass the "
                "network that it was made from"
            )
        if isinstance(layer, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            raise ConfigError(
                f"{where} is a {type(layer).__name__}, which calls copies of the network with weights of its own, not with "
                "adapted ones; pass its .module, and strategy='ddp' to the trainer"
            )
        lazy = [key for key, value in layer._parameters.items() if isinstance(value, UninitializedParameter)]
        if lazy:
            raise ConfigError(
                f"{where} is a {type(layer).__name__} whose {lazy[0]} has no shape before its first call; call the network on an "
                "example once, backbone(x), before you pass it"
            )
    if not any(True for _ in backbone.parameters()):
        raise ConfigError(
            "backbone has no trainable parameters, but the inner loop needs some; pass a network with weights"
        )
