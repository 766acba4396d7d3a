"""The online rules that are compared, and what is published about them."""

from jaxbptt import online

EXACT = "RTRL"
LEAK = 0.9  # 1 − 1/τ with τ = 10, as the published RFLO, on a cell that has no leak
RANK = 4
SKETCH = f"sketched RTRL, r = {RANK}"
RULES = {
    EXACT: online.rtrl(),
    SKETCH: online.sketched_rtrl(RANK),
    "SnAp-1": online.snap(1),
    "RFLO": online.rflo(leak=LEAK),
    "e-prop, random": online.eprop("random", leak=LEAK),
    "KeRNL": online.kernl(rate=0.1, timescale=10.0),
    "immediate": online.immediate(),
    f"OK-RTRL, r = {RANK}": online.ok_rtrl(RANK),
    "KF-RTRL": online.kf_rtrl(),
    "reverse KF-RTRL": online.reverse_kf_rtrl(),
    "UORO": online.uoro(),
}
UNTRAINED = {SKETCH}  # an eigendecomposition at every step of every training takes minutes
PUBLISHED = {  # range over tasks of the cosines published with sketched-rtrl, N = 64
    SKETCH: (0.82, 0.98),
    "SnAp-1": (0.41, 0.69),
    "KF-RTRL": (0.48, 0.56),
    "RFLO": (0.18, 0.58),
    "UORO": (0.04, 0.10),
}
