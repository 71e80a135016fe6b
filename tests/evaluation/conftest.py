"""Small domains of coloured patterns and a tiny backbone with experts."""

from collections.abc import Callable

import pytest
from peft import PeftModel

from smat_peft.episodes.domain import Domain
from smat_peft.episodes.images import ImageTransform
from tests.evaluation import small


@pytest.fixture
def transform() -> ImageTransform:
    return small.TRANSFORM


@pytest.fixture(scope="session")
def make_domain() -> Callable[..., Domain]:
    """A function that builds a domain whose classes are noisy colour patterns, each image its own noise."""
    return small.make_domain


@pytest.fixture
def smat_vit(make_vit) -> PeftModel:
    """A ViT with three experts that change its outputs."""
    return small.with_experts(make_vit())
