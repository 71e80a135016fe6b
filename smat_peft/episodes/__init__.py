"""From images on disk to few-shot tasks: domains, the sampler, the images' way to pixels."""

from smat_peft.episodes.cache import ImageCache
from smat_peft.episodes.domain import Domain
from smat_peft.episodes.domains import load_domain, load_domains
from smat_peft.episodes.episode import Episode
from smat_peft.episodes.images import ImageTransform, load_image_transform
from smat_peft.episodes.overlap import shared_content
from smat_peft.episodes.sampling import EpisodeSampler

__all__ = [
    "Domain",
    "Episode",
    "EpisodeSampler",
    "ImageCache",
    "ImageTransform",
    "load_domain",
    "load_domains",
    "load_image_transform",
    "shared_content",
]
