"""The methods: one file a paper. `build` makes the loss of a `MethodSpec`, with its IKD term."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from ikdlib.methods.base import REGISTRY, Method
from ikdlib.methods.ikd import IKD, WithIKD
from ikdlib.spec import MethodSpec, Settings, known

__all__ = ["IKD", "Method", "WithIKD", "build", "method_class", "names", "settings_class"]


def names() -> tuple[str, ...]:
    """Names of all methods; each also goes with ``+ikd``."""
    return tuple(sorted(REGISTRY))


def method_class(name: str) -> type[Method]:
    """The class registered under ``name``; an `IkdError` names the nearest ones."""
    return REGISTRY[known(name, names(), "method", "method")]


def settings_class(name: str) -> type[Settings]:
    """The settings a method takes, with their defaults."""
    return method_class(name).Settings


def build(spec: MethodSpec, num_classes: int) -> Method:
    """The loss of a spec: the method, wrapped by the IKD term where the spec has one."""
    method = method_class(spec.name)(settings_class(spec.name)(**spec.settings), num_classes)
    if spec.ikd is None:
        return method
    term = IKD(num_classes, spec.ikd.weight, spec.ikd.temperature, spec.ikd.target)
    return WithIKD(method, term, spec.ikd.source)


for _module in pkgutil.iter_modules(__path__):  # each file registers its method, a new one too
    import_module(f"{__name__}.{_module.name}")
