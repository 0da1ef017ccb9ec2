"""What commands share: their options, and how errors become words and exit codes."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rpbench.isolated import Limits

Command = Callable[..., Any]


class Group(click.Group):
    """Turns rpbench's own errors into click's usage errors: one sentence, exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        from rpbench.errors import RpbenchError, sentence

        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # outside of training, which notes signals and keeps a checkpoint of its own
            click.echo("stopped by SIGINT; the same command goes on from its checkpoint, if there is one", err=True)
            raise SystemExit(130) from None
        except RpbenchError as error:
            number = getattr(error, "number", None)
            if number is not None:  # stopped by a signal, after a checkpoint
                click.echo(sentence(str(error)), err=True)
                raise SystemExit(128 + number) from None
            raise click.UsageError(sentence(str(error)), ctx=self._deepest(ctx)) from None

    def _deepest(self, ctx: click.Context) -> click.Context:
        name = ctx.invoked_subcommand
        command = self.get_command(ctx, name) if name else None
        return click.Context(command, info_name=name, parent=ctx) if command else ctx


def task_options(command: Command) -> Command:
    for option in reversed(
        [
            click.option("--task", default="digits", show_default=True, help="A task's name, or a TOML file."),
            click.option("--model", help="A model's name, or ./net.py:make.  [default: the task's]"),
        ]
    ):
        command = option(command)
    return command


def scheme_options(multiple: bool = False) -> Callable[[Command], Command]:
    scheme = "A scheme's name, or ./mine.py; options as snip:reinit=xavier,batches=2."

    def decorate(command: Command) -> Command:
        for option in reversed(
            [
                click.option("--scheme", multiple=multiple, help=scheme),
                click.option(
                    "--density", metavar="D", multiple=multiple, help="Fraction of prunable weights kept, in (0, 1]."
                ),
                click.option("--sparsity", metavar="S", multiple=multiple, help="The same as 1 - S."),
            ]
        ):
            command = option(command)
        return command

    return decorate


def data_options(command: Command) -> Command:
    for option in reversed(
        [
            click.option(
                "--data", multiple=True, metavar="[NAME=]DIR",
                help="Folder with one sub-folder per image set, or of set NAME. Also: RPBENCH_DATA.",
            ),
            click.option("--skip-missing", is_flag=True, help="Leave out OoD sets that are not on this machine."),
            click.option("--workers", type=click.IntRange(0), help="Decode processes (large images)."),
        ]
    ):  # fmt: skip
        command = option(command)
    return command


def isolation_options(command: Command) -> Command:
    """What one call of a scheme or sampler that is not rpbench's own may take; read by `isolation_limits`."""
    for option in reversed(
        [
            click.option(
                "--scheme-seconds", type=float, default=600.0, show_default=True,
                help="Time that a scheme or sampler of one's own may take.",
            ),
            click.option(
                "--scheme-memory", type=float, default=8.0, show_default=True, metavar="GB",
                help="Memory that a scheme or sampler of one's own may take.",
            ),
        ]
    ):  # fmt: skip
        command = option(command)
    return command


def isolation_limits(given: dict[str, Any]) -> Limits:
    from rpbench.isolated import Limits

    return Limits(given["scheme_seconds"], given["scheme_memory"])


def tell_protection(isolated: bool) -> None:
    """Where somebody's own function will be called: what it could do on this machine that it must not."""
    from rpbench import confine
    from rpbench.isolated import switched_off

    if isolated and not switched_off() and (words := confine.expected().words):
        click.echo(words, err=True)


def settings_option(command: Command) -> Command:
    return click.option(
        "--set", "settings", multiple=True, metavar="KEY=VALUE",
        help="Override a number of the task, as recipe.epochs=1: off protocol.",
    )(command)  # fmt: skip


def format_option(*formats: str) -> Callable[[Command], Command]:
    return click.option("--format", "form", type=click.Choice(formats), default=formats[0], show_default=True)


def store_option(command: Command) -> Command:
    return click.option(
        "--store", type=click.Path(path_type=Path), help="Folder of records.  [default: RPBENCH_STORE, or ./runs]"
    )(command)


class Placed(click.Command):
    """A command whose --leaderboard may stand alone or have a place: DIR or hf:OWNER/NAME; a board's or a row's name
    behind it is an argument of its own."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        from rpbench.hub import is_place

        end = args.index("--") if "--" in args else len(args)
        places = [is_place(arg) for arg in [*args[1:end], ""]]
        alone = [i for i, arg in enumerate(args[:end]) if arg == LEADERBOARD and not places[i]]
        return super().parse_args(ctx, [f"{arg}={SHIPPED}" if i in alone else arg for i, arg in enumerate(args)])


LEADERBOARD, SHIPPED = "--leaderboard", "shipped"


def leaderboard_option(command: Command) -> Command:
    return click.option(
        LEADERBOARD, metavar="[DIR|hf:OWNER/NAME[@REV]]",
        help="The published records, those that ship or others; with --store, beside that store's.",
    )(command)  # fmt: skip


def leaderboard_root(given: str | None) -> Path | None:
    """The folder of the leaderboard that is asked for, None where none is; on stderr the state of one from the hub."""
    if given is None:
        return None
    if given == SHIPPED:
        from rpbench.published import root_of

        return root_of()
    from rpbench.hub import leaderboard_at

    found = leaderboard_at(given)
    if found.pinned:
        click.echo(f"leaderboard: {found.pinned}", err=True)
    return found.root


def import_torch() -> None:
    """Import torch, and keep the garbage collector from what it made: a third of a second, half of it at exit."""
    if "torch" in sys.modules:
        return
    gc.disable()
    try:
        importlib.import_module("torch")
    finally:
        gc.freeze()
        gc.enable()
