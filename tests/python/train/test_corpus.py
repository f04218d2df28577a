"""Corpora: the same order everywhere, nothing lost, and errors that say what to do."""

from __future__ import annotations

import hashlib
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from kvik_train.data import corpus, download
from kvik_train.data.corpus import open_corpus
from kvik_train.errors import TrainError


def documents(source: str, max_bytes: int | None = None) -> list[str]:
    texts, text = [], ""
    for chunk in open_corpus(source, max_bytes).chunks():
        text += chunk.text
        if chunk.ends_document:
            texts.append(text)
            text = ""
    assert text == ""
    return texts


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "texts"
    (root / "sub" / "__pycache__").mkdir(parents=True)
    (root / ".git").mkdir()
    for name, data in {
        "a.txt": b"first\r\n",
        "sub/b.txt": "naïve 漢字".encode(),
        "latin1.txt": "é".encode("latin-1"),
        "binary.bin": b"text\0more",
        "empty.txt": b"",
        ".hidden": b"hidden",
        ".git/config": b"hidden",
        "sub/__pycache__/c.pyc": b"compiled",
    }.items():
        (root / name).write_bytes(data)
    return root


def test_folder_takes_its_text_files(folder: Path) -> None:
    assert sorted(documents(str(folder))) == ["first\r\n", "naïve 漢字"]


def test_order_does_not_depend_on_the_file_system(folder: Path, tmp_path: Path) -> None:
    names = [f"{i}.txt" for i in range(20)]
    for root, order in ((tmp_path / "x", names), (tmp_path / "y", names[::-1])):
        root.mkdir()
        for name in order:
            (root / name).write_text(name)
    assert documents(str(tmp_path / "x")) == documents(str(tmp_path / "y"))
    assert documents(str(tmp_path / "x")) != sorted(names)


@pytest.mark.parametrize("read_bytes", [1, 2, 3, 7, 64])
def test_characters_survive_any_cut(
    read_bytes: int, corpus_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "_READ_BYTES", read_bytes)
    assert documents(str(corpus_file)) == [corpus_file.read_bytes().decode()]


@pytest.mark.parametrize("limit", [1, 100, 101, 102, 103, 5000])
def test_limit_is_exact_up_to_a_character(limit: int, corpus_file: Path) -> None:
    (text,) = documents(str(corpus_file), limit)
    assert limit - 3 <= len(text.encode()) <= limit
    assert corpus_file.read_bytes().decode().startswith(text)


def test_stdlib_is_source_without_tests() -> None:
    found = open_corpus("python-stdlib")
    paths = {path.relative_to(found.root).as_posix() for path in found.files}
    assert {"argparse.py", "json/decoder.py"} <= paths
    folders = {folder for path in paths for folder in path.split("/")[:-1]}
    assert not folders & {"test", "tests", "idle_test", "site-packages", "dist-packages"}
    assert found.name.endswith(".".join(map(str, sys.version_info[:3])))
    size = sum(len(text.encode()) for text in documents("python-stdlib", 100_000))
    assert 100_000 - 3 <= size <= 100_000


def test_signature_notices_a_change(folder: Path) -> None:
    before = open_corpus(str(folder)).signature()
    assert open_corpus(str(folder)).signature() == before
    (folder / "a.txt").write_text("second and longer")
    assert open_corpus(str(folder)).signature() != before


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("python-stdlb", "did you mean python-stdlib"),
        ("latin1.txt", "is not UTF-8 text"),
        ("empty.txt", "is empty"),
        (".git/..//sub/__pycache__/../../.git", "no UTF-8 text files"),
    ],
)
def test_errors(source: str, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / ".git" / "config").unlink()
    with pytest.raises(TrainError, match=message):
        documents(source)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """A local web server that gives b"hello", the paths it was asked for, and an empty cache."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"hello")

        def log_message(self, *arguments: object) -> None: ...

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("KVIK_DATA", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    http = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}/input.txt", asked
    http.shutdown()
    thread.join()
    http.server_close()


def test_download_once(server: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    url, asked = server
    monkeypatch.setattr(download, "SHA256", hashlib.sha256(b"hello").hexdigest())
    path = download.tinyshakespeare(url)
    assert path.read_bytes() == b"hello"
    assert path.parent == download.cache_folder()
    assert download.tinyshakespeare(url) == path
    assert asked == ["/input.txt"]


def test_download_with_the_wrong_content(server: tuple[str, list[str]]) -> None:
    url, _ = server
    with pytest.raises(TrainError, match=r"gave a file with SHA-256 2cf24d.*expected 86c4e6"):
        download.tinyshakespeare(url)
    assert not list(download.cache_folder().glob("*"))


def test_offline_says_where_to_put_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("KVIK_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(TrainError, match=r"cannot download.*\$KVIK_DATA/tinyshakespeare.txt"):
        download.tinyshakespeare("http://127.0.0.1:9/input.txt")


def test_local_file_is_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KVIK_DATA", str(tmp_path))
    (tmp_path / "tinyshakespeare.txt").write_text("hello")
    with pytest.raises(TrainError, match="is not tiny Shakespeare"):
        open_corpus("tinyshakespeare")
    monkeypatch.setattr(download, "SHA256", hashlib.sha256(b"hello").hexdigest())
    assert documents("tinyshakespeare") == ["hello"]
