"""The built-in suite: domains of several kinds that need no network.

Like the benchmarks of the field it has domains to meta-tune on and domains that meta-tuning never sees. No class of one
domain looks like a class of another, nor like one that the demo's backbone was pre-trained on.
"""

from __future__ import annotations

from smat_peft.episodes.builtin.characters import CHARACTERS
from smat_peft.episodes.builtin.digits import digit_domain
from smat_peft.episodes.builtin.glyphs import glyph_domain
from smat_peft.episodes.builtin.shapes import FLAG_DOMAINS, SHAPE_DOMAINS, flag_domain, shape_domain
from smat_peft.episodes.builtin.textures import TEXTURE_DOMAINS, texture_domain
from smat_peft.episodes.domain import Domain
from smat_peft.errors import DataError

# dev_ood is looked at while a method is made, test_ood once it is fixed.
ROLES: dict[str, tuple[str, ...]] = {
    "id": ("greek", "cyrillic", "armenian", "georgian", "canadian", "masonry"),
    "dev_ood": ("hebrew", "arrows", "emblems", "minerals"),
    "test_ood": ("arabic", "lao", "digits", "flags", "fabrics"),
}

PRETRAINING: tuple[str, ...] = ("latin", "symbols", "ancient", "shapes", "banners", "patterns")

KINDS: dict[str, tuple[str, ...]] = {
    "characters": tuple(CHARACTERS),
    "digits": ("digits",),
    "shapes": tuple(SHAPE_DOMAINS),
    "flags": tuple(FLAG_DOMAINS),
    "textures": tuple(TEXTURE_DOMAINS),
}

_MAKERS = {
    "characters": glyph_domain,
    "digits": digit_domain,
    "shapes": shape_domain,
    "flags": flag_domain,
    "textures": texture_domain,
}


def _make(name: str) -> Domain:
    kind = next(kind for kind, names in KINDS.items() if name in names)
    return _MAKERS[kind](name)


def builtin_names() -> list[str]:
    """Names of the domains to meta-tune on and to evaluate on, role by role."""
    return [name for names in ROLES.values() for name in names]


def load_builtin(name: str) -> Domain:
    """The built-in domain called `name`; its images are 32 x 32, RGB, and drawn when they are first indexed.

    Raises:
        DataError: There is no such domain.
    """
    if name not in builtin_names():
        raise DataError(f"there is no built-in domain {name!r}; there are {', '.join(builtin_names())}")
    return _make(name)


def load_pretraining() -> list[Domain]:
    """The domains that `examples/pretrain_backbone.py` trains the demo's backbone on, all of their classes."""
    return [_make(name) for name in PRETRAINING]
