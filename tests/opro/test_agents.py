"""AGENTS.md: an agent that follows it gives no command that does not exist, and finds the keys it is told of."""

import importlib
import re
import shlex

import pytest
from common import ROOT

from opro.cli import VERBS, Parser

TEXT = (ROOT / "opro" / "AGENTS.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", TEXT, re.S)
    for line in block.splitlines()
    if line.startswith("python -m ")
]


class ParsedError(Exception):
    """The flags were read."""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_flags_that_exist(command, monkeypatch):
    read = Parser.parse_args

    def parse_args(self, *given):
        space = read(self, *given)
        assert space.json  # and every one answers as it is told to
        raise ParsedError

    monkeypatch.setattr(Parser, "parse_args", parse_args)
    _, _, module, *argv = shlex.split(command)
    with pytest.raises(ParsedError):
        importlib.import_module(module).main(argv)


def test_every_verb_and_its_document_is_told_of():
    table = TEXT.partition("## What a document holds")[2]
    told = set(re.findall(r"`(?:data\.)?([a-z]+)`", table))
    assert set(VERBS) <= told
    assert {c.split()[2].split(".")[1] for c in COMMANDS} == set(VERBS) - {"view"}


def test_what_it_names_is_there():
    for name in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (ROOT / "opro" / name).is_file(), name
    assert "AGENTS.md" in (ROOT / "README.md").read_text(encoding="utf-8")
