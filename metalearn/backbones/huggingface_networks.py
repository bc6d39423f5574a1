"""Encoders of Hugging Face's transformers, of texts and of images."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from metalearn.backbones.pooling import average_tokens
from metalearn.backbones.pretrained import load_weights, log_head, read_weights, repeat_grey
from metalearn.checks import check_whole
from metalearn.errors import ConfigError, on_one_line

__all__ = ["HuggingFace"]

ENCODERS = (
    "albert", "bert", "camembert", "deit", "distilbert", "electra", "ernie", "mpnet", "roberta", "vit", "xlm-roberta",
)  # fmt: skip
"""Model types that are tried. Others may fetch code or further weights, or take other inputs."""
HEADS = ("cls.", "pooler.", "classifier.", "lm_head.", "vocab_projector.", "vocab_transform.", "vocab_layer_norm.")
"""Beginnings of the names of tensors that pretraining leaves beside an encoder."""
HEADS_WITHIN = ("predictions.", "discriminator_predictions.", "generator_predictions.", "generator_lm_head.")

Value = int | float | bool | str | None
"""Of a field of a config; those that hold more are left to their defaults."""


class HuggingFace(nn.Module):
    """An encoder of Hugging Face's transformers, with a linear head on the mean over positions.

    It needs ``pip install "metalearn-lightning[huggingface]"``. Nothing is downloaded, and no code of a model's own is run.
    The encoder is of a text (``bert``, ``distilbert``, ``roberta``, ``electra``, ...) or of an image (``vit``, ``deit``).

    Args:
        config: the folder of a model, as ``save_pretrained`` writes it, whose weights are taken too; or its ``config.json``
            alone; or its fields, such as ``{model_type: bert, hidden_size: 64}``, for random weights.
        ways: how many outputs there are, ``N``.
        weights: another file of pretrained weights on this machine, ``.safetensors``, ``.bin`` or ``.pt``. Its heads are left
            out.

    Attributes:
        network: the encoder.
        head: the linear layer.

    Shape:
        Tokens ``[n, L]`` int64, or images ``[n, 3, H, W]``, to ``[n, N]``. Tokens equal to the config's ``pad_token_id`` (0 where
        it has none) are padding. They are neither attended to nor counted.

    Raises:
        ConfigError: transformers is not installed, or the config is of no encoder that is known to work.
        CheckpointError: the weights are missing, or of another network.

    Example:
        >>> import torch
        >>> from metalearn import HuggingFace
        >>> sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        >>> network = HuggingFace({"model_type": "bert", "vocab_size": 100, **sizes}, ways=5)
        >>> network(torch.tensor([[4, 8, 15, 16], [23, 42, 0, 0]])).shape
        torch.Size([2, 5])
    """

    def __init__(self, config: str | dict[str, Value], ways: int = 5, weights: str | None = None) -> None:
        super().__init__()
        check_whole("ways", ways, 1, 100_000)
        fields, beside = _read_config(config)
        network: Any = _build(fields)
        path = weights or beside
        if path is not None:
            _load(network, path)
        self.network = network
        self.head = nn.Linear(network.config.hidden_size, ways)
        pad = getattr(network.config, "pad_token_id", None)
        self._padding: int = pad if isinstance(pad, int) else 0
        self._channels: int | None = getattr(network.config, "num_channels", None)
        self._kind = str(fields["model_type"])
        log_head(self._kind, "head, on the mean over positions", self.head)
        # a checkpoint holds the weights themselves
        self.init_args = {"config": fields, "ways": ways, "weights": None}

    def forward(self, x: Tensor) -> Tensor:
        if self._channels is not None:
            images = repeat_grey(x, self._channels, self._kind)
            features = self.network(pixel_values=images, return_dict=True).last_hidden_state.mean(1)
        else:
            seen = x != self._padding
            states = self.network(input_ids=x, attention_mask=seen.long(), return_dict=True).last_hidden_state
            features = average_tokens(states, seen)
        logits: Tensor = self.head(features)
        return logits


def _read_config(config: object) -> tuple[dict[str, Value], str | None]:
    """The fields of a config, and the file of weights beside it."""
    _import()
    from transformers import AutoConfig

    beside: str | None = None
    if isinstance(config, Mapping):
        fields = dict(config)
    else:
        path = Path(str(config))
        file = path / "config.json" if path.is_dir() else path
        if not file.is_file():
            raise ConfigError(
                f"config is {str(config)!r}, but there is no such config.json on this machine, and nothing is downloaded; give "
                "the folder of a model, or fields such as {model_type: bert, hidden_size: 64}"
            )
        try:
            fields = AutoConfig.from_pretrained(
                str(file), local_files_only=True, trust_remote_code=False
            ).to_diff_dict()
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise ConfigError(
                f"config {file} cannot be read ({on_one_line(error)}); give the config.json that save_pretrained writes"
            ) from error
        names = ("model.safetensors", "pytorch_model.bin") if path.is_dir() else ()
        beside = next((str(path / name) for name in names if (path / name).is_file()), None)
    kind = fields.get("model_type")
    if kind not in ENCODERS:
        raise ConfigError(
            f"config has model_type {kind!r}, but it must be one of {', '.join(ENCODERS)}; build another one in Python, and "
            "wrap it in a torch.nn.Module whose forward gives self.head of its features"
        )
    plain = (int, float, bool, str, type(None))
    return {name: value for name, value in fields.items() if isinstance(value, plain) and _is_a_size(name)}, beside


def _is_a_size(name: str) -> bool:
    """Whether a field of a config says what is computed; private ones choose code."""
    return not name.startswith("_") and name not in (
        "transformers_version",
        "dtype",
        "torch_dtype",
        "attn_implementation",
    )


def _build(fields: Mapping[str, Value]) -> nn.Module:
    """The encoder of a config, with random weights and attention by plain products, which can be differentiated twice."""
    from transformers import MODEL_MAPPING, AutoConfig

    others = {name: value for name, value in fields.items() if name != "model_type"}
    try:
        config = AutoConfig.for_model(str(fields["model_type"]), **others)
        kind: Any = MODEL_MAPPING[type(config)]
        config._attn_implementation = "eager"
        # a pooling layer that nothing follows would get no gradient
        pools = "add_pooling_layer" in inspect.signature(kind.__init__).parameters
        network: nn.Module = kind(config, add_pooling_layer=False) if pools else kind(config)
    except (ValueError, RuntimeError, TypeError, KeyError, AttributeError, ZeroDivisionError) as error:
        raise ConfigError(f"config gives no {fields['model_type']} ({on_one_line(error)}); mend that field") from error
    return network.train()


def _load(network: nn.Module, path: str) -> None:
    """Put the weights of a file into an encoder, and leave out the heads that it was pretrained with."""
    own, weights = network.state_dict(), read_weights(path)
    prefix = f"{getattr(network, 'base_model_prefix', '')}."
    named = {name.removeprefix(prefix): value for name, value in weights.items()}
    beside = [
        name for name in named if name not in own and (name.startswith(HEADS + HEADS_WITHIN) or "position_ids" in name)
    ]
    load_weights(network, {name: value for name, value in named.items() if name not in beside}, path)


def _import() -> None:
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            'HuggingFace needs transformers, which is not installed; run: pip install "metalearn-lightning[huggingface]"'
        ) from error
