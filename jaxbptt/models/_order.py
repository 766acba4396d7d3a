"""The order in which a model may be made of others: each function relies on what those before it made."""

from jaxbptt import _validation
from jaxbptt.models.model import Model

ORDER = ("real_pairs", "feedback", "resetting", "precomputed", "weighted", "batched", "penalised")


def require_order(model: Model, name: str) -> None:
    """Raise unless `name` may be applied to what the model was made by."""
    _validation.require_functions("model", model, ("initial_state", "step", "readout", "loss"))
    applied = model.applied if model.batch is None else (*model.applied, "batched")  # or by hand
    later = [one for one in applied if ORDER.index(one) >= ORDER.index(name)]
    if later:
        raise ValueError(f"model: got one that is {later[-1]} already, expected the order {', '.join(ORDER)}")
