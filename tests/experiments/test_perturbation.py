import numpy as np

from .runs import WITHOUT_SUMMARY, run_tiny


def test_perturbation_is_predicted_until_it_is_not_small(tmp_path):
    run = run_tiny("perturbation", "--hidden 48 --length 60", tmp_path)
    assert run.code == 0
    assert run.files == WITHOUT_SUMMARY
    linear, contractive, chaotic = (
        lambda field, name=name: run.arrays[f"{name}.{field}"]
        for name in ("linear, gain 1.05", "contractive, ‖W‖ = 0.9", "chaotic, gain 3")
    )
    np.testing.assert_allclose(linear("actual")[2], linear("predicted")[2], rtol=1e-6)
    np.testing.assert_allclose(linear("actual_back"), linear("predicted_back"), rtol=1e-2)
    assert contractive("predicted")[0, -1] < 1e-2 * contractive("predicted")[0, 0]
    assert chaotic("predicted")[2, -1] > 10 * chaotic("actual")[2, -1]
    np.testing.assert_allclose(chaotic("actual")[0, :10], chaotic("predicted")[0, :10], rtol=1e-3)
    said = run.said.splitlines()
    assert said[0].startswith("linear, gain 1.05: predicted growth +")
    assert said[0].endswith("δ = 1e-01: within 10 % throughout")
    assert "δ = 1e-01: off by 10 % from step " in said[2]
