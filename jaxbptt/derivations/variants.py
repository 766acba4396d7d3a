"""The single slips of one step that changed coefficients can express, and pairs of them."""

import itertools
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxbptt import _validation
from jaxbptt._jaxprs.gates import Rows
from jaxbptt._jaxprs.sites import StepProgram
from jaxbptt.derivations.kinds import join
from jaxbptt.derivations.rewrite import Coefficients, neutral
from jaxbptt.types import Params, State

OF_A_SITE = ("direct", "identity", "lagged", "activated", "squared", "borrowed")


class Change(NamedTuple):
    field: str  # of Coefficients
    at: tuple[int, ...]
    value: float


class Variant(NamedTuple):
    """One wrong derivative of the step."""

    slip: str | None  # None: the true derivative
    note: str  # where, e.g. "at tanh"
    changes: tuple[Change, ...] = ()
    shift: bool = False  # everything evaluated at h_t in place of h_{t−1}
    common: bool = True  # one place, or all of them: looked for beside another slip too


TRUE = Variant(None, "")


class Names(NamedTuple):
    """What a report calls the places of a program."""

    sites: tuple[str, ...]
    values: tuple[str, ...]
    leaves: tuple[str, ...]  # of params


def name_places(program: StepProgram, params: Params, state: State) -> Names:
    """By the letters that the cell declares, `gates` of its params and `letters` of its state; else by number, rows."""
    if program.flat is None:
        return Names((), (), ())
    paths = tuple(_validation.leaf_name("params", path) for path, _ in jax.tree_util.tree_leaves_with_path(params))
    gates, letters = _declared(params, "gates"), _declared(state, "letters")
    plain = ["φ" if site.name == "custom_jvp_call" else site.name for site in program.sites]
    seen: dict[str, int] = {}
    names, short = [], []
    for site, name, rows in zip(program.sites, plain, program.rows, strict=True):
        seen[name] = seen.get(name, 0) + 1
        letter = _letter(rows, gates)
        if letter is None and site.argument in program.flat.outputs:
            place = program.flat.outputs.index(site.argument)
            declared = letters[place]
            letter = None if declared is None else f"{name}({declared[0][declared[1]]})"
        if letter is not None:
            names.append(letter if letter.startswith(name) else f"{name} of gate {letter}")
            short.append(letter)
            continue
        text = f"{name} (number {seen[name]} of {plain.count(name)})" if plain.count(name) > 1 else name
        names.append(f"{text}, {describe_rows(rows, paths)}" if rows is not None and rows.leaf is not None else text)
        short.append(text)
    values = []
    for value in program.values:
        own = short[value.site]
        values.append(own if value.itself else f"1 − {own}" if value.complement else f"an affine function of {own}")
    return Names(tuple(names), tuple(values), paths)


def describe_rows(rows: Rows, leaves: tuple[str, ...]) -> str:
    """Rows of a stacked weight, counted from 0."""
    return f"rows {rows.start}–{rows.stop - 1} of {leaves[rows.leaf or 0]}"


def gate_letter(rows: Rows | None, params: Params) -> str | None:
    """The letter that the cell declares for these rows."""
    return _letter(rows, _declared(params, "gates"))


def step_variants(program: StepProgram, names: Names) -> list[Variant]:
    """The true derivative, then every one with a single slip."""
    count, primary = len(program.sites), program.num_primary
    variants = [TRUE]

    def add(slip, note, places, shift=False, common=True, **fields):
        changes = [Change(field, (i,), value) for field, value in fields.items() for i in places]
        variants.append(Variant(slip, note, tuple(changes), shift, common))

    def at(chosen):
        return "at " + ", ".join(names.sites[i] for i in chosen)

    def each_and_all(numbers):
        numbers = tuple(numbers)
        return [(i,) for i in numbers] + [numbers] * (len(numbers) > 1)

    subsets = [(subset, len(subset) in (1, primary)) for subset in _subsets(primary)]
    readings = subsets + [((i,), False) for i in range(primary, count)]
    if count > primary:
        readings.append((tuple(range(primary, count)), False))
    for subset, common in readings:
        add("missing_activation_derivative", at(subset), subset, common=common, direct=0, identity=1)
    for subset, common in subsets:
        add("activated_value", at(subset), subset, common=common, direct=0, activated=1)
    tanhs = [i for i in range(primary) if program.sites[i].name == "tanh"]
    for subset in _subsets(len(tanhs)):
        chosen = tuple(tanhs[k] for k in subset)
        add("squared_complement", at(chosen), chosen, common=len(subset) in (1, len(tanhs)), direct=0, squared=1)
    variants += _swaps(program, names)
    for number, use in enumerate(program.uses):
        note = f"use {use.number} of {use.of} of {names.leaves[use.leaf]} in the step"
        add("missing_direct_term", note, (number,), uses=0)
    for subset in each_and_all(range(len(program.resets))):
        note = f"place {subset[0] + 1} of {len(program.resets)}" if len(subset) < len(program.resets) else ""
        add("across_reset", note, subset, across=1)
    if program.lag is not None:
        for i in range(primary):
            add("wrong_time_index", f"φ' by h_{{t−1}} {at((i,))}", (i,), direct=0, lagged=1)
    for subset in each_and_all(range(len(program.products))):
        for shift in (False, True):
            add("wrong_time_index", "in the parameter's factor", subset, shift, shifted=1)
    add("wrong_time_index", "throughout", (), True)
    carries = each_and_all(range(len(program.carries)))
    for subset in carries:
        add("transposed_jacobian", "in the recurrent weights", subset, turned=1)
    for subset, common in subsets:
        add("dropped_gate_path", at(subset), subset, common=common and len(subset) == 1, direct=0)
    for gates, past in itertools.product([(), *((i,) for i in range(primary))], carries):
        note = " and ".join([at(gates)] * bool(gates) + ["past the gates"])
        changes = [Change("direct", (i,), 0) for i in gates] + [Change("carry", (i,), 0) for i in past]
        variants.append(Variant("dropped_gate_path", note, tuple(changes), common=not gates))
    for subset in each_and_all(range(primary)):
        add("double_path", at(subset), subset, direct=2)
    for i in range(len(program.carries)):
        add("double_path", "past the gates", (i,), carry=2)
    return variants


def _swaps(program: StepProgram, names: Names) -> list[Variant]:
    """The values of two gates exchanged: at one factor, at the two of one product, everywhere; in φ' too or alone."""
    found = []
    factors, sites = program.factors, program.sites

    def exchange(numbers, first, second):
        other = {first: second, second: first}
        return [Change("swapped", (k, other[factors[k].value]), 1) for k in numbers]

    def borrow(first, second):
        return [Change("direct", (first,), 0), Change("borrowed", (first, second), 1)]

    def add(note, changes):
        found.append(Variant("swapped_gates", note, tuple(changes)))

    shapes = [program.flat.avals[value.slot].shape for value in program.values] if program.flat else []
    for first, second in itertools.combinations(range(len(program.values)), 2):
        if shapes[first] != shapes[second]:
            continue
        a, b = names.values[first], names.values[second]
        here = [k for k, factor in enumerate(factors) if factor.value in (first, second)]
        for k in here:
            used, right = (b, a) if factors[k].value == first else (a, b)
            add(f"{used} for {right} in one product", exchange([k], first, second))
        for position in {factors[k].position for k in here}:
            both = [k for k in here if factors[k].position == position]
            if len(both) == 2 and len(here) > 2:
                add(f"{a} and {b}, in one product", exchange(both, first, second))
        if len(here) > 1:
            add(f"{a} and {b}, in every product", exchange(here, first, second))
        one, two = program.values[first], program.values[second]
        if one.itself and two.itself and sites[one.site].name == sites[two.site].name:
            slopes = borrow(one.site, two.site) + borrow(two.site, one.site)
            add(f"{a} and {b}, in φ'", slopes)
            if here:
                add(f"{a} and {b}, throughout", exchange(here, first, second) + slopes)
            add(f"φ' of {a} by the value of {b}", borrow(one.site, two.site))
            add(f"φ' of {b} by the value of {a}", borrow(two.site, one.site))
    return found


def pair(first: Variant, second: Variant) -> Variant | None:
    """Both slips at once; None where they are of one kind or meet in one place."""
    if first.slip is None or second.slip is None or first.slip == second.slip or (first.shift and second.shift):
        return None
    if _places(first) & _places(second):
        return None
    note = "; ".join(note for note in (first.note, second.note) if note)
    return Variant(join(first.slip, second.slip), note, first.changes + second.changes, first.shift or second.shift)


def pairs(variants: list[Variant]) -> list[Variant]:
    """All pairs of common slips."""
    found = (pair(a, b) for a, b in itertools.combinations([v for v in variants if v.common], 2))
    return [each for each in found if each is not None]


def stack(program: StepProgram, variants: list[Variant], like: Any) -> tuple[Coefficients, np.ndarray]:
    """(coefficients with leading [K], in the dtype of the leaves of `like`; shift [K])."""
    true = neutral(program, like)
    stacked = jax.tree.map(lambda leaf: np.repeat(leaf[None], len(variants), axis=0), true)
    for row, variant in enumerate(variants):
        for change in variant.changes:
            getattr(stacked, change.field)[(row, *change.at)] = change.value
    return stacked, np.asarray([variant.shift for variant in variants])


def _places(variant):
    """What a variant changes: of a site, everything."""
    return {
        ("site", change.at[0]) if change.field in OF_A_SITE else (change.field, change.at[0])
        for change in variant.changes
    }


def _declared(tree: Any, attribute: str) -> list[tuple[tuple[str, ...], int] | None]:
    """Per leaf: (the letters that the node which holds it declares under that name, the leaf's place in it)."""

    def declared_by(node):
        letters = getattr(node, attribute, None)
        return letters if isinstance(letters, tuple) and all(isinstance(each, str) for each in letters) else None

    found: list[tuple[tuple[str, ...], int] | None] = []
    for node in jax.tree.leaves(tree, is_leaf=lambda node: declared_by(node) is not None):
        letters = declared_by(node)
        found += [None if letters is None else (letters, place) for place in range(len(jax.tree.leaves(node)))]
    return found


def _letter(rows, gates):
    if rows is None or rows.leaf is None or gates[rows.leaf] is None:
        return None
    declared, size = gates[rows.leaf][0], rows.stop - rows.start
    fits = rows.total == size * len(declared) and rows.start % size == 0
    return declared[rows.start // size] if fits else None


def _subsets(count):
    """Which of `count` places slip together: all non-empty sets of few places; else one, some, all but one, or all."""
    sizes = [*range(1, count + 1)] if count <= 5 else [1, count - 1, count]
    if 5 < count <= 8:
        sizes = [1, 2, 3, count - 1, count]
    return [subset for size in sizes for subset in itertools.combinations(range(count), size)]
