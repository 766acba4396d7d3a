"""The online rules that are compared, and what is published about them."""

from jaxbptt import online

EXACT = "RTRL"
LEAK = 0.9  # 1 − 1/τ with τ = 10, as the published RFLO, on a cell that has no leak
RULES = {
    EXACT: online.rtrl(),
    "SnAp-1": online.snap(1),
    "KF-RTRL": online.kf_rtrl(),
    "RFLO": online.rflo(leak=LEAK),
    "RFLO, no leak": online.rflo(),
    "UORO": online.uoro(),
}
PUBLISHED = {  # range over tasks of the cosines published with sketched-rtrl, N = 64
    "SnAp-1": (0.41, 0.69),
    "KF-RTRL": (0.48, 0.56),
    "RFLO": (0.18, 0.58),
    "UORO": (0.04, 0.10),
}
