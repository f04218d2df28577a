"""What Kvik raises. Every message is one line: what is wrong, where, and what to do.

Each class is also the built-in that Python programs expect, so that ``except ValueError`` and
``except OSError`` do what their readers think.
"""


class KvikError(RuntimeError):
    """Base of every error that the engine raises."""


class InvalidArgumentError(KvikError, ValueError):
    """The caller passed something impossible: a shape, a token id, an option."""


class InvalidModelError(KvikError, ValueError):
    """The bytes are not a valid model."""


class UnsupportedError(KvikError, NotImplementedError):
    """A valid model that needs something Kvik does not have."""


class FileError(KvikError, OSError):
    """A file could not be opened, mapped or read."""


class OutOfMemoryError(KvikError, MemoryError):
    """An allocation failed, or a memory budget would be exceeded."""


class CancelledError(KvikError):
    """The caller asked to stop."""


class InternalError(KvikError):
    """A defect in Kvik: please report it."""
