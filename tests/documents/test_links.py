"""Links between files lead somewhere, and commands within sentences name what exists. The network is not asked."""

from __future__ import annotations

import functools
import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

import metalearn
import metalearn.datamodules
import metalearn.modules
from metalearn.cli.commands import COMMANDS
from metalearn.cli.shipped import shipped_configs
from tests.documents.blocks import pages
from tests.house import ROOT

pytestmark = pytest.mark.documents

OUTSIDE = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
OUTSIDE += [path for folder in ("configs", "checkpoints", "examples") for path in sorted((ROOT / folder).rglob("*.md"))]
"""Files with links that are no pages of the site."""
GENERATED = [ROOT / "docs" / name for name in ("gallery", "bilevel_examples")]
CLASSES = {"--model": metalearn.modules, "--data": metalearn.datamodules}


def tokens_of(page: Path) -> Iterator[Token]:
    """Everything within the lines of a file in Markdown."""
    for token in MarkdownIt().enable("table").parse(page.read_text()):
        yield token
        yield from token.children or ()


@functools.cache
def anchors_of(page: Path) -> set[str]:
    """The anchors of a file's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", re.sub(r"\[(.*?)\]\(.*?\)", r"\1", text).lower()).replace(" ", "-") for text in headings
    }


@pytest.mark.parametrize("page", sorted({*OUTSIDE, *pages()}), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for token in tokens_of(page):
        link = str(token.attrGet("href") or token.attrGet("src") or "")
        if not link or re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if any(target.is_relative_to(folder) for folder in GENERATED):
            continue  # the build looks at it
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors_of(target)):
            broken.append(link)
    assert not broken


def commands_within(page: Path) -> Iterator[list[str]]:
    """The words of the commands that stand within the sentences and tables of a page."""
    for token in tokens_of(page):
        words = token.content.split() if token.type == "code_inline" else []
        words = words[2:] if words[:3] == ["python", "-m", "metalearn"] else words
        if words[:1] == ["metalearn"] and len(words) > 1:
            yield shlex.split(" ".join(words))[1:]


@pytest.mark.parametrize("page", sorted({*OUTSIDE, *pages()}), ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_within_sentences_name_what_exists(page: Path) -> None:
    wrong = []
    for words in commands_within(page):
        if not words[0].startswith("-") and words[0] not in COMMANDS and not re.fullmatch(r"[A-Z]+|\{.*", words[0]):
            wrong.append(f"metalearn {words[0]}")
        for option, value in itertools.pairwise(words):
            if option == "--config" and re.fullmatch(r"[a-z]\w+", value) and value not in shipped_configs():
                wrong.append(f"--config {value}")
            elif option in CLASSES and re.fullmatch(r"[A-Z]\w*[a-z]\w*", value) and not hasattr(CLASSES[option], value):
                wrong.append(f"{option} {value}")
    assert not wrong
