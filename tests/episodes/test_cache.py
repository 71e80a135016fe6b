import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from smat_peft.episodes.cache import MEBIBYTE, ImageCache
from smat_peft.episodes.domain import EVERY_AUGMENTATION, Domain, Split
from smat_peft.episodes.domains import load_domain
from smat_peft.episodes.images import ImageTransform
from smat_peft.episodes.sampling import EpisodeSampler
from smat_peft.errors import ConfigurationError
from tests.episodes.loading import forks, loaded, same
from tests.episodes.open_files import no_file_stays_open

WHOLE = frozenset({"crop"})  # an image is then kept as large as it is


class CountedImages(Sequence[Image.Image]):
    """Images whose pixels say how often any of them was read in this process."""

    def __init__(self, count: int, side: int = 8) -> None:
        self.count, self.side, self.reads = count, side, 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: Any) -> Image.Image:
        self.reads += 1
        return Image.new("RGB", (self.side, self.side), (self.reads % 256, number, 0))


def photographs(folder: Path) -> Domain:
    """A folder of JPEG and PNG files of noise, of different sizes."""
    random = np.random.RandomState(0)
    for class_number in range(6):
        (folder / f"class{class_number}").mkdir(parents=True)
        for number in range(6):
            pixels = random.randint(0, 256, (20 + number, 30 - class_number, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"class{class_number}" / f"{number}.{('jpg', 'png')[number % 2]}")
    return load_domain(f"folder:{folder}")


def make_sampler(domain: Domain, cache: ImageCache | None, *, augment: bool = True, split: Split = "all") -> Any:
    transform = ImageTransform((16, 16), resize=18)
    return EpisodeSampler([domain], split, 5, 2, 2, transform=transform, augment=augment, cache=cache)


@pytest.mark.parametrize("mebibytes", [0, 1])
def test_episodes_with_a_cache_equal_those_without_to_the_bit(tmp_path: Path, mebibytes: int) -> None:
    domain, cache = photographs(tmp_path / "flowers"), ImageCache(mebibytes)
    for augment in (True, False, True):  # the same images, kept whole and kept in size, in one cache
        cached, plain = (make_sampler(domain, which, augment=augment) for which in (cache, None))
        assert all(same(cached[index], plain[index]) for index in (0, 1, 2, 1, 0))
    assert (cache.used > 0) == (mebibytes > 0)


def test_an_image_is_read_once_as_long_as_it_is_kept() -> None:
    kept, not_kept = CountedImages(10), CountedImages(10)
    for cache, images in ((ImageCache(1), kept), (ImageCache(0), not_kept)):
        for _ in range(3):
            for number in range(10):
                cache.prepare(images, number, ImageTransform((8, 8)))
    assert (kept.reads, not_kept.reads) == (10, 30)


def test_the_bound_holds_and_the_images_not_used_for_longest_go() -> None:
    images, cache, transform = CountedImages(100, side=100), ImageCache(1), ImageTransform((4, 4))
    fitting = MEBIBYTE // (100 * 100 * 3)
    for number in range(100):
        cache.prepare(images, number, transform, WHOLE)
        cache.prepare(images, 0, transform, WHOLE)  # used all the time
        assert cache.used == min(number + 1, fitting) * 100 * 100 * 3 <= MEBIBYTE
    assert images.reads == 100
    for number in (0, 99, 100 - fitting + 1):
        cache.prepare(images, number, transform, WHOLE)
    assert images.reads == 100
    cache.prepare(images, 100 - fitting, transform, WHOLE)
    assert images.reads == 101


def test_an_image_larger_than_the_bound_drives_out_no_other() -> None:
    small, large, cache, transform = CountedImages(1), CountedImages(1, side=600), ImageCache(1), ImageTransform((4, 4))
    for images in (small, large, small, large):
        assert cache.prepare(images, 0, transform, WHOLE).width == images.side
    assert (small.reads, large.reads) == (1, 2)


def test_images_are_never_mistaken_for_those_of_a_sequence_that_is_gone() -> None:
    cache = ImageCache(1)
    for grey in range(100):  # a new list often gets the place in memory, and so the id, of the one before it
        image = cache.prepare([Image.new("L", (2, 2), grey)], 0, ImageTransform((2, 2)))
        assert image.getpixel((0, 0)) == (grey, grey, grey)


def test_a_cache_goes_to_another_process_empty_and_with_its_bound() -> None:
    domain, cache = Domain("counted", {f"{c}": CountedImages(10) for c in range(5)}), ImageCache(3)
    sampler = make_sampler(domain, cache)
    size = len(pickle.dumps(sampler))
    sampler[0]
    copy = pickle.loads(pickle.dumps(sampler))
    assert len(pickle.dumps(sampler)) < size + 500
    assert (copy.cache.mebibytes, copy.cache.used) == (3, 0)
    assert cache.used > 0


@forks
def test_two_loading_processes_give_the_same_episodes_in_the_same_order(tmp_path: Path) -> None:
    domain, numbers = photographs(tmp_path / "flowers"), [3, 1, 4, 1, 5, 9, 2, 6]
    alone, together = (loaded(make_sampler(domain, ImageCache(1)), numbers, workers) for workers in (0, 2))
    assert [episode.index for episode in together] == numbers
    assert all(map(same, alone, together))


@forks
def test_a_loading_process_has_a_cache_of_its_own() -> None:
    images = CountedImages(4)
    domain = Domain("counted", dict.fromkeys("abcde", images))  # 4 images, all in every episode
    for mebibytes, most in ((1, 4), (0, 60)):
        sampler = EpisodeSampler(
            *([domain], "all", 5, 2, 2),
            transform=ImageTransform((8, 8), rescale=1.0, mean=(0,) * 3, std=(1,) * 3),
            cache=ImageCache(mebibytes),
        )
        reads = max(int(episode.query[:, 0].max()) for episode in loaded(sampler, range(3), workers=1))
        assert reads == most
    assert images.reads == 0  # all of them in the loading processes


class LazilyOpened(CountedImages):
    """Images that Pillow has opened and not yet read."""

    def __init__(self, path: Path) -> None:
        super().__init__(5)
        self.path = path

    def __getitem__(self, number: Any) -> Image.Image:
        return Image.open(self.path)


def test_open_files_do_not_grow_with_images_drawn(tmp_path: Path) -> None:
    sampler, cache = make_sampler(photographs(tmp_path / "flowers"), ImageCache(1)), ImageCache(1)
    path = next((tmp_path / "flowers").glob("*/*.png"))
    with no_file_stays_open(tmp_path):
        kept = [sampler[index] for index in range(10)]
        prepared = [cache.prepare(LazilyOpened(path), number, ImageTransform((4, 4)), WHOLE) for number in range(5)]
    assert (len(kept), len(prepared)) == (10, 5)


def test_a_cache_of_less_than_nothing_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least 0 MiB, got -1"):
        ImageCache(-1)


def test_preparing_and_finishing_are_the_two_halves_of_training() -> None:
    image = Image.fromarray(np.random.RandomState(0).randint(0, 256, (40, 30, 3), dtype=np.uint8))
    transform = ImageTransform((16, 16), resize=18)
    for augment in (EVERY_AUGMENTATION, frozenset({"colour"})):
        whole = transform.training(image, augment, np.random.RandomState(1))
        prepared = transform.prepare(image, augment)
        halves = [transform.finish(prepared, augment, np.random.RandomState(1)) for _ in range(2)]
        assert all(torch.equal(half, whole) for half in halves)
