"""Which clips are made: splits by hash, exact numbers."""

import pytest

from data.building.design import allocate, split_of


def test_adding_sources_moves_none():
    shares = {"train": 0.6, "dev": 0.2, "test": 0.2}
    names = [f"source{i}" for i in range(3000)]
    split = {n: split_of(n, shares) for n in names}
    assert {n: split_of(n, shares) for n in names[:100]} == {n: split[n] for n in names[:100]}
    for name, share in shares.items():
        assert sum(s == name for s in split.values()) / 3000 == pytest.approx(share, abs=0.03)
    for total in (1, 7, 50, 970):
        found = allocate(total, shares)
        assert sum(found.values()) == total
        assert all(abs(found[name] - share * total) < 1 for name, share in shares.items())
