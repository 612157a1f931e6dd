"""Classes of tokens: by the characters they carry and the text around these."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cruxtune.token_classes import TOKEN_CLASSES, character_classes, token_classes

LETTER = {"number": "n", "operator": "o", "word": "w", "punctuation": "p", "format": "f", None: "_"}


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("3 + 4 = 7.", "n_o_n_o_np"),
        ("1,000.5, 2", "nnnnnnnp_n"),
        ("twenty-one", "wwwwwwpwww"),
        ("x-y and/or", "wow_wwwpww"),
        ("it's 5-3", "wwpw_non"),
        ("\\boxed{12}", "fffffffnnf"),
        ("2 \\times 3", "n_oooooo_n"),
        ("\\timestamp", "f" * 10),
        ("**So** $x$", "ffwwff_fwf"),
        ("## A\n- b #c", "ff_w_f_w_pw"),
        ("2*3, <b>", "nonp_fff"),
        ("1 < 2 > 0", "n_o_n_o_n"),
        ("naïve 中", "wwwww_w"),
        ("50 % of 3²", "nn_o_ww_nn"),
    ],
)
def test_characters(text: str, classes: str) -> None:
    """Each character has the class of the first rule that applies."""
    assert "".join(LETTER[name] for name in character_classes(text)) == classes


def test_tokens_have_their_strongest_class() -> None:
    """Of several classes the first in order counts; white space and tokens without text are format."""
    text = "x = 12.\n\n(a+1) ok!"
    spans = [(0, 1), (1, 3), (3, 6), (6, 7), (7, 9), (9, 12), (12, 14), (14, 18), (18, 18), (1, 2)]
    found = ["word", "operator", "number", "punctuation", "format", "operator", "number", "word", "format", "format"]
    assert token_classes(text, spans) == found


@given(st.text(alphabet="a1 .,+-/*#\\{}$<>\nté²"))
def test_all_but_white_space_has_a_class(text: str) -> None:
    """Every character that is no white space has one of the five classes, digits always number."""
    for character, found in zip(text, character_classes(text), strict=True):
        assert (found is None) == character.isspace()
        assert found is None or found in TOKEN_CLASSES
        assert not character.isdigit() or found == "number"
