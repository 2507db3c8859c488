"""The frozen teacher, and its logits: computed once for all runs that share a seed.

Order and views of an epoch are known before its first step, so the teacher's logits are too. They form
one *slab* [N, C] per (teacher, data, augmentation, seed, epoch, precision), in the order of the epoch:
a file that any number of runs and processes share, whatever their method. A computed slab is rounded to
the stored dtype before it is used, so a hit equals a miss to the bit, as long as the same kernels computed
it (compiled or not, another thread count, torch or processor: that is rounding). Runs of one seed that go on
side by side share the work too: while one computes an epoch's slab, the next computes a later epoch's.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import Tensor, fx
from torch.fx.experimental.optimization import fuse

from ikdlib import files
from ikdlib.data import DataSet
from ikdlib.data.loader import Epoch, Loader
from ikdlib.errors import IkdError
from ikdlib.models import CifarModel
from ikdlib.training import checkpoint
from ikdlib.training.compiled import Compiled
from ikdlib.training.evaluate import autocast, evaluate, exact_fp32

READ_AHEAD = 64 << 20
"""Bytes of a slab at most that is read while the epoch before it is trained: on a GPU that takes half a
second, and reading a slab of CIFAR-100 some 15 ms."""

ROOM_TO_SPARE = 1 << 30
"""Bytes of disk a slab never takes: the last GiB belongs to the results."""

LOCK_SECONDS = 1.0
"""How long a run that waits for another one's logits is deaf to a stop."""

CHANCE_FACTOR = 3
"""A teacher below this many times chance level is said to know nothing."""


class Teacher:
    """A trained model that only answers.

    Args:
        model: its weights are frozen, and it is put into evaluation mode.
        precision: of its forward passes, ``fp32`` or ``bf16``.
        sha256: of its weights (`checkpoint.digest`), as the spec names it.
    """

    def __init__(self, model: CifarModel, sha256: str, precision: str, device: torch.device):
        exact_fp32()  # whoever asks it, a notebook's kernel too, gets the logits that a training keeps
        self.model = model.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
        self.sha256 = sha256
        self.precision = precision
        self.device = device
        # A CPU is fastest while a layer's activations fit its cache (measured). A GPU wants more at once, but
        # several runs share its memory, and 500 images take ResNet50 2.3 GiB (counted, not measured).
        self.batch_size = 64 if device.type == "cpu" else 500
        self.answer: Callable[[Tensor], Tensor] = folded(self.model)
        self.compiles = False  # set where a run is long enough; then the first slab it computes compiles

    def logits(self, loader: Loader, epoch: Epoch, check: Callable[[], None]) -> Tensor:
        """Logits of an epoch's views in its order, fp32 [N, C]; ``check`` runs between batches."""
        rows = []
        with torch.inference_mode(), autocast(self.device, self.precision):
            if self.compiles and not isinstance(self.answer, Compiled):
                # The weights become constants of the code: another 1.1 to 1.4 times as fast on a CPU.
                images = (loader.views.black(self.batch_size),)
                self.answer = Compiled(self.answer, images, (), {"freezing": True})
            for batch in loader.questions(epoch, self.batch_size):
                rows.append(self.answer(batch.images).float())
                check()
        return torch.cat(rows)  # outside inference mode: autograd may keep what it multiplies with


def folded(model: CifarModel) -> Callable[[Tensor], Tensor]:
    """The model's logits with each batch norm folded into the convolution before it: to rounding the same.

    A frozen batch norm multiplies and adds what a convolution could have (1.2 times as fast on a CPU). A
    model that torch.fx cannot follow is returned as it is.
    """
    try:
        return fuse(model).to(memory_format=torch.channels_last)
    except fx.proxy.TraceError:
        return model


class TeacherLogits:
    """The slabs of one teacher on one data set, kept below ``folder`` (None: kept nowhere)."""

    def __init__(self, teacher: Teacher, data: DataSet, dtype: torch.dtype, folder: Path | None):
        self.teacher = teacher
        self.data = data
        self.dtype = dtype
        self.folder = None if folder is None else folder / teacher.sha256[:16] / data.sha256[:16]
        self.computed = 0
        self.found = 0
        self._ahead: set[Path] = set()
        self._reader = ThreadPoolExecutor(1)
        self._reads: tuple[Path, Future] | None = None

    @property
    def tally(self) -> dict[str, int]:
        """Slabs computed, and slabs found."""
        return {"computed": self.computed, "found": self.found}

    def slab(
        self, loader: Loader, epoch: Epoch, check: Callable[[], None] = lambda: None, last: int = 0
    ) -> Tensor:
        """The teacher's logits of an epoch, on the device, in the stored dtype: [N, C].

        Args:
            check: called between batches, and while another process computes this slab.
            last: the run's last epoch; until the other process is done, slabs up to it are computed ahead.
        """
        if self.folder is None:
            return self._compute(loader, epoch, check)

        later = iter(range(epoch.number + 1, last + 1))

        def meanwhile() -> None:
            check()
            self.ahead(loader, later, check)

        path = self.path(epoch)
        with self.locked(path, meanwhile):
            slab = self._read(path, self._facts(loader, epoch))
            if slab is None:
                slab = self._make(loader, epoch, path, check)
            elif path not in self._ahead:
                self.found += 1
        if self.folder is not None and slab.nbytes <= READ_AHEAD and epoch.number < last:
            path = self.path(loader.epoch(epoch.number + 1))
            self._reads = path, self._reader.submit(_read_if_there, path)
        return slab.to(self.teacher.device)

    def ahead(
        self, loader: Loader, numbers: Iterable[int], check: Callable[[], None] = lambda: None
    ) -> int | None:
        """Compute the slab of the first of these epochs that is not there and that nobody is computing.

        Returns the epoch's number, and has taken no more from an iterator than up to it; None where there is
        no such epoch, or nothing can be kept.
        """
        for number in numbers:
            if self.folder is None:
                break
            epoch = loader.epoch(number)
            path = self.path(epoch)
            if path.exists():
                continue
            try:
                with FileLock(path.with_suffix(".lock"), timeout=0):
                    if not path.exists():
                        self._make(loader, epoch, path, check)
                        self._ahead.add(path)
                        return number
            except Timeout:
                continue
            except OSError as error:
                self._give_up(path, error)
        return None

    def _facts(self, loader: Loader, epoch: Epoch) -> dict:
        """What a slab's numbers depend on; kept in its file, and compared when it is read."""
        return {
            "teacher": self.teacher.sha256, "data": self.data.sha256, "views": epoch.fingerprint,
            "normalisation": [list(loader.views.mean), list(loader.views.std)],
            "precision": self.teacher.precision, "dtype": str(self.dtype),
        }  # fmt: skip

    def path(self, epoch: Epoch) -> Path:
        """The file of an epoch's slab; raises `TypeError` where slabs are kept nowhere."""
        # The fingerprint stands for augmentation, seed, epoch and holdout at once: it IS what was asked.
        name = f"{epoch.fingerprint[:16]}-{self.teacher.precision}-{str(self.dtype).split('.')[-1]}"
        return self.folder / f"{name}.safetensors"

    def accuracy(self, loader: Loader) -> dict[str, float]:
        """The teacher's own test accuracy, measured once and kept beside its slabs.

        Warns of a teacher that knows next to nothing: its weights are for other classes or data.
        """
        accuracy = self._accuracy(loader)
        if accuracy["top1"] < CHANCE_FACTOR * 100 / self.data.num_classes:
            warnings.warn(
                f"the teacher has {accuracy['top1']:.2f} % top-1, near chance: wrong weights or other data?",
                stacklevel=2,
            )
        return accuracy

    def _accuracy(self, loader: Loader) -> dict[str, float]:
        if self.folder is None:
            return evaluate(self.teacher.model, loader, self.data.test)[0]
        path = self.folder / "accuracy.safetensors"  # the folder is this teacher's and this data's own
        with self.locked(path):
            try:
                return checkpoint.read(path)[1]["accuracy"]
            except IkdError:
                accuracy = evaluate(self.teacher.model, loader, self.data.test)[0]
                self.store(path, {}, {"accuracy": accuracy})
                return accuracy

    def _make(self, loader: Loader, epoch: Epoch, path: Path, check: Callable[[], None]) -> Tensor:
        slab = self._compute(loader, epoch, check)
        self._write(path, slab, self._facts(loader, epoch))
        return slab

    def _compute(self, loader: Loader, epoch: Epoch, check: Callable[[], None]) -> Tensor:
        slab = self.teacher.logits(loader, epoch, check).to(self.dtype)
        self.computed += 1  # what a stop cut off is not one
        return slab

    def _read(self, path: Path, facts: dict) -> Tensor | None:
        reads, self._reads = self._reads, None
        try:
            found = reads[1].result() if reads and reads[0] == path else None
            tensors, stored = found or _read_if_there(path) or ({}, None)
        except IkdError as error:
            warnings.warn(f"teacher logits are computed again: {error}", stacklevel=4)
            return None
        return tensors["logits"] if stored == facts else None

    def _write(self, path: Path, slab: Tensor, facts: dict) -> None:
        if self.folder is None:  # given up while the lock was sought
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)  # a cache may be thrown away any time
            room = shutil.disk_usage(path.parent).free - ROOM_TO_SPARE
        except OSError as error:
            self._give_up(path, error)
            return
        if room < slab.numel() * slab.element_size():
            warnings.warn(f"{path.parent}: no room for teacher logits; each run computes them", stacklevel=4)
            self.folder = None
            return
        self.store(path, {"logits": slab}, facts)

    def store(self, path: Path, tensors: dict[str, Tensor], facts: dict) -> None:
        """Write a file below `folder`; where that fails, warn once and keep nothing from then on."""
        try:
            checkpoint.write(path, tensors, facts)
        except OSError as error:
            self._give_up(path, error)

    @contextmanager
    def locked(self, path: Path, check: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold the lock of a file; ``check`` runs while another process has it.

        Where nothing can be written there is nothing to guard.
        """
        lock, held = FileLock(path.with_suffix(".lock")), None
        while held is None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                held = lock.acquire(timeout=LOCK_SECONDS)
            except Timeout:
                check()
            except OSError as error:
                self._give_up(path, error)
                yield
                return
        with held:
            files.tidy(path.parent, path.name)
            yield

    def _give_up(self, path: Path, error: OSError) -> None:
        if self.folder is not None:
            warnings.warn(f"{path.parent}: cannot keep teacher logits ({error.strerror})", stacklevel=5)
        self.folder = None


def _read_if_there(path: Path) -> tuple[dict[str, Tensor], dict] | None:
    return checkpoint.read(path) if path.exists() else None
