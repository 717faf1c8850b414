"""A model, and the combinations of components that README names."""

import subprocess

import pytest

import harness
import manifests


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    subprocess.run([harness.BUILD / "tests/xcache-tiny-model", path,
                    "context=4096"], check=True)
    return path


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
