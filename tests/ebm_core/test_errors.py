"""How an error is told in one line, and what a wrong name is answered with."""

import pytest

from ebm_core.errors import did_you_mean, first_line, kind_and_line


@pytest.mark.parametrize(
    ("text", "line"),
    [("one", "one"), ("one\ntwo", "one"), ("\n  \n two \n three", "two"), ("", "ValueError"), (" \n", "ValueError")],
)
def test_the_first_line_of_an_error_is_never_empty(text: str, line: str):
    assert first_line(ValueError(text)) == line
    assert "\n" not in first_line(ValueError(text))
    assert kind_and_line(ValueError(text)) == ("ValueError" if line == "ValueError" else f"ValueError: {line}")


def test_only_a_name_that_is_near_is_proposed():
    assert did_you_mean("cifar", ["svhn", "cifar10"]) == "; did you mean cifar10?"
    assert did_you_mean("qqq", ["svhn", "cifar10"]) == ""
    assert did_you_mean("cifar", (name for name in ("svhn", "cifar10"))) == "; did you mean cifar10?"
