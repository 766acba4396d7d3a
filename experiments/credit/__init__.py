"""Is temporal credit free? Immediate derivatives against RTRL, RFLO, SnAp-1, UORO, TBPTT and BPTT on shifting streams.

Merin (2026), "Temporal Credit Is Free", arXiv:2603.28750, learns at every step of a stream and says that the Jacobian
term of RTRL is not needed: the derivative of the step alone, the trace ∂⁺h_t/∂⁺θ, recovers from a change of the data
as well, if an optimiser normalises it (RMSprop, Adam). Published recoveries over RTRL's, 5 seeds, n = 64: 102 % (a
sine whose frequency changes), 113 % (Lorenz), 179 % ("delayed, t+50").

Here: an Elman net of N tanh units, one number seen and one asked a step, ½ error². The stream changes in the middle.
Recovery is 1 − (loss in the last quarter of the steps after the change) / (loss on the same steps of the same net
frozen at the change): 1 is all, 0 none; a net that got worse or diverged has recovered 0. What the paper's abstract and
introduction say leaves open how it counts recovery, its rates and its frequencies: these are ours. "Delayed (t+50)" is
read twice: as a prediction 50 steps ahead, for which a sine needs no memory of 50 steps, and as copying after 50 steps,
for which it does. Every method and optimiser is tried at the same rates, and the one with the least loss over the last
half of the steps before the change is taken: what comes after decides nothing. The online rules move the net at every
step; TBPTT and BPTT once a window of 10 and of 100 steps, by the sum of its gradients, over the same data.

Hypotheses, each a claim stated before the run:
  "match or exceed": immediate + RMSprop recovers at least .95 of what RTRL + RMSprop does (the paper's three tasks),
    and ends at a loss at most 1.05 times RTRL's; the same where the sign of 10 steps ago is asked, which takes credit.
  "normalize": immediate + SGD recovers less than immediate + RMSprop (the paper's three tasks).
  "stale traces": on the sine a trace of decay .95 recovers at most .05 with SGD (published 0) and with Adam at most
    half of what immediate + Adam does (published 18 %).
  out of reach: of the methods that cannot carry credit over 50 steps (the readout alone, immediate, TBPTT) none answers
    below .95 of the memoryless loss where the sign of 50 steps ago is asked.
  the tasks test it: a net whose recurrent weights never learn recovers at most .95 of what RTRL does, RMSprop both.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import harness, options

from .figure import plot
from .quality import make_quality
from .streams import STREAMS, memoryless_loss
from .summary import choose_rates, summarise
from .training import METHODS, OPTIMISERS, RATES, WHOLE, Found, make_learner, make_net

LEADER = ("RTRL", "RMSprop")  # whose nets the gradients are compared on


@options.config
class Config:
    hidden: int = options.size(32, "units N of the Elman net", least=2, full=64)
    steps: int = options.size(2400, "steps of a stream, a multiple of 800", full=3200)
    keys: int = options.size(4, "independent nets and streams", least=2, full=10)
    seed: int = options.seed()
    full: bool = options.flag("the record run: N = 64, 10 keys, 3200 steps")
    out: str = options.out("credit")


class Outcome(NamedTuple):
    """One task. M methods, O optimisers, R rates, D keys, B stretches of WHOLE steps.

    Gradients are compared over the first WHOLE steps after the change, at the params that RTRL + RMSprop had then.
    """

    hidden: np.ndarray  # N
    methods: np.ndarray  # [M] names
    optimisers: np.ndarray  # [O] names
    rates: np.ndarray  # [R]
    curve: np.ndarray  # [M, O, R, D, B] mean loss a step
    frozen: np.ndarray  # [M, O, R, D, B/2] after the change, of the net as it was then
    memoryless: np.ndarray  # [D] of the best affine answer from x_t alone, in the last quarter after the change
    cosine: np.ndarray  # [M, D] to the exact gradient of the cell's params
    bias: np.ndarray  # [M, D] over the exact norm
    spread: np.ndarray  # [M, D] of drawn signs, over the exact norm
    profile: np.ndarray  # [D, WHOLE] share of the credit by lag
    errors: np.ndarray  # [2, D] of two identities: immediate = windows of one step, RTRL = BPTT


def run(config: Config, progress: Any = harness.QUIET) -> dict[str, Outcome]:
    """Every task, in float32."""
    if config.steps % (8 * WHOLE):  # the last quarter of the second half is then in whole stretches
        raise ValueError(f"steps: got {config.steps}, expected a multiple of {8 * WHOLE}")
    keys = jax.random.split(jax.random.key(config.seed), config.keys)
    model = make_net(config.hidden)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), jax.vmap(model.init)(keys))
    one = jax.tree.map(lambda leaf: leaf[0], params)
    draws = jax.vmap(lambda key: jax.random.split(key, 3))(keys)  # [D, 3] of streams, signs, signs of the comparison
    data = {
        name: jax.jit(jax.vmap(lambda key, draw=draw: draw(key, config.steps)))(draws[:, 0])
        for name, draw in STREAMS.items()
    }

    def learn(method):
        learner = _side_by_side(make_learner(method, model, one), keys_together=method != "RTRL")
        return {name: learner(params, *pair, draws[:, 1]) for name, pair in data.items()}  # side by side on all cores

    like = {name: Found(0, 0, one, 0) for name in data}
    points = progress.sweep({method: partial(learn, method) for method in METHODS}, like)
    found = {name: {method: points[method][name] for method in METHODS} for name in data}
    progress("gradients at the change")
    compare = jax.jit(jax.vmap(make_quality(model, one, model.initial_state(one))))
    half, late = config.steps // 2, config.steps - config.steps // 8
    outcomes = {}
    for name, (inputs, targets) in data.items():
        curve = np.stack([row.curve for row in found[name].values()])
        leader, optimiser = list(METHODS).index(LEADER[0]), list(OPTIMISERS).index(LEADER[1])
        rate = choose_rates(curve)[leader, optimiser]
        at_shift = jax.tree.map(lambda leaf, at=(optimiser, rate): leaf[at], found[name][LEADER[0]])
        stretch = inputs[:, half : half + WHOLE], targets[:, half : half + WHOLE]
        last = np.asarray(inputs[:, late:]), np.asarray(targets[:, late:])
        measured = jax.tree.map(np.asarray, compare(at_shift.params, at_shift.state, *stretch, draws[:, 2]))
        outcomes[name] = Outcome(
            np.array(config.hidden),
            np.array(list(METHODS)),
            np.array(list(OPTIMISERS)),
            np.array(RATES),
            curve,
            np.stack([row.frozen for row in found[name].values()]),
            np.array([memoryless_loss(*pair) for pair in zip(*last, strict=True)]),
            *(values.T for values in (measured.cosine, measured.bias, measured.spread)),
            measured.profile,
            np.stack((measured.immediate_error, measured.rtrl_error)),
        )
    return outcomes


def _side_by_side(learner, keys_together):
    """(params, inputs, targets, keys, each leading [D]) -> Found, leaves [O, R, D, ...]; compiled.

    One training after the other, of small memories all keys together: a sensitivity [N, P] of RTRL that stays in the
    cache is faster than several at once.
    """

    def learn(params, inputs, targets, keys):
        def over_keys(rate, chosen):
            one = lambda data: learner(*data[:3], rate, chosen, data[3])
            data = params, inputs, targets, keys
            return jax.vmap(one)(data) if keys_together else jax.lax.map(one, data)

        over_rates = lambda chosen: jax.lax.map(lambda rate: over_keys(rate, chosen), jnp.asarray(RATES, jnp.float32))
        return jax.lax.map(over_rates, jnp.arange(len(OPTIMISERS)))

    return jax.jit(learn)


EXPERIMENT = harness.Experiment(
    name="credit",
    purpose="is temporal credit free? immediate derivatives against RTRL and others on streams that change",
    description=__doc__,
    config=Config,
    run=run,
    summarise=summarise,
    plot=plot,
    float64=False,
    takes="2 min",
    alt={
        "figure.png": (
            "For each task a column with the recovery after the change and below it the late loss, of every gradient "
            "by three optimisers, as points with intervals beside a dashed line for RTRL. Below: every gradient's "
            "cosine to the exact one, its bias, and the share of the credit by steps back for each task."
        ),
    },
)
