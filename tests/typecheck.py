"""Annotations enforced while the tests run: dtypes and shapes of arguments and results, fields of results included.

An argument that its annotation rules out must be refused by the function itself, in its own words: a function that
takes it in silence fails the test.
"""

import functools
import importlib.abc
import importlib.machinery
import inspect
import sys
import typing

from beartype import BeartypeConf
from beartype.door import is_bearable
from beartype.roar import BeartypeException
from jaxtyping import jaxtyped

PACKAGE = "jaxbptt"
TOWER = BeartypeConf(is_pep484_tower=True)  # an int is a float


def install():
    """Check every function and method of the package that is imported from now on."""
    assert PACKAGE not in sys.modules, f"{PACKAGE} is imported already"
    sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path, target=None):
        if fullname.partition(".")[0] != PACKAGE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    def exec_module(self, module):
        super().exec_module(module)
        for name, thing in list(vars(module).items()):
            if getattr(thing, "__module__", None) != module.__name__:
                continue
            if inspect.isfunction(thing):
                setattr(module, name, checked(thing))
            elif inspect.isclass(thing):
                for attribute, method in list(vars(thing).items()):
                    if inspect.isfunction(method) and not attribute.startswith("__"):
                        setattr(thing, attribute, checked(method))


def checked(function):
    """The function, its annotations enforced at every call."""
    if not function.__annotations__:
        return function
    signature = inspect.signature(function)
    single = [
        name for name, each in signature.parameters.items() if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    ]

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        hints = _hints(function)
        with jaxtyped("context"):  # one letter, one size
            given = {name: bound.arguments[name] for name in single if name in bound.arguments}
            wrong = [name for name, value in given.items() if not _fits(value, hints.get(name))]
            result = function(*args, **kwargs)
            assert not wrong, f"{function.__qualname__} took {wrong[0]} in silence, which its annotation rules out"
            assert _fits(result, hints.get("return")), f"{function.__qualname__} returned {_describe(result)}"
            if type(result) is hints.get("return") and type(result).__module__.startswith(PACKAGE):
                _check_fields(function, result)
        return result

    return wrapper


def _check_fields(function, result):
    for name, hint in _hints(type(result)).items():
        value = getattr(result, name, None)
        got = f"{function.__qualname__} returned {type(result).__name__}.{name} = {_describe(value)}"
        assert _fits(value, hint), got


@functools.cache
def _hints(thing):
    return typing.get_type_hints(thing)


def _fits(value, hint):
    if hint is None or hint is typing.Any:
        return True
    try:
        return is_bearable(value, hint, conf=TOWER)
    except BeartypeException:  # a hint that cannot be checked while running, such as a Protocol of functions
        return True


def _describe(value):
    return f"{type(value).__name__} {getattr(value, 'dtype', '')}{list(getattr(value, 'shape', ()))}"
