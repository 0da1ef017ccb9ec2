"""The rules of a submission as data: what RULES.md says, and what every check and every refusal names by number."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """`checks` are those of `rpbench verify` (and of `rpbench submit`, beforehand) that enforce it; none where `none`
    says why nothing can."""

    number: str
    title: str
    sentence: str
    allowed: str
    refused: str
    checks: tuple[str, ...]
    none: str = ""


RULES = (
    Rule(
        "R1",
        "source",
        "A scheme or sampler of one's own is one Python file of at most 100 KB with one decorated function; it "
        "imports only the standard library, numpy, scipy, torch and rpbench.",
        "helper functions in the same file; options with defaults; a docstring with a derivation.",
        "a second file, a file of densities read while running, a package of one's own.",
        ("source",),
    ),
    Rule(
        "R2",
        "contract",
        "It passes every check of `rpbench try`: the same answer for the same question, on nets that it has never "
        "seen.",
        "saying that a budget cannot be met (`InfeasibleBudget`, with the densities that can).",
        "densities that depend on the clock, on the internet, on layers' names or on how often it was asked.",
        ("contract",),
    ),
    Rule(
        "R3",
        "budget",
        "Exactly round(density * prunable) weights are kept, and every convolution and linear weight counts as "
        "prunable.",
        "any split over layers, whole layers kept or removed.",
        "leaving the first layer or the classifier out of the count; a few weights too many; other prunable sets.",
        ("budget",),
    ),
    Rule(
        "R4",
        "cells",
        "A row has every cell of the board with exactly the board's nets, densities and seeds, each once; infeasible "
        "and diverged ones are cells too.",
        "cells trained on several machines, interrupted and gone on with, or trained for another board that shares "
        "them.",
        "leaving out a density that looks bad, the best five of ten seeds, a seed run twice and the better one kept.",
        ("cells",),
    ),
    Rule(
        "R5",
        "protocol",
        "Every cell follows its task to the letter: definition, recipe, precision, images with the fingerprints that "
        "the definition has, no override and no limit.",
        "another device, another number of threads or processes, `--micro-batch`; all of it is recorded.",
        "longer training, another learning rate, more augmentation, other images under the same name.",
        ("protocol",),
    ),
    Rule(
        "R6",
        "epochs",
        "A cell is trained for as many epochs as the recipe has, and the epoch that counts is the first strict "
        "maximum of top-1 on validation images.",
        "a selected epoch long before the last one.",
        "stopping early, training on, selecting by test images, the last epoch where it is better.",
        ("curve",),
    ),
    Rule(
        "R7",
        "data",
        "A scheme sees labelled training batches only through its probe; how many is recorded, and is what it uses.",
        "scores from one batch or a hundred: the row tells the number.",
        "opening image files, or calling itself data-free while numbers learned from data stand in its source.",
        ("batches",),
    ),
    Rule(
        "R8",
        "counts",
        "What is kept in each layer follows from the scheme, and the masks follow from the counts and the mask seed "
        "(a sampler that uses scores submits its masks).",
        "counts of a scheme that looks at data, which may differ by a few weights between machines.",
        "masks drawn again until one trains well; counts that were mended by hand.",
        ("counts", "masks"),
    ),
    Rule(
        "R9",
        "results",
        "Every metric follows from the outputs per example that are in the bundle, and their labels are the task's.",
        "a last digit that differs because sums were rounded in another order.",
        "numbers typed in; outputs of other images, or of fewer.",
        ("metrics", "labels"),
    ),
    Rule(
        "R10",
        "cost",
        "Multiply-adds are those of the net's layers times their densities as drawn; seconds and memory are what the "
        "machine took.",
        "a slow machine; a scheme that takes long, which the row tells.",
        "multiply-adds counted in another way, or measured on hardware that skips zeros.",
        ("flops",),
    ),
    Rule(
        "R11",
        "identity",
        "Records and files are whole and of one schema, a run's name is the hash of what was asked, and the source in "
        "the bundle is the one that the records were made with.",
        "a bundle packed again by hand, as long as every file is the same.",
        "editing the source after the runs, even a comment; renaming runs; files that bundle.json does not list.",
        ("files", "records", "identity"),
    ),
    Rule(
        "R12",
        "card",
        "The card says name, version, author, source, claim and licence; the docstring has the address of the source.",
        "a preprint, a repository or one's own page as source; a claim that the numbers do not bear out.",
        "no author; a licence under which the source must not be shown.",
        ("card",),
    ),
    Rule(
        "R13",
        "repeatable",
        "Trained again, a cell agrees with its record within the stated tolerance.",
        "differences as between two machines, which the tolerance holds.",
        "results that nobody else gets.",
        ("rerun",),
    ),
    Rule(
        "R14",
        "good faith",
        "Nothing was tuned on test images, no data is hidden in the constants of the source, and every run counted.",
        "choosing a default by validation images, or on other tasks, and saying so.",
        "trying twenty values of an option on the board and submitting the best; a table of densities found by search "
        "on the test images.",
        (),
        "no check can see it: the claim and the source are public, so that people can",
    ),
)


def rule_of(check: str) -> str:
    """The number of the rule that a check enforces, '' for one that enforces none."""
    return next((rule.number for rule in RULES if check in rule.checks), "")


def text() -> str:
    """The rules as Markdown: what stands in RULES.md."""
    return "\n".join(_line(rule) for rule in RULES)


def _line(rule: Rule) -> str:
    checked = f"*Check:* {', '.join(f'`{c}`' for c in rule.checks)}." if rule.checks else f"*No check:* {rule.none}."
    told = (
        f"- **{rule.number} {rule.title}.** {rule.sentence} *Allowed:* {rule.allowed} *Not:* {rule.refused} {checked}"
    )
    return "\n".join(textwrap.wrap(told, 120, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False))
