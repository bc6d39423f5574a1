from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.walks.walk import Walk


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--transcripts", metavar="DIR", help="keep the transcripts of tests/walks in this folder")


@pytest.fixture
def walk(request: pytest.FixtureRequest, tmp_path: Path, cache: Path) -> Iterator[Walk]:
    """A user in an empty folder, who has read the page that the test's module names as ``PAGE``."""
    kept = request.config.getoption("--transcripts", None)
    folder = Path(kept).absolute() if kept else tmp_path
    folder.mkdir(parents=True, exist_ok=True)
    home = tmp_path / "home"
    home.mkdir()
    user = Walk(home, request.module.PAGE, folder / f"{request.module.PAGE}.txt", cache)
    yield user
    if not request.node.stash.get(FAILED, False):
        assert not user.left(), f"the page has commands that nobody walked: {user.left()}"


FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.when == "call":
        item.stash[FAILED] = report.failed
    return report
