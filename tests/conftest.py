"""Shared fixtures: one small random Stable Diffusion per session, frozen."""

import sys
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

from builders import pipeline

from reneg_core.backends import DiffusersModel, wrap

settings.register_profile("repeatable", deadline=None, derandomize=True, database=None, max_examples=50)
settings.load_profile("repeatable")

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of published embeddings, prompt sets and golden values, which is not in the repository."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the shared data folder at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def stable_diffusion() -> DiffusersModel:
    return wrap(pipeline(), "random")


@pytest.fixture(scope="session")
def model(stable_diffusion: DiffusersModel) -> DiffusersModel:
    """What most tests take; files about runs have a smaller one of this name."""
    return stable_diffusion


@pytest.fixture(scope="session")
def v_model() -> DiffusersModel:
    return wrap(pipeline("v_prediction", seed=1), "random-v")
