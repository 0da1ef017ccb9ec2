"""rpbench: benchmark suite and leaderboards for sparse training with random pruning at initialization.

What a library user needs is here; names load on first use, so that importing rpbench is instant.

    plan = rpbench.plan(model, "erk", 0.1, input_shape=(3, 32, 32))
    rpbench.prune(model, plan.draw(seed=0), optimizer)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "plan": "rpbench.planning",
    "Plan": "rpbench.planning",
    "prune": "rpbench.masks",
    "digest": "rpbench.masks",
    "spread": "rpbench.budget",
    "root": "rpbench.budget",
    "Layer": "rpbench.layers",
    "LayerTable": "rpbench.layers",
    "layer_table": "rpbench.layers",
    "Probe": "rpbench.scheme",
    "Scheme": "rpbench.scheme",
    "shape_scheme": "rpbench.scheme",
    "score_scheme": "rpbench.scheme",
    "Sampler": "rpbench.sampler",
    "mask_sampler": "rpbench.sampler",
    "evaluate": "rpbench.scoring",
    "load_records": "rpbench.store",
    "RpbenchError": "rpbench.errors",
    "InfeasibleBudget": "rpbench.errors",
    "SchemeError": "rpbench.errors",
    "ScoreError": "rpbench.errors",
    "UsageError": "rpbench.errors",
    "MaskError": "rpbench.errors",
    "ModelError": "rpbench.errors",
}

__all__ = [*_HOMES, "__version__"]

if TYPE_CHECKING:
    from rpbench.budget import root as root
    from rpbench.budget import spread as spread
    from rpbench.errors import InfeasibleBudget as InfeasibleBudget
    from rpbench.errors import MaskError as MaskError
    from rpbench.errors import ModelError as ModelError
    from rpbench.errors import RpbenchError as RpbenchError
    from rpbench.errors import SchemeError as SchemeError
    from rpbench.errors import ScoreError as ScoreError
    from rpbench.errors import UsageError as UsageError
    from rpbench.layers import Layer as Layer
    from rpbench.layers import LayerTable as LayerTable
    from rpbench.layers import layer_table as layer_table
    from rpbench.masks import digest as digest
    from rpbench.masks import prune as prune
    from rpbench.planning import Plan as Plan
    from rpbench.planning import plan as plan
    from rpbench.sampler import Sampler as Sampler
    from rpbench.sampler import mask_sampler as mask_sampler
    from rpbench.scheme import Probe as Probe
    from rpbench.scheme import Scheme as Scheme
    from rpbench.scheme import score_scheme as score_scheme
    from rpbench.scheme import shape_scheme as shape_scheme
    from rpbench.scoring import evaluate as evaluate
    from rpbench.store import load_records as load_records


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'rpbench' has no attribute '{name}'")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
