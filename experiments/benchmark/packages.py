"""The modern cells by the packages that their authors or others published, with our params in their own form.

What none of them has on a CPU has no entry: mLSTM's JAX kernels need a GPU to be imported, mamba-ssm's and RWKV's are
CUDA code, minGRU-pytorch bends its candidate to be positive, which is another function. A maker (case) -> Contestant
imports its package itself.
"""

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from .cases import Case
from .timing import Contestant, Unavailable

CHUNK = 64


def recurrentgemma(case: Case) -> Contestant:
    """Its RG-LRU of one head, by its own linear scan."""
    from recurrentgemma.jax.layers import RGLRU

    _require_float32(case)
    layer = RGLRU(width=case.units, num_heads=1)

    def loss(params, inputs, targets):
        cell = params.cell
        gate = lambda weight, bias: {"w": weight.T[None], "b": bias[None]}
        own = {
            "a_param": cell.lambda_,
            "a_gate": gate(cell.w_a, cell.b_a),
            "input_gate": gate(cell.w_i, cell.b_i),
        }
        by_batch = _batch_first(inputs, case)
        position = jnp.ones(by_batch.shape[:2], jnp.int32)  # 0 would be a reset
        hidden = layer.apply({"params": own}, by_batch, position, return_cache=False)[0]
        outputs = hidden @ params.readout.w_yh.T + params.readout.b_y
        return jnp.sum((outputs - _batch_first(targets, case)) ** 2) / 2

    arguments = (case.params, case.inputs, case.targets)
    return Contestant(jax.value_and_grad(loss), arguments, note="RGLRU of one head, its linear scan")


def _require_float32(case):
    if case.inputs.dtype != jnp.float32:
        raise Unavailable("it computes in float32")


def _batch_first(array, case):
    return array[None] if case.batch == 1 else jnp.swapaxes(array, 0, 1)


def torch_gradient(case: Case, run: Callable, note: str) -> Contestant:
    """run(torch, params of the cell, inputs [B, T, M]) -> what the readout sees [B, T, H], differentiated eagerly."""
    if jax.default_backend() != "cpu":
        raise Unavailable("a CPU peer")
    import torch

    leaves, structure = jax.tree.flatten(case.params)
    as_tensor = lambda array: torch.tensor(jax.device_get(array))
    leaves = [as_tensor(leaf).requires_grad_() for leaf in leaves]
    params = structure.unflatten(leaves)
    data = tuple(as_tensor(_batch_first(array, case)) for array in (case.inputs, case.targets))

    def gradient(inputs, targets):
        for leaf in leaves:
            leaf.grad = None
        outputs = run(torch, params.cell, inputs) @ params.readout.w_yh.T + params.readout.b_y
        loss = ((outputs - targets) ** 2).sum() / 2
        loss.backward()
        return loss, [leaf.grad for leaf in leaves]

    def convert(result):
        loss, grads = result
        return loss.item(), structure.unflatten([grad.numpy() for grad in grads])

    return Contestant(gradient, data, convert, traced=False, note=note)


def _lru(case: Case) -> Contestant:
    from LRU_pytorch import LRU

    _require_float32(case)
    if case.batch > 1:
        raise Unavailable("it loops over the sequences of a batch in Python")
    layer = LRU(case.units, 2 * case.units, case.units)

    def run(torch, params, inputs):
        for name in ("nu_log", "theta_log", "gamma_log", "B", "C", "D"):
            layer._parameters.pop(name, None)
        layer.nu_log, layer.theta_log, layer.gamma_log = params.nu_log, params.theta_log, params.gamma_log
        layer.B = torch.complex(params.b_re, params.b_im)
        eye, none = torch.eye(case.units, dtype=inputs.dtype), torch.zeros(case.units, case.units, dtype=inputs.dtype)
        layer.C = torch.complex(torch.cat((eye, none)), torch.cat((none, -eye)))  # Re(C h) = (Re h, Im h)
        layer.D = torch.zeros(2 * case.units, case.units, dtype=inputs.dtype)
        return layer(inputs)

    return torch_gradient(case, run, "LRU, a loop in Python")


def _scanned(case: Case, terms: Callable) -> Contestant:
    """terms(torch, params, inputs) -> a and b [B, T, N] of h_t = a_t ⊙ h_{t−1} + b_t."""
    from accelerated_scan.ref import scan

    def run(torch, params, inputs):
        carry, written = (leaf.transpose(1, 2).contiguous() for leaf in terms(torch, params, inputs))
        return scan(carry, written).transpose(1, 2)

    return torch_gradient(case, run, "its reference scan, gates by one product")


def _min_gru_terms(torch, params, inputs):
    z = torch.sigmoid(inputs @ params.w_z.T + params.b_z)
    return 1 - z, z * (inputs @ params.w_h.T + params.b_h)


def _min_lstm_terms(torch, params, inputs):
    f, i = (torch.sigmoid(inputs @ w.T + b) for w, b in ((params.w_f, params.b_f), (params.w_i, params.b_i)))
    return f / (f + i), i / (f + i) * (inputs @ params.w_h.T + params.b_h)


def _mamba(case: Case) -> Contestant:
    from mambapy.pscan import pscan

    def run(torch, params, inputs):
        step = torch.nn.functional.softplus(inputs @ params.w_delta.T + params.b_delta)[..., None]
        a = -torch.exp(params.a_log)
        written = torch.expm1(step * a) / a * (inputs[..., None] * (inputs @ params.w_b.T)[:, :, None])
        states = pscan(torch.exp(step * a), written)
        return (states @ (inputs @ params.w_c.T)[..., None])[..., 0] + params.d * inputs

    return torch_gradient(case, run, "its pscan, with our exact hold of the input")


def _xlstm(case: Case) -> Contestant:
    from xlstm.blocks.slstm.src.vanilla import slstm_forward, slstm_pointwise_function_registry

    def run(torch, params, inputs):
        def as_theirs(leaf):  # gates in the order i, f, z, o
            z, i, f, o = leaf.chunk(4)
            return torch.cat((i, f, z, o))

        w_hx, w_hh, bias = map(as_theirs, params)
        start = torch.zeros(4, len(inputs), case.units, dtype=inputs.dtype)
        drive = (inputs @ w_hx.T).transpose(0, 1)
        states = slstm_forward(drive, start, w_hh[None], bias, slstm_pointwise_function_registry["slstm"])[0]
        return states[0, 1:].transpose(0, 1)

    return torch_gradient(case, run, "sLSTM, backend vanilla")


def _mlstm(case: Case, chunks: bool) -> Contestant:
    from mlstm_kernels.torch.chunkwise.native.fwbw import mlstm_chunkwise__native_autograd
    from mlstm_kernels.torch.recurrent.native_sequence import mlstm_recurrent_sequence__native_fw

    if chunks and case.length % CHUNK:
        raise Unavailable(f"takes multiples of {CHUNK} steps")

    def run(torch, params, inputs):
        root = case.units**0.5
        q = (inputs @ params.w_q.T + params.b_q) * root  # which it divides
        k = inputs @ params.w_k.T / root + params.b_k
        v = inputs @ params.w_v.T + params.b_v
        gates = [(inputs @ w + b)[:, None] for w, b in ((params.w_i, params.b_i), (params.w_f, params.b_f))]
        heads = [leaf[:, None] for leaf in (q, k, v)]
        if chunks:
            hidden = mlstm_chunkwise__native_autograd(*heads, *gates, eps=0.0, chunk_size=CHUNK)
        else:
            hidden = mlstm_recurrent_sequence__native_fw(*heads, *gates, eps=0.0, dtype_state=inputs.dtype)
        return torch.sigmoid(inputs @ params.w_o.T + params.b_o) * hidden[:, 0]

    return torch_gradient(case, run, f"native, chunks of {CHUNK}" if chunks else "native, step by step")


def _fla(case: Case, chunks: bool) -> Contestant:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it announces that there is no GPU
        from fla.ops.delta_rule import naive as plain
        from fla.ops.gated_delta_rule import naive as gated
        from fla.ops.generalized_delta_rule.dplr import naive as general
    _require_float32(case)
    if chunks and case.length % CHUNK:
        raise Unavailable(f"takes multiples of {CHUNK} steps")
    size = {"chunk_size": CHUNK} if chunks else {}

    def run(torch, params, inputs):
        unit = lambda key: key / torch.linalg.norm(key, dim=-1, keepdim=True)
        k, v = inputs @ params.w_k.T, inputs @ params.w_v.T
        root = case.units**0.5  # which queries are divided by
        if case.cell == "rwkv7":
            rate = torch.sigmoid(inputs @ params.w_a.T + params.b_a)
            log_decay = -math.exp(-0.5) * torch.sigmoid(inputs @ params.w_w.T + params.b_w)
            removed = unit(params.xi * k)
            heads = [inputs @ params.w_r.T * root, k, v, -removed, removed * rate, log_decay]
            function = general.dplr_chunkwise if chunks else general.dplr_recurrence
            return function(*(leaf[:, None] for leaf in heads), **size)[0][:, 0]
        q, k = unit(inputs @ params.w_q.T), unit(k)
        beta = torch.sigmoid(inputs @ params.w_beta + params.b_beta)
        if case.cell == "delta_net":
            function = plain.delta_rule_chunkwise if chunks else plain.delta_rule_recurrence
            return function(*(leaf[:, None] for leaf in (q * root, k, v, beta)), **size)[0][:, 0]
        g = -torch.exp(params.a_log) * torch.nn.functional.softplus(inputs @ params.w_g + params.b_g)
        function = gated.naive_chunk_gated_delta_rule if chunks else gated.naive_recurrent_gated_delta_rule
        heads = {"q": q, "k": k, "v": v, "beta": beta, "g": g}
        return function(**{name: leaf[:, :, None] for name, leaf in heads.items()}, scale=1.0, **size)[0][:, :, 0]

    return torch_gradient(case, run, f"naive, chunks of {CHUNK}" if chunks else "naive, step by step")


_BOTH_FLA = {"fla-core": partial(_fla, chunks=False), "fla-core, chunks": partial(_fla, chunks=True)}
PACKAGES: dict[str, dict[str, Any]] = {
    "lru": {"lru-pytorch": _lru},
    "rg_lru": {"recurrentgemma": recurrentgemma},
    "selective_ssm": {"mambapy": _mamba},
    "min_gru": {"accelerated-scan": partial(_scanned, terms=_min_gru_terms)},
    "min_lstm": {"accelerated-scan": partial(_scanned, terms=_min_lstm_terms)},
    "slstm": {"xlstm": _xlstm},
    "mlstm": {"mlstm-kernels": partial(_mlstm, chunks=False), "mlstm-kernels, chunks": partial(_mlstm, chunks=True)},
    "delta_net": _BOTH_FLA,
    "gated delta_net": _BOTH_FLA,
    "rwkv7": _BOTH_FLA,
}
