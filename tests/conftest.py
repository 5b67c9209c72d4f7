"""What every test shares: the real models, and an environment without threads or network."""

from __future__ import annotations

import os

# Before anything imports torch or transformers. Tests run side by side, one core each.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import hypothesis
import models
import pytest

# Deadlines measure the machine, not the code. CI tries the same examples each time; elsewhere
# every run tries new ones.
hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct: decoder, 9 query heads on 3 key-value heads, tied embeddings."""
    return models.ensure("smollm2")


@pytest.fixture(scope="session")
def gemma3() -> Path:
    """Gemma 3 270M: decoder, one key-value head, local and global attention, large vocabulary."""
    return models.ensure("gemma3")


@pytest.fixture(scope="session")
def minilm() -> Path:
    """all-MiniLM-L6-v2: encoder of 6 layers."""
    return models.ensure("minilm")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what reads a real model, so that `-m "not model"` is the quick round."""
    for item in items:
        if set(getattr(item, "fixturenames", ())) & set(models.MODELS):
            item.add_marker(pytest.mark.model)
