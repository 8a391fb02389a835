"""What every test runs under: one torch thread, and a cache and boards of its own for measured tables."""

from collections.abc import Iterator

import pytest
import torch

# Two torch threads on two busy cores wait for each other; one is faster, and repeats itself to the digit.
torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("boards")))
        yield
