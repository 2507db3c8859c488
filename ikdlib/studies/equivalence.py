"""Whether bf16 trains to the accuracy of fp32: the runs that decide what `short` and `paper` may choose.

Fixed before the first run: the pair, the method, 8 epochs, seeds 1 to 16 (paired: the same first weights,
images, views), the last epoch's test accuracy, and a margin of half a point that the 90 % interval of the
mean difference must lie within (two one-sided tests at 5 %; Schuirmann 1987). The teacher is a resnet8 that
was trained for as long, in fp32: its answers are cheap, and their precision is part of what is compared.
"""

from __future__ import annotations

from ikdlib.runs import Run
from ikdlib.studies import teachers
from ikdlib.studies.study import Study, StudySettings
from ikdlib.training.job import Job

PAIR, METHOD, EPOCHS = "resnet8/resnet8", "dkd+ikd", 8
SEEDS = tuple(range(1, 17))
MARGIN = 0.5
"""Points of top-1 accuracy."""
CAPTION = (
    f"Top-1 accuracy (%) in the last epoch of {METHOD} on {PAIR}, {EPOCHS} epochs of CIFAR-100, fp32 and "
    "bf16 from the same seeds. No other network, method or length was compared, and no difference of methods"
)


class _Arm(Study):
    """One precision's runs; both are taught by the one teacher, whatever else lies in the folder."""

    def teacher(self, architecture: str) -> teachers.TeacherFile | None:
        spec = self.teacher_spec(architecture, EPOCHS, "fp32")
        return teachers.locate(architecture, self.data.num_classes, None, self.own_teachers, [spec])


def study(settings: StudySettings, precision: str) -> Study:
    """The sixteen runs of one precision; of ``settings`` it takes where things lie."""
    fixed = {
        "profile": "short", "pairs": PAIR, "methods": METHOD, "epochs": EPOCHS, "precision": precision,
        "seeds": ",".join(map(str, SEEDS)),
    }  # fmt: skip
    return _Arm(settings.updated(**fixed))


def teacher_job(settings: StudySettings) -> Job | None:
    """The teacher's training, or None where it is there already."""
    fp32 = study(settings, "fp32")
    return fp32.teacher_job("resnet8") if fp32.missing_teachers() else None


def jobs(settings: StudySettings) -> list[Job]:
    """Seed by seed, fp32 and bf16 side by side, so that whatever is finished comes in pairs."""
    both = [study(settings, precision).jobs(PAIR, METHOD) for precision in ("fp32", "bf16")]
    return [job.updated(keep_logits=False) for pair in zip(*both, strict=True) for job in pair]


def runs(settings: StudySettings) -> tuple[list[Run], list[Run]]:
    """The runs in fp32 and in bf16, finished or not, in the order of the seeds."""
    every = [job.run for job in jobs(settings)]
    return every[0::2], every[1::2]
