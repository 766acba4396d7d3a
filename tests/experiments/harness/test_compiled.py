import os
import subprocess
import sys
import zlib
from pathlib import Path

import jax
import pytest

from experiments.harness import compiled

ROOT = Path(__file__).parents[3]


@pytest.fixture
def no_cache():
    """JAX's own settings, put back."""
    names = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_a_folder_that_the_user_has_set_stays(monkeypatch, tmp_path):
    before = jax.config.jax_compilation_cache_dir
    assert before is not None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiled.keep_compiled()
    assert jax.config.jax_compilation_cache_dir == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="the folder is the system's own")
def test_it_lies_in_the_users_cache_folder_for_the_user_alone(monkeypatch, tmp_path, no_cache):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiled.keep_compiled()
    folder = Path(jax.config.jax_compilation_cache_dir)
    assert folder.parent == tmp_path / "jaxbptt"
    assert folder.stat().st_mode & 0o77 == 0
    (tmp_path / "file").touch()
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    compiled.keep_compiled()
    assert jax.config.jax_compilation_cache_dir is None


def test_entries_that_are_not_whole_are_removed(tmp_path):
    entry = zlib.compress(os.urandom(1000))
    (tmp_path / "old-cut").write_bytes(entry[:-1])
    os.utime(tmp_path / "old-cut", ns=(0, 0))
    compiled.tidy(tmp_path)
    assert not (tmp_path / "old-cut").exists()
    for name, content in {"whole": entry, "cut": entry[:-5], "empty": b"", "zstd": compiled.ZSTANDARD}.items():
        (tmp_path / name).write_bytes(content)
    compiled.tidy(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"whole", compiled.CHECKED}
    (tmp_path / "folder of XLA's").mkdir()
    (tmp_path / "looked at").write_bytes(entry[:-5])
    os.utime(tmp_path / "looked at", ns=(0, 0))  # before the last look
    compiled.tidy(tmp_path)
    assert (tmp_path / "looked at").exists()


def test_the_oldest_entries_make_room(tmp_path, monkeypatch):
    monkeypatch.setattr(compiled, "LARGEST", 250)
    for age, name in enumerate(("newest", "middle", "oldest")):
        content = zlib.compress(b"")
        (tmp_path / name).write_bytes(content)
        monkeypatch.setattr(compiled, "LARGEST", 2 * len(content))
        os.utime(tmp_path / name, ns=(0, 10**18 - age))
    compiled.tidy(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"newest", "middle", compiled.CHECKED}


def test_the_second_process_reads_what_the_first_compiled_and_a_cut_entry_is_no_trouble(tmp_path):
    """In processes of their own: JAX opens its cache once."""
    program = """
import jax
from experiments.harness import compiled
compiled.LEAST_SECONDS = 0
compiled.keep_compiled()
hits = []
jax.monitoring.register_event_listener(lambda event, **more: hits.append(event))
print(jax.jit(lambda x: x * 3)(2).item(), hits.count("/jax/compilation_cache/cache_hits") > 0)
"""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    said = []
    for spoil in (False, False, True):
        if spoil:
            for path in tmp_path.glob("jaxbptt/*/*-cache"):
                path.write_bytes(path.read_bytes()[:-3])
        run = subprocess.run(
            [sys.executable, "-W", "error", "-c", program], cwd=ROOT, env=environment, capture_output=True
        )
        assert run.returncode == 0, run.stderr.decode()
        assert run.stderr == b""
        said.append(run.stdout.decode().split())
    assert said == [["6", "False"], ["6", "True"], ["6", "False"]]
