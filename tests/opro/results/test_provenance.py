"""Provenance: how a process runs, and nothing that is secret."""

import json
import sys

import numpy as np

from opro.results import provenance


def test_it_says_how_the_process_runs(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-marked-secret-key")
    found = provenance.provenance({"device": "cpu", "argv": ["x"]})
    assert found["packages"]["numpy"] == np.__version__ and found["cpus"] >= 1
    assert found["python"] == sys.version.split()[0] and found["device"] == "cpu"
    assert found["argv"] == ["x"]  # what is added wins
    assert "sk-marked" not in json.dumps(found)
    assert set(found["git"]) == {"commit", "dirty"} and len(found["git"]["commit"]) == 40


def test_what_is_not_there_is_none(monkeypatch, tmp_path):
    monkeypatch.setattr(provenance, "ROOT", tmp_path)  # an installed wheel has no repository
    monkeypatch.setattr(provenance, "PACKAGES", ("numpy", "no-such-package"))
    found = provenance.provenance({})
    assert found["git"] is None and found["packages"]["no-such-package"] is None


def test_a_machine_without_git_is_fine(monkeypatch):
    def run(*args, **options):
        raise FileNotFoundError("git")

    monkeypatch.setattr(provenance.subprocess, "run", run)
    assert provenance.provenance({})["git"] is None
