import numpy as np
import pytest

from experiments import lstm_memory

from .runs import WITHOUT_SUMMARY, run_tiny


def test_lstm_memory_has_three_meanings(tmp_path):
    run = run_tiny("lstm_memory", "--hidden 5 --length 9", tmp_path)
    assert run.code == 0
    assert run.files == WITHOUT_SUMMARY
    for bias in lstm_memory.FORGET_BIASES:
        get = lambda field, bias=bias: run.arrays[f"{bias:g}.{field}"]
        assert get("jacobian_error") < 1e-14
        first, through, full = get("log_norms")
        assert first[0] == pytest.approx(np.log(get("gates")[0, 1].max()))
        assert full[0] == pytest.approx(first[0])
        assert abs(through[-1] - first[-1]) > 1e-3
        assert abs(full[-1] - through[-1]) > 1e-3
        assert f"forget bias {bias:g}: median f {np.median(get('gates')[:, 1]):.2f}; nats per step" in run.said
