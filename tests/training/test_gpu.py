"""The whole trainer on a GPU: graphs, a stop inside an epoch, and the bits of deterministic mode."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ikdlib.training.graphs import GraphedStep

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
GPU = torch.device("cuda", 0)
EPOCHS, STOPPED = 6, (4, 1)


def alike(one, other):
    """Rounding grows here, a hundredfold an epoch (measured: 1e-7, 1e-6, 1e-4, 3e-3): alike, then near."""
    np.testing.assert_allclose(one[0], other[0], rtol=1e-5)
    np.testing.assert_allclose(one[:3], other[:3], rtol=2e-3)
    np.testing.assert_allclose(one, other, rtol=2e-2)


@pytest.mark.parametrize("method", ["ce", "kd+ikd", "dkd+ikd", "nkd+ikd", "wttm+ikd"])
def test_a_resumed_training_goes_on_from_graphs_to_the_same_losses(tiny, tmp_path, method):
    """Epochs of two full batches: from the third on they are captured, and again after the stop."""
    spec = tiny.spec(method, epochs=EPOCHS, deterministic=False)
    whole = tiny.train(tmp_path / "whole", spec, tmp_path / "slabs", device=GPU)
    assert isinstance(whole._do_step, GraphedStep) and whole._do_step.captured > 0
    assert whole.run.provenance["graphs"] is True
    stopped = tiny.train_until(tmp_path / "stopped", spec, *STOPPED, device=GPU)
    assert (stopped.epoch, stopped.step) == STOPPED
    resumed = tiny.train(tmp_path / "stopped", spec, device=GPU)
    assert resumed.origin.resumed_at == [{"epoch": STOPPED[0], "step": STOPPED[1]}]
    alike(*(trainer.run.history["train_loss"] for trainer in (whole, resumed)))


@pytest.mark.parametrize("method", ["ce", "dkd+ikd"])
def test_a_compiled_training_learns_what_one_as_it_stands_does(tiny, tmp_path, method):
    """From epoch 2 on all of a full step is compiled, and captured; a resumed run compiles again."""
    spec = tiny.spec(method, epochs=EPOCHS, deterministic=False)
    plain = tiny.train(tmp_path / "plain", spec, device=GPU, compile="off")
    fast = tiny.train(tmp_path / "fast", spec, device=GPU, compile="on")
    tiny.train_until(tmp_path / "stopped", spec, *STOPPED, device=GPU, compile="on")
    resumed = tiny.train(tmp_path / "stopped", spec, device=GPU, compile="on")
    for trainer in (fast, resumed):
        assert trainer.run.provenance["compiled"] and trainer.run.provenance["graphs"]
        counters = [v for k, v in trainer.student.state_dict().items() if k.endswith("num_batches_tracked")]
        assert {int(value) for value in counters} == {EPOCHS * trainer.loader.steps}
    assert not plain.run.provenance["compiled"]
    losses = [trainer.run.history["train_loss"] for trainer in (plain, fast, resumed)]
    alike(losses[0], losses[1])
    alike(losses[0], losses[2])


@pytest.mark.parametrize("method", ["kd+ikd", "dkd+ikd"])
def test_deterministic_mode_ends_with_the_same_bits(tiny, tmp_path, method):
    spec = tiny.spec(method, epochs=EPOCHS)
    whole = tiny.train(tmp_path / "whole", spec, device=GPU)
    tiny.train_until(tmp_path / "stopped", spec, *STOPPED, device=GPU)
    resumed = tiny.train(tmp_path / "stopped", spec, device=GPU)
    assert tiny.outcome(resumed.run) == tiny.outcome(whole.run)


@pytest.mark.parametrize("method", ["ce", "dkd+ikd"])
def test_a_gpu_learns_what_a_cpu_learns(tiny, tmp_path, method):
    spec = tiny.spec(method, epochs=EPOCHS)
    here, there = (tiny.train(tmp_path / d.type, spec, device=d) for d in (torch.device("cpu"), GPU))
    alike(*(trainer.run.history["train_loss"] for trainer in (here, there)))
