import json
import os
import re

import jax
import pytest

from experiments.harness import record

from .toy import Config


def test_an_id_is_of_options_contents_and_versions(tmp_path, monkeypatch):
    given = dict(os.environ)
    text = tmp_path / "a.txt"
    text.write_text("one")
    (tmp_path / "b.txt").write_text("one")
    base = record.identify("toy", Config(text=str(text)))
    assert re.fullmatch("[0-9a-f]{12}", base["id"])
    assert base["config"] == {"value": 1, "text": str(text), "out": "results/toy"}
    assert base["versions"]["jax"] == jax.__version__
    json.dumps(base)
    same = [Config(text=str(text), out="elsewhere"), Config(text=str(tmp_path / "b.txt"))]
    assert {record.identify("toy", config)["id"] for config in same} == {base["id"]}
    others = [Config(), Config(value=2, text=str(text)), Config(text=str(tmp_path / "none"))]
    ids = {base["id"], record.identify("other", Config(text=str(text)))["id"]}
    ids |= {record.identify("toy", config)["id"] for config in others}
    text.write_text("two")
    ids.add(record.identify("toy", Config(text=str(text)))["id"])
    with jax.default_matmul_precision("float32"):
        ids.add(record.identify("toy", Config())["id"])
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    ids.add(record.identify("toy", Config())["id"])
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    ids.add(record.identify("toy", Config())["id"])
    monkeypatch.setenv("XLA_FLAGS", "")
    ids.add(record.identify("toy", Config())["id"])
    monkeypatch.setattr(record.metadata, "version", lambda name: "9.9")
    ids.add(record.identify("toy", Config())["id"])
    assert len(ids) == 9 + ("XLA_FLAGS" in given and given["XLA_FLAGS"] != "")


def test_the_source_counts(tmp_path, monkeypatch):
    before = record.identify("toy", Config())
    package = tmp_path / "jaxbptt"
    package.mkdir()
    (package / "__init__.py").write_text("1")
    (package / ".#editing.py").symlink_to("nowhere")
    monkeypatch.setattr(record.jaxbptt, "__file__", str(package / "__init__.py"))
    changed = record.identify("toy", Config())
    assert changed["versions"]["source"] != before["versions"]["source"]
    assert changed["id"] != before["id"]


def test_the_machine_is_described(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    found = record.describe_machine()
    json.dumps(found)
    assert found["device"]["platform"] == jax.default_backend()
    assert found["flags"]["XLA_FLAGS"] == ""
    assert found["git"] is None or re.fullmatch("[0-9a-f]{40}", found["git"]["commit"])
    assert record.peak_memory() > 10**8


def test_the_commit_is_that_of_this_repository(monkeypatch, tmp_path):
    before = record.describe_machine()["git"]
    monkeypatch.setenv("GIT_DIR", str(tmp_path))
    assert record.describe_machine()["git"] == before


def test_a_platform_that_is_not_there_is_one_line(monkeypatch):
    def fail():
        raise RuntimeError("Unable to initialize backend 'cuda'\nmore")

    monkeypatch.setattr(record.jax, "default_backend", fail)
    with pytest.raises(ValueError, match=r"^JAX finds no device: Unable to initialize backend 'cuda'$"):
        record.identify("toy", Config())


@pytest.mark.parametrize("what", ["no git", "no repository"])
def test_without_git_the_rest_is_described(what, monkeypatch, tmp_path):
    if what == "no git":
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        monkeypatch.setattr(record, "ROOT", tmp_path)
    assert record.describe_machine()["git"] is None
