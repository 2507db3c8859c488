"""Fixtures of all tests. What lies outside the project may be missing: tests that need it skip and say so."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with published teachers and data, beside the checkout or named by IKDLIB_SHARED."""
    folder = Path(os.environ.get("IKDLIB_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip("the folder with published teachers and data is not on this machine (IKDLIB_SHARED)")
    return folder


@pytest.fixture(scope="session")
def cifar_folder(shared: Path) -> Path:
    """All of CIFAR-100 as class folders, unpacked once into data/, which git ignores."""
    folder = REPOSITORY / "data" / "cifar100-folders"
    if not (folder / "complete").exists():
        archives = sorted((shared / "data").glob("cifar100-*-of-4.zip"))
        if len(archives) != 4:
            pytest.skip("the four archives of CIFAR-100 are not on this machine")
        for archive in archives:
            with zipfile.ZipFile(archive) as content:
                content.extractall(folder)
        (folder / "complete").touch()
    return folder


@pytest.fixture(autouse=True)
def _one_thread():
    """Tests share the cores, and a trainer sets torch's switches for its process: each test starts alike."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False
