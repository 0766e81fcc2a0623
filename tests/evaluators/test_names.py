"""Names: spellings of one name are one, and a file is found under its other spelling."""

import unicodedata

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from evaluators.errors import UserError
from evaluators.names import (
    Finder,
    first_spellings,
    looks_key,
    missing,
    name_key,
    shared_names,
    spelled,
    spellings,
)

NFC, NFD = "J\u00fcrgen", "Ju\u0308rgen"
names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)


@given(names)
def test_every_spelling_of_a_name_has_one_key(name):
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert looks_key(unicodedata.normalize(form, name)) == looks_key(name)
        assert name_key(unicodedata.normalize(form, name)) == name_key(name)
    for other in (f" {name}", f"{name}  ", f"{name}\u00a0", f"\u200b{name}", f"\ufeff{name}"):
        assert looks_key(other) == looks_key(name)
    assert looks_key(name_key(name)) == name_key(name) == name_key(name_key(name))


@pytest.mark.parametrize(
    ("a", "b"),
    [(NFC, "J\u00dcRGEN"), ("Ann", "ANN "), ("a\\b", "A/b"), ("\uff21nn", "ann"), ("stra\u00dfe", "STRASSE")],
)  # fmt: skip
def test_case_and_look_do_not_part_names(a, b):
    assert name_key(a) == name_key(b)


@given(st.integers(0, 999), st.integers(0, 999))
def test_other_names_are_others(a, b):
    assume(a != b)
    assert name_key(f"source{a}") != name_key(f"source{b}")


def test_spellings_are_told_so_that_they_can_be_told_apart():
    assert first_spellings([NFD, NFC, "x"]) == {NFD: NFD, NFC: NFD, "x": "x"}
    assert shared_names([NFC, "b"], [NFD]) == [NFC]
    assert spellings(["a", "b"], "sources") == ""
    assert r"'Ju\u0308rgen' and 'J\xfcrgen'" in spellings([NFD, NFC], "sources")
    assert spelled(NFC, NFC) == "" and r"'J\xfcrgen'" in spelled(NFC, NFD)


@pytest.mark.parametrize(
    ("stored", "asked"),
    [
        (f"{NFD}/a.wav", f"{NFC}/a.wav"),
        (f"{NFC}/a.wav", f"{NFD}/A.WAV"),
        ("sub/a.wav", "sub\\a.wav"),
        ("sub/a.wav", ".\\Sub\\A.wav"),
        ("sub/a b.wav", "sub/a  b.wav "),
        ("sub/a.wav ", "sub/a.wav"),
    ],
)
def test_a_file_is_found_under_its_other_spelling(tmp_path, stored, asked):
    path = tmp_path / stored
    path.parent.mkdir()
    path.write_text("x")
    finder = Finder(tmp_path)
    assert finder.find(stored, "here") == path and finder.told() == ""
    assert finder.find(asked, "here") == path
    assert finder.others == [(asked, stored)] and "1 paths are spelled otherwise" in finder.told()


def test_of_two_that_are_alike_none_is_taken(tmp_path):
    for name in ("a.wav", "A.wav"):
        (tmp_path / name).write_text("x")
    finder = Finder(tmp_path)
    assert finder.find("A.wav", "x").name == "A.wav"
    assert not finder.find("a.WAV", "x").exists() and finder.told() == ""


@pytest.mark.parametrize("name", ["../x", "/etc/hostname", "a/../../x", "..\\..\\x", "C:\\x"])
def test_no_name_leaves_the_folder(tmp_path, name):
    (tmp_path.parent / "x").write_text("x")
    finder = Finder(tmp_path)
    try:
        found = finder.find(name, "table.csv:2: path")
    except UserError as error:
        assert "leaves the folder" in str(error)
    else:
        assert not found.exists() and found.is_relative_to(tmp_path)


def test_links_are_told_from_names(tmp_path):
    root, elsewhere = tmp_path / "set", tmp_path / "blobs"
    root.mkdir()
    elsewhere.mkdir()
    (elsewhere / "abc").write_text("x")
    (root / "out.wav").symlink_to(elsewhere / "abc")
    (root / "folder").symlink_to(elsewhere)
    (root / "in.wav").symlink_to("real.wav")
    (root / "real.wav").write_text("x")
    (root / "gone.wav").symlink_to(".git/annex/objects/k")
    (root / "loop.wav").symlink_to("loop.wav")
    finder = Finder(root)
    for name in ("out.wav", "folder/abc", "OUT.wav"):
        with pytest.raises(
            UserError, match=r"is a link to .* outside the folder .*cp -rL .*git annex unlock"
        ):
            finder.find(name, "m.csv:2: path")
    assert finder.find("in.wav", "x") == root / "real.wav"
    gone = finder.find("gone.wav", "x")
    assert (
        gone == root / "gone.wav"
        and "git annex get" in missing(gone)
        and "objects/k" in missing(gone)
    )
    with pytest.raises(UserError, match="is no path"):
        finder.find("loop.wav", "x")
    with pytest.raises(UserError, match="is no path"):
        finder.find("x" * 5000, "x")
    assert (
        missing(root) == "is a folder; expected a file" and missing(root / "no") == "does not exist"
    )


PARTS = st.sampled_from(["a", "b.wav", "c", "to-a", "to-b.wav", "out", ".", "..", "none", ""])


@example(names=["b.wav/../to-a"])
@example(names=["b.wav/../out/x.wav"])
@given(st.lists(st.lists(PARTS, min_size=1, max_size=4).map("/".join), min_size=1, max_size=6))
def test_a_folder_resolved_once_is_the_folder_resolved_each_time(tmp_path_factory, names):
    root = tmp_path_factory.getbasetemp() / "resolved once"
    if not root.exists():
        (root / "a" / "c").mkdir(parents=True)
        for folder in (root, root / "a", root / "a" / "c"):
            (folder / "b.wav").write_text("x")
            (folder / "to-b.wav").symlink_to("b.wav")
            (folder / "to-a").symlink_to(root / "a")
            (folder / "out").symlink_to(root.parent)

    def found(finder, name):
        try:
            return finder.find(name, "x")
        except UserError as error:
            return str(error)

    finder, again = Finder(root), Finder(root)
    for name in names:
        assert finder._resolved(finder.root / name) == (finder.root / name).resolve()
        assert found(again, name) == found(Finder(root), name)
