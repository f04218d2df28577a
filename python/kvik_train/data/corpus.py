"""Corpora: where the text comes from, read in pieces so that none has to fit in memory."""

from __future__ import annotations

import codecs
import difflib
import hashlib
import os
import platform
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kvik_train.data.download import tinyshakespeare
from kvik_train.errors import TrainError

PYTHON_STDLIB = "python-stdlib"
TINYSHAKESPEARE = "tinyshakespeare"
NAMED = (PYTHON_STDLIB, TINYSHAKESPEARE)

_READ_BYTES = 1 << 16
# Folders of the standard library that are tests, other people's packages, or tables of data.
_STDLIB_SKIPS = {
    "__pycache__", "_bundled", "dist-packages", "encodings", "idle_test", "pydoc_data",
    "site-packages", "test", "tests",
}  # fmt: skip


@dataclass(frozen=True)
class Chunk:
    """A piece of a document's text; concatenated, a document's chunks are the document."""

    text: str
    ends_document: bool


@dataclass(frozen=True)
class Corpus:
    """Text files in a fixed order, each one a document.

    `max_bytes` cuts the corpus after that many bytes of UTF-8. Files that are not UTF-8 text are
    skipped in a folder and are an error when named themselves (`strict`).
    """

    name: str
    root: Path
    files: tuple[Path, ...]
    max_bytes: int | None = None
    strict: bool = False

    def check(self) -> None:
        """Raise a TrainError where a file that was named itself is no text."""
        for path in self.files if self.strict else ():
            if not _is_utf8_text(path):
                raise TrainError(f"{path} is not UTF-8 text; convert it, for example with iconv")

    def most_tokens(self) -> int:
        """A bound from the files' sizes: a token spells at least a byte, and one ends a file."""
        size = sum(path.stat().st_size for path in self.files)
        return (size if self.max_bytes is None else min(size, self.max_bytes)) + len(self.files)

    def chunks(self) -> Iterator[Chunk]:
        """The documents' text in pieces of about 64 KiB, cut at a line's end where there is one."""
        left = self.max_bytes
        self.check()
        for path in self.files:
            if not self.strict and not _is_utf8_text(path):
                continue
            for chunk in _read_chunks(path):
                if left is not None:
                    chunk = _cut(chunk, left)
                    left -= len(chunk.text.encode())
                    if left <= 0:
                        yield Chunk(chunk.text, ends_document=True)
                        return
                yield chunk

    def signature(self) -> str:
        """A digest of the files' names, sizes and times, to notice that the corpus changed."""
        digest = hashlib.sha256(f"{self.name} {self.max_bytes}".encode())
        for path in self.files:
            status = path.stat()
            digest.update(f"\n{path} {status.st_size} {status.st_mtime_ns}".encode())
        return digest.hexdigest()


def open_corpus(source: str, max_bytes: int | None = None) -> Corpus:
    """The corpus called `source`: python-stdlib, tinyshakespeare, or a text file or folder.

    python-stdlib:asyncio is one package of the library: a narrower text.
    """
    if source == PYTHON_STDLIB:
        return _python_stdlib(max_bytes)
    if source.startswith(f"{PYTHON_STDLIB}:"):
        return _python_stdlib(max_bytes, source.partition(":")[2])
    if source == TINYSHAKESPEARE:
        path = tinyshakespeare()
        return Corpus(TINYSHAKESPEARE, path.parent, (path,), max_bytes, strict=True)
    path = Path(source).expanduser()
    if path.is_file():
        if path.stat().st_size == 0:
            raise TrainError(
                f"{path} is empty; --data needs a text file with something to learn from"
            )
        return Corpus(path.name, path.parent, (path,), max_bytes, strict=True)
    if path.is_dir():
        return _folder(path, max_bytes)
    near = difflib.get_close_matches(source, NAMED, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise TrainError(
        f"no corpus at {source!r}: {hint}--data takes {', '.join(NAMED)}, or a text file or folder"
    )


def _python_stdlib(max_bytes: int | None, package: str = "") -> Corpus:
    root = Path(sysconfig.get_paths()["stdlib"])
    if package:
        if not package.isidentifier() or not (root / package).is_dir():
            raise TrainError(f"the standard library has no package {package!r} in {root}")
        root /= package
    files = [path for path in _walk(root, _STDLIB_SKIPS) if path.suffix == ".py"]
    # The build's own settings differ from machine to machine and are no source code.
    files = [path for path in files if not path.name.startswith("_sysconfig")]
    if not files:
        raise TrainError(
            f"this Python has no source of its standard library in {root}; name a text with --data"
        )
    name = " ".join((PYTHON_STDLIB, *filter(None, (package,)), platform.python_version()))
    return Corpus(name, root, _scattered(root, files), max_bytes)


def _folder(root: Path, max_bytes: int | None) -> Corpus:
    files = [path for path in _walk(root, {"__pycache__"}) if path.stat().st_size > 0]
    files = [path for path in files if _is_utf8_text(path)]
    if not files:
        raise TrainError(f"no UTF-8 text files in {root}; --data needs a folder with text in it")
    return Corpus(root.resolve().name, root, _scattered(root, files), max_bytes)


def _walk(root: Path, skip: set[str]) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in skip and name[0] != "."]
        for name in names:
            path = Path(folder, name)
            if name[0] != "." and path.is_file():
                yield path


def _scattered(root: Path, files: list[Path]) -> tuple[Path, ...]:
    """Order the files by a hash of their names.

    The order is the same on every machine, and neither the beginning of the corpus (what a size
    limit keeps) nor its end (the validation split) is all of one kind, as in alphabetical order.
    """
    return tuple(
        sorted(
            files,
            key=lambda path: hashlib.sha256(path.relative_to(root).as_posix().encode()).digest(),
        )
    )


def _is_utf8_text(path: Path) -> bool:
    """Whether the whole file decodes and holds no NUL, which text does not."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with path.open("rb") as file:
            while data := file.read(_READ_BYTES):
                if b"\0" in data:
                    return False
                decoder.decode(data)
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    except OSError as error:
        raise TrainError(f"cannot read {path}: {error.strerror}") from error
    return True


def _read_chunks(path: Path) -> Iterator[Chunk]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    pending = ""
    with path.open("rb") as file:
        while data := file.read(_READ_BYTES):
            pending += decoder.decode(data)
            line_end = pending.rfind("\n") + 1
            cut = line_end or (len(pending) if len(pending) >= _READ_BYTES else 0)
            if cut:
                yield Chunk(pending[:cut], ends_document=False)
                pending = pending[cut:]
    yield Chunk(pending + decoder.decode(b"", final=True), ends_document=True)


def _cut(chunk: Chunk, max_bytes: int) -> Chunk:
    data = chunk.text.encode()
    if len(data) <= max_bytes:
        return chunk
    return Chunk(data[:max_bytes].decode(errors="ignore"), ends_document=True)
