"""The IKD term against numpy and against Algorithm 1 written with python lists."""

from __future__ import annotations

import copy
import math
import socket
import warnings

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing

from ikdlib import methods
from ikdlib.data.loader import Batch
from ikdlib.errors import IkdError
from ikdlib.methods.controls import TARGETS
from ikdlib.methods.ikd import IKD, WithIKD
from ikdlib.models import Outputs
from ikdlib.spec import IKDSettings, MethodSpec

C = 6


def draw(seed: int, count: int = 40):
    """Teacher logits, student logits [N, C] and targets [N] that show every class."""
    draws = torch.Generator().manual_seed(seed)
    teacher, student = (3 * torch.randn(count, C, generator=draws) for _ in range(2))
    return teacher, student, torch.randperm(count, generator=draws) % C


def group_means(teacher, target):
    """[C, C] in fp64: numpy's mean over each class, of batches put together."""
    logits = np.concatenate([part.double().numpy() for part in teacher])
    label = np.concatenate([part.numpy() for part in target])
    return np.stack([logits[label == name].mean(0) for name in range(C)])


def batch(student, target, epoch=1.0):
    rows = slice(0, len(target))
    progress = torch.tensor([epoch, 0.0])
    return Batch(torch.zeros(len(target), 3, 8, 8), target, torch.arange(len(target)), rows, progress)


def test_means_are_those_of_the_groups():
    teacher, _, target = draw(0)
    ikd = IKD(C)
    for rows in (slice(0, 16), slice(16, 32), slice(32, 40)):
        ikd.observe(teacher[rows], target[rows])
    ikd.finish()
    for label in range(C):
        group = teacher.double().numpy()[target.numpy() == label]
        np.testing.assert_allclose(ikd.means[label].numpy(), group.mean(0), rtol=1e-5, atol=1e-6)
        assert int(ikd.counts[label]) == len(group)
    assert bool(ikd.seen.all())


def test_algorithm_1_with_lists():
    """Lists of logits per class, their mean, and lambda T^2 KL in plain arithmetic."""
    teacher, student, target = draw(1)
    weight, T = 6.5, 2.0
    ikd = IKD(C, weight, T)
    of_class = {label: [] for label in range(C)}
    for logits, label in zip(teacher.tolist(), target.tolist(), strict=True):
        of_class[label].append(logits)
    ikd.observe(teacher, target)
    ikd.finish()

    def softmax(values):
        powers = [math.exp(value / T) for value in values]
        return [power / sum(powers) for power in powers]

    total = 0.0
    for logits, label in zip(student.tolist(), target.tolist(), strict=True):
        mean = [sum(column) / len(of_class[label]) for column in zip(*of_class[label], strict=True)]
        p, q = softmax(mean), softmax(logits)
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert float(ikd(student, target)) == pytest.approx(weight * T**2 * total / len(target), rel=1e-5)


def test_a_class_that_nobody_saw_warns_once_and_adds_nothing():
    teacher, student, target = draw(2)
    ikd, shown = IKD(C), target != 4
    ikd.observe(teacher[shown], target[shown])
    with pytest.warns(UserWarning, match=r"classes \[4\]") as caught:
        ikd.finish()
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        student.requires_grad_()
        loss = ikd(student, target)
        loss.backward()
    assert math.isfinite(loss.item()) and bool(student.grad.isfinite().all())
    assert bool((student.grad[target == 4] == 0).all()) and bool((student.grad[shown] != 0).any(1).all())
    count = int(shown.sum())
    expected = float(ikd(student[shown].detach(), target[shown])) * count / len(target)
    assert loss.item() == pytest.approx(expected, rel=1e-5), "a mean over the whole batch"


def test_no_class_seen_at_all():
    ikd = IKD(C)
    with pytest.warns(UserWarning, match="no image of classes"):
        ikd.finish()
    _, student, target = draw(3)
    with pytest.raises(IkdError, match="no class means yet"):
        ikd(student, target)


def test_loaded_means_are_known_before_a_step_asks_for_them(monkeypatch):
    """Asking in the step would wait for a GPU, break a compiled step in two, and cannot be captured."""
    teacher, student, target = draw(5)
    first, second = IKD(C), IKD(C)
    first.observe(teacher, target)
    first.finish()
    second.load_state_dict(first.state_dict())
    monkeypatch.setattr(torch.Tensor, "any", lambda *_: pytest.fail("the device was asked"))
    assert second(student, target).item() == first(student, target).item()


def test_the_state_carries_sums_in_flight():
    teacher, student, target = draw(4)
    whole, first, second = IKD(C), IKD(C), IKD(C)
    first.observe(teacher[:20], target[:20])
    second.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    second.observe(teacher[20:], target[20:])
    whole.observe(teacher[:20], target[:20])
    whole.observe(teacher[20:], target[20:])
    for ikd in (whole, second):
        ikd.finish()
    assert torch.equal(whole.means, second.means)
    assert torch.equal(whole(student, target), second(student, target))
    first.finish()
    assert not torch.equal(whole.means, first.means), "without the second half they are others"


def test_half_precision_logits_are_added_in_fp32():
    """2048 + 1 is 2048 in fp16: ten thousand ones add up all the same."""
    ikd = IKD(1)
    for _ in range(100):
        ikd.observe(torch.ones(100, 1, dtype=torch.float16), torch.zeros(100, dtype=torch.int64))
    assert float(ikd.sums[0, 0]) == 10_000


@pytest.mark.parametrize("name", methods.names())
def test_the_wrapper_leaves_the_method_as_it_is(name):
    """Same parts in every epoch, and `ikd` beside them from the second on."""
    teacher, student, target = draw(5)
    plain = methods.build(MethodSpec(name=name), C)
    wrapped = methods.build(MethodSpec(name=name, ikd=IKDSettings(weight=2.0)), C)
    assert isinstance(wrapped, WithIKD) and wrapped.needs == plain.needs | {"logits"}
    for epoch in (1, 2, 3):
        for method in (plain, wrapped):
            method.begin_epoch(epoch)
        shown = batch(student, target, float(epoch))
        expected = plain(Outputs(logits=student), Outputs(logits=teacher), shown)
        parts = wrapped(Outputs(logits=student), Outputs(logits=teacher), shown)
        term = parts.pop("ikd", None)
        assert (term is None) == (epoch == 1)
        assert parts.keys() == expected.keys()
        assert all(torch.equal(parts[key], expected[key]) for key in parts)
        if term is not None:
            assert float(term) == pytest.approx(2.0 * float(wrapped.ikd(student, target)) / 2.0)
        wrapped.end_epoch(epoch)
    assert int(wrapped.ikd.counts.sum()) == len(target), "only the first epoch is observed"


# Where the means come from


def with_source(source: str, target: str = "means") -> WithIKD:
    return methods.build(MethodSpec(name="ce", ikd=IKDSettings(source=source, target=target)), C)


def shown(method: WithIKD, epoch: int) -> set[str]:
    """Show a batch of its own to each epoch; names of the parts."""
    teacher, student, target = draw(10 + epoch)
    method.begin_epoch(epoch)
    parts = method(Outputs(logits=student), Outputs(logits=teacher), batch(student, target, epoch))
    method.end_epoch(epoch)
    return set(parts)


def shown_before(epoch: int):
    """Teacher logits and targets of the epochs before, as `shown` shows them."""
    draws = [draw(10 + number) for number in range(1, epoch)]
    return [teacher for teacher, _, _ in draws], [target for _, _, target in draws]


@pytest.mark.parametrize("source", ["views", "running", "clean", "all_views"])
def test_the_term_begins_in_epoch_2_whatever_the_source(source):
    method = with_source(source)
    assert method.survey == (source if source in ("clean", "all_views") else None)
    if method.survey:
        method.take_survey(torch.ones(C, C, dtype=torch.float64), torch.ones(C, dtype=torch.int64))
    for epoch in (1, 2, 3):
        assert shown(method, epoch) == ({"ce"} if epoch == 1 else {"ce", "ikd"})


def test_means_of_epoch_1_stay_and_running_means_go_on():
    paper, running = with_source("views"), with_source("running")
    for epoch in (1, 2, 3):
        shown(paper, epoch), shown(running, epoch)
        np.testing.assert_allclose(paper.ikd.means, group_means(*shown_before(2)), rtol=1e-5, atol=1e-6)
        so_far = group_means(*shown_before(epoch + 1))
        np.testing.assert_allclose(running.ikd.means, so_far, rtol=1e-5, atol=1e-6)
    assert float((running.ikd.means - paper.ikd.means).abs().max()) > 0.1


def test_running_means_stand_still_within_an_epoch():
    """The term of epoch 2 is towards the means of epoch 1, from its first batch to its last."""
    running = with_source("running")
    shown(running, 1)
    running.begin_epoch(2)
    means = torch.tensor(group_means(*shown_before(2)))
    for seed in (20, 21):
        teacher, student, target = draw(seed)
        term = running(Outputs(logits=student), Outputs(logits=teacher), batch(student, target, 2.0))["ikd"]
        p, log_q = means[target].softmax(1), student.double().log_softmax(1)
        assert float(term) == pytest.approx(6.5 * float((p * (p.log() - log_q)).sum(1).mean()), rel=1e-5)


@pytest.mark.parametrize("target", ["one_hot", "permuted", "even_rest", "smoothed"])
def test_a_control_is_made_of_fresh_means_each_time(target):
    """Not of what it made of the means before."""
    running = with_source("running", target)
    for epoch in (1, 2, 3):
        shown(running, epoch)
        means = torch.tensor(group_means(*shown_before(epoch + 1)))
        expected = TARGETS[target](means, 1.0)
        torch.testing.assert_close(running.ikd.means.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("source", ["clean", "all_views"])
def test_a_survey_alone_makes_the_means(source):
    """What epochs show adds nothing; a survey that comes again changes nothing."""
    method = with_source(source)
    counts = torch.arange(1, C + 1)
    sums = torch.randn(C, C, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    for _ in range(2):
        method.take_survey(sums, counts)
    for epoch in (1, 2):
        shown(method, epoch)
        np.testing.assert_allclose(
            method.ikd.means, sums.numpy() / counts.numpy()[:, None], rtol=1e-6, atol=1e-7
        )
        assert torch.equal(method.ikd.counts, counts)


def test_a_method_that_asks_for_nothing_has_no_survey():
    plain = methods.build(MethodSpec(name="dkd"), C)
    assert plain.survey is None
    with pytest.raises(TypeError, match="does not define take_survey"):
        plain.take_survey(torch.zeros(C, C), torch.zeros(C))


def test_phases_are_what_a_step_computes():
    """A graph that was captured in one phase would do the wrong thing in another."""
    phases = {}
    for source in ("views", "running", "clean", "all_views"):
        method = with_source(source)
        for epoch in (1, 2, 3):
            method.begin_epoch(epoch)
            phases[source, epoch] = method.phase[0]
    for source in ("clean", "all_views"):
        assert [phases[source, epoch] for epoch in (1, 2, 3)] == ["", "pull", "pull"]
    assert [phases["views", epoch] for epoch in (1, 2, 3)] == ["observe", "pull", "pull"]
    assert [phases["running", epoch] for epoch in (1, 2, 3)] == ["observe", "observe+pull", "observe+pull"]


def test_without_means_there_is_no_loss():
    """It would be 0: who forgets `finish`, or resumes without its state, would train without the term."""
    teacher, student, target = draw(9)
    ikd = IKD(C)
    for _ in range(2):
        with pytest.raises(IkdError, match="no class means yet; finish.. after the first epoch, or load"):
            ikd(student, target)
        ikd.observe(teacher, target)
    stopped, resumed = copy.deepcopy(ikd.state_dict()), IKD(C)
    resumed.load_state_dict(stopped)
    with pytest.raises(IkdError, match="no class means yet"):
        resumed(student, target)  # it was stopped inside the first epoch
    ikd.finish()
    resumed.load_state_dict(ikd.state_dict())
    assert float(resumed(student, target)) == float(ikd(student, target)) > 0
    sent = IKD(C)
    for mine, other in zip(sent.buffers(), ikd.buffers(), strict=True):  # as torch.distributed sends them
        mine.copy_(other)
    assert float(sent(student, target)) == float(ikd(student, target))


def test_running_means_warn_once_of_a_class_nobody_sees():
    ikd = IKD(2)
    with pytest.warns(UserWarning, match=r"classes \[1\]") as caught:
        for _ in range(3):
            ikd.observe(torch.ones(3, 2), torch.zeros(3, dtype=torch.int64))
            ikd.finish()
    assert len(caught) == 1


def test_an_unknown_target_is_refused_in_one_line():
    with pytest.raises(IkdError, match="target of the IKD term 'onehot'; did you mean one_hot") as caught:
        IKD(C, target="onehot")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"weight": -1}, "weight: .*greater than or equal to 0"),
        ({"weight": math.nan}, "weight: .*finite"),
        ({"temperature": 0}, "temperature: .*greater than 0"),
        ({"temperature": -2.0}, "temperature: .*greater than 0"),
        ({"temperature": math.inf}, "temperature: .*finite"),
        ({"weight": "6.5"}, "weight: .*number"),
        ({"weight": -1, "temperature": 0}, "weight: .*; temperature: "),
    ],
)
def test_settings_are_refused_as_a_run_would_refuse_them(settings, said):
    """At T = 0 the loss would be NaN; below 0 it would drive the student away from the means."""
    with pytest.raises(IkdError, match=said) as caught:
        IKD(C, **settings)
    with pytest.raises(IkdError) as of_a_run:
        IKDSettings(**settings)
    assert str(caught.value) == str(of_a_run.value) and "\n" not in str(caught.value)


def test_its_settings_are_shown():
    shown = "IKD(num_classes=6, weight=0, temperature=0.5, target='one_hot')"
    assert repr(IKD(C, 0, 0.5, "one_hot")) == shown
    assert "weight=6.5, temperature=1, target='means'" in repr(with_source("views"))


# Several processes


def _work(rank: int, port: int, results) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    teacher, _, target = draw(6)
    ikd = IKD(C)
    ikd.observe(teacher[rank * 15 : 15 + rank * 25], target[rank * 15 : 15 + rank * 25])
    own = ikd.sums.clone(), ikd.counts.clone()
    ikd.finish()
    once = ikd.means.tolist()
    kept = torch.equal(ikd.sums, own[0]) and torch.equal(ikd.counts, own[1])
    ikd.observe(teacher[:4], target[:4])  # `running` goes on after it: nothing may be added up twice
    ikd.finish()
    results[rank] = (once, kept, ikd.means.tolist())
    distributed.destroy_process_group()


def test_two_processes_add_up_their_sums():
    """15 images here, 25 there: both have the means of all 40; then 4 more in each, and the means of 48."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with multiprocessing.get_context("fork").Manager() as manager:
        results = manager.dict()
        multiprocessing.start_processes(_work, (port, results), nprocs=2, start_method="fork")
        found = dict(results)
    teacher, _, target = draw(6)
    alone = IKD(C)
    alone.observe(teacher, target)
    alone.finish()
    for rank in (0, 1):
        once, kept, twice = found[rank]
        np.testing.assert_allclose(once, alone.means.numpy(), rtol=1e-5, atol=1e-6)
        assert kept, "its own sums stay its own"
        more = [part[:4] for part in (teacher, target)]
        expected = group_means([teacher, *[more[0]] * 2], [target, *[more[1]] * 2])
        np.testing.assert_allclose(twice, expected, rtol=1e-5, atol=1e-6)
