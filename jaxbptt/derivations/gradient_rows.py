"""The list of wrong gradients that are tried: every single slip, then pairs of slips, a bounded number of them."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt.derivations import recursions
from jaxbptt.derivations.gradient_slips import (
    Instance,
    Reading,
    Row,
    chains_of,
    direct_parts,
    evaluate_rows,
    readings_of,
)
from jaxbptt.derivations.kinds import join
from jaxbptt.derivations.matching import PAIR, SINGLE, Batch
from jaxbptt.derivations.recursions import Carried, Structure
from jaxbptt.derivations.step_slips import exchange_rows, multiply, reverse_factors
from jaxbptt.derivations.variants import TRUE, Variant, pairs, step_variants
from jaxbptt.partials import vjp

AT_ONCE = 1024  # rows in memory
MOST_PAIRS = 30_000  # rows
MOST_WORK = 4e8  # rows of pairs · T · |θ|


class Tables(NamedTuple):
    """What the rows are made of."""

    instance: Instance
    variants: list[Variant]  # of the step, the true one first
    chains: np.ndarray  # [variants, T, N, N]
    right: Carried  # λ and μ_0
    structures: list[Structure]
    readings: list[Reading]
    directs: list[dict[str, np.ndarray]]


def gradient_batches(instance: Instance, fit: Callable[[Tables], Iterable[Batch]]) -> Iterator[Batch]:
    """What the slips give for every leaf of dC/dθ: single ones, those with a number to be fitted, then pairs."""
    tables = _make_tables(instance)
    true = evaluate_rows(instance, tables.directs, [Row("", "", tables.right)])
    yield multiply(true)
    yield from exchange_rows(instance.program, instance.params, instance.names, true)
    yield from _batches(tables, _singles(tables), SINGLE)
    yield from fit(tables)
    size = sum(leaf.size for leaf in jax.tree.leaves(instance.params))
    most = int(min(MOST_PAIRS, MOST_WORK / (len(instance.local) * size)))
    yield from _batches(tables, itertools.islice(_doubles(tables), most), PAIR)


def _make_tables(instance: Instance) -> Tables:
    variants = step_variants(instance.program, instance.names)
    chains = chains_of(instance, variants)
    # If no path is left, no particular one was dropped.
    kept = [k for k, variant in enumerate(variants) if variant is TRUE or np.any(chains[k])]
    readings = readings_of(instance)
    start = jax.tree.map(jnp.ones_like, instance.forward.trajectory.initial)
    of_initial = vjp(instance.model.initial_state, instance.params)[1](start)
    learned = any(np.any(leaf) for leaf in jax.tree.leaves(of_initial))
    return Tables(
        instance,
        [variants[k] for k in kept],
        chains[kept],
        recursions.adjoints(chains[0], instance.local),
        recursions.structures(len(instance.local), instance.model.reduction, learned),
        readings,
        [*direct_parts(instance), *(reading.direct for reading in readings)],
    )


def _batches(tables: Tables, rows: Iterator[Row], stage: int) -> Iterator[Batch]:
    while chosen := list(itertools.islice(rows, AT_ONCE)):
        values = evaluate_rows(tables.instance, tables.directs, chosen)
        yield Batch([(row.slip, row.note) for row in chosen], values, stage)


def _singles(tables: Tables) -> Iterator[Row]:
    local, true = tables.instance.local, tables.chains[0]
    wrong = recursions.adjoints(tables.chains, local)
    for k, variant in enumerate(tables.variants):
        if variant is TRUE:
            continue
        yield from _place(variant, variant, _pick(wrong, k), tables.right)
        if variant.slip == "missing_activation_derivative":
            swapped = reverse_factors(true, tables.chains[k])
            if swapped is not None:
                carried = recursions.adjoints(swapped, local)
                yield Row("reversed_product", "W diag(φ') for diag(φ') W", carried)
    for each in tables.structures:
        yield Row(each.slip, each.note, each.carry(true, local), TRUE, each.direct, each.last)
    for number in range(len(tables.readings)):
        yield from _read(tables, number, TRUE, true)


def _doubles(tables: Tables) -> Iterator[Row]:
    """Two slips of the step; one of the step and one of the whole gradient; one of the readout and any other."""
    local, true = tables.instance.local, tables.chains[0]
    common = [k for k, variant in enumerate(tables.variants) if variant is not TRUE and variant.common]
    both = pairs([tables.variants[k] for k in common])
    for start in range(0, len(both), AT_ONCE):
        chosen = both[start : start + AT_ONCE]
        wrong = recursions.adjoints(chains_of(tables.instance, chosen), local)
        for k, variant in enumerate(chosen):
            yield from _place(variant, variant, _pick(wrong, k), tables.right)
    for each in tables.structures:
        wrong, plain = each.carry(tables.chains[common], local), each.carry(true, local)
        for place, variant in enumerate(tables.variants[k] for k in common):
            if variant.slip != each.slip:
                for row in _place(_join(variant, each), variant, _pick(wrong, place), plain):
                    yield row._replace(factor=each.direct, direct=each.last)
    for number, reading in enumerate(tables.readings):
        for k in common:
            if tables.variants[k].slip != reading.variant.slip:
                yield from _read(tables, number, tables.variants[k], tables.chains[k])
        for each in tables.structures:
            if each.slip != reading.variant.slip and not each.last:
                label, direct = _join(each, reading.variant), _direct_of(tables, number)
                carried = each.carry(true, reading.local)
                yield Row(label.slip or "", label.note, carried, TRUE, each.direct, direct)


def _place(label: Variant, variant: Variant, wrong: Carried, right: Carried) -> Iterator[Row]:
    """A slip of the step in dh_t/dh_{t−1} and dh_t/dθ, or in one of them."""
    slip = label.slip or ""
    yield Row(slip, label.note, wrong, variant)
    yield Row(slip, f"{label.note}, in dh_t/dh_{{t−1}} alone", wrong)
    yield Row(slip, f"{label.note}, in dh_t/dθ alone", right, variant)


def _read(tables: Tables, number: int, variant: Variant, chain: np.ndarray) -> Iterator[Row]:
    """A slip of the readout in ∂o_t/∂h_t and ∂o_t/∂θ, or in one of them; beside one of the step."""
    reading, direct = tables.readings[number], _direct_of(tables, number)
    label = reading.variant if variant is TRUE else _join(variant, reading.variant)
    slip, wrong = label.slip or "", recursions.adjoints(chain, reading.local)
    right = tables.right if variant is TRUE else recursions.adjoints(chain, tables.instance.local)
    yield Row(slip, label.note, wrong, variant, 1, direct)
    yield Row(slip, f"{label.note}, in do_t/dh_t alone", wrong, variant)
    yield Row(slip, f"{label.note}, in do_t/dθ alone", right, variant, 1, direct)


def _direct_of(tables: Tables, number: int) -> int:
    return len(tables.directs) - len(tables.readings) + number


def _join(first: Variant | Structure, second: Variant | Structure) -> Variant:
    """The label of two slips."""
    note = "; ".join(each.note for each in (first, second) if each.note)
    return Variant(join(first.slip or "", second.slip or ""), note)


def _pick(carried: Carried, k: int) -> Carried:
    return Carried(carried.adjoints[k], carried.initial[k])
