"""Adapted models as programs of torch.export and as ONNX files."""

from __future__ import annotations

import os
import warnings
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.errors import ConfigError, DataError, first_line, suggest_space
from metalearn.shipping.description import Description

__all__ = ["export_onnx", "export_program", "make_example"]

INPUT, OUTPUT, BATCH = "x", "logits", "batch"
NEEDED = ("onnx", "onnxscript")


def make_example(like: Tensor) -> Tensor:
    """Queries to trace a network with: two, since torch takes a single one for a constant."""
    return torch.zeros(2, *like.shape[1:], dtype=like.dtype, device=like.device)


def export_program(model: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """Trace a model whose answers to queries do not depend on each other.

    Args:
        model: takes ``x`` ``[n, ...]``.
        example: such queries, at least two.

    Raises:
        ConfigError: torch cannot trace it.
    """
    batch = torch.export.Dim(BATCH, min=1, max=1 << 20)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # torch's own, about its own parts
            return torch.export.export(model, (example,), dynamic_shapes={INPUT: {0: batch}}, strict=False)
    except Exception as error:  # what a network raises while it is traced is any of dozens of classes
        raise ConfigError(
            f"the network cannot be exported, for torch.export cannot trace it ({first_line(error)}); use operations of torch "
            "alone, and none whose course depends on the values or the number of the queries: "
            "x.shape[0] is traced, len(x) is not"
        ) from error


def export_onnx(path: Path, model: nn.Module, example: Tensor, description: Description) -> Path:
    """Write a model as an ONNX file, beside its place first and then there.

    Raises:
        ConfigError: torch cannot trace it, or ONNX lacks one of its operators.
        DataError: the file cannot be written.
        ModuleNotFoundError: a package is missing.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"ONNX files need {' and '.join(missing)}, not installed here; pip install 'metalearn-lightning[onnx]'"
        )
    program = export_program(model, example)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            translated: Any = torch.onnx.export(
                program, (example,), input_names=[INPUT], output_names=[OUTPUT], dynamo=True, verbose=False
            )
            _label(translated.model, description)
            return _write(path, translated)
    except torch.onnx.OnnxExporterError as error:
        raise ConfigError(
            f"the network cannot be written as ONNX ({_find_cause(error)}); replace that operation, or use exported()"
        ) from error
    except DataError:
        raise
    except Exception as error:  # torch and the packages of ONNX are of versions that do not go together
        raise ConfigError(
            f"the network cannot be written as ONNX ({_find_cause(error)}), with torch {torch.__version__} and onnxscript "
            f"{version('onnxscript')}; bring both to their newest versions, or with torch 2.6 pip install 'protobuf<7'"
        ) from error


def _label(model: Any, description: Description) -> None:
    """Call the number of queries by its name, and say what the file is."""
    graph = model.graph
    symbol = str(graph.inputs[0].shape[0])
    for value in (*graph.inputs, *(output for node in graph for output in node.outputs)):
        if value.shape is not None:
            for axis, size in enumerate(value.shape):
                if str(size) == symbol:
                    value.shape[axis] = BATCH
    model.metadata_props["metalearn"] = description.to_json()
    model.doc_string = _say_input(description)


def _say_input(description: Description) -> str:
    """What has to be passed, in words."""
    shape = ", ".join(map(str, (BATCH, *description.shape)))
    text = f"{INPUT} is {description.dtype} [{shape}]."
    spec = description.preprocessing
    if spec is None:
        return text
    colour = "grey" if spec.get("channels") == 1 else "RGB"
    inverted = " Dark ink on light paper is inverted: 255 - pixel." if spec.get("invert") else ""
    return (
        f"{text} Each image is {colour} and resized to {spec.get('size')} x {spec.get('size')} pixels.{inverted} "
        f"Its values are (pixel / 255 - {spec.get('mean')}) / {spec.get('std')}."
    )


def _write(path: Path, translated: Any) -> Path:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        translated.save(temporary, external_data=False)
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(
            f"{path} cannot be written ({error.strerror}); {suggest_space(error)}, or choose another folder"
        ) from error
    finally:
        with suppress(OSError):  # it is there only where something failed
            temporary.unlink()
    return path


def _find_cause(error: BaseException) -> str:
    """The line that names the operation: of the innermost error, which torch and others wrap in long ones."""
    while error.__cause__ is not None and (
        isinstance(error.__cause__, torch.onnx.OnnxExporterError) or not isinstance(error, torch.onnx.OnnxExporterError)
    ):
        error = error.__cause__
    return first_line(error)
