"""The errors that training reports to its user: one line that says what is wrong and what to do."""

from __future__ import annotations


class TrainError(Exception):
    """Bad input: an option, a corpus, a checkpoint."""

    exit_status = 2  # of the command


class DivergedError(TrainError):
    """The loss or the gradient is no longer finite."""

    exit_status = 1
