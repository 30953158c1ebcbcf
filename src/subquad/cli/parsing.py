"""From command-line words to option dataclasses, with every mistake told in one line.

tyro generates the options and the help texts. The words are checked here first, because a mistake
should cost the reader one line that names the option, the rule and the near miss.
"""

import contextlib
import dataclasses
import difflib
import io
import math
import re
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

OptionsT = TypeVar("OptionsT")


class UsageError(Exception):
    """A mistake in the command line; its text is the one line that the user gets."""


def parse(
    options: type[OptionsT],
    words: Sequence[str],
    *,
    prog: str,
    description: str,
    default: OptionsT | None = None,
    positional: str | None = None,
) -> OptionsT:
    """Turn ``words`` into an instance of the dataclass ``options``; ``default`` holds the defaults.

    ``positional`` names the one field, if any, that is given without its option's name.

    Raises:
        UsageError: for words that name no option or no possible value.
        SystemExit: with code 0, after --help was printed.
    """
    import tyro

    kinds = option_types(options)
    if not {"-h", "--help"} & set(words):
        check_words(words, kinds, positional=positional)
    words = _with_option_name(words, kinds, positional)
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            parsed = tyro.cli(
                options,
                prog=prog,
                description=description,
                args=list(words),
                default=default,
                config=(tyro.conf.OmitArgPrefixes,),
            )
            return typing.cast(OptionsT, parsed)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UsageError(_first_sentence(errors.getvalue())) from None


def option_types(options: type[Any]) -> dict[str, Any]:
    """Return {"--name": type} for every field of the dataclass and of the dataclasses inside it."""
    found: dict[str, Any] = {}
    hints = typing.get_type_hints(options)
    for field in dataclasses.fields(options):
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind):
            found |= option_types(typing.cast(type[Any], kind))
        else:
            found["--" + field.name.replace("_", "-")] = kind
    return found


def check_words(
    words: Sequence[str], kinds: dict[str, Any], *, positional: str | None = None
) -> None:
    """Raise UsageError at the first word that is no option, or no value of its option."""
    rest = iter(words)
    free: list[str] = []
    listed: str | None = None  # the option whose list goes on with a word without a dash
    for word in rest:
        if not word.startswith("-") or word == "-":
            if listed is None:
                free.append(word)
            else:
                _check_value(listed, word, kinds[listed])
            continue
        name, value = _option(word, kinds)
        listed = name if _is_list(kinds[name]) and value is None else None
        if kinds[name] is bool:
            if value is not None:
                raise UsageError(f"{name} takes no value, got {value!r}")
            continue
        _check_value(name, _value_of(name, value, rest), kinds[name])
    allowed = 0 if positional is None else 1
    if len(free) > allowed:
        raise UsageError(
            f"unexpected argument {free[allowed]!r}{_meant_option(free[allowed], kinds)}"
        )
    if len(free) < allowed:
        raise UsageError(f"{str(positional).upper()} is missing")


def separate(words: Sequence[str], options: type[Any]) -> tuple[list[str], list[str]]:
    """Return the words that are no options, and the options with their values.

    For commands that take any number of words without an option's name.
    """
    kinds = option_types(options)
    free: list[str] = []
    rest: list[str] = []
    left = iter(words)
    for word in left:
        if not word.startswith("-") or word == "-":
            free.append(word)
            continue
        rest.append(word)
        if "=" not in word and kinds.get(word.replace("_", "-"), bool) is not bool:
            rest.extend(value for value in [next(left, None)] if value is not None)
    return free, rest


def choose(word: str, choices: Iterable[str], *, what: str) -> str:
    """Return ``word`` if it is one of ``choices``, else raise UsageError with the near miss."""
    known = list(choices)
    if word in known:
        return word
    raise UsageError(f"unknown {what} {word!r}{near_miss(word, known)} (known: {', '.join(known)})")


def near_miss(word: str, known: Iterable[str]) -> str:
    """Return '; did you mean X?' for the known word nearest to ``word``, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def peek(words: Sequence[str], name: str) -> str | None:
    """Return the value given for the option ``name``, before the rest is parsed."""
    for i, word in enumerate(words):
        if word.startswith(name + "="):
            return word.partition("=")[2]
        if word == name and i + 1 < len(words):
            return words[i + 1]
    return None


def _option(word: str, kinds: dict[str, Any]) -> tuple[str, str | None]:
    name, equals, value = word.partition("=")
    name = name.replace("_", "-")
    plain = re.sub(r"^--no-", "--", name)
    if name not in kinds and kinds.get(plain) is bool:
        name = plain
    if name not in kinds:
        known = [*kinds, *(f"--no-{k[2:]}" for k, kind in kinds.items() if kind is bool), "--help"]
        raise UsageError(f"unknown option {name}{near_miss(name, known)}")
    return name, value if equals else None


def _value_of(name: str, value: str | None, rest: Iterator[str]) -> str:
    if value is None:
        value = next(rest, None)
    if value is None or value.startswith("--"):
        raise UsageError(f"{name} needs a value")
    return value


def _check_value(name: str, value: str, kind: Any) -> None:
    members = typing.get_args(kind) if _is_union(kind) else (kind,)
    if type(None) in members and value == "None":
        return
    kind = _one(next(member for member in members if member is not type(None)))
    if typing.get_origin(kind) is Literal:
        choices = [str(choice) for choice in typing.get_args(kind)]
        if value not in choices:
            raise UsageError(
                f"{name} must be one of {', '.join(choices)}, got {value!r}"
                f"{near_miss(value, choices)}"
            )
    elif kind is int:
        if not re.fullmatch(r"[+-]?\d[\d_]*", value):
            raise UsageError(f"{name} must be a whole number, got {value!r}")
    elif kind is float:
        try:
            finite = math.isfinite(float(value))
        except ValueError:
            finite = False
        if not finite:
            raise UsageError(f"{name} must be a finite number, got {value!r}")
    elif kind is Path and not value:
        raise UsageError(f"{name} must be a path, got an empty string")


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (typing.Union, types.UnionType)


def _is_list(kind: Any) -> bool:
    return typing.get_origin(kind) is tuple


def _one(kind: Any) -> Any:
    """Return the type of one value: a list's items, or the type itself."""
    return typing.get_args(kind)[0] if _is_list(kind) else kind


def _meant_option(word: str, kinds: dict[str, Any]) -> str:
    return near_miss("--" + word, kinds)


def _with_option_name(
    words: Sequence[str], kinds: dict[str, Any], positional: str | None
) -> list[str]:
    """Give the free word its option's name: tyro then needs no mark on the field."""
    if positional is None:
        return list(words)
    out: list[str] = []
    rest = iter(words)
    for word in rest:
        if word.startswith("-") and word != "-":
            out.append(word)
            name = word.replace("_", "-")
            if name in kinds and kinds[name] is not bool:
                out.extend(value for value in [next(rest, None)] if value is not None)
        else:
            out.extend(["--" + positional.replace("_", "-"), word])
    return out


def _first_sentence(box: str) -> str:
    """Return what tyro said, without frame, title and footer."""
    text = " ".join(line.strip("╭╮╰╯│ ") for line in box.splitlines())
    parts = [part.strip("─- ") for part in re.split("[─-]{8,}", text)]
    body = "".join([part for part in parts if part][1:2])
    return re.sub(r"^Error parsing \S+: ", "", body) or "the options could not be read"
