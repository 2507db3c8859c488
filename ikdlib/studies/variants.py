"""A method with some of its settings changed: what a sweep, a control or an ablation is made of.

A variant is named by what differs from the paper's settings, and the name is made from the difference
alone: `Variant.label` gives it to a study before anything ran, and to a run folder that is read years later.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ikdlib.errors import IkdError
from ikdlib.spec import MethodSpec, Recipe, RunSpec
from ikdlib.studies import protocol

RATE = "rate_factor"
"""The learning rate as a multiple of the pair's own; named where it does not follow the batch size."""
# How a setting is written in a table; others stand there by their own name.
SYMBOLS = {
    "ikd.weight": "λ {}", "ikd.temperature": "T {}", "ikd.target": "towards {}",
    "ikd.source": "means from {}", "temperature": "KD T {}", "recipe.batch_size": "batch {}",
    RATE: "rate x {}", "deterministic": "deterministic",
}  # fmt: skip
TERM = tuple(word.partition(" {}")[0] + " " for name, word in SYMBOLS.items() if name.startswith("ikd."))


@dataclass(frozen=True)
class Variant:
    """One cell's settings.

    Attributes:
        method: ``dkd+ikd``, with the settings of its pair and protocol.
        changes: what differs: ``ikd.*`` of the term, ``recipe.*``, `RATE`, and the method's own by name.
    """

    method: str
    changes: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def written(cls, method: str, changes: str) -> Variant:
        """From text, as a notebook's parameter has it: ``ikd.weight=4, temperature=2``."""
        found = {}
        for part in filter(None, (part.strip() for part in changes.split(","))):
            name, equals, value = (word.strip() for word in part.partition("="))
            if not (name and equals and value) or name in found:
                raise IkdError(f"changes: {part!r} is not NAME=VALUE, each name once, like ikd.weight=4")
            found[name] = _value(value)
        return cls(method, found)

    @property
    def text(self) -> str:
        """The changes as text, which `written` reads back."""
        return ", ".join(f"{name}={value}" for name, value in self.changes.items())

    @property
    def named(self) -> dict[str, Any]:
        """The changes that make its name: a rate that follows the batch size is none, one that stays is."""
        usual = Recipe().batch_size
        follows = self.changes.get("recipe.batch_size", usual) / usual
        rate = self.changes.get(RATE, 1.0)
        others = {k: v for k, v in self.changes.items() if k != RATE}
        return others if math.isclose(rate, follows) else {**others, RATE: rate}

    @property
    def label(self) -> str:
        """``dkd+ikd, T 0.5``: the method, and what differs from the paper's settings."""
        words = [SYMBOLS.get(k, k + " {}").format(_short(v)) for k, v in sorted(self.named.items())]
        return ", ".join([self.method, *words])

    def applied(self, method: MethodSpec, recipe: Recipe) -> tuple[MethodSpec, Recipe]:
        """A pair's settings with the changes made; an `IkdError` where one does not exist."""
        ikd = {k.removeprefix("ikd."): v for k, v in self.changes.items() if k.startswith("ikd.")}
        own = {k: v for k, v in self.changes.items() if not k.startswith(("ikd.", "recipe.", RATE))}
        rules = {k.removeprefix("recipe."): v for k, v in self.changes.items() if k.startswith("recipe.")}
        if RATE in self.changes:
            rules["learning_rate"] = recipe.learning_rate * self.changes[RATE]
        if ikd and method.ikd is None:
            raise IkdError(f"methods: {self.method!r} has no IKD term to change; write {self.method}+ikd")
        term = method.ikd.updated(**ikd) if ikd else method.ikd
        return method.updated(settings={**method.settings, **own}, ikd=term), recipe.updated(**rules)


def base_of(label: str) -> str:
    """``dkd+ikd, T 0.5, batch 128`` -> ``dkd, batch 128``: what the term's gain is measured against."""
    method, *words = label.split(", ")
    return ", ".join([method.removesuffix("+ikd"), *(word for word in words if not word.startswith(TERM))])


def variant_of(spec: RunSpec) -> Variant:
    """What a run is a run of: its method, and how its settings differ from its protocol's for its pair."""
    teacher = spec.teacher or "*"
    usual = protocol.method_spec(spec.protocol, teacher, spec.student, str(spec.method))
    changes: dict[str, Any] = {
        name: value for name, value in spec.method.settings.items() if value != usual.settings[name]
    }
    if spec.method.ikd is not None:
        changes |= {f"ikd.{k}": v for k, v in spec.method.ikd if v != getattr(usual.ikd, k)}
    recipe = protocol.recipe(spec.protocol, teacher, spec.student, spec.recipe.epochs, spec.recipe.precision)
    changes |= {f"recipe.{k}": v for k, v in spec.recipe if v != getattr(recipe, k)}
    if changes.pop("recipe.learning_rate", None) is not None:
        changes[RATE] = spec.recipe.learning_rate / recipe.learning_rate
    if spec.deterministic:
        changes["deterministic"] = True
    return Variant(str(spec.method), changes)


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"True": True, "False": False}.get(text, text)


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).replace("_", " ")
