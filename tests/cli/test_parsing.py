import dataclasses
from pathlib import Path
from typing import Literal

import pytest

from subquad.cli.parsing import UsageError, check_words, choose, option_types, parse, peek


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    """The inner part."""

    d_model: int = 8
    """Width."""
    norm: Literal["pre", "post"] = "pre"
    """Where."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """All options."""

    name: str = "x"
    """A name."""
    lr: float = 0.1
    """A rate."""
    minutes: float | None = None
    """A length."""
    folder: Path | None = None
    """A folder."""
    fast: bool = False
    """A switch."""
    sizes: tuple[int, ...] = (1,)
    """Some numbers."""
    inner: Inner = dataclasses.field(default_factory=Inner)


def parsed(*words, **keywords):
    return parse(Options, words, prog="prog", description="Test.", **keywords)


def test_options_of_inner_dataclasses_need_no_prefix():
    found = parsed("--d-model", "4", "--norm=post", "--fast", "--minutes", "2", "--folder", "a/b")
    assert found.inner == Inner(d_model=4, norm="post")
    assert (found.fast, found.minutes, found.folder) == (True, 2.0, Path("a/b"))
    assert list(option_types(Options)) == [
        "--name",
        "--lr",
        "--minutes",
        "--folder",
        "--fast",
        "--sizes",
        "--d-model",
        "--norm",
    ]


def test_defaults_come_from_the_instance_given():
    default = Options(lr=0.5, inner=Inner(d_model=16), minutes=3.0)
    assert parsed(default=default) == default
    assert parsed("--minutes", "None", default=default).minutes is None


def test_one_word_may_stand_without_its_options_name():
    found = parsed("--lr", "2", "me", "--d-model", "4", positional="name")
    assert (found.name, found.lr, found.inner.d_model) == ("me", 2.0, 4)


def test_underscores_and_negative_numbers_are_understood():
    assert parsed("--d_model", "-4").inner.d_model == -4
    assert parsed("--no-fast").fast is False


@pytest.mark.parametrize("words", [["--sizes", "4", "2"], ["--sizes", "4", "2", "--fast"]])
def test_a_list_goes_on_to_the_next_option(words):
    assert parsed(*words).sizes == (4, 2)
    assert parsed("--sizes=4", *words[3:]).sizes == (4,)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sizes"], "--sizes needs a value"),
        (["--sizes", "4", "x"], "--sizes must be a whole number, got 'x'"),
        (["--sizes=4", "2"], "unexpected argument '2'"),
        (["--sizes", "4", "2", "--lr", "1", "3"], "unexpected argument '3'"),
        (["--d-modl", "4"], "unknown option --d-modl; did you mean --d-model?"),
        (["--lx=4"], "unknown option --lx; did you mean --lr?"),
        (["--zzzzzz"], "unknown option --zzzzzz"),
        (["-x"], "unknown option -x"),
        (["--norm", "pots"], "--norm must be one of pre, post, got 'pots'; did you mean post?"),
        (["--d-model", "4.5"], "--d-model must be a whole number, got '4.5'"),
        (["--lr", "fast"], "--lr must be a finite number, got 'fast'"),
        (["--lr", "nan"], "--lr must be a finite number, got 'nan'"),
        (["--minutes=inf"], "--minutes must be a finite number, got 'inf'"),
        (["--lr"], "--lr needs a value"),
        (["--lr", "--fast"], "--lr needs a value"),
        (["--fast=yes"], "--fast takes no value, got 'yes'"),
        (["--folder="], "--folder must be a path, got an empty string"),
        (["lr", "4"], "unexpected argument 'lr'; did you mean --lr?"),
    ],
)
def test_a_mistake_is_told_in_one_line_with_the_near_miss(words, message):
    with pytest.raises(UsageError) as caught:
        parsed(*words)
    assert str(caught.value) == message


def test_a_missing_or_second_free_word_is_told():
    with pytest.raises(UsageError, match="NAME is missing"):
        parsed(positional="name")
    with pytest.raises(UsageError, match="unexpected argument 'b'"):
        check_words(["a", "b"], option_types(Options), positional="name")


def test_what_an_option_class_refuses_becomes_one_line(monkeypatch):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Strict:
        """Refuses."""

        count: int = 1
        """A count."""

        def __post_init__(self):
            if self.count < 1:
                raise ValueError(f"count must be at least 1, got {self.count}")

    with pytest.raises(UsageError, match="count must be at least 1, got 0") as caught:
        parse(Strict, ["--count", "0"], prog="prog", description="Test.")
    assert "\n" not in str(caught.value)
    assert "│" not in str(caught.value)


def test_help_shows_each_default(capsys):
    with pytest.raises(SystemExit) as stop:
        parsed("--help")
    assert not stop.value.code
    text = capsys.readouterr().out
    assert "--d-model INT" in text
    assert "(default: 8)" in text


def test_a_word_is_one_of_the_choices_or_its_near_miss_is_named():
    assert choose("run", ["run", "demo"], what="command") == "run"
    with pytest.raises(UsageError) as caught:
        choose("dmo", ["run", "demo"], what="command")
    assert str(caught.value) == "unknown command 'dmo'; did you mean demo? (known: run, demo)"


def test_an_option_can_be_read_before_the_rest():
    assert peek(["--scale", "long"], "--scale") == "long"
    assert peek(["a", "--scale=long"], "--scale") == "long"
    assert peek(["--scale"], "--scale") is None
