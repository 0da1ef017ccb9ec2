"""The command on claims: a paper's statements, judged from records."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from rpbench.cli.shared import Placed, format_option, leaderboard_option, leaderboard_root, store_option

if TYPE_CHECKING:
    from rpbench.claims import Norms
    from rpbench.entries import Entry


@click.command(cls=Placed)
@click.argument("names", nargs=-1)
@store_option
@leaderboard_option
@format_option("term", "md", "json")
def claims(**given: Any) -> None:
    """Judge the paper's statements: reproduced, refuted, cannot be separated, not run.

    Without NAMES: all of them (rpbench list claims). A TOML file is a claim of one's own.

    \b
    rpbench claims
    rpbench claims deep-nets-match --store runs
    """
    from rpbench.claims import claim_names, judge, load_claim
    from rpbench.report.verdicts import claims_json, claims_text

    entries, norms = _records(given)
    judged = [judge(load_claim(name), entries, norms) for name in given["names"] or claim_names()]
    store = str(given["store"] or "")
    if given["form"] == "json":
        click.echo(json.dumps(claims_json(judged, store), indent=1))
    else:
        click.echo(claims_text(judged, given["form"], store))


def _records(given: dict[str, Any]) -> tuple[list[Entry], Norms | None]:
    """Records to judge by, and the gradient norms beside a store's: none are published. No store yet is an empty one.

    A store's own record stands before the published one of the same cell, and boards share cells: each counts once.
    """
    from rpbench.claims import read_norms
    from rpbench.entries import Found, read_store
    from rpbench.published import beside, published_boards
    from rpbench.store import default_store

    root = leaderboard_root(given["leaderboard"])
    store = given["store"] if root else given["store"] or default_store()
    if given["store"] and not store.is_dir():
        raise click.UsageError(f"there is no store '{store}': --store DIR, or --leaderboard")
    own = read_store(store) if store else Found()
    found = beside(own, published_boards(root), root) if root else own
    if found.faults:
        click.echo(f"{len(found.faults)} records cannot be used: rpbench status says why", err=True)
    return found.entries, read_norms(store) if store else None
