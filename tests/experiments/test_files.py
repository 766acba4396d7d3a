import json

import numpy as np
import pytest

from experiments import files


def test_files_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "value.json"
    files.write_json(path, {"a": [1.0, float("inf")]})
    assert json.loads(path.read_text()) == {"a": [1.0, None]}
    with pytest.raises(TypeError):
        files.write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": [1.0, None]}
    with pytest.raises(TypeError, match="object array"):
        files.write_arrays(tmp_path / "a.npz", {"a": np.array([object()])})
    assert [file.name for file in tmp_path.iterdir()] == ["value.json"]
