"""Emphasis, BREAK and escapes, read as the WebUIs read them."""

from __future__ import annotations

import pytest

from lib_masknoise.prompt_syntax import pieces, without_comments


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", [("", 1.0)]),
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(x:1.5)", [("x", 1.5)]),
        ("(x: 0.5 )", [("x", 0.5)]),
        ("[x]", [("x", 1 / 1.1)]),
        ("((x))", [("x", 1.1 * 1.1)]),
        ("(a (b:2) c:0.5)", [("a ", 0.5), ("b", 1.0), (" c", 0.5)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        ("closed) alone]", [("closed) alone]", 1.0)]),
        (r"\(literal\] \\ \x", [("(literal] \\ x", 1.0)]),
        ("(one)(two)", [("onetwo", 1.1)]),
        ("ratio 16:9", [("ratio 16:9", 1.0)]),
        ("(a [b) c]", [("a ", 1.1), ("b", 1.1 / 1.1), (" c", 1 / 1.1)]),
        ("a BREAK b", [("a", 1.0), None, ("b", 1.0)]),
        ("BREAKFAST", [("BREAKFAST", 1.0)]),
        ("(a BREAK b)", [("a", 1.1), ("BREAK", -1.1), ("b", 1.1)]),  # no chunk in brackets: the WebUIs' own way
    ],
)
def test_pieces(text, expected):
    found = [None if piece.starts else (piece.text, piece.weight) for piece in pieces(text)]
    assert [one and one[0] for one in found] == [one and one[0] for one in expected]
    weights = [(one[1], other[1]) for one, other in zip(found, expected, strict=True) if one and other]
    assert all(one == pytest.approx(other) for one, other in weights)


@pytest.mark.parametrize("text", ["a AND b", "[a:b:0.5]", "[a:3]", "[a|b]", "x [a:(b:1.1):0.25] y"])
def test_what_only_the_webuis_can_do(text):
    with pytest.raises(ValueError, match="for the WebUI alone; expected a prompt without"):
        pieces(text)


@pytest.mark.parametrize("text", ["[(a:1.2)]", "a | b", "(a|b:1.1)", r"\[a:b:0.5\]", "SAND and ANDES", "[a]: 0.5"])
def test_what_looks_like_it(text):
    assert pieces(text)


def test_a_weight_that_is_no_number():
    with pytest.raises(ValueError, match=r"expected a number as weight, got 1\.2\.3"):
        pieces("(a:1.2.3)")


def test_comments():
    assert without_comments("an ocean") == "an ocean"
    assert without_comments("an ocean # blue\n, waves").split() == ["an", "ocean", ",", "waves"]
    assert without_comments("# all of it").strip() == ""
