"""Training with the gradient in view: what explodes, what clipping does to it, and how a memory is learned.

Recurrent nets, old and new, learn a task that needs memory by AdamW; beside the loss `jaxbptt.monitor` says how far
back the gradient reaches, how fast perturbations grow and what clipping takes away. Claims, stated before the run
(losses held out, each net at its best rate, paired over keys):

1. Orthogonal recurrent weights end at a lower loss than Gaussian ones (Henaff, Szlam & LeCun 2016, arXiv:1602.06662).
2. A ReLU net that starts at the identity ends lower than a tanh net of Gaussian weights (Le, Jaitly & Hinton 2015,
   arXiv:1504.00941).
3. An LSTM whose forget bias starts at 1 ends lower than one that starts at 0, and 3 lower than 1 (Jozefowicz, Zaremba &
   Sutskever 2015; Gers, Schmidhuber & Cummins 2000).
4. Chrono initialisation ends lower than a forget bias of 1 (Tallec & Ollivier 2018, arXiv:1804.11188).
5. The LRU of eigenvalues in a ring below 1 ends lower than an LSTM of forget bias 1 (Orvieto et al. 2023,
   arXiv:2303.06349).
6. Memory is learned: in the LSTM of forget bias 1 the gradient reaches farther back after training than before.
7. A chaotic net (gain 2) ends lower with clipping by the global norm than without (Pascanu, Mikolov & Bengio 2013,
   arXiv:1211.5063).
8. Clipping the state's cotangent in time, λ_t to a norm of 0.3 in each sequence, turns the mean gradient by more than
   clipping a batch's mean gradient to a norm of 1 does.
"""

from functools import partial
from typing import Any

import jax

from experiments import harness, options, tasks, text
from experiments.text import KEEP

from .arms import ARMS, CLIPPINGS, EXPLODING
from .curves import Compiled, Curves, compile_step, train
from .figure import plot
from .summary import summarise

TASKS = ("copy", "adding", "xor", "text", "digits")
ITEMS = 5  # symbols of the copy task


@options.config
class Config:
    task: tuple = options.choices("copy", TASKS, "what is learned", full="all")
    text: str | None = options.file("a text file", shown="CPython's documentation")
    keep: tuple = options.choices("letters", KEEP, "kinds of characters of the text that stay; letters always do")
    hidden: int = options.size(32, "units N")
    length: int = options.size(30, "steps T of a sequence (digits: 64)", least=ITEMS * 2 + 1)
    updates: int = options.size(1000, "parameter updates, a multiple of records", full=2000)
    records: int = options.size(10, "times after the start that the net is looked at")
    batch: int = options.size(16, "sequences an update")
    keys: int = options.size(5, "trainings of each net: weights and data", least=2, full=10)
    seed: int = options.seed()
    full: bool = options.flag("the record run: every task, longer, more keys")
    out: str = options.out("training")


def run(config: Config, progress: Any = harness.QUIET) -> dict[str, Any]:
    """Curves of every net on every task, "copy: GRU", and of the exploding one by kind of clipping; float32.

    Beside them the "alphabet" where text is a task.
    """
    options.require_size("updates", config.updates, least=config.records)
    if config.updates % config.records:
        raise ValueError(f"updates: got {config.updates}, expected a multiple of records = {config.records}")
    init_key, batch_key, held_out_key = jax.random.split(jax.random.key(config.seed), 3)
    init_keys, batch_keys = (jax.random.split(key, config.keys) for key in (init_key, batch_key))
    read = text.load_text(config.text, config.keep) if "text" in config.task else None
    posed = {name: _make_task(name, config, read) for name in config.task}
    compiled: dict[tuple[str, str], Compiled] = {}  # nets of one kind share their step

    def learn(task_name, arm, clipped):
        task = posed[task_name]
        cell = arm.make(task.num_inputs, config.hidden, tasks.length_of(task))
        kind = task_name, arm.kind
        if kind not in compiled:
            compiled[kind] = compile_step(task, cell, config, held_out_key)
        params, with_bias = jax.vmap(tasks.make_model(task, cell).init)(init_keys), arm is EXPLODING
        return train(compiled[kind], params, batch_keys, clipped, config, with_bias=with_bias)

    todo = {}
    for task_name in posed:
        trained = [(name, arm, CLIPPINGS[1]) for name, arm in ARMS.items()]
        if not todo:
            trained += [(f"gain 2, {kind}", EXPLODING, kind) for kind in CLIPPINGS]
        todo |= {f"{task_name}: {name}": partial(learn, task_name, *how) for name, *how in trained}
    found = progress.sweep(todo, Curves(*Curves._fields))
    return ({} if read is None else {"alphabet": read.alphabet}) | found


def _make_task(name, config, read):
    length = config.length
    if name == "text":
        options.require_size("length", length, most=len(read.symbols) // 10 - 2)
        return tasks.next_symbol(read.symbols, len(read.alphabet.characters), length)
    makers = {
        "copy": lambda: tasks.copy_memory(length - 2 * ITEMS, items=ITEMS),
        "adding": lambda: tasks.adding(length),
        "xor": lambda: tasks.delayed_xor(length, length // 3),
        "digits": tasks.digits,
    }
    return makers[name]()


EXPERIMENT = harness.Experiment(
    name="training",
    purpose="nets that learn a memory, with reach, growth and clipped gradients in view; initialisations compared",
    description=__doc__,
    config=Config,
    run=run,
    summarise=summarise,
    plot=plot,
    float64=False,
    takes="2 min",
    alt={
        "figure.png": (
            "Four rows of nets: tanh and ReLU, LSTMs by forget bias, other gated and linear recurrences, and a chaotic "
            "net by the way of clipping. Columns: the loss over updates with the best answer without memory dotted; "
            "how far back 90 % of the gradient reaches; λ_1; the singular values of dh_T/dh_0 before and after "
            "training. The last row has the gradient's norm and its cosine to the exact one in place of reach and λ_1."
        ),
    },
)
