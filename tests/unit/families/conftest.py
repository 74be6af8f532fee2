"""What the tests of all families share."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """More threads only wait for each other in models this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
