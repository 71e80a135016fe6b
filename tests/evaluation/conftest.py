"""Small domains of coloured patterns, a tiny backbone with experts, and the figures that are saved."""

from collections.abc import Callable

import pytest
from matplotlib.figure import Figure
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


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved, so that a test can look at what is in them."""
    found: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (found.append(self), save(self, *a, **k))[1])
    return found
