"""The names users rely on, how the rooms lie, and what an import may cost."""

import ast
import doctest
import importlib
import importlib.metadata
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import jaxbptt
from jaxbptt import __main__ as command_line

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "jaxbptt").rglob("*.py"))
NAMES = {
    "cells": "Cell from_step linear elman lstm gru gates gaussian orthogonal identity stack LSTMState Derivation"
    " FactoredPullback JacobianParts BlockParts BorderedParts Border DiagonalLowRank Outer"
    " leaky lru LRUState min_gru min_lstm rg_lru RGLRUInput selective_ssm chrono"
    " slstm mlstm delta_net rwkv7 SLSTMState MLSTMState",
    "models": "Model SequenceParams Readout sequence_model make_model batched squared_error softmax_cross_entropy"
    " step_losses read weighted Weighted resetting Resetting feedback Started teacher_forcing Forced penalised"
    " bidirectional BidirectionalModel BidirectionalParams Adapted trainable real_pairs RealPair precomputed",
    "adapters": "from_apply linen nnx equinox haiku torch_weights",
    "trajectories": "Trajectory NewtonTrajectory unroll flatten_steps",
    "partials": "Partials step_partials vjp jvp jacobian",
    "jacobians": "step_jacobians structured_jacobians StructuredJacobians BlockJacobians BorderedJacobians product"
    " prefix_products",
    "spectra": "log_singular_values singular_decomposition lyapunov_exponents stream_exponents pool_exponents"
    " kaplan_yorke_dimension entropy_rate log_growth leading_singular_values LeadingSVD pair_norms bounds"
    " newton_outlook NewtonOutlook error_horizon ErrorHorizon"
    " covariant_vectors stream_covariant_vectors subspace_angles CovariantVectors SubspaceAngles",
    "fixed_points": "find_fixed_points merge_points find_cycles merge_cycles Cycles UniqueCycles",
    "sharded": "TermRows bptt adjoints unroll gradient_terms log_singular_values lyapunov_exponents stream_exponents"
    " leading_singular_values row_shardings map_points",
    "gradients": "autodiff bptt forward_sensitivity double_sum adjoints forward_adjoint propagate_errors"
    " PropagatedErrors",
    "terms": "GradientTerms InputSaliency gradient_terms input_saliency",
    "truncation": "windowed sliding lag randomised adaptive weighted_gradient window_weights sliding_weights"
    " random_weights draw_cuts renewal_cuts lag_profile choose_lag bootstrapped synthetic_gradients SyntheticRule"
    " SyntheticState cut make_probe lost_norms windowed_scan windowed_solve value_and_windowed_grad Windows Loop Solve",
    "online": "Rule OnlineState rtrl snap uoro kf_rtrl rflo run staleness"
    " sketched_rtrl bias_bound reverse_kf_rtrl ok_rtrl kernl eprop immediate",
    "perturbation": "forward_gradient evolution_strategies node_perturbation persistent_strategies StrategiesRule"
    " Particles",
    "assessment": "assess cost_per_step alignment",
    "derivations": "Derivation check check_gradient check_vjp assert_correct",
    "comparison": "compare",
    "report": "XRay load xray verify assert_verified Verdict Check monitor",
    "plotting": "singular_values terms_table lag_profile xray",
}
FRONT_DOORS = {"xray", "verify", "assert_verified", "monitor"}  # functions of `report` that `jaxbptt` has as well
PUBLIC = [(module, name) for module, names in NAMES.items() for name in names.split()]
ROOMS = sorted({*jaxbptt.__all__, "plotting"} - FRONT_DOORS)
FRAMEWORKS = {"equinox": "equinox", "haiku": "haiku", "linen": "flax", "nnx": "flax"}  # what an adapter's example needs
# From the ground up: a room imports from rooms before its own alone.
ORDER = [
    "types",
    "_validation",
    "_jaxprs",
    "cells",
    "models",
    "adapters",
    "partials",
    "trajectories",
    "jacobians",
    "gradients",
    "terms",
    "truncation",
    "online",
    "perturbation",
    "spectra",
    "fixed_points",
    "sharded",
    "comparison",
    "assessment",
    "derivations",
    "plotting",
    "report",
    "__init__",
    "__main__",
]


def module_of(name):
    return importlib.import_module(f"jaxbptt.{name}")


def public_functions():
    for module_name in NAMES:
        module = module_of(module_name)
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isfunction(thing):
                yield pytest.param(inspect.unwrap(thing), id=f"{module_name}.{name}")


def test_modules_are_the_public_ones():
    assert set(jaxbptt.__all__) == (set(NAMES) - {"plotting"}) | FRONT_DOORS
    assert all(getattr(jaxbptt, name) is getattr(jaxbptt.report, name) for name in FRONT_DOORS)
    assert importlib.metadata.version("jaxbptt") == jaxbptt.__version__


@pytest.mark.parametrize(("module", "name"), PUBLIC)
def test_public_names_are_documented(module, name):
    thing = getattr(module_of(module), name)
    assert name in module_of(module).__all__
    assert inspect.getdoc(thing)


@pytest.mark.parametrize("function", list(public_functions()))
def test_public_functions_are_typed_and_documented(function):
    signature, doc = inspect.signature(function), inspect.getdoc(function)
    assert signature.return_annotation is not signature.empty
    assert all(each.annotation is not each.empty for each in signature.parameters.values())
    assert "Returns:" in doc
    assert "Args:" in doc or not signature.parameters
    assert "Raises:" in doc or not raises(function)


def raises(function):
    """Whether a function's own lines raise, or call a check that does; what it calls besides is left to the reader."""
    code = inspect.getsource(function).replace(function.__doc__, "")
    return re.search(r"\braise\b|\b_?(require|take)_\w+\(", code) is not None


def public_names(*, classes=False):
    for room in ROOMS:
        for name in module_of(room).__all__:
            thing = getattr(module_of(room), name)
            if inspect.isclass(thing) or not classes:
                yield pytest.param(thing, id=f"{room}.{name}")


@pytest.mark.parametrize("thing", list(public_names(classes=True)))
def test_public_classes_say_what_their_fields_are(thing):
    doc = vars(thing)["__doc__"]  # not that of a base class
    fields = getattr(thing, "_fields", None) or getattr(thing, "__dataclass_fields__", {})
    assert [field for field in fields if not re.search(rf"^ *(\w+, )*{field}(, \w+)*: ", doc, re.MULTILINE)] == []
    if getattr(thing, "_is_protocol", False):
        assert "Returns:" in doc


@pytest.fixture
def as_in_a_session(request):
    """Frameworks do not run under strict promotion."""
    framework = FRAMEWORKS.get(request.node.callspec.id.rpartition(".")[2])
    if framework is None:
        yield
    else:
        pytest.importorskip(framework)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            yield


@pytest.mark.sweep(10)
@pytest.mark.usefixtures("as_in_a_session")
@pytest.mark.parametrize("thing", list(public_names()))
def test_public_names_have_an_example_that_runs(thing):
    """From an empty session: an example brings its own imports, so that a reader can paste it."""
    found = doctest.DocTestFinder(recurse=False).find(thing, "example", module=False, globs={})
    assert sum(len(each.examples) for each in found) > 0
    said = []
    runner = doctest.DocTestRunner(verbose=False)
    for each in found:
        runner.run(each, out=said.append)
    assert not said, "".join(said)


@pytest.mark.parametrize("module", [module.name for module in pkgutil.iter_modules(jaxbptt.__path__)])
def test_every_public_module_lists_its_names(module):
    if not module.startswith("_") and module != "types":
        assert module_of(module).__all__ == sorted(module_of(module).__all__, key=lambda n: (not n[0].isupper(), n))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_is_called_as_its_function(path):
    defined = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
    assert path.stem not in defined


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            names = [f"jaxbptt.{alias.name}" for alias in node.names]
            yield from names if node.module == "jaxbptt" else [node.module or ""]
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    room = path.relative_to(ROOT / "jaxbptt").parts[0].removesuffix(".py")
    others = {name.split(".")[1] for name in imports(path) if name.startswith("jaxbptt.")} - {room}
    assert all(ORDER.index(other) < ORDER.index(room) for other in others if not other.startswith("__"))


def test_there_are_few_rooms():
    rooms = {path.relative_to(ROOT / "jaxbptt").parts[0] for path in FILES} - {"__init__.py"}
    assert len(rooms) <= 23
    assert {room.removesuffix(".py") for room in rooms} | {"__init__"} == set(ORDER)


def test_import_is_light():
    code = "import sys, jaxbptt; print([m for m in ('matplotlib', 'flax', 'equinox', 'optax') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_keep_the_house_rules(path):
    source = path.read_text()
    # Examples do not count as code: none is left out for the length of its file, and they may print and compile.
    code = re.sub(r'\n\n +Example:\n( +(?!.*"{3})\S.*\n)+', "\n", source)
    assert code.count("\n") < 320
    assert ast.get_docstring(ast.parse(source))
    imported = list(imports(path))
    assert not any(name.startswith("jax._src") for name in imported)
    assert path.name == "plotting.py" or not any(name.startswith("matplotlib") for name in imported)
    assert "jax.jit" not in code
    assert "print(" not in code
    room = path.relative_to(ROOT / "jaxbptt").parts[0]
    reads_programs = "make_jaxpr" in source or ".eqns" in source or "jax.extend.core" in source
    assert room == "_jaxprs" or not reads_programs
    asks = "derivation is None" in source or "derivation is not None" in source
    assert room in ("cells", "partials.py") or not asks


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [([], 0, "usage:"), (["--help"], 0, "Dimensions"), (["--version"], 0, jaxbptt.__version__), (["x"], 2, "got 'x'")],
)
def test_the_command_line(arguments, code, said, capsys):
    assert command_line.main(arguments) == code
    captured = capsys.readouterr()
    assert said in captured.out + captured.err


@pytest.mark.sweep
@pytest.mark.parametrize(
    "package", ["adapters", "derivations", "models", "online", "perturbation", "report", "spectra", "truncation"]
)
def test_docstring_examples_run_as_printed(package):
    result = doctest.testmod(module_of(package))
    assert result.attempted > 5
    assert result.failed == 0
