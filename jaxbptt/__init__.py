"""Gradients through time: prove that they are right, and see where they vanish or explode.

Dimensions: T steps, N state entries (flattened; with H hidden units an LSTM has N = 2H), M inputs, O outputs, B batch.
Time is axis 0 and step t stands at index t-1. Functions take one sequence; for a batch the caller uses `jax.vmap`.
J_t = dh_t/dh_{t-1} is [N, N], row = output, column = input. dh_t/dh_k = J_t J_{t-1} ... J_{k+1}, the latest factor on
the left. ∂⁺ is the direct partial of one function with its other arguments fixed; ∂C/∂h_t|o_t is the part of dC/dh_t
through the output o_t alone. Logarithms are natural, rates are per step.

Data flows one way: from `cells` and `models` to `trajectories`, `partials`, `jacobians` and `spectra`; beside these to
`gradients`, then to `terms`, `truncation`, `online` and `perturbation`, then to `comparison` and `assessment`.
`derivations` checks what people derive by hand. `sharded` has gradients and spectra over the devices of a mesh.
`report` asks all of them: `jaxbptt.xray(model, params, inputs, targets)` proves a gradient and shows where it goes.
Import `jaxbptt.plotting` by itself: it needs matplotlib.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # else imported when first used: a script pays for the modules it needs
    from jaxbptt import (
        adapters as adapters,
    )
    from jaxbptt import (
        assessment as assessment,
    )
    from jaxbptt import (
        cells as cells,
    )
    from jaxbptt import (
        comparison as comparison,
    )
    from jaxbptt import (
        derivations as derivations,
    )
    from jaxbptt import (
        fixed_points as fixed_points,
    )
    from jaxbptt import (
        gradients as gradients,
    )
    from jaxbptt import (
        jacobians as jacobians,
    )
    from jaxbptt import (
        models as models,
    )
    from jaxbptt import (
        online as online,
    )
    from jaxbptt import (
        partials as partials,
    )
    from jaxbptt import (
        perturbation as perturbation,
    )
    from jaxbptt import (
        report as report,
    )
    from jaxbptt import (
        sharded as sharded,
    )
    from jaxbptt import (
        spectra as spectra,
    )
    from jaxbptt import (
        terms as terms,
    )
    from jaxbptt import (
        trajectories as trajectories,
    )
    from jaxbptt import (
        truncation as truncation,
    )
    from jaxbptt.report import (
        assert_verified as assert_verified,
    )
    from jaxbptt.report import (
        monitor as monitor,
    )
    from jaxbptt.report import (
        verify as verify,
    )
    from jaxbptt.report import (
        xray as xray,
    )

__version__ = "0.2.0"

__all__ = [
    "adapters",
    "assert_verified",
    "assessment",
    "cells",
    "comparison",
    "derivations",
    "fixed_points",
    "gradients",
    "jacobians",
    "models",
    "monitor",
    "online",
    "partials",
    "perturbation",
    "report",
    "sharded",
    "spectra",
    "terms",
    "trajectories",
    "truncation",
    "verify",
    "xray",
]

_FRONT_DOORS = ("assert_verified", "monitor", "verify", "xray")  # functions of `report` that stand here as well


def __getattr__(name: str) -> Any:
    """A public module or a front door, imported at its first use."""
    if name in _FRONT_DOORS:
        return getattr(importlib.import_module("jaxbptt.report"), name)
    if name in __all__:
        return importlib.import_module(f"jaxbptt.{name}")
    raise AttributeError(f"module 'jaxbptt' has no attribute {name!r}; it has: {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
