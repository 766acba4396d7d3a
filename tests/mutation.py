"""Break a line of a module on purpose: a check that still passes on the mutant checks nothing."""

import inspect
import types


def mutate(module, old, new):
    """A copy of `module` with the text `old`, which must be there, replaced by `new`."""
    source = inspect.getsource(module)
    assert old in source, f"{module.__name__} no longer contains {old!r}: update the mutant"
    mutant = types.ModuleType(module.__name__ + "_mutant")
    exec(compile(source.replace(old, new), mutant.__name__, "exec"), mutant.__dict__)
    return mutant
