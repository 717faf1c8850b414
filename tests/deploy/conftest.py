"""A model, and the combinations of components that README names."""

import pytest

import harness
import manifests
from model_fixtures import models, slow_model, tiny_model  # noqa: F401


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
