"""What a notebook or a command lets a user choose of a study: plain scalars, so that papermill can pass them.

They are validated as a whole before anything trains. Nothing here needs torch: a command line is read fast.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ikdlib.spec import Settings, setting


class StudySettings(Settings):
    """What to do of a study. An empty string or 0 stands for the profile's own choice."""

    profile: Literal["demo", "short", "paper"] = setting("demo")
    pairs: str = setting("", description="teacher/student, comma-separated")
    methods: str = setting("", description="like kd,kd+ikd,dkd,dkd+ikd")
    seeds: str = setting("", description="a list of seeds, like 1,2,3")
    epochs: int = setting(0, ge=0)
    precision: Literal["", "fp32", "bf16"] = setting("")
    protocol: Literal["paper", "released"] = setting("paper")
    holdout: int = setting(0, ge=0)
    data: str = setting("", description="folder of the data set")
    teachers: str = setting("", description="folder of trained teachers")
    device: Literal["auto", "cpu", "cuda"] = setting("auto")
    results: str = setting("results")
    jobs: int = setting(0, ge=0, description="runs at once; 0 (in a command also: auto) chooses")

    def placed(self, scheduler: str) -> StudySettings:
        """With whole paths where there is a scheduler: cells on other machines find the same places."""
        if not scheduler:
            return self
        places = {name: getattr(self, name) for name in ("results", "data", "teachers")}
        return self.updated(**{name: str(Path(path).resolve()) for name, path in places.items() if path})
