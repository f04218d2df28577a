"""What the user sees while a model is trained: a live bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.progress import TimeRemainingColumn as EtaColumn

# Plain lines come at evaluations, and at least this often.
_PLAIN_INTERVAL_S = 15.0


@dataclass(frozen=True)
class Status:
    """The state after `step` steps. Losses are in nats."""

    step: int
    steps: int
    train_loss: float
    speed: float  # of `unit`, per second
    unit: str = "tokens"


class Reporter(Protocol):
    def message(self, text: str) -> None: ...
    def start(self, step: int, steps: int) -> None: ...
    def update(self, status: Status) -> None: ...
    def evaluated(self, step: int, loss: float, as_perplexity: bool = True) -> None: ...
    def stop(self) -> None: ...


class SilentReporter:
    """For the processes beside the main one, and for tests."""

    def message(self, text: str) -> None: ...
    def start(self, step: int, steps: int) -> None: ...
    def update(self, status: Status) -> None: ...
    def evaluated(self, step: int, loss: float, as_perplexity: bool = True) -> None: ...
    def stop(self) -> None: ...


class PlainReporter:
    """One line at a time, for files and pipes."""

    def __init__(
        self,
        write: Callable[[str], None] = lambda line: print(line, flush=True),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write = write
        self._clock = clock
        self._last = -math.inf

    def message(self, text: str) -> None:
        self._write(text)

    def start(self, step: int, steps: int) -> None:
        self._last = self._clock()

    def update(self, status: Status) -> None:
        now = self._clock()
        if now - self._last >= _PLAIN_INTERVAL_S or status.step == status.steps:
            self._last = now
            self._write(
                f"step {status.step}/{status.steps}  loss {status.train_loss:.3f}  "
                f"{status.speed:,.0f} {status.unit}/s"
            )

    def evaluated(self, step: int, loss: float, as_perplexity: bool = True) -> None:
        self._write(f"step {step}  {describe_validation(loss, as_perplexity)}")

    def stop(self) -> None: ...


class RichReporter:
    """A progress bar with loss, speed and the time that is left."""

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("validation {task.fields[validation]}"),
            TextColumn("{task.fields[speed]}"),
            EtaColumn(),
            console=console,
        )
        self._task: TaskID | None = None

    def message(self, text: str) -> None:
        self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def start(self, step: int, steps: int) -> None:
        self._task = self._bar.add_task(
            "", total=steps, completed=step, loss="-", validation="-", speed="-"
        )
        self._bar.start()

    def update(self, status: Status) -> None:
        if self._task is not None:
            self._bar.update(
                self._task,
                completed=status.step,
                loss=f"{status.train_loss:.3f}",
                speed=f"{status.speed:,.0f} {status.unit}/s",
            )

    def evaluated(self, step: int, loss: float, as_perplexity: bool = True) -> None:
        if self._task is not None:
            self._bar.update(self._task, validation=f"{loss:.3f}")
        self.message(f"step {step}  {describe_validation(loss, as_perplexity)}")

    def stop(self) -> None:
        self._bar.stop()


def describe_validation(loss: float, as_perplexity: bool) -> str:
    more = f", perplexity {perplexity(loss):.2f}" if as_perplexity else ""
    return f"validation loss {loss:.3f}{more}"


def perplexity(loss: float) -> float:
    """exp(loss), with infinity where that overflows."""
    return math.exp(loss) if loss < 700 else math.inf


def make_reporter(is_main: bool) -> Reporter:
    if not is_main:
        return SilentReporter()
    console = Console()
    return RichReporter(console) if console.is_terminal else PlainReporter()
