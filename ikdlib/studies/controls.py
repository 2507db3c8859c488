"""The controls of the IKD term, and the question each of them answers (notebook 32, and the report)."""

from __future__ import annotations

from ikdlib.studies.variants import Variant

CONTROLS = {
    "one_hot": "the same lambda on one-hot targets: is it just more cross-entropy?",
    "permuted": "class means whose other entries are permuted: same entropy and confidence, no structure",
    "smoothed": "label smoothing of equal entropy: is a soft label all it takes?",
}
SOURCES = {
    "clean": "class means from the training images as they are",
    "running": "class means of all epochs so far",
    "all_views": "class means of all 162 views of each image (the teacher answers 162 times as often, once)",
}


def questions(method: str = "dkd+ikd") -> dict[str, str]:
    """The label of each cell a method with the term stands against, and what the comparison asks."""
    asked = {
        method.removesuffix("+ikd"): "the base method: does the term do anything?",
        "ce+ikd": "the term alone: does it need another method beside it?",
    }
    asked |= {Variant(method, {"ikd.target": name}).label: text for name, text in CONTROLS.items()}
    return asked | {Variant(method, {"ikd.source": name}).label: text for name, text in SOURCES.items()}
