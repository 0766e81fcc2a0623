"""What a text may cost."""

from hypothesis import given, settings
from hypothesis import strategies as st

from opro.proposers.language_model import most_tokens


@settings(deadline=None)
@given(st.text(max_size=60), st.text("ab é日", max_size=60))
def test_the_most_tokens_of_a_text_are_a_third_of_its_letters_and_two_for_any_other_sign(a, b):
    for text in (a, b):
        other = sum(ord(ch) > 127 for ch in text)
        assert most_tokens(text) == (len(text) - other) // 3 + 1 + 2 * other
    assert most_tokens(a + b) <= most_tokens(a) + most_tokens(b)
