import json
import os

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
    with pytest.raises(OSError, match=r"value\.json") as full:
        files.write_atomically(path, fail_to_write)
    assert full.value.strerror == "No space left on device"
    assert [file.name for file in tmp_path.iterdir()] == ["value.json"]


def fail_to_write(file):
    file.write(b"half")
    raise OSError(28, "No space left on device")


@pytest.mark.skipif(not hasattr(os, "umask") or os.name == "nt", reason="modes of POSIX")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_the_mode_of_a_file_is_the_users(mask, mode, tmp_path):
    before = os.umask(mask)
    try:
        files.write_json(tmp_path / "value.json", 1)
    finally:
        os.umask(before)
    assert (tmp_path / "value.json").stat().st_mode & 0o777 == mode
