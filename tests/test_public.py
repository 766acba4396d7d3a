"""The names users rely on, and what an import may cost."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import jaxbptt
from jaxbptt import (
    assessment,
    cells,
    comparison,
    derivations,
    fixed_points,
    gradients,
    jacobians,
    models,
    online,
    plotting,
    spectra,
    terms,
    trajectories,
    truncation,
)

ROOT = Path(__file__).parents[1]
NAMES = {
    cells: "Cell from_step linear elman lstm gru gaussian orthogonal identity LSTMState",
    models: "Model SequenceParams Readout sequence_model batched squared_error softmax_cross_entropy",
    trajectories: "Trajectory unroll",
    jacobians: "step_jacobians structured_jacobians StructuredJacobians product prefix_products",
    spectra: "log_singular_values singular_decomposition lyapunov_exponents stream_exponents pool_exponents"
    " kaplan_yorke_dimension entropy_rate log_growth leading_singular_values pair_norms bounds",
    fixed_points: "find_fixed_points unique",
    gradients: "autodiff bptt forward_sensitivity double_sum adjoints",
    terms: "gradient_terms",
    truncation: "windowed sliding lag randomised adaptive weighted_gradient window_weights sliding_weights"
    " random_weights draw_cuts renewal_cuts lag_profile choose_lag",
    online: "Rule rtrl snap uoro kf_rtrl rflo run staleness",
    assessment: "assess cost_per_step alignment",
    derivations: "Derivation check check_gradient assert_correct",
    comparison: "compare",
    plotting: "singular_values terms_table lag_profile",
}
PUBLIC = [(module, name) for module, names in NAMES.items() for name in names.split()]


def test_modules_are_the_public_ones():
    assert set(jaxbptt.__all__) == {module.__name__.split(".")[1] for module in NAMES} - {"plotting"}


@pytest.mark.parametrize(("module", "name"), PUBLIC)
def test_public_names_are_documented(module, name):
    thing = getattr(module, name)
    assert inspect.getdoc(thing)
    if inspect.isfunction(thing):
        doc = inspect.getdoc(thing)
        parts = {"Args:": bool(inspect.signature(thing).parameters), "Returns:": module is not plotting}
        for part in (part for part, expected in parts.items() if expected):
            assert part in doc, f"{name} does not say its {part}"


def test_import_is_light():
    code = "import sys, jaxbptt; print([m for m in ('matplotlib', 'flax', 'equinox', 'optax') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("path", sorted((ROOT / "jaxbptt").rglob("*.py")), ids=lambda path: path.name)
def test_files_keep_the_house_rules(path):
    source = path.read_text()
    assert source.count("\n") < 300
    tree = ast.parse(source)
    assert ast.get_docstring(tree)
    imported = {
        (node.module or "") if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert not any(name.startswith("jax._src") for name in imported)
    assert path.name == "plotting.py" or not any(name.startswith("matplotlib") for name in imported)
    assert "jax.jit" not in source
    assert "print(" not in source
