"""20 Newsgroups from a server of this machine: the official file or one line, and never half a file."""

from __future__ import annotations

import hashlib
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from metalearn import DataError
from metalearn.datamodules import NewsgroupsDataModule, NewsgroupTopicsDataModule
from metalearn.datamodules.sources import posts
from tests.made_bilevel import add

TOPICS = ["rec.autos", "sci.med", "comp.graphics", "comp.windows.x", "misc.forsale", "talk.politics.misc"]
MODULES: Any = pytest.mark.parametrize("kind", [NewsgroupsDataModule, NewsgroupTopicsDataModule])


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *values: Any) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The archive as the official one is: gzip, lines that end in a newline, and a blank one below the headers."""
    path = tmp_path / "server" / "5975967"
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as archive:
        for topic in TOPICS:
            for number in range(8):
                text = f"From: a@b\nSubject: Re: {topic} things\nLines: 2\n\nwords of\n{topic} {number} again\n"
                part = "train" if number % 2 else "test"
                add(archive, f"20news-bydate-{part}/{topic}/{100 + number}", text.encode())
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(path.parent)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(posts, "URL", f"http://127.0.0.1:{server.server_port}/5975967")
    monkeypatch.setattr(posts, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    yield path
    server.shutdown()
    thread.join()
    server.server_close()


def make(kind: Any, root: Path, **options: Any) -> Any:
    few = {"ways": 2, "shots": 1, "queries": 2, "cache_dir": str(root.parent / "cache")}
    return kind(str(root), **(few if kind is NewsgroupTopicsDataModule else {}), **options)


def prepare(data: Any) -> Any:
    data.prepare_data()
    data.setup()
    return data


@MODULES
@pytest.mark.parametrize("exists", [False, True])
def test_what_is_missing_is_downloaded_once(kind: Any, exists: bool, served: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    if exists:
        root.mkdir()
    make(kind, root).prepare_data()
    served.unlink()
    data = prepare(make(kind, root))
    assert [path.name for path in root.iterdir()] == ["20news-bydate.tar.gz"]
    if kind is NewsgroupTopicsDataModule:
        assert data.class_names("test") == ["misc.forsale", "talk.politics.misc"]
        assert {"again", "re", "things"} <= set(data.words)
        assert "from" not in data.words
    else:
        assert data.classes == sorted(TOPICS)


@MODULES
def test_another_file_is_refused_and_removed(kind: Any, served: Path, tmp_path: Path) -> None:
    served.write_bytes(served.read_bytes()[:-9])
    with pytest.raises(
        DataError, match=r"is not the official file, whose SHA-256 is .*; fetch it by other means"
    ) as caught:
        make(kind, tmp_path / "data").prepare_data()
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "data").iterdir())


@MODULES
def test_a_download_that_fails_is_one_line(kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posts, "URL", "http://127.0.0.1:9/x")  # nothing listens there
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match=r"20 Newsgroups is not in .* cannot be downloaded .*set data.root") as caught:
        make(kind, tmp_path / "data").prepare_data()
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "data").iterdir())


@MODULES
def test_it_is_not_asked_for_where_something_is_or_it_is_turned_off(kind: Any, served: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    for root, options in ((tmp_path / "mine", {}), (tmp_path / "none", {"download": False})):
        with pytest.raises(DataError, match=r"has neither 20news-bydate.tar.xz nor"):
            prepare(make(kind, root, **options))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
