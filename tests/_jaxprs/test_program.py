"""A step read as a list of operations and run one by one is the step: its value, its derivative and its effects."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt._jaxprs.program import Constant, depends, read_program, value_of

SIZE = 3
TABLE = np.linspace(-1, 1, 4 * SIZE).reshape(4, SIZE)


@jax.custom_vjp
def tripled(x):
    """Its pullback is another function's, so that a lost rule is seen."""
    return jnp.sin(x)


tripled.defvjp(lambda x: (jnp.sin(x), x), lambda x, cotangent: (3 * cotangent,))


def step(params, state, x):
    """About everything a step may be made of."""
    rows = jnp.asarray(TABLE)[x["class"]].sum(0)  # gather by ints; TABLE is a constant of the program
    a = params["w"] @ state["h"] + jax.jit(lambda b, x: jnp.tanh(b) * x)(params["b"], x["x"])  # a call, opened
    a = a + jax.nn.relu(state["h"]) + tripled(params["b"])  # custom_jvp, custom_vjp
    a = jax.lax.cond(x["x"][0] > 0, lambda a: a * a, lambda a: -a, a)
    a = a + jax.lax.scan(lambda carry, row: (jnp.cos(carry) * row, None), a, params["w"])[0]
    steps = jax.lax.while_loop(lambda n: n < 4, lambda n: 2 * n, jnp.int32(1))
    a = a * steps.astype(a.dtype) + rows
    jax.debug.print("mean {}", jnp.mean(a), ordered=False)
    q, r = jnp.linalg.qr(params["w"] + 2 * jnp.eye(SIZE))
    h = jnp.where(a > 0, a, jnp.expm1(a)) + q[:, 0] * r[0, 1] + jnp.sum(a * a)
    return {"h": h, "count": state["count"] + 1, "same": params["b"], "one": jnp.ones(2)}


def instance():
    keys = jax.random.split(jax.random.key(0), 4)
    normal = lambda key, *shape: jax.random.normal(key, shape)
    params = {"w": normal(keys[0], SIZE, SIZE), "b": normal(keys[1], SIZE)}
    state = {"h": normal(keys[2], SIZE).at[1].set(0), "count": jnp.int32(2)}  # at the kink, relu's own rule says 0
    return params, state, {"x": normal(keys[3], SIZE), "class": jnp.array([3, 0])}


def run(program, *arguments):
    values = dict(enumerate(jax.tree.leaves(arguments)))
    for operation in program.operations:
        results = operation.run(*[value_of(slot, values) for slot in operation.inputs])
        values.update(zip(operation.outputs, results, strict=True))
    return program.structure.unflatten([value_of(slot, values) for slot in program.outputs])


@pytest.fixture(scope="module")
def program():
    return read_program(step, *instance())


def test_the_operations_are_all_there(program):
    names = [operation.name for operation in program.operations]
    wanted = {"dot_general", "gather", "custom_jvp_call", "cond", "scan", "while", "qr", "tanh"}
    assert wanted <= set(names)
    assert any(name.startswith("custom_vjp_call") for name in names)
    assert [bool(operation.outputs) for operation in program.operations].count(False) == 1  # debug.print
    assert not {"jit", "pjit", "closed_call"} & set(names), "calls of jitted functions are opened"
    assert program.counts == (2, 2, 2)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        list(program.avals[:6]), [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in jax.tree.leaves(instance())]
    )


def test_value_gradient_and_effect(program, capfd):
    params, state, x = instance()

    def weighed(function):
        def total(params, h, x_):
            new = function(params, state | {"h": h}, x | {"x": x_})
            return jnp.sum(jnp.cos(new["h"]) + new["same"]) + jnp.sum(new["one"]), new

        return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))(params, state["h"], x["x"])

    expected = weighed(step)
    jax.effects_barrier()
    printed = capfd.readouterr().out
    assert printed.count("mean") == 1
    actual = weighed(lambda *arguments: run(program, *arguments))
    jax.effects_barrier()
    assert capfd.readouterr().out == printed
    chex.assert_trees_all_equal_structs(actual, expected)
    chex.assert_trees_all_close(actual, expected, rtol=1e-12, atol=1e-14)


def test_two_operands_that_were_one_variable_are_two():
    program = read_program(lambda x: x * x, jnp.float64(5))
    (operation,) = program.operations
    assert operation.inputs == (0, 0)
    assert operation.run(jnp.float64(2), jnp.float64(3)) == [6]
    slopes = jax.grad(lambda a, b: operation.run(a, b)[0], argnums=(0, 1))(jnp.float64(2), jnp.float64(3))
    assert slopes == (3, 2)


def test_literals_and_constants_stand_in_their_slots():
    program = read_program(lambda x: (x, 2 * x + jnp.asarray(TABLE)[0], 1.0), jnp.ones(SIZE))
    assert program.outputs[0] == 0
    assert program.outputs[2] == Constant(1.0)
    held = [slot.value for operation in program.operations for slot in operation.inputs if isinstance(slot, Constant)]
    assert any(np.array_equal(value, TABLE) for value in held)
    chex.assert_trees_all_close(run(program, jnp.ones(SIZE))[1], 2 + TABLE[0])


def test_what_depends_on_an_argument():
    program = read_program(lambda a, b: (jnp.sin(a), jnp.cos(b), jax.jit(jnp.add)(a, b)), 1.0, 2.0)
    on_a, on_b = depends(program, [0]), depends(program, [1])
    assert [on_a[slot] for slot in program.outputs] == [True, False, True]
    assert [on_b[slot] for slot in program.outputs] == [False, True, True]
