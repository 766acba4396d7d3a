"""The host's devices as meshes, and what compiled programs send between them."""

import re
from collections import Counter

import jax

from jaxbptt.sharded import _spans

COUNT = 8  # of tests/conftest.py
COLLECTIVES = "collective-permute", "all-reduce", "all-gather", "all-to-all", "reduce-scatter"


def mesh_of(*sizes, names=("time",)):
    return jax.make_mesh(sizes, names, devices=jax.devices()[: _product(sizes)])


def _product(sizes):
    total = 1
    for size in sizes:
        total *= size
    return total


def compiled(function, *arguments):
    return jax.jit(function).lower(*arguments).compile()


def collectives(program):
    """{name: how often it stands in the program}."""
    found = re.findall(rf" ({'|'.join(COLLECTIVES)})(?:-start)?\(", program.as_text())
    return Counter(found)


def axis_of(mesh, name="time"):
    return _spans.take_axis(mesh, name, "axis")
