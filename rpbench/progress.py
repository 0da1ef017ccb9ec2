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
    """One bar over many cells, and a line for each that ends."""

    def __init__(self, names: Sequence[str], shown: bool) -> None:
        self.names, self.done, self.ends = names, [0.0] * len(names), 0
        self.bar: Any = None
        if shown:
            from tqdm import tqdm

            self.bar = tqdm(
                total=len(names),
                bar_format="{desc} |{bar:20}| {percentage:3.0f}% {elapsed}, {remaining} left",
                file=sys.stderr,
                leave=False,
                mininterval=0.2,
                desc=f"0/{len(names)} cells",
            )

    def at(self, index: int, done: float) -> None:
        if self.bar is not None:
            self.bar.update(done - self.done[index])
        self.done[index] = done

    def said(self, index: int, text: str) -> None:
        if text.startswith("note: "):
            self._line(f"{self.names[index]}: {text}")

    def ended(self, index: int, end: End) -> None:
        self.ends += 1
        if self.bar is not None:
            self.bar.set_description_str(f"{self.ends}/{len(self.names)} cells", refresh=False)
        self.at(index, 1.0)
        self._line(f"{self.names[index]}: {end.word}")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def _line(self, text: str) -> None:
        if self.bar is not None:
            self.bar.clear()
        print(text, file=sys.stderr, flush=True)


def progress(quiet: bool = False) -> Quiet:
    """A bar where stderr is a terminal, silence elsewhere."""
    return Terminal() if sys.stderr.isatty() and not quiet else Quiet()
