"""A model, and the combinations of components that README names."""

import subprocess

import pytest

import harness
import manifests


def make_model(path, *options):
    subprocess.run([harness.BUILD / "tests/xcache-tiny-model", path, *options],
                   check=True)
    return path


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def tiny_model(models):
    return make_model(models / "tiny.gguf", "context=4096")


@pytest.fixture(scope="session")
def slow_model(models):
    """Large enough for an answer to take seconds."""
    return make_model(models / "slow.gguf", "layers=8", "d_model=512",
                      "n_heads=8", "n_kv_heads=2", "head_dim=64", "d_ff=2048",
                      "context=8192")


@pytest.fixture(scope="session")
def render(tmp_path_factory):
    """Components -> the resources of base with them; each rendered once."""
    known = {}

    def rendered(*components):
        if components not in known:
            known[components] = manifests.render(
                tmp_path_factory.mktemp("kustomization"), components)
        return known[components]

    return rendered
