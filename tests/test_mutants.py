"""The list of changes for `bench_mutants.py` stays that of today's source."""

from common import ROOT
from mutants import ANY, DIRECTED, EQUIVALENT


def test_what_is_to_be_changed_stands_in_the_source_once():
    stands = {(module, old): (ROOT / module).read_text().count(old) for module, old, _ in DIRECTED}
    assert {place: n for place, n in stands.items() if n != 1} == {}


def test_what_is_named_as_equivalent_stands_in_the_source():
    named = {(module, part) for module, part, _, _ in EQUIVALENT if module != ANY}
    assert [(m, part) for m, part in sorted(named) if part not in (ROOT / m).read_text()] == []
