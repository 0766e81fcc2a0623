"""Examples in docstrings are true."""

import doctest
import importlib

import pytest

MODULES = (
    "evaluators.classifier",
    "evaluators.files",
    "opro.frames",
    "opro.results.progress",
    "opro.results.sheet",
    "opro.search.budget",
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_say(name):
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried and not failed
