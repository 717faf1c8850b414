"""Models, a seed and a hook that tests of several folders take: `from
model_fixtures import ...` in a conftest.py."""

import os
import pathlib
import random
import subprocess

import pytest

import harness


def pytest_collection_modifyitems(items):
    """A campaign takes as long as it was asked to."""
    for item in items if harness.CAMPAIGN else ():
        item.add_marker(pytest.mark.timeout(0), append=False)


def make_model(path, *options):
    subprocess.run([harness.BUILD / "tests/xcache-tiny-model", path, *options],
                   check=True)
    return path


def calibrate(model, folder):
    """A profile of xquant-tc where a server of `folder` looks for it."""
    profiles = folder / "store" / "profiles"
    profiles.mkdir(parents=True)
    subprocess.run([harness.BUILD / "bin/xcache-calibrate", "--model", model,
                    "--text", pathlib.Path(__file__).with_name("README.md"),
                    "--out", profiles, "--windows", "4", "--written", "1",
                    "--gradients", "2", "--window-tokens", "128",
                    "--threads", "1"], check=True)


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def tiny_model(models):
    """Random weights, real in every part; thousands of tokens a second."""
    return make_model(models / "tiny.gguf", "context=4096")


@pytest.fixture(scope="session")
def slow_model(models):
    """Large enough for an answer to take seconds, so that it can be cancelled
    and queued behind."""
    return make_model(models / "slow.gguf", "layers=8", "d_model=512",
                      "n_heads=8", "n_kv_heads=2", "head_dim=64", "d_ff=2048",
                      "context=8192")


@pytest.fixture(scope="session")
def real_model():
    path = os.environ.get("XCACHE_TEST_MODEL")
    if not path:
        pytest.skip("XCACHE_TEST_MODEL is not set")
    return path


@pytest.fixture(scope="session")
def seed():
    value = int(os.environ.get("XCACHE_SEED") or random.randrange(1 << 30))
    print(f"XCACHE_SEED={value}")
    return value
