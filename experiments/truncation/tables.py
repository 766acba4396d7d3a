"""What is kept under full, regular and randomised truncation, on a strip of text."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import nets
from experiments.text import Alphabet
from jaxbptt import truncation
from jaxbptt.terms import gradient_terms

from .schemes import keep_probabilities
from .windows import make_pairs

SHOWN = 32  # steps of the tables


class Tables(NamedTuple):
    """What is kept under full, regular and randomised truncation, on S steps of text, by the trained model."""

    letters: np.ndarray  # [S] read at steps 1 … S
    norms: np.ndarray  # [S, S] of the (t, k) table
    weights: np.ndarray  # [3, S, S]
    cuts: np.ndarray  # [3, S] True where the link into step t is cut


def measure_tables(model: Any, params: Any, config: Any, symbols: np.ndarray, alphabet: Alphabet) -> Tables:
    """The (t, k) table of the trained model, and what each scheme makes of it."""
    steps = min(SHOWN, config.length)
    window = symbols[config.length : config.length + steps + 1]  # the state before it is one the text leads to
    size, dtype = model.num_inputs, params.readout.b_y.dtype
    before, _ = make_pairs(symbols[None, : config.length + 1], size, dtype)
    initial = nets.settle(model, params, before[0])
    inputs, targets = make_pairs(window[None], size, dtype)
    norms = jax.jit(partial(gradient_terms, model))(params, inputs[0], jnp.asarray(targets[0]), initial=initial).norms
    keep = keep_probabilities(config.window)["randomised"]
    drawn = truncation.draw_cuts(jax.random.key(config.seed), steps, keep)
    done = np.arange(steps)
    cuts = np.stack([done < 0, (done > 0) & (done % config.window == 0), drawn])
    regular, randomised = truncation.window_weights(steps, config.window), truncation.random_weights(drawn, keep)
    weights = np.stack([np.tri(steps), regular[:, 1:], randomised[:, 1:]])
    return Tables(alphabet.characters[window[:-1]], np.asarray(norms), weights, cuts)
