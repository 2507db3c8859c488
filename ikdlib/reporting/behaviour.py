"""How a student answers, from kept test logits: confidence, calibration, confusion, consistency, fidelity.

The paper's third claim is about answers, not about accuracy: with the IKD term, predictions within a class
become more consistent, similar samples are less confused, and the target class gets back the confidence that
a large KD temperature takes from it. Each reading of it here is a pure function of logits [N, C] and
labels [N]; probabilities are softmax at T = 1, computed in float64. Accuracies and confidences are in %.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ikdlib import files
from ikdlib.data import groups as coarse
from ikdlib.errors import IkdError
from ikdlib.reporting.kept import Predictions, of_target, predictions
from ikdlib.reporting.temperature_scaling import best_temperature, log_softmax, scaled
from ikdlib.runs import Run

BINS = 15  # of Guo et al. (2017)
# Measure -> its unit, and what the paper's third claim says of it, where it says anything.
MEASURES = {
    "accuracy (top-1)": ("%", ""),
    "confidence of the target class, mean": ("%", "higher at a large KD temperature"),
    "confidence of the target class, median": ("%", ""),
    "confidence of the answer, mean": ("%", ""),
    "calibration error (ECE)": ("%", ""),
    "negative log likelihood": ("nats", ""),
    "temperature that fits best": ("T", ""),
    "calibration error (ECE) at it": ("%", ""),
    "negative log likelihood at it": ("nats", ""),
    "taken for a class of its own group": ("% of images", "lower"),
    "taken for a class outside of it": ("% of images", ""),
    "errors that stay in the group": ("% of errors", "lower"),
    "spread of predictions within a class": ("%", "lower"),
    "KL of predictions to their class's mean": ("nats", "lower"),
    "spread at the temperature that fits best": ("%", "lower"),
    "variance of the logits within classes": ("% of all", "lower"),
    "same answer as the teacher": ("%", ""),
    "KL of the teacher to the student": ("nats", ""),
}
CONSISTENCY = (
    "spread of predictions within a class",
    "KL of predictions to their class's mean",
    "spread at the temperature that fits best",
    "variance of the logits within classes",
)


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Top-1, %; of equal logits the first class counts, so fp16 may differ from the run by a few images."""
    return 100 * float((logits.argmax(axis=1) == labels).mean())


def target_confidence(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Probability of the target class: [N], %."""
    return 100 * np.exp(of_target(log_softmax(logits), labels))


def negative_log_likelihood(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean of -log p(target): nats."""
    return -float(of_target(log_softmax(logits), labels).mean())


def reliability(logits: np.ndarray, labels: np.ndarray, bins: int = BINS) -> pd.DataFrame:
    """The reliability diagram of Guo et al. (2017), section 2: a row a bin.

    The largest probability of an image falls into one of ``bins`` intervals (low, high] of equal width.
    Columns: low, high, count, and the means over the bin's images, confidence and accuracy, all but count in
    %; the means of an empty bin are NaN.
    """
    confidence = np.exp(log_softmax(logits).max(axis=1))
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    right = logits.argmax(axis=1) == labels
    means = {}
    for name, values in (("confidence", confidence), ("accuracy", right)):
        total = np.bincount(place, weights=values, minlength=bins)
        means[name] = np.divide(100 * total, count, out=np.full(bins, np.nan), where=count > 0)
    edges = 100 * np.arange(bins + 1) / bins
    return pd.DataFrame({"low": edges[:-1], "high": edges[1:], "count": count, **means})


def expected_calibration_error(logits: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Guo et al. (2017), eq. 3: the bins' |accuracy - confidence|, weighted by images; in points of %."""
    table = reliability(logits, labels, bins)
    gap = (table["accuracy"] - table["confidence"]).abs()
    return float((gap * table["count"]).sum() / table["count"].sum())


def confusion(logits: np.ndarray, labels: np.ndarray, groups: Sequence[str]) -> pd.DataFrame:
    """Errors inside the target's coarse group and outside; ``groups`` [C] names the group of each class.

    Index: inside, outside. Columns: count; of_images and of_errors, %; by_chance, the % of these errors that
    would fall there if each wrong answer were any of the other classes, all alike. Without an error the last
    two are NaN.
    """
    number = np.unique(np.asarray(groups), return_inverse=True)[1]
    answer = logits.argmax(axis=1)
    wrong = answer != labels
    inside = int((wrong & (number[answer] == number[labels])).sum())
    errors = int(wrong.sum())
    count = np.array([inside, errors - inside])
    others = (np.bincount(number)[number] - 1) / max(1, len(number) - 1)
    chance = float(others[labels[wrong]].mean()) if errors else float("nan")
    return pd.DataFrame(
        {
            "count": count,
            "of_images": 100 * count / len(labels),
            "of_errors": 100 * count / errors if errors else np.nan,
            "by_chance": [100 * chance, 100 * (1 - chance)],
        },
        index=["inside", "outside"],
    )


def class_accuracy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Top-1 of each class: [C], %; NaN for a class without images."""
    return 100 * _class_means((logits.argmax(axis=1) == labels)[:, None], labels, logits.shape[1])[:, 0]


def spread(logits: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
    """How far the predictions of one class lie apart: a row a class, NaN where it has no images.

    Columns, with p_i the softmax output of an image and m the mean of these over its class:

    - squared: 100 * mean of ||p_i - m||^2. 0: one answer for all images; near 100: each image a sure answer
      of its own (the largest value is 100 * (1 - 1/C)).
    - kl: mean of KL(p_i || m), nats: what an answer says about the image beyond its class, which is the
      generalised Jensen-Shannon divergence of the class's predictions.

    This is how "consistent within a class" is read here; the paper's own measure is not known to this
    project. Both fall too where a student is only less sure of everything; of logits that are `scaled` they
    do not, nor does `logit_spread`.
    """
    log_p, classes = log_softmax(logits), logits.shape[1]
    p = np.exp(log_p)
    mean = _class_means(p, labels, classes)[labels]
    squared = ((p - mean) ** 2).sum(axis=1)
    kl = (p * (log_p - np.log(np.maximum(mean, np.finfo(float).tiny)))).sum(axis=1)
    by_class = _class_means(np.stack([100 * squared, kl], axis=1), labels, classes)
    return pd.DataFrame(by_class, columns=["squared", "kl"])


def logit_spread(logits: np.ndarray, labels: np.ndarray) -> float:
    """% of the logits' variance that lies within classes; the same for all logits times one factor.

    Each image's logits are centred first, because softmax does not see their mean.
    """
    centred = _centred(logits)
    within = ((centred - _class_means(centred, labels, logits.shape[1])[labels]) ** 2).sum()
    return 100 * float(within / ((centred - centred.mean(axis=0)) ** 2).sum())


def fidelity(logits: np.ndarray, teacher: np.ndarray) -> tuple[float, float]:
    """A student beside its teacher's logits [N, C]: % of equal answers, and mean KL(teacher || student).

    As Stanton et al. (2021, "Does knowledge distillation really work?") measure it, the KL in nats at T = 1.
    """
    log_s, log_t = log_softmax(logits), log_softmax(teacher)
    agreement = 100 * float((logits.argmax(axis=1) == teacher.argmax(axis=1)).mean())
    return agreement, float((np.exp(log_t) * (log_t - log_s)).sum(axis=1).mean())


def plane(base: np.ndarray, treated: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two runs' logits [n, C] on common axes: [n, 2], [n, 2], and the % of variance each axis shows.

    Principal components (singular value decomposition) of both together, each image's logits centred first.
    """
    both = _centred(np.concatenate([base, treated]))
    both -= both.mean(axis=0)
    _, size, axes = np.linalg.svd(both, full_matrices=False)
    axes = axes[:2]
    # Of an axis and its mirror image the same one every time: the largest weight points up.
    axes *= np.sign(axes[np.arange(2), np.abs(axes).argmax(axis=1)])[:, None]
    points = both @ axes.T
    return points[: len(base)], points[len(base) :], 100 * size[:2] ** 2 / (size**2).sum()


def measured(found: Predictions, teacher: np.ndarray | None = None) -> dict[str, float]:
    """Every measure of `MEASURES` that can be taken of one run; ``teacher``: its teacher's test logits."""
    of = (found.logits, found.labels)
    confidence, lies = target_confidence(*of), spread(*of).mean()
    values = [accuracy(*of), float(confidence.mean()), float(np.median(confidence))]
    values += [100 * float(np.exp(log_softmax(found.logits).max(axis=1)).mean())]
    values += [expected_calibration_error(*of), negative_log_likelihood(*of)]
    fitted = scaled(*of), found.labels
    values += [best_temperature(*of), expected_calibration_error(*fitted), negative_log_likelihood(*fitted)]
    if coarse.groups(found.spec.data) is None:
        values += 3 * [float("nan")]
    else:
        errors = confusion(*of, found.groups)
        values += [*errors["of_images"], errors.loc["inside", "of_errors"]]
    values += [lies["squared"], lies["kl"], spread(*fitted)["squared"].mean(), logit_spread(*of)]
    values += 2 * [float("nan")] if teacher is None else fidelity(found.logits, teacher)
    return dict(zip(MEASURES, values, strict=True))


def summary(base: Predictions, treated: Predictions, teacher: np.ndarray | None = None) -> pd.DataFrame:
    """A base method beside its ``+ikd``: columns measure, unit, paper, base, +ikd, difference.

    ``paper``: what the third claim says of the measure. Without ``teacher`` there is no fidelity, and for a
    data set without groups no confusion inside them: these rows are left out.

    Raises:
        IkdError: the two are no pair: something besides the IKD term differs.
    """
    if treated.spec.method.ikd is None or treated.spec.without_term != base.spec:
        raise IkdError(
            f"{treated.spec.run_id} is not {base.spec.run_id} with the IKD term alone added; take runs of "
            "one study and seed, like kd and kd+ikd"
        )
    values = pd.DataFrame({"base": measured(base, teacher), "+ikd": measured(treated, teacher)})
    names = pd.DataFrame.from_dict(MEASURES, orient="index", columns=["unit", "paper"])
    table = names.join(values).rename_axis("measure").reset_index().dropna(subset=["base"])
    return table.assign(difference=table["+ikd"] - table["base"]).reset_index(drop=True)


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """A `summary` as people read it: two decimals for %, four for nats."""
    digits = [4 if unit == "nats" else 2 for unit in table["unit"]]
    signs = {"base": "", "+ikd": "", "difference": "+"}
    text = {c: [f"{v:{s}.{d}f}" for v, d in zip(table[c], digits, strict=True)] for c, s in signs.items()}
    return table.assign(**text).rename(columns={"paper": "the paper says"})


def write(table: pd.DataFrame, caption: str, path: Path) -> str:
    """Write a `summary` as ``path.csv`` (full precision) and ``path.md``; returns the Markdown."""
    text = f"{caption}\n\n{readable(table).to_markdown(index=False, disable_numparse=True)}\n"
    files.write_text(path.with_suffix(".csv"), table.to_csv(index=False, lineterminator="\n"))
    files.write_text(path.with_suffix(".md"), text)
    return text


def verdict(table: pd.DataFrame, base: Predictions) -> str:
    """A sentence: what the paper's third claim speaks of, in these two runs, and that they decide nothing."""
    shown, fell = readable(table), table.set_index("measure")["difference"][list(CONSISTENCY)] < 0
    told = [
        f"{row.measure} {row.difference} {'nats' if row.unit == 'nats' else 'points'} (the paper: {paper})"
        for row, paper in zip(shown.itertuples(), table["paper"], strict=True)
        if paper
    ]
    return (
        f"{base.spec.pair}, seed {base.spec.seed}, {base.method}+ikd minus {base.method}: {'; '.join(told)}; "
        f"{fell.sum()} of the {len(fell)} readings of consistency fell; one seed decides nothing: undecided"
    )


def spread_of_run(run: Run) -> float:
    """`spread` ("squared", %) of a run's kept logits, averaged over the classes."""
    found = predictions(run)
    return float(spread(found.logits, found.labels)["squared"].mean())


def scaled_spread_of_run(run: Run) -> float:
    """`spread_of_run` of the logits as `scaled`: what mere sureness has no part in."""
    found = predictions(run)
    return float(spread(scaled(found.logits, found.labels), found.labels)["squared"].mean())


def logit_spread_of_run(run: Run) -> float:
    """`logit_spread` (%) of a run's kept logits: unlike `spread_of_run` it does not fall with confidence."""
    found = predictions(run)
    return logit_spread(found.logits, found.labels)


def confusion_of_run(run: Run) -> float:
    """% of test images a run takes for another class of their group; an `IkdError` without groups."""
    found = predictions(run)
    return float(confusion(found.logits, found.labels, found.groups).loc["inside", "of_images"])


def confused_errors_of_run(run: Run) -> float:
    """% of a run's errors that stay in their group; an `IkdError` without groups."""
    found = predictions(run)
    return float(confusion(found.logits, found.labels, found.groups).loc["inside", "of_errors"])


def _centred(logits: np.ndarray) -> np.ndarray:
    return logits.astype(np.float64) - logits.mean(axis=1, keepdims=True, dtype=np.float64)


def _class_means(values: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """[N, k] -> [C, k]; NaN for a class without images."""
    total, count = np.zeros((classes, values.shape[1])), np.bincount(labels, minlength=classes)[:, None]
    np.add.at(total, labels, values)
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
