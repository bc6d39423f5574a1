"""The directive ``room``: a table of public names, each with its first sentence, and then what their docstrings say."""

from __future__ import annotations

import ast
import builtins
import inspect
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective


class Room(SphinxDirective):
    """Documents public names of a module, in the order in which they are listed.

    The argument is the module that a user imports them from. Each line of the content is the name of a class or function.
    """

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """The nodes of the table, and of every name."""
        module = self.arguments[0]
        names = [line.strip() for line in self.content if line.strip()]
        lines = [*list_names(module, names), *(line for name in names for line in document_name(module, name))]
        return self.parse_text_to_nodes("\n".join(lines))


def list_names(module: str, names: list[str]) -> Iterator[str]:
    """The table of names, each with the first sentence of its docstring."""
    yield from (f".. currentmodule:: {module}", "", ".. autosummary::", "   :nosignatures:", "")
    yield from (f"   {name}" for name in names)
    yield ""


def document_name(module: str, name: str) -> Iterator[str]:
    """The directive of autodoc for a class or function of a module."""
    if inspect.isclass(getattr(import_module(module), name)):
        yield from (f".. autoclass:: {module}.{name}", "   :members:", "   :show-inheritance:")
    else:
        yield f".. autofunction:: {module}.{name}"
    yield ""


def resolve_other_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Element
) -> nodes.Element | None:
    """A link to a name by another path than the documented one, such as ``metalearn.MAML``.

    What exists and has no entry in the reference, such as a class of torch, is plain text. What does not exist is a warning.
    """
    if node.get("refdomain") != "py":
        return None
    domain = env.domains.python_domain
    for path in list_paths(node):
        value = find_value(path)
        if value is None:
            continue
        home = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"
        for name in (home, path):
            if name in domain.objects:
                return domain.resolve_xref(env, node["refdoc"], app.builder, node["reftype"], name, node, content)
        return content
    return None


def list_paths(node: pending_xref) -> Iterator[str]:
    """Where the target of a link may be: as it is written, beside what refers to it, and in any module of ours."""
    target, module, kind = node["reftarget"], node.get("py:module"), node.get("py:class")
    yield target
    if module and kind:
        yield f"{module}.{kind}.{target}"
    if module:
        yield f"{module}.{target}"
    for name in sorted(sys.modules):
        if name.startswith("metalearn."):
            yield f"{name}.{target}"


def find_value(path: str) -> Any:
    """What a dotted path names, or ``None``."""
    parts = path.split(".")
    for cut in range(len(parts), 0, -1):
        value: Any = find_module(".".join(parts[:cut]))
        if value is None:
            continue
        for part in parts[cut:]:
            value = getattr(value, part, None)
        return value
    return getattr(builtins, path, None)


def find_module(name: str) -> ModuleType | None:
    """A module: one of ours, or one of another package that is imported already."""
    if name.split(".")[0] == "metalearn":
        with suppress(ModuleNotFoundError):
            return import_module(name)
    return sys.modules.get(name)


def spell_defaults(
    app: Sphinx, what: str, name: str, value: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """A signature whose defaults can be read: functions by name, lambdas by what they return, what is made as an ellipsis."""
    if signature is None:
        return signature, returns
    for parameter in inspect.signature(value).parameters.values() if callable(value) else ():
        if inspect.isfunction(parameter.default):
            shown = f"<function {parameter.default.__qualname__}>"
            signature = signature.replace(shown, write_function(parameter.default), 1)
    return signature.replace("<factory>", "..."), returns


def write_function(function: FunctionType) -> str:
    """The name of a function, or what a lambda returns."""
    if function.__name__ != "<lambda>":
        return function.__name__
    code = function.__code__
    for node in ast.walk(ast.parse(Path(code.co_filename).read_text())):
        if isinstance(node, ast.Lambda) and node.lineno == code.co_firstlineno:
            return ast.unparse(node.body)
    return "..."


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive and the links."""
    app.add_directive("room", Room)
    app.connect("autodoc-process-signature", spell_defaults)
    app.connect("missing-reference", resolve_other_name)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
