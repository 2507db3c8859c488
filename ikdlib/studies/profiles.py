"""How much of a study to do: ``demo`` shows that everything works, ``short`` and ``paper`` measure."""

from __future__ import annotations

from dataclasses import dataclass

from ikdlib.spec import known


@dataclass(frozen=True)
class Profile:
    """Defaults of a study at one size; a user's own choice goes over each of them."""

    name: str
    data: str
    epochs: int
    teacher_epochs: int
    pairs: tuple[str, ...] | None  # None: the thirteen of the CRD protocol
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    precision: str
    holdout: int  # training images a class kept apart where a hyper-parameter is chosen
    caption: str


LOGIT_METHODS = ("ce", "kd", "kd+ikd", "dkd", "dkd+ikd", "nkd", "nkd+ikd", "wttm", "wttm+ikd")

PROFILES = {
    "demo": Profile(
        "demo", "glyphs100", 8, 12, ("resnet20/resnet8",), ("ce", "kd", "kd+ikd", "dkd", "dkd+ikd"), (1,),
        "fp32", 4,
        "Glyphs-100, drawn characters: shows that everything works, proves nothing about the paper",
    ),
    "short": Profile(
        "short", "cifar100", 48, 48, None, LOGIT_METHODS, (1, 2, 3), "fp32", 50,
        "CIFAR-100, a short schedule: not comparable with published numbers of 240 epochs",
    ),
    "paper": Profile(
        "paper", "cifar100", 240, 240, None, LOGIT_METHODS, (1, 2, 3), "fp32", 50,
        "CIFAR-100, the paper's schedule of 240 epochs",
    ),
}  # fmt: skip


def profile(name: str) -> Profile:
    """The profile of a name; an `IkdError` names the nearest."""
    return PROFILES[known(name, tuple(PROFILES), "profile", "profile")]
