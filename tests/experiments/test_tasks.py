import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import tasks
from jaxbptt import cells, gradients

SYMBOLS = np.arange(300, dtype=np.int32) % 27
LENGTH = 9
POSED = {
    "delayed_copy": tasks.delayed_copy(LENGTH, 2),
    "copy_memory": tasks.copy_memory(4, items=3),
    "delayed_xor": tasks.delayed_xor(LENGTH, 2),
    "temporal_xor": tasks.temporal_xor(LENGTH, 4),
    "adding": tasks.adding(LENGTH),
    "adding, every step": tasks.adding(LENGTH, at_every_step=True),
    "next_symbol": tasks.next_symbol(SYMBOLS, 27, LENGTH),
}


def draw(name, key=0):
    return jax.tree.map(np.asarray, POSED[name].draw(jax.random.key(key)))


def test_delayed_copy():
    inputs, wanted = draw("delayed_copy")
    np.testing.assert_array_equal(wanted, [0, 0, *inputs.argmax(axis=1)[:-2]])


def test_copy_memory():
    inputs, wanted = draw("copy_memory")
    seen = inputs.argmax(axis=1)
    assert len(seen) == 10
    np.testing.assert_array_equal(seen[3:6], 8)
    assert seen[6] == 9  # the sign, before the recall
    np.testing.assert_array_equal(seen[7:], 8)
    np.testing.assert_array_equal(wanted[-3:], seen[:3])
    np.testing.assert_array_equal(POSED["copy_memory"].weight, [0] * 7 + [1] * 3)


def test_delayed_xor():
    signs, wanted = draw("delayed_xor")
    np.testing.assert_array_equal(wanted, [0, 0, *(int(a != b) for a, b in signs[:-2])])
    np.testing.assert_array_equal(POSED["delayed_xor"].weight, [0, 0] + [1] * 7)


def test_temporal_xor():
    bits, wanted = draw("temporal_xor")
    assert set(bits.ravel()) == {0, 1}
    np.testing.assert_array_equal(wanted[4:], bits[:-4, 0] != bits[2:-2, 0])
    np.testing.assert_array_equal(POSED["temporal_xor"].weight, [0] * 4 + [1] * 5)


@pytest.mark.parametrize("name", ["adding", "adding, every step"])
def test_adding(name):
    inputs, wanted = draw(name)
    first, second = np.flatnonzero(inputs[:, 1])
    assert first < LENGTH // 2 <= second
    np.testing.assert_allclose(wanted[:, 0], np.cumsum(inputs[:, 0] * inputs[:, 1]))


def test_next_symbol_keeps_its_last_tenth_back():
    task = POSED["next_symbol"]
    for seed in range(20):
        seen, wanted = jax.tree.map(np.asarray, task.draw(jax.random.key(seed)))
        np.testing.assert_array_equal(seen.argmax(axis=1)[1:], wanted[:-1])
    letters = np.arange(27 * 40, dtype=np.int32) // 40  # its last tenth holds the last three letters alone
    kept = tasks.next_symbol(letters, 27, LENGTH)
    of_both = [each(jax.random.key(0))[0].argmax(axis=1) for each in (kept.draw, kept.draw_held_out)]
    assert of_both[0].max() < 25 <= of_both[1].min() + 1
    assert POSED["next_symbol"].memoryless == pytest.approx(0, abs=1e-12)  # each symbol has one successor
    drawn = np.random.default_rng(0).integers(0, 27, 200_000)
    assert tasks.next_symbol(drawn, 27, LENGTH).memoryless == pytest.approx(np.log(27), abs=0.01)
    assert tasks.length_of(task) == LENGTH


@pytest.mark.sweep
@pytest.mark.parametrize("name", ["adding", "delayed_xor", "temporal_xor", "copy_memory"])
def test_the_answer_without_memory_costs_what_is_said(name):
    """A net whose readout is a constant: the best of those, over 2,000 draws."""
    task = POSED[name]
    answer = jnp.ones(1) if name == "adding" else jnp.zeros(task.num_outputs)
    answer = answer.at[8:].set(-1e9)  # blank and sign are never asked
    _, targets = tasks.draw_batch(task, jax.random.key(1), 2000)
    losses = jax.vmap(jax.vmap(lambda target: task.loss(answer, target)))(targets.target)
    mean = float(jnp.sum(losses * targets.weight) / jnp.sum(targets.weight))
    assert mean == pytest.approx(task.memoryless, abs=4 * 1 / 12 / np.sqrt(2000))


@pytest.mark.parametrize("name", ["adding", "delayed_copy"])
def test_the_score_is_the_models_loss(name):
    task = POSED[name]
    model = tasks.make_model(task, cells.elman(task.num_inputs, 3))
    params = model.init(jax.random.key(0))
    inputs, targets = jax.tree.map(lambda leaf: leaf[0], tasks.draw_batch(task, jax.random.key(1), 1))
    loss, right = tasks.score(task, model, params, inputs, targets)
    assert loss == pytest.approx(float(gradients.bptt(model, params, inputs, targets)[0]), rel=1e-12)
    assert 0 <= right <= 1


def test_right_answers_are_counted():
    task = tasks.adding(LENGTH)
    model = tasks.make_model(task, cells.linear(2, 1))
    inputs, targets = jax.tree.map(lambda leaf: leaf[0], tasks.draw_batch(task, jax.random.key(1), 1))
    params = jax.tree.map(jnp.zeros_like, model.init(jax.random.key(0)))
    for off, expected in ((0.05, 1), (0.15, 0)):
        readout = params.readout._replace(b_y=targets.target[-1] + off)
        assert tasks.score(task, model, params._replace(readout=readout), inputs, targets)[1] == expected


def test_digits():
    pytest.importorskip("sklearn")
    task = tasks.digits()
    inputs, targets = tasks.draw_batch(task, jax.random.key(0), 50)
    assert inputs.shape == (50, 64, 1)
    assert 0 <= inputs.min() < inputs.max() <= 1
    assert len(np.unique(targets.target)) == 10
    np.testing.assert_array_equal(targets.weight[0], [0] * 63 + [1])


def test_digits_without_their_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(ValueError, match="pip install scikit-learn"):
        tasks.digits()


def test_one_hot_of_indices():
    assert tasks.one_hot(np.array([0, 2]), 3).tolist() == [[1, 0, 0], [0, 0, 1]]
