"""The one corpus that may come over the network: tiny Shakespeare (Karpathy 2015), 1.1 MB."""

from __future__ import annotations

import hashlib
import os
import urllib.request
from pathlib import Path

from kvik_train.atomic import atomic_write
from kvik_train.errors import TrainError

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
_FILE_NAME = "tinyshakespeare.txt"
_TIMEOUT_S = 30.0
_MAX_BYTES = 4 << 20


def tinyshakespeare(url: str = URL) -> Path:
    """The corpus's file: under $KVIK_DATA, else in the cache, else downloaded into the cache."""
    if folder := os.environ.get("KVIK_DATA"):
        local = Path(folder, _FILE_NAME)
        if local.is_file():
            return _checked(local)
    cached = cache_folder() / _FILE_NAME
    if cached.is_file():
        return _checked(cached)
    data = _download(url)
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256:
        raise TrainError(
            f"{url} gave a file with SHA-256 {found}, expected {SHA256}; "
            f"put the right one at $KVIK_DATA/{_FILE_NAME}"
        )
    cached.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(cached) as file:
        file.write(data)
    return cached


def cache_folder() -> Path:
    """Where downloads stay: $XDG_CACHE_HOME/kvik, usually ~/.cache/kvik."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvik"


def _checked(path: Path) -> Path:
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != SHA256:
        raise TrainError(
            f"{path} is not tiny Shakespeare (SHA-256 {found}, expected {SHA256}); "
            "replace or delete it"
        )
    return path


def _download(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response:
            data: bytes = response.read(_MAX_BYTES + 1)
            return data
    except OSError as error:  # URLError and timeouts are OSErrors
        reason = getattr(error, "reason", error)
        raise TrainError(
            f"cannot download tiny Shakespeare ({reason}); get {url} on another machine and put it "
            f"at $KVIK_DATA/{_FILE_NAME} or {cache_folder() / _FILE_NAME}"
        ) from error
