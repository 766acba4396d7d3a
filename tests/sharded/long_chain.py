"""A program of one of several processes: gradient and exponents of one chain that is cut over all their devices.

python -m tests.sharded.long_chain ADDRESS I N OUT; with N = 1 alone.
"""

import sys

import jax
import numpy as np

LENGTH = 48


def main(address, process_id, count, out):
    jax.config.update("jax_num_cpu_devices", 4 // count)
    jax.config.update("jax_enable_x64", True)
    if count > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(address, count, process_id, initialization_timeout=120)
    from jaxbptt import cells, models, sharded

    mesh = jax.make_mesh((4,), ("time",))
    model = models.sequence_model(cells.gru(2, 3), 1)
    params = model.init(jax.random.key(0))
    inputs, targets = np.sin(np.arange(2.0 * LENGTH)).reshape(LENGTH, 2), np.cos(np.arange(LENGTH))[:, None]
    find = {
        "gradient": lambda params: sharded.bptt(model, params, inputs, targets, mesh=mesh, adjoint="parallel")[1],
        "exponents": lambda params: sharded.stream_exponents(model, params, inputs, mesh=mesh).exponents,
    }
    found = {name: jax.tree.leaves(jax.jit(function)(params)) for name, function in find.items()}
    if process_id == 0:
        leaves = {f"{name} {i}": np.asarray(leaf) for name, each in found.items() for i, leaf in enumerate(each)}
        np.savez(out, **leaves)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
