"""Files: what is written is read back, and a spreadsheet runs none of it."""

import csv
import io

from hypothesis import given, settings
from hypothesis import strategies as st

from evaluators.files import KEYS, csv_text

FORMULAS = ("=1+1", "+1", "-a", "@x", "\t=1")  # no id and no prompt may hold a carriage return


def read_back(rows, columns):
    return list(csv.DictReader(io.StringIO(csv_text(rows, columns), newline="")))


def test_free_text_that_a_spreadsheet_would_run_gets_an_apostrophe():
    for text in FORMULAS:
        assert read_back([{"text": text}], ["text"]) == [{"text": f"'{text}"}]
    for text in ("a=1", "'=1", "", " =1"):
        assert read_back([{"text": text, "n": 1}], ["text", "n"]) == [{"text": text, "n": "1"}]
    assert read_back([{"n": -1.5}], ["n"]) == [{"n": "-1.5"}]


@settings(deadline=None)
@given(st.sampled_from(KEYS), st.sampled_from(FORMULAS), st.text("abc-=+@', \"\n", max_size=5))
def test_what_tables_are_joined_by_is_read_back_as_it_was(key, begin, rest):
    for text in (begin + rest, rest):
        assert read_back([{key: text, "text": "x"}], [key, "text"])[0][key] == text
