import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Pictures this small gain nothing from a second thread, and wait for it on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
