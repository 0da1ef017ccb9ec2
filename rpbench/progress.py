"""What a person sees while a cell is trained: on stderr, and only if that is a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rpbench.pack import End
    from rpbench.train import State


class Quiet:
    """Says nothing."""

    def say(self, text: str) -> None: ...
    def start(self, epochs: int, steps: int, batch: int, state: State) -> None: ...
    def step(self, state: State, steps: int, loss: float | None) -> None: ...
    def epoch(self, row: Mapping[str, Any], state: State) -> None: ...
    def close(self) -> None: ...


class Terminal(Quiet):
    """A bar with rate, loss, validation accuracy and time left."""

    def __init__(self) -> None:
        self.bar: Any = None
        self.shown = {"loss": "-", "val": "-"}

    def say(self, text: str) -> None:
        self.close()
        print(text, file=sys.stderr, flush=True)

    def start(self, epochs: int, steps: int, batch: int, state: State) -> None:
        from tqdm import tqdm

        self.epochs, self.batch, self.images, self.began = epochs, batch, state.trained, time.monotonic()
        self.bar = tqdm(
            total=epochs * steps,
            initial=state.epoch * steps + state.step,
            bar_format="{desc} |{bar:12}| {percentage:3.0f}%{postfix} {remaining} left",
            file=sys.stderr,
            leave=False,
            mininterval=0.2,
        )
        self._describe(state)

    def step(self, state: State, steps: int, loss: float | None) -> None:
        if loss is not None:
            self.shown["loss"] = f"{loss:.3f}"
        rate = (state.trained - self.images) / max(1e-9, time.monotonic() - self.began)
        text = f"loss {self.shown['loss']}, val {self.shown['val']}, {rate:,.0f} img/s,"
        self.bar.set_postfix_str(text, refresh=False)
        self.bar.update()

    def epoch(self, row: Mapping[str, Any], state: State) -> None:
        self.shown["val"] = f"{row['val_top1']:.1%}"
        self._describe(state)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _describe(self, state: State) -> None:
        self.bar.set_description_str(f"epoch {min(state.epoch + 1, self.epochs)}/{self.epochs}", refresh=False)


class Several:
    """One bar over many cells, one for each that is running, and a line for each that ends."""

    MOST = 8  # running cells with a bar of their own

    def __init__(self, names: Sequence[str], shown: bool, done: int = 0) -> None:
        self.names, self.done, self.ends, self.failed = names, [0.0] * len(names), 0, 0
        self.before, self.all = done, done + len(names)
        self.began = time.monotonic()
        self.bar: Any = None
        self.running: dict[int, Any] = {}
        if shown:
            from tqdm import tqdm

            self.bar = tqdm(
                total=len(names),
                bar_format="{desc} |{bar:20}| {percentage:3.0f}% {elapsed}, {remaining} left",
                file=sys.stderr,
                leave=False,
                mininterval=0.2,
                desc=self._counts(),
            )

    def at(self, index: int, done: float) -> None:
        if self.bar is not None:
            if index not in self.running and len(self.running) < self.MOST and done < 1:
                self.running[index] = self._bar_of(index)
            if one := self.running.get(index):
                one.n = done
                one.refresh()
            self.bar.update(done - self.done[index])
        self.done[index] = done

    def said(self, index: int, text: str) -> None:
        if text.startswith("note: "):
            self._line(f"{self.names[index]}: {text}")

    def ended(self, index: int, end: End) -> None:
        self.ends += 1
        self.failed += end.failed
        if one := self.running.pop(index, None):
            one.close()
        if self.bar is not None:
            self.bar.set_description_str(self._counts(), refresh=False)
        self.at(index, 1.0)
        silent = self.bar is not None or self.ends == len(self.names) or end.word.startswith("stopped")
        left = "" if silent else f" ({self._left()} left)"
        self._line(f"[{self.before + self.ends}/{self.all}] {self.names[index]}: {end.word}{left}")

    def close(self) -> None:
        for one in self.running.values():
            one.close()
        if self.bar is not None:
            self.bar.close()

    def _counts(self) -> str:
        failed = f", {self.failed} failed" if self.failed else ""
        return f"{self.before + self.ends}/{self.all} cells{failed}"

    def _left(self) -> str:
        """Time left, by what has been done so far."""
        done = sum(self.done)
        return duration((time.monotonic() - self.began) / done * (len(self.names) - done)) if done else "unknown time"

    def _bar_of(self, index: int) -> Any:
        from tqdm import tqdm

        taken = {-one.pos for one in self.running.values()}
        place = next(i for i in range(1, self.MOST + 2) if i not in taken)
        return tqdm(total=1.0, bar_format="  {desc} |{bar:12}| {percentage:3.0f}%", file=sys.stderr, leave=False,
                   position=place, desc=f"{self.names[index][:50]:<50}")  # fmt: skip

    def _line(self, text: str) -> None:
        if self.bar is not None:
            self.bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Seconds as a person says them: 8 s, 3 min, 1 h 40 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def progress(quiet: bool = False) -> Quiet:
    """A bar where stderr is a terminal, silence elsewhere."""
    return Terminal() if sys.stderr.isatty() and not quiet else Quiet()
