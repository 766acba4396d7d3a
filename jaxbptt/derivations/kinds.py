"""The names of the known slips, and what each is in words."""

# Most specific first: of two slips that explain the same numbers equally well, the first is named.
KINDS = {
    "sign": "its sign is wrong",
    "double": "it is twice what it should be",
    "half": "it is half of what it should be",
    "lost_mean": "the 1/T of the mean is lost",
    "double_mean": "the 1/T of the mean is applied twice",
    "transposed_jacobian": "a Jacobian is transposed",
    "missing_activation_derivative": "the derivative of an activation, φ', is missing",
    "activated_value": "φ' is taken at φ(a) in place of a",
    "squared_complement": "(1 − y)² stands for 1 − y²",
    "reversed_product": "the factors of a product stand in reverse order",
    "swapped_gates": "the values of two gates are exchanged",
    "missing_direct_term": "a direct term is missing",
    "missing_initial_state": "the gradient of h_0 as a function of the params is missing",
    "last_term_only": "only the last term of a sum is there",
    "truncated": "the adjoint is cut off",
    "across_reset": "the gradient is carried across a reset",
    "wrong_time_index": "a neighbouring step's value is used, such as h_t for h_{t−1}",
    "double_path": "a path is counted twice",
    "dropped_gate_path": "the path through a gate, or past the gates, is dropped",
    "clipped_adjoint": "the adjoint is clipped at every step",
}
FACTORS = ("sign", "double", "half", "lost_mean", "double_mean")


def join(*slips: str) -> str:
    """The name of several slips at once: the more specific first."""
    return " + ".join(sorted((part for slip in slips for part in slip.split(" + ")), key=list(KINDS).index))


def rank(slip: str) -> tuple[int, ...]:
    """Sorts the more specific first."""
    return tuple(list(KINDS).index(part) for part in slip.split(" + "))


def describe_slip(slip: str, note: str) -> str:
    """What the slip is, in words; `note` says where."""
    words = " and ".join(KINDS[part] for part in slip.split(" + "))
    return f"{words} ({note}) [{slip}]" if note else f"{words} [{slip}]"
