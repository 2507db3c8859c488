"""What the ablations vary: their grids, the paper's best values, the controls of the term and what each asks.

The paper's grids are not known to this project; these are its own, fixed before any run.
"""

from __future__ import annotations

from ikdlib.studies import protocol
from ikdlib.studies.variants import Variant

TEMPERATURES = (0.5, 1.0, 2.0, 3.0, 4.0)
WEIGHTS = (0.0, 0.5, 1.0, 2.0, 4.0, 6.0, 6.5, 7.0, 8.0)
BATCH_SIZES = (32, 64, 128, 256, 512)
KD_TEMPERATURES = (1.0, 2.0, 4.0, 8.0)

BEST = {"ikd.temperature": {"dkd+ikd": 1.0}, "ikd.weight": {"dkd+ikd": 6.5, "nkd+ikd": 6.0}}
"""Setting to what the paper says is best, by method (figures 4(a) and 4(b))."""

CONTROLS = {
    "one_hot": "is it just more cross-entropy? (the same lambda, the label as target)",
    "permuted": "does it matter WHICH classes are near? (same entropy and confidence, a wrong structure)",
    "even_rest": "does ANY structure matter? (same confidence, the rest spread evenly over the classes)",
    "smoothed": "is a soft label all it takes? (label smoothing of equal entropy; another confidence)",
}
SOURCES = {
    "clean": "do the augmented views matter? (class means of the images as they are)",
    "running": "is one epoch enough? (class means of all epochs so far)",
    "all_views": "is epoch 1 a good sample? (class means of all 162 views of each image)",
}


def alone(method: str) -> Variant:
    """The term on plain cross-entropy, with the weight it has on ``method``."""
    weight = protocol.method_spec("paper", "*", "*", method).ikd.weight
    usual = protocol.method_spec("paper", "*", "*", "ce+ikd").ikd.weight
    return Variant("ce+ikd", {} if weight == usual else {"ikd.weight": weight})


def questions(method: str = "dkd+ikd") -> dict[tuple[str, str], str]:
    """Two cells, the second to be subtracted from the first, to the question their difference answers."""
    asked = {
        (method, method.removesuffix("+ikd")): "does the term do anything?",
        (alone(method).label, "ce"): "does it work alone, without another method beside it?",
    }
    asked |= {(method, Variant(method, {"ikd.target": name}).label): text for name, text in CONTROLS.items()}
    return asked | {
        (method, Variant(method, {"ikd.source": name}).label): text for name, text in SOURCES.items()
    }
