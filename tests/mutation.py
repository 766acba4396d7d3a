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
    """A fresh import of `package`, subpackages included, with the text `old`, which must be in one of its modules,
    replaced by `new` there."""
    name = package.__name__
    members = [module.name for module in pkgutil.walk_packages(package.__path__, f"{name}.")]
    found = [member for member in members if old in inspect.getsource(importlib.import_module(member))]
    assert len(found) == 1, f"{name} has {old!r} in {found}, not in one module: update the mutant"
    imported = dict(sys.modules)

    class Loader(importlib.machinery.SourceFileLoader):
        def get_code(self, fullname):
            source = self.get_data(self.path).decode()
            return compile(source.replace(old, new) if fullname == found[0] else source, self.path, "exec")

    class Finder:
        """Of every member, so that no other finder has a say: annotations are not enforced on a mutant."""

        @staticmethod
        def find_spec(fullname, path, target=None):
            if fullname in (name, *members):
                spec = imported[fullname].__spec__
                return importlib.util.spec_from_file_location(
                    fullname,
                    spec.origin,
                    loader=Loader(fullname, spec.origin),
                    submodule_search_locations=spec.submodule_search_locations,
                )

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
