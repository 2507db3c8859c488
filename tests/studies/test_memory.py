"""How many runs fit, against numbers that are worked out by hand."""

from __future__ import annotations

import os
import sys
import warnings

import pytest
import torch

from ikdlib.studies import memory

CPU, GPU = torch.device("cpu"), torch.device("cuda")
GIB = 2**30


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """`machine(meminfo, limit, used)`: what the kernel's files say; None for a file that is not there."""
    monkeypatch.setattr(memory, "Path", lambda path: tmp_path / path.removeprefix("/"))

    def pretend(
        meminfo: str | None, limit: str | None = None, used: str | None = None, files: int = 0
    ) -> None:
        texts = {
            "proc/meminfo": meminfo,
            "sys/fs/cgroup/memory.max": limit,
            "sys/fs/cgroup/memory.current": used,
            "sys/fs/cgroup/memory.stat": f"anon 12\nactive_file 34\ninactive_file {files}\n",
        }
        for name, text in texts.items():
            if text is not None:
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name).write_text(text)

    return pretend


def meminfo(available_gib: float) -> str:
    """The file as Linux writes it: free is less than available, and neither is the total."""
    kib = int(available_gib * 2**20)
    return (
        f"MemTotal:       {64 * 2**20} kB\nMemFree:        {kib // 2} kB\n"
        f"MemAvailable:   {kib} kB\nBuffers:        1234 kB\nSwapTotal:      {9 * 2**20} kB\n"
    )


def given(monkeypatch, gib: float, each_gib: float = 1.0) -> None:
    """So much memory, and children of a size that is easy to reckon with."""
    monkeypatch.setattr(memory, "available_mib", lambda: gib * 1024)
    monkeypatch.setattr(memory, "CHILD_MIB", dict.fromkeys(("cpu", "cuda"), each_gib * 1024))


# What is available


def test_available_is_what_linux_calls_available(machine):
    machine(meminfo(7.5))
    assert memory.available_mib() == 7.5 * 1024


def test_a_container_has_what_its_limit_leaves(machine):
    machine(meminfo(16), f"{4 * GIB}\n", f"{GIB}\n")
    assert memory.available_mib() == 3 * 1024


def test_files_that_were_read_are_room_in_a_container(machine):
    machine(meminfo(16), f"{4 * GIB}\n", f"{3 * GIB}\n", 2 * GIB)
    assert memory.available_mib() == 3 * 1024


def test_a_limit_beyond_the_machine_gives_no_more_than_the_machine(machine):
    machine(meminfo(16), f"{100 * GIB}\n", f"{GIB}\n")
    assert memory.available_mib() == 16 * 1024


@pytest.mark.parametrize(
    "limit, used", [("max\n", f"{GIB}\n"), (None, f"{GIB}\n"), (f"{GIB}\n", None), ("", "")]
)
def test_a_group_without_a_limit_counts_for_nothing(machine, limit, used):
    machine(meminfo(2), limit, used)
    assert memory.available_mib() == 2 * 1024


def test_where_nothing_is_known_nothing_is_forbidden(machine):
    machine(None, f"{4 * GIB}\n", f"{GIB}\n")  # no /proc: not Linux
    assert memory.available_mib() == float("inf")


@pytest.mark.parametrize(
    "own, root, names",
    [
        ("0::/slurm/job_7/step_0", "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")),
        (
            "4:cpu,memory:/slurm/job_7/step_0",
            "sys/fs/cgroup/memory",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ),
    ],
)
@pytest.mark.parametrize("inside", ["", "/slurm", "/slurm/job_7", "/slurm/job_7/step_0"])
def test_a_groups_limit_counts_wherever_above_the_process_it_is(machine, tmp_path, own, root, names, inside):
    """Both versions of control groups; 6 GiB less 4 used, 1 of it files. Others' limits say nothing."""
    machine(meminfo(16))
    (tmp_path / "proc/self").mkdir()
    (tmp_path / "proc/self/cgroup").write_text(f"1:name=systemd:/\n{own}\n")
    for folder, gib in ((f"{root}{inside}", 6), (f"{root}/slurm/job_8", 1)):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / names[0]).write_text(f"{gib * GIB}\n")
        (tmp_path / folder / names[1]).write_text(f"{4 * GIB}\n")
        (tmp_path / folder / "memory.stat").write_text(f"active_file 5\n{names[2]} {GIB}\n")
    assert memory.available_mib() == 3 * 1024


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the kernel's own count")
def test_this_machine_has_some_memory_and_no_more_than_is_built_in():
    built_in = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**20
    assert 0 < memory.available_mib() < built_in


# How many fit


@pytest.mark.parametrize("workers, gib", [(4, 4.0), (4, 4.5), (1, 1.0), (16, float("inf"))])
def test_what_fits_is_left_alone_and_nothing_is_said(monkeypatch, workers, gib):
    given(monkeypatch, gib)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert memory.fitting(workers, CPU) == workers


def test_more_than_fit_are_fewer_and_one_line_says_so_in_numbers(monkeypatch):
    """Nine children of 2 GiB are 18; of 7 GiB, three have 2 each and a fourth would not."""
    given(monkeypatch, 7, each_gib=2)
    with pytest.warns(UserWarning) as said:
        assert memory.fitting(9, CPU) == 3
    (warning,) = said
    text = str(warning.message)
    assert "\n" not in text
    assert "9 runs at once" in text and "18 GiB of memory" in text
    assert "7 GiB are free" in text and text.endswith("3 at once")


def test_one_too_many_is_too_many(monkeypatch):
    """The edge: 3.99 GiB are not 4 children of one."""
    given(monkeypatch, 3.99)
    with pytest.warns(UserWarning, match="3 at once"):
        assert memory.fitting(4, CPU) == 3


@pytest.mark.parametrize("gib", [0.5, 0.0, -0.5])
def test_one_run_starts_however_little_there_is(monkeypatch, gib):
    """A group may use more than its limit for a moment: below nothing is nothing."""
    given(monkeypatch, gib)
    with pytest.warns(UserWarning, match="1 at once"):
        assert memory.fitting(2, CPU) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert memory.fitting(1, CPU) == 1


def test_a_gpu_is_asked_how_much_it_has_free(monkeypatch):
    given(monkeypatch, 100)
    monkeypatch.setattr(memory, "CHILD_GPU_MIB", 1024)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5 * GIB, 80 * GIB))
    with pytest.warns(UserWarning, match="5 GiB are free") as said:
        assert memory.fitting(8, GPU) == 5
    assert len(said) == 1 and "8 GiB of GPU memory" in str(said[0].message)
    assert memory.fitting(8, CPU) == 8, "a run on the CPU takes nothing of it"


def test_a_large_gpu_in_a_small_machine_waits_for_the_machine(monkeypatch):
    given(monkeypatch, 3)
    monkeypatch.setattr(memory, "CHILD_GPU_MIB", 1024)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (70 * GIB, 80 * GIB))
    with pytest.warns(UserWarning, match="of memory, and 3 GiB are free: 3 at once"):
        assert memory.fitting(8, GPU) == 3


def test_the_scarcer_is_what_fewer_runs_fit_into_not_what_is_smaller(monkeypatch):
    """6 GiB of a GPU have room for six runs of 1 GiB; 8 GiB of memory only for four of 2 GiB."""
    given(monkeypatch, 8, each_gib=2)
    monkeypatch.setattr(memory, "CHILD_GPU_MIB", 1024)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (6 * GIB, 80 * GIB))
    with pytest.warns(UserWarning, match="of memory, and 8 GiB are free: 4 at once"):
        assert memory.fitting(8, GPU) == 4


def test_several_gpus_share_the_runs_and_one_machines_memory(monkeypatch):
    """Two GPUs of 5.5 GiB: five runs of 1 GiB each, not eleven together; 7 GiB beside them: seven."""
    given(monkeypatch, 100)
    monkeypatch.setattr(memory, "CHILD_GPU_MIB", 1024)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5.5 * GIB, 80 * GIB))
    assert memory.fitting(10, GPU, gpus=2) == 10
    with pytest.warns(UserWarning, match="16 GiB of GPU memory, and 11 GiB are free: 10 at once"):
        assert memory.fitting(16, GPU, gpus=2) == 10
    given(monkeypatch, 7)
    with pytest.warns(UserWarning, match="16 GiB of memory, and 7 GiB are free: 7 at once"):
        assert memory.fitting(16, GPU, gpus=2) == 7


# A GPU's memory, shared out


def test_a_share_leaves_room_for_what_no_allocator_counts(monkeypatch):
    """80 GiB for 8 runs: each may use 10 GiB less its own context."""
    gpu = type("Properties", (), {"total_memory": 80 * GIB})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    share = memory.gpu_share(8, torch.device("cuda:0"))
    assert share * 80 * 1024 == pytest.approx(10 * 1024 - memory.CONTEXT_GPU_MIB)
    assert memory.gpu_share(1, torch.device("cuda:0")) == 1.0
    assert memory.gpu_share(4, torch.device("cpu")) == 0.25
