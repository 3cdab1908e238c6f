import os
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for the network
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["MINIDIFF_PROGRESS"] = str(Path(tempfile.mkdtemp()) / "progress.json")  # a test notes nothing in anyone's home

settings.register_profile("minidiff", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("minidiff")


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)
