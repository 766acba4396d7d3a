"""Break a line of a module on purpose: a check that still passes on the mutant checks nothing."""

import importlib
import importlib.machinery
import importlib.util
import inspect
import pkgutil
import sys
import types


def mutate(module, old, new):
    """A copy of `module` with the text `old`, which must be there, replaced by `new`."""
    source = inspect.getsource(module)
    assert old in source, f"{module.__name__} no longer contains {old!r}: update the mutant"
    mutant = types.ModuleType(module.__name__ + "_mutant")
    exec(compile(source.replace(old, new), mutant.__name__, "exec"), mutant.__dict__)
    return mutant


def mutate_package(package, old, new):
    """A fresh import of `package` with the text `old`, which must be in one of its modules, replaced by `new` there."""
    name, imported = package.__name__, dict(sys.modules)
    members = [f"{name}.{module.name}" for module in pkgutil.iter_modules(package.__path__)]
    found = [member for member in members if old in inspect.getsource(sys.modules[member])]
    assert len(found) == 1, f"{name} has {old!r} in {found}, not in one module: update the mutant"

    class Loader(importlib.machinery.SourceFileLoader):
        def get_code(self, fullname):
            return compile(self.get_data(self.path).decode().replace(old, new), self.path + " (mutant)", "exec")

    class Finder:
        @staticmethod
        def find_spec(fullname, path, target=None):
            if fullname == found[0]:
                origin = imported[fullname].__file__
                return importlib.util.spec_from_loader(fullname, Loader(fullname, origin))

    parent, _, child = name.rpartition(".")
    for member in (name, *members):
        sys.modules.pop(member, None)
    sys.meta_path.insert(0, Finder)
    try:
        return importlib.import_module(name)
    finally:
        sys.meta_path.remove(Finder)
        for member in (name, *members):
            sys.modules[member] = imported[member]
        setattr(sys.modules[parent], child, package)
