"""RULES.md and the rules as data say the same; every check belongs to one rule."""

from __future__ import annotations

from pathlib import Path

import pytest

from rpbench.rules import RULES, rule_of, text
from rpbench.source import source_faults

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "RULES.md").read_text()


def test_the_page_is_the_data() -> None:
    assert PAGE.split("## The rules\n\n")[1].split("\n\n## ")[0] == text()
    assert all(len(line) <= 120 for line in PAGE.splitlines())


def test_numbers_and_checks() -> None:
    assert [rule.number for rule in RULES] == [f"R{i}" for i in range(1, 15)]
    checks = [check for rule in RULES for check in rule.checks]
    assert len(set(checks)) == len(checks)
    assert all(bool(rule.checks) != bool(rule.none) for rule in RULES)
    assert (rule_of("counts"), rule_of("masks"), rule_of("nothing")) == ("R8", "R8", "")


def test_levels_are_explained() -> None:
    from rpbench.rows import LEVELS

    assert all(f"- `{level}`: " in PAGE for level in LEVELS)


GOOD = "from rpbench import shape_scheme\n\n@shape_scheme\ndef mine(table, density):\n    return {}\n"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (GOOD, ""),
        ("import json, math\nimport numpy.linalg\nimport scipy\nfrom torch.nn import functional\n" + GOOD, ""),
        ("import rpbench as r\n@r.shape_scheme(density=1.0)\ndef mine(table, density): ...\n", ""),
        ("from rpbench import score_scheme as s\n@s\ndef mine(probe): ...\n", ""),
        (
            "import requests\n" + GOOD,
            "imports requests (line 1): the standard library, numpy, scipy, torch and rpbench",
        ),
        (GOOD + "    import os.path, pandas.core\n", "imports pandas.core (line 6)"),
        ("from . import other\n" + GOOD, "imports . (line 1)"),
        ("from .numpy import array\n" + GOOD, "imports .numpy (line 1)"),
        ("", "must define one scheme: it has none"),
        (GOOD.replace("@shape_scheme\n", ""), "must define one scheme: it has none"),
        (GOOD.replace("shape_scheme", "mask_sampler"), "must define one scheme: it has none"),
        (GOOD + GOOD, "must define one scheme: it has mine (line 4), mine (line 9)"),
        ("def", "is no Python (line 1)"),
        ("\0", "is no Python"),
        ("(" * 10_000, "is no Python"),
        ("x = 1\n" * 20_000, "has 120,000 bytes: at most 100,000 are taken"),
    ],
)
def test_source_files(content: str, says: str) -> None:
    found = source_faults(content.encode(), "scheme")
    assert (found == []) if not says else (len(found) == 1 and says in found[0]), found


def test_every_fault_of_a_file_is_told() -> None:
    assert len(source_faults(b"import a\nimport b\nfrom c import d\n", "scheme")) == 4
    assert source_faults(GOOD.replace("shape_scheme", "mask_sampler").encode(), "sampler") == []
