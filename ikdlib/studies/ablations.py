"""The paper's ablations, and the questions behind them, as variants of a method: one function a notebook.

Everything but the named setting is as in the tables. The paper's grids are not known to this project; these
are its own. A value at which nothing differs from the tables is the tables' own cell, so its runs are shared.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ikdlib.errors import IkdError
from ikdlib.spec import Recipe
from ikdlib.studies import protocol
from ikdlib.studies.grids import (
    BATCH_SIZES,
    CONTROLS,
    KD_TEMPERATURES,
    SOURCES,
    TEMPERATURES,
    WEIGHTS,
    alone,
)
from ikdlib.studies.profiles import profile
from ikdlib.studies.study import Study, StudySettings, listed
from ikdlib.studies.variants import RATE, Variant

PAIR = ("resnet32x4/resnet8x4",)


def term_temperatures(methods: str = "", grid: str = "") -> list[Variant]:
    """Fig. 4(a): the term's T; each method's base stands beside it."""
    found = []
    for method in with_term(methods, "dkd+ikd"):
        usual = _usual(method).temperature
        found.append(Variant(method.removesuffix("+ikd")))
        for value in numbers(grid, zero=False) or TEMPERATURES:
            changes = {} if value == usual else {"ikd.temperature": value}
            found.append(Variant(method, changes))
    return found


def weights(methods: str = "", grid: str = "") -> list[Variant]:
    """Fig. 4(b): lambda. At 0 the term is not there: the base method's own cell."""
    found = []
    for method in with_term(methods, "dkd+ikd", "nkd+ikd"):
        usual = _usual(method).weight
        for value in numbers(grid) or WEIGHTS:
            name = method if value else method.removesuffix("+ikd")
            changes = {} if value in (0, usual) else {"ikd.weight": value}
            found.append(Variant(name, changes))
    return found


def what_the_term_is(methods: str = "", controls: str = "") -> list[Variant]:
    """Each method, its base, and the controls, all or the named; ``alone``: the term on cross-entropy."""
    known = ("alone", *CONTROLS, *SOURCES)
    asked = listed(controls) or known
    for name in asked:
        if name not in known:
            raise IkdError(f"controls: unknown control {name!r}; known: {', '.join(known)}")
    found = []
    for method in with_term(methods, "dkd+ikd"):
        found += [Variant(method.removesuffix("+ikd")), Variant(method)]
        found += [Variant("ce"), alone(method)] if "alone" in asked else []
        found += [Variant(method, {"ikd.target": name}) for name in asked if name in CONTROLS]
        found += [Variant(method, {"ikd.source": name}) for name in asked if name in SOURCES]
    return found


def batch_sizes(methods: str = "", grid: str = "") -> list[Variant]:
    """Batch sizes with and without the term; the learning rate grows in proportion (Goyal et al. 2017)."""
    usual = Recipe().batch_size
    found = []
    for method in _with_and_without(methods):
        for value in numbers(grid, "batch_sizes") or BATCH_SIZES:
            changes = {"recipe.batch_size": _whole(value), RATE: value / usual} if value != usual else {}
            found.append(Variant(method, changes))
    return found


def kd_temperatures(methods: str = "", grid: str = "") -> list[Variant]:
    """The base method's own temperature, with and without the term."""
    found = []
    for method in _with_and_without(methods):
        own = protocol.method_spec("paper", "*", "*", method).settings
        if "temperature" not in own:  # wttm, ce: they have no part in this question
            continue
        for value in numbers(grid, "temperatures", zero=False) or KD_TEMPERATURES:
            changes = {} if value == own["temperature"] else {"temperature": value}
            found.append(Variant(method, changes))
    if not found:
        raise IkdError(f"methods: {methods} has no temperature of its own; choose kd, dkd or nkd")
    return found


def study(settings: StudySettings, variants: Iterable[Variant], apart: bool = False) -> Study:
    """The study of some variants on the settings' pairs, or on resnet32x4/resnet8x4.

    ``apart``: hold training images apart where the settings do not say how many, because a hyper-parameter
    is chosen: on those images, never on the test set.
    """
    if apart and not settings.holdout:
        settings = settings.updated(holdout=profile(settings.profile).holdout)
    return Study(settings, PAIR, variants)


def numbers(text: str, name: str = "grid", zero: bool = True) -> tuple[float, ...]:
    """``"0.5, 1, 2"`` as numbers, in rising order, each once.

    Args:
        name: the parameter a notebook's user gave it by.
        zero: whether 0 is among the allowed values.

    Raises:
        IkdError: anything else; it names the parameter.
    """
    if not isinstance(text, str):
        raise IkdError(f'{name}: {text!r} is no list of numbers; write it in quotes, like "0.5,1,2"')
    try:
        values = [float(part) for part in listed(text)]
    except ValueError:
        raise IkdError(f"{name}: {text!r} is not a list of numbers, like 0.5,1,2") from None
    if not all(0 <= value < float("inf") for value in values):
        raise IkdError(f"{name}: {text!r} has a value below 0 or without end")
    if not (zero or all(values)):
        raise IkdError(f"{name}: {text!r} has a temperature of 0; each must be greater than 0")
    return tuple(sorted(set(values)))


def with_term(methods: str, *default: str) -> Sequence[str]:
    """The methods, each with the IKD term: ``kd`` asks for ``kd+ikd``, because the term is what varies."""
    bases = [protocol.split_method(method)[0] for method in listed(methods)]
    return tuple(dict.fromkeys(f"{base}+ikd" for base in bases)) or default


def _with_and_without(methods: str) -> Sequence[str]:
    return [name for method in with_term(methods, "kd+ikd") for name in (method.removesuffix("+ikd"), method)]


def _usual(method: str):
    return protocol.method_spec("paper", "*", "*", method).ikd


def _whole(value: float) -> int:
    if value != int(value) or value < 1:
        raise IkdError(f"batch_sizes: a batch size of {value:g} is not a whole number from 1 on")
    return int(value)
