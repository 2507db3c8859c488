"""The list of runs that ``make evidence`` works off: what this project wants measured on CIFAR-100, in order.

What completes a comparison comes first: a list goes item by item, and an item seed by seed, so that paired
differences and their n grow together. Within a seed the run that computes the teacher's logits comes first.
The runs are the tables' and ablations' own, to the run id; nothing here has a setting of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from ikdlib.data import DataSet
from ikdlib.errors import IkdError
from ikdlib.studies import ablations, cache, pool, protocol
from ikdlib.studies.profiles import profile
from ikdlib.studies.settings import StudySettings
from ikdlib.studies.study import Study
from ikdlib.studies.teachers import TeacherFile
from ikdlib.studies.variants import Variant
from ikdlib.training.job import Job, choose_device

CPU_PRECISION, GPU_PRECISION = "bf16", "fp32"
"""bf16 was shown equivalent on a CPU (`equivalence`), and is twice as fast where one has it; chosen before
any run had ended. On a GPU, where none was compared, the runs are the paper's own recipe."""

FOUR = ("kd", "kd+ikd", "dkd", "dkd+ikd")
CONTROLS = (("one_hot", "even_rest"), ("permuted",))
ABSENT = "a teacher that is not there"


@dataclass(frozen=True)
class Item:
    """Runs of the list that belong together: one comparison on one pair, or the training of its teacher.

    Attributes:
        title: what it is, in a line.
        variants: what is compared, a run a seed each.
        seeds: as a user writes them; empty for the profile's own.
        apart: training images are held apart, because a hyper-parameter is judged on them.
        trains_teacher: it is the pair's teacher that is trained, and kept.
    """

    title: str
    pair: str
    variants: Sequence[Variant] = ()
    seeds: str = ""
    apart: bool = False
    trains_teacher: bool = False


def cpu_list() -> list[Item]:
    """48 epochs, taught by the published resnet56; the smallest student has the most seeds."""
    small, larger = "resnet56/resnet8", "resnet56/resnet20"
    whole = _methods(larger, "1,2,3,4,5", "ce", *FOUR)
    # Without structure first: whether the gain is a stronger pull to the label is what a reader asks.
    plain, wrong = [[Variant("dkd+ikd", {"ikd.target": name}) for name in names] for names in CONTROLS]
    of_kd = [Variant("kd+ikd", {"ikd.target": name}) for name in ("one_hot", "permuted")]
    return [
        _methods(small, "1,2,3,4,5", "ce", *FOUR),
        _methods(larger, "1,2", "ce", *FOUR),
        Item(f"{small}, one-hot and evened targets (notebook 32)", small, plain, "1,2,3"),
        Item(f"{small}, permuted targets (notebook 32)", small, wrong, "1,2,3"),
        Item(f"{small}, one-hot and permuted targets with kd (notebook 32)", small, of_kd, "1,2,3"),
        _methods(small, "1,2,3", "nkd", "nkd+ikd", "wttm", "wttm+ikd"),
        Item(f"{small}, lambda of dkd+ikd (notebook 31)", small, ablations.weights("dkd+ikd"), "1", True),
        # Two seeds decide next to nothing, and on a first look the term did not help this pair.
        replace(whole, title=f"{larger}, as many seeds as {small}"),
    ]


def gpu_list() -> list[Item]:
    """240 epochs, teachers trained here: the ablations' pair with its ablations, then the other pairs."""
    (first,) = ablations.PAIR
    items = [
        _teacher("resnet32x4", first),
        _methods(first, "1,2,3", *FOUR),
        Item(f"{first}, the term's T (notebook 30)", first, ablations.term_temperatures(), apart=True),
        Item(f"{first}, lambda (notebook 31)", first, ablations.weights(), apart=True),
    ]
    pairs = [p for p in protocol.SAME_ARCHITECTURE + protocol.DIFFERENT_ARCHITECTURE if p != first]
    for teacher in ("wrn_40_2", "resnet56", "resnet110", "vgg13", "ResNet50", "resnet32x4"):
        own = [pair for pair in pairs if pair.startswith(f"{teacher}/")]
        if teacher != "resnet32x4":  # it was trained first; its other two students come last
            items.append(_teacher(teacher, own[0]))
        items += [_methods(pair, "1,2,3", *FOUR) for pair in own]
    return items


class Part(Study):
    """An item as a study, told where things lie on this machine.

    A teacher that is not there has a stand-in: the runs that wait for it can be counted and their time
    estimated, under a run id that they will not keep. `waits` tells them apart; they are never started.
    """

    def __init__(self, item: Item, settings: StudySettings, gpu: bool, images: dict[int, DataSet]):
        name, precision = ("paper", GPU_PRECISION) if gpu else ("short", CPU_PRECISION)
        chosen = StudySettings(
            profile=name, pairs=item.pair, seeds=item.seeds, precision=precision,
            holdout=profile(name).holdout if item.apart else 0, data=settings.data,
            teachers=settings.teachers, device=settings.device, results=settings.results,
        )  # fmt: skip
        super().__init__(chosen, variants=item.variants)
        self.item, self._images = item, images
        self._ordered: list[Job] | None = None
        self.threads = None if gpu else 1  # a run is given one core; the others are somebody else's

    @cached_property
    def data(self) -> DataSet:
        """One copy in memory for all parts."""
        apart = self.settings.holdout
        if apart not in self._images:
            self._images[apart] = super().data
        return self._images[apart]

    def teacher(self, architecture: str) -> TeacherFile:
        """The teacher's file, or its stand-in."""
        stand_in = TeacherFile(Path(ABSENT), hashlib.sha256(architecture.encode()).hexdigest())
        return super().teacher(architecture) or stand_in

    def missing_teachers(self) -> tuple[str, ...]:
        return tuple(name for name in self.architectures if str(self.teacher(name).path) == ABSENT)

    def ordered(self) -> list[Job]:
        """The item's runs, seed by seed; of a teacher its training, unless it is there."""
        if self.item.trains_teacher:
            return [self.teacher_job(name) for name in self.missing_teachers()]
        if self._ordered is None or any(map(waits, self._ordered)):  # else they stay what they are
            # Of a seed, a study has the run first that computes the teacher's logits.
            found = sorted(self.student_jobs(), key=lambda job: job.spec.seed)
            # Variants are compared by their histories: no test logits, 2 MB a variant.
            plain = not any(variant.changes for variant in self.item.variants)
            self._ordered = [
                job.updated(threads=self.threads, keep_logits=job.keep_logits and plain) for job in found
            ]
        return self._ordered

    def keep_if_finished(self) -> None:
        """Keep a trained teacher for its students; also one whose command was stopped before it could."""
        for job in self.ordered() if self.item.trains_teacher else ():
            if job.run.status == "finished" and job.run.weights.exists():
                self.keep_teacher(job)

    @property
    def state(self) -> str:
        """How far it is, in a line."""
        jobs = self.ordered()
        if self.item.trains_teacher:
            return f"{self.item.title}: " + ("not there yet" if jobs else "complete, it is there")
        over = [job.run.status for job in jobs if job.run.over]
        bad = f", {over.count('diverged')} of them diverged" if "diverged" in over else ""
        words = f"{len(over)} of {len(jobs)} runs" if len(over) < len(jobs) else f"complete, {len(jobs)} runs"
        return f"{self.item.title}: {words}{bad}"


def waits(job: Job) -> bool:
    """Whether a run's teacher is still to come."""
    return job.teacher == ABSENT


def on_gpu(settings: StudySettings) -> bool:
    """Which of the two lists it is."""
    return choose_device(settings.device).type == "cuda"


def parts(settings: StudySettings) -> list[Part]:
    """The list for this machine's device; of ``settings`` it takes where things lie."""
    gpu, images = on_gpu(settings), {}
    return [Part(item, settings, gpu, images) for item in (gpu_list() if gpu else cpu_list())]


def by_part(found: Sequence[Part]) -> Iterator[tuple[Part, list[Job]]]:
    """Each part with its runs, less those that an earlier part has.

    They are named when their turn comes, so that students find the teacher that the part before trained.
    """
    seen: set[str] = set()
    for part in found:
        own = [job for job in part.ordered() if job.spec.run_id not in seen]
        seen.update(job.spec.run_id for job in own)
        yield part, own


def work(settings: StudySettings, first: int = 0, say: Callable[[str], None] = print) -> None:
    """Do what is not finished, in order, and say what came of it.

    On a CPU one run after another, on a GPU an item's runs packed as many at once as pay, unless
    ``settings.jobs`` says otherwise. A run that fails is named, and the others go on.

    Args:
        first: stop after so many runs ended; 0 for all.

    Raises:
        IkdError: at the end, where a run failed.
    """
    found, workers = parts(settings), settings.jobs or (0 if on_gpu(settings) else 1)
    ended, failed = 0, []
    for part, group in _turns(found, say):
        group = group[: first - ended] if first else group

        def over(job: Job, part: Part = part) -> None:
            say(_outcome(job))
            _throw_away_logits(part, job, found, say)

        try:
            pool.run_all(group, workers, show=sys.stderr.isatty(), ended=over)
        except IkdError as error:  # as a rule the others of its group ran all the same
            say(str(error))
        failed += [job.spec.run_id for job in group if not job.run.over]
        part.keep_if_finished()
        ended += len(group)
        if first and ended >= first:
            break
    for part in found:
        say(part.state)
    if failed:
        raise IkdError(f"{len(failed)} runs failed, the same command tries them again: {', '.join(failed)}")


def _methods(pair: str, seeds: str, *methods: str) -> Item:
    return Item(f"{pair} with {', '.join(methods)}", pair, [Variant(name) for name in methods], seeds)


def _teacher(name: str, pair: str) -> Item:
    return Item(f"the teacher {name}", pair, trains_teacher=True)


def _turns(found: Sequence[Part], say: Callable[[str], None]) -> Iterator[tuple[Part, list[Job]]]:
    """An item's runs at a time, in order; what has no teacher is said once and passed over."""
    for part, own in by_part(found):
        part.keep_if_finished()
        if waiting := [job for job in own if waits(job)]:
            teacher = waiting[0].spec.teacher
            say(f"{part.item.title}: {len(waiting)} runs passed over, there is no {teacher} (TEACHERS=DIR)")
        if ready := [job for job in own if not waits(job) and not job.run.over]:
            yield part, ready


def _outcome(job: Job) -> str:
    status = job.run.status
    words = "diverged" if status == "diverged" else f"failed, see {job.run.folder / 'log.txt'}"
    if status == "finished":
        words = f"top-1 {job.run.result['last']['top1']:.2f} % (last epoch)"
    return f"{job.spec.run_id}: {words}"


def _asked(job: Job) -> tuple | None:
    """What names a run's questions to its teacher; runs that agree in it read the same logits."""
    spec = job.spec
    facts = (spec.data_sha256, spec.holdout, spec.recipe.precision, spec.deterministic, spec.seed)
    return None if spec.teacher is None else (spec.teacher_sha256, *facts)


def _throw_away_logits(part: Part, job: Job, found: Sequence[Part], say: Callable[[str], None]) -> None:
    """Delete the teacher's logits that a run read and that no unfinished run of the list will read.

    They take 10 MB an epoch: 480 MB a teacher and seed on a CPU, 2.4 GB on a GPU. They are a cache: whatever
    else asks for them computes them again.
    """
    if job.spec.teacher is None or not Path(job.slabs).is_dir():
        return
    alike = [other for other in found if other.architectures == part.architectures]  # of the same teacher
    if _asked(job) in {_asked(each) for other in alike for each in other.ordered() if not each.run.over}:
        return
    slabs, freed = cache.Slabs(part, job.updated(device="cpu")), 0  # only to name the files
    for epoch in slabs.epochs:
        path = slabs.logits.path(slabs.loader.epoch(epoch))
        with contextlib.suppress(OSError):  # it is not there, or is not ours to delete
            size = path.stat().st_size
            path.unlink()
            freed += size
    if freed:
        title = f"{job.spec.teacher} seed {job.spec.seed}"
        say(f"{title}: no run of the list reads its logits any more, {freed / 2**20:.0f} MiB deleted")
