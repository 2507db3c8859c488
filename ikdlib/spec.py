"""What a run is: every setting, its default, its check, and the name that follows from them.

A `RunSpec` is validated as a whole before anything trains. Unknown names, numbers written as
strings, NaN and infinities are refused with one line that says what is wrong and where.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ikdlib.errors import IkdError

NUMERICS_VERSION = 1
"""Goes up only when the same spec would give other numbers; then every run id changes with it."""

Sha256 = r"^[0-9a-f]{64}$"


def setting(default: Any, *, born: Any = ..., **checks: Any) -> Any:
    """A field with a default, and the default it was born with.

    Run ids hash only what differs from the *born* default. Whoever changes a default later
    writes ``setting(new, born=old)``: the ids of the runs that exist stay as they are.
    """
    return Field(default, json_schema_extra={"born": default if born is ... else born}, **checks)


class Settings(BaseModel):
    """Base of everything a user can set: frozen, strictly typed, no unknown names, no NaN."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=True
    )

    def __init__(self, **values: Any):
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise IkdError(explain(type(self), error)) from None

    @classmethod
    def from_json(cls, text: str | bytes):
        """The settings written by ``model_dump_json``; raises `IkdError` if they do not fit."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise IkdError(explain(cls, error)) from None

    def updated(self, **changes: Any):
        """A validated copy with some values replaced (pydantic's ``model_copy`` does not check)."""
        return type(self)(**{**dict(self), **changes})

    def changed_since_birth(self) -> dict[str, Any]:
        """Values that differ from the born defaults, dotted names to plain values."""
        changed: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            born = (field.json_schema_extra or {}).get("born", ...)
            if isinstance(value, Settings):
                if born is None:  # an optional part: that it is there is a setting too
                    changed[name] = True
                changed.update({f"{name}.{key}": v for key, v in value.changed_since_birth().items()})
            elif value != born:
                changed[name] = value
        return changed


class Recipe(Settings):
    """The optimisation: SGD with step decay after a linear warm-up, as in RepDistiller and IKD."""

    epochs: int = setting(240, ge=1)
    batch_size: int = setting(64, ge=1)
    learning_rate: float = setting(0.05, gt=0)
    momentum: float = setting(0.9, ge=0, lt=1)
    weight_decay: float = setting(5e-4, ge=0)
    milestones: tuple[int, ...] = setting(
        (150, 180, 210), strict=False, description="the rate falls AFTER these epochs"
    )
    decay: float = setting(0.1, gt=0, le=1)
    warmup: int = setting(20, ge=0, description="epochs until the full rate; epoch e has e/warmup of it")
    plateau: float = setting(
        1.0, gt=0, le=1, description="share of the rate after the warm-up, until the first decay"
    )
    precision: Literal["fp32", "bf16"] = setting("fp32")

    @model_validator(mode="after")
    def _in_order(self) -> Recipe:
        if list(self.milestones) != sorted(self.milestones) or any(m < 0 for m in self.milestones):
            raise IkdError(f"recipe.milestones: {self.milestones} do not rise from 0 on")
        return self

    def scaled(self, epochs: int) -> Recipe:
        """The same schedule at another length: warm-up and milestones in proportion, rounded half up."""

        def scale(value: int) -> int:
            return math.floor(value * epochs / self.epochs + 0.5)

        warmup = max(1, scale(self.warmup)) if self.warmup else 0
        milestones = tuple(scale(m) for m in self.milestones)
        return self.updated(epochs=epochs, warmup=warmup, milestones=milestones)


class IKDSettings(Settings):
    """The IKD term: ``weight * temperature**2 * KL(softmax(mean[y]/T) || softmax(student/T))``.

    The paper's target and source are the defaults; the others are the controls of a study.
    """

    weight: float = setting(6.5, ge=0, description="lambda")
    temperature: float = setting(1.0, gt=0, description="T, the intra-class temperature")
    target: Literal["means", "one_hot", "permuted", "even_rest", "smoothed"] = setting(
        "means", description="what the term pulls towards: the class means, or a control made of them"
    )
    source: Literal["views", "clean", "running", "all_views"] = setting(
        "views", description="images behind the means: epoch 1's views, all epochs' so far, clean, all views"
    )


class MethodSpec(Settings):
    """A distillation method, its settings, and the IKD term if it takes one."""

    name: str
    settings: dict[str, bool | int | float | str] = Field(default_factory=dict)
    ikd: IKDSettings | None = setting(None)

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: Any) -> Any:
        # The settings of a method live in the method's own file; the registry is read when a spec is
        # made, not when this module is imported, because methods import `Settings` from here.
        from ikdlib import methods

        if isinstance(values, dict) and isinstance(values.get("name"), str):
            own = methods.settings_class(values["name"])
            given = values.get("settings", {})
            if not isinstance(given, dict):
                raise IkdError(f"method.settings: {given!r} is not a mapping of names to values")
            return {**values, "settings": own(**given).model_dump()}
        return values

    def __str__(self) -> str:
        return self.name + ("+ikd" if self.ikd is not None else "")

    @property
    def needs_teacher(self) -> bool:
        """Whether the loss asks a teacher anything (plain cross-entropy does not)."""
        from ikdlib import methods

        return self.ikd is not None or bool(methods.method_class(self.name).needs)

    def changed_since_birth(self) -> dict[str, Any]:
        from ikdlib import methods

        own = methods.settings_class(self.name)(**self.settings).changed_since_birth()
        ikd = {} if self.ikd is None else {f"ikd.{k}": v for k, v in self.ikd.changed_since_birth().items()}
        return {"name": str(self), **{f"settings.{key}": value for key, value in own.items()}, **ikd}


class RunSpec(Settings):
    """One training: what is learnt, by whom, from whom, how, and from which seed."""

    data: str
    data_sha256: str = Field(pattern=Sha256)
    student: str
    teacher: str | None = None
    teacher_sha256: str | None = Field(None, pattern=Sha256)
    method: MethodSpec
    recipe: Recipe = Recipe()
    protocol: Literal["paper", "released"] = setting("paper")
    seed: int = Field(ge=0)
    holdout: int = setting(0, ge=0, description="training images per class kept apart")
    deterministic: bool = setting(False)
    numerics_version: int = setting(NUMERICS_VERSION, born=1)

    @model_validator(mode="after")
    def _consistent(self) -> RunSpec:
        from ikdlib import data, models

        known(self.student, models.names(), "student", "model")
        known(self.data, data.names(), "data", "data set")
        if self.teacher is not None:
            known(self.teacher, models.names(), "teacher", "model")
        if self.method.needs_teacher != (self.teacher is not None):
            need = "needs a teacher" if self.method.needs_teacher else "asks no teacher, leave it out"
            raise IkdError(f"teacher: {self.teacher!r} given, but the method {self.method} {need}")
        if (self.teacher is None) != (self.teacher_sha256 is None):
            raise IkdError("teacher and teacher_sha256 go together: give both, or neither")
        return self

    @property
    def pair(self) -> str:
        """``teacher/student``, or the student alone where the method asks no teacher."""
        return f"{self.teacher}/{self.student}" if self.teacher else self.student

    @property
    def without_term(self) -> RunSpec:
        """The same training without the IKD term: what its gain is measured against."""
        method = self.method.updated(ikd=None)
        # Cross-entropy alone asks no teacher, so its spec names none.
        teacherless = {} if method.needs_teacher else {"teacher": None, "teacher_sha256": None}
        return self.updated(method=method, **teacherless)

    @property
    def run_id(self) -> str:
        """Readable name and ten hex digits of the hash of everything that makes this run what it is."""
        identity = {
            "data": self.data, "data_sha256": self.data_sha256,
            "student": self.student, "teacher_sha256": self.teacher_sha256, "seed": self.seed,
            **{f"method.{key}": value for key, value in self.method.changed_since_birth().items()},
            **{f"recipe.{key}": value for key, value in self.recipe.changed_since_birth().items()},
        }  # fmt: skip
        for name in ("protocol", "holdout", "deterministic", "numerics_version"):
            if getattr(self, name) != type(self).model_fields[name].json_schema_extra["born"]:
                identity[name] = getattr(self, name)
        if self.teacher_sha256 is None:
            del identity["teacher_sha256"]
        text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(text.encode()).hexdigest()
        return f"{self.pair.replace('/', '-')}-{self.method}-seed{self.seed}-{digest[:10]}"

    def describe(self) -> str:
        """Every setting with its value, a line each, as a run prints it before it starts."""
        rows = _flatten(self.model_dump())
        width = max(len(name) for name, _ in rows)
        return "\n".join([f"run {self.run_id}", *(f"  {name:<{width}}  {value}" for name, value in rows)])


def known(name: str, names: tuple[str, ...], where: str, kind: str) -> str:
    """``name`` if it is one of ``names``; else an `IkdError` that offers the nearest ones."""
    if name in names:
        return name
    # People miss capitals, hyphens and underscores more than anything else: none counts here.
    plain = {_plain(candidate): candidate for candidate in names}
    near = [plain[key] for key in difflib.get_close_matches(_plain(str(name)), plain, n=3, cutoff=0.6)]
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"
    raise IkdError(f"{where}: unknown {kind} {name!r}; {hint}")


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def explain(cls: type[BaseModel], error: ValidationError) -> str:
    """Pydantic's report as one line a user can act on."""
    return "; ".join(_explain_one(cls, item) for item in error.errors())


def _explain_one(cls: type[BaseModel], item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"]) or cls.__name__
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(item["loc"][-1]), _all_names(cls), n=1, cutoff=0.5)
        return f"{where}: no such setting" + (f"; did you mean {near[0]}?" if near else "")
    if item["type"] == "missing":
        return f"{where}: is missing"
    given = item["input"]
    if item["type"] == "string_type" and type(given) in (int, float, list, tuple):
        # Mostly one seed, or several as Python writes them, where a list in a string is asked for.
        quoted = given if isinstance(given, (int, float)) else ",".join(map(str, given))
        field = cls.model_fields.get(where)
        meant = f" ({field.description})" if field is not None and field.description else ""
        return f'{where}: {given!r} is no string; write it in quotes, "{quoted}"{meant}'
    return f"{where}: {item['msg'][:1].lower()}{item['msg'][1:]} (got {item['input']!r})"


def _all_names(cls: type[BaseModel]) -> list[str]:
    names: list[str] = []
    for name, field in cls.model_fields.items():
        names.append(name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names += _all_names(field.annotation)
    return names


def _flatten(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            rows += _flatten(value, f"{prefix}{name}.")
        else:
            rows.append((prefix + name, value))
    return rows
