"""Pruning policies: which tokens leave a sequence, where and how.

A policy is a JSON document, `token_policy.json`, that lies beside the weights of an ordinary model
folder; tensors it needs lie in `token_policy.safetensors`. Other software loads the same folder as
a dense model. Example, for a model of 12 layers:

    {"format": "token-policy", "version": 1, "layers": 12,
     "protect": {"first": true, "token_ids": [102]},
     "limits": {"min_tokens": 2, "skip_below": 16},
     "scores": {"imp": {"kind": "attn_col", "norm": "unprotected"}},
     "steps": [{"layers": [2, 3, 4, 5], "site": "mid", "score": "imp",
                "select": {"kind": "threshold", "theta": [0.3, 0.4, 0.5, 0.6]},
                "action": {"kind": "drop"}}],
     "profiles": {"fast": {"theta_scale": 1.5}},
     "output": {"kind": "cls"}}

The fields are described with the dataclasses: `Protect`, `Limits`, `Score`, `Step`, `Select`,
`Profile`, `Output`. Required are format, version and layers. Steps between two layers run in the
order `post` of the lower, then `embed` and `pre` of the upper; steps of one site in file order.

Reading is strict: whatever is not understood is a `PolicyError`, never skipped. `preset` writes
policies from the parameters of published methods.
"""

from ..errors import PolicyError
from .choices import Score, Select
from .compile import compile_plan
from .load import PolicySource, find_policy, load_policy
from .parse import parse_policy
from .presets import PRESETS, preset
from .rules import ModelInfo, bind_policy
from .schema import (
    DEFAULT,
    OFF,
    Limits,
    Output,
    Policy,
    Profile,
    Protect,
    Step,
    policy_hash,
)
from .shipped import CALIBRATED, shipped_policy, weights_digest
from .storage import JSON_NAME, TENSORS_NAME

__all__ = [
    "CALIBRATED",
    "DEFAULT",
    "JSON_NAME",
    "OFF",
    "PRESETS",
    "TENSORS_NAME",
    "Limits",
    "ModelInfo",
    "Output",
    "Policy",
    "PolicyError",
    "PolicySource",
    "Profile",
    "Protect",
    "Score",
    "Select",
    "Step",
    "bind_policy",
    "compile_plan",
    "find_policy",
    "load_policy",
    "parse_policy",
    "policy_hash",
    "preset",
    "shipped_policy",
    "weights_digest",
]
