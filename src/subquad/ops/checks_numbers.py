"""The only place that words errors of numbers and choices; ``ops/checks.py`` has those of tensors.

Each function raises before any work starts, in one sentence: the argument, the rule, the value got.
"""

import math


def check_positive(name: str, value: int) -> None:
    """Require an integer of at least 1.

    Raises:
        TypeError: if ``value`` is not an int.
        ValueError: if it is below 1.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__} {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def check_fraction(name: str, value: float) -> None:
    """Require 0 <= value < 1, as for a dropout rate.

    Raises:
        ValueError: if ``value`` is outside (NaN included).
    """
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be at least 0 and below 1, got {value}")


def check_positive_number(name: str, value: float) -> None:
    """Require a finite number above 0.

    Raises:
        ValueError: if ``value`` is not (NaN included).
    """
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a finite number above 0, got {value}")


def check_choice(name: str, value: object, choices: "tuple[object, ...] | list[str]") -> None:
    """Require one of ``choices``.

    Raises:
        ValueError: if ``value`` is none of them.
    """
    if value not in choices:
        listed = ", ".join(str(choice) for choice in choices)
        raise ValueError(f"{name} must be one of {listed}; got {value!r}")


def check_divisible(name: str, value: int, divisor: int) -> None:
    """Require a multiple of ``divisor``.

    Raises:
        ValueError: if it is none.
    """
    if value % divisor:
        raise ValueError(f"{name} must be divisible by {divisor}, got {value}")


def check_odd(name: str, value: int) -> None:
    """Require an odd integer of at least 1, as for a window with a middle.

    Raises:
        TypeError: if ``value`` is not an int.
        ValueError: if it is below 1 or even.
    """
    check_positive(name, value)
    if value % 2 == 0:
        raise ValueError(f"{name} must be odd, got {value}")
