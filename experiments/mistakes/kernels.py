"""Mistakes of backward passes that are written as kernels: at the border of a chunk, in a part of a batch."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt import derivations

from .row import Look, Mistake, distance, look_at_fact

CHUNK, LENGTH, SIZE, BATCH = 4, 10, 3, 4
LONG = 100  # steps of the batch's sequences


def scan(decay: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """h_t = a_t ⊙ h_{t−1} + x_t, [T, ..., N]."""
    states = np.zeros_like(inputs)
    for t in range(len(inputs)):
        states[t] = decay[t] * (states[t - 1] if t else 0) + inputs[t]
    return states


def pull_scan(decay: np.ndarray, previous: np.ndarray, cotangent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cotangents of a and x: λ_t = v_t + a_{t+1} ⊙ λ_{t+1}; λ_t ⊙ h_{t−1} and λ_t."""
    adjoints, total = np.zeros_like(cotangent), 0
    for t in reversed(range(len(cotangent))):
        total = cotangent[t] + total
        adjoints[t] = total
        total = decay[t] * total
    return adjoints * previous, adjoints


def look_at_chunks(key: jax.Array, wrong: bool) -> Look:
    """The states before each step are computed again, chunk by chunk, from the states kept at the borders.

    Those are found by time, `chunk · CHUNK`; the mistake takes the number of the chunk for the time.
    """
    random = _random(key)
    arguments = random.uniform(0.5, 1, (LENGTH, SIZE)), random.normal(size=(LENGTH, SIZE))

    def backward(decay, inputs, cotangent, mistaken=wrong):
        kept = np.concatenate((np.zeros_like(inputs[:1]), scan(decay, inputs)))  # h_0 … h_T
        previous = np.zeros_like(inputs)
        for chunk, start in enumerate(range(0, len(inputs), CHUNK)):
            state = kept[chunk if mistaken else start]
            for t in range(start, min(start + CHUNK, len(inputs))):
                previous[t] = state
                state = decay[t] * state + inputs[t]
        return pull_scan(decay, previous, cotangent)

    report = derivations.check_vjp(scan, backward, arguments, key=key, lengths=(CHUNK, CHUNK + 1))
    cotangent = random.normal(size=(LENGTH, SIZE))
    error, cosine = distance(backward(*arguments, cotangent, False), backward(*arguments, cotangent))
    said = report.findings[0].sentence.partition(": ")[0] if report.findings else "all correct"
    return Look(error, cosine, report.ok, said)


def look_at_batch(key: jax.Array, wrong: bool) -> Look:
    """A kernel for B sequences, whose second half reads its decays in half precision, beside each sequence alone."""
    random = _random(key)
    decay = np.broadcast_to(random.uniform(0.98, 1, (1, BATCH, SIZE)), (LONG, BATCH, SIZE))
    inputs, cotangent = random.normal(size=(2, LONG, BATCH, SIZE))

    def gradient(decay, inputs, cotangent):
        if wrong:
            rounded = np.asarray(jnp.asarray(decay).astype(jnp.bfloat16).astype(jnp.float64))
            second = np.arange(decay.shape[1])[:, None] >= (decay.shape[1] + 1) // 2
            decay = np.where(second[None], rounded, decay)
        states = scan(decay, inputs)
        return pull_scan(decay, np.concatenate((np.zeros_like(states[:1]), states[:-1])), cotangent)

    together = gradient(decay, inputs, cotangent)
    alone = [gradient(*(part[:, b : b + 1] for part in (decay, inputs, cotangent))) for b in range(BATCH)]
    expected = tuple(np.concatenate(parts, axis=1) for parts in zip(*alone, strict=True))
    found = look_at_fact(expected, together, "the batch's gradient, sequence by sequence,")
    return found._replace(cosine=distance(expected, together)[1])


def _random(key):
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))


ROWS = (
    Mistake("chunk's index for the time index", "check_vjp", "gradient", "chunk · CHUNK", look_at_chunks),
    Mistake("half of a batch in half precision", "batch against single", "gradient", "all in float64", look_at_batch),
)
