"""The class means of Algorithm 1, as a run of a pair and seed forms them in its first epoch."""

from __future__ import annotations

import numpy as np

from ikdlib.methods import IKD
from ikdlib.studies.cache import Slabs
from ikdlib.studies.study import Study


def class_means(study: Study, pair: str, seed: int) -> np.ndarray:
    """[C, C]: row c is the teacher's mean logits over class c, on the views of epoch 1.

    Reads the logits the runs of this seed left, or computes them once more. The pair needs a method
    with a teacher in the study.
    """
    method = next(name for name in study.methods if name != "ce")
    job = next(job for job in study.jobs(pair, method) if job.spec.seed == seed)
    slabs = Slabs(study, job)
    order = slabs.loader.epoch(1)
    slab = slabs.logits.slab(slabs.loader, order)
    ikd = IKD(study.data.num_classes).to(slab.device)
    ikd.observe(slab, slabs.loader.images.targets[order.index])
    ikd.finish()
    return ikd.means.cpu().numpy()
