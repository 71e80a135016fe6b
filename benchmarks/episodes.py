"""Episodes a second from a folder of JPEGs, as training loads them, against reading every image when it is drawn.

    python benchmarks/episodes.py

The images are made up: smooth noise of the size that photographs in few-shot data sets have.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from measure import compare, interleave, make_parser, report, start
from smat_peft import EpisodeSampler, load_domain
from smat_peft.episodes.cache import DEFAULT_MEBIBYTES, ImageCache
from smat_peft.episodes.images import ImageTransform
from smat_peft.meta_tuning.batches import batches

GRAIN = 16  # pixels of the noise before it is enlarged, along the longer side
QUALITY = 90  # of the JPEGs
PREFETCHED = 2  # episodes that torch's DataLoader has a process load ahead


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = make_parser(__doc__)
    parser.add_argument("--classes", type=int, default=20, help="Classes of the folder.")
    parser.add_argument("--images", type=int, default=50, help="Images of a class.")
    parser.add_argument("--width", type=int, default=500, help="Pixels of an image across; it is 3/4 as high.")
    parser.add_argument("--image_size", type=int, default=128, help="Pixels that the backbone takes.")
    parser.add_argument("--ways", type=int, default=5, help="Classes of an episode.")
    parser.add_argument("--shots", type=int, default=5, help="Support images of a class.")
    parser.add_argument("--queries", type=int, default=10, help="Query images of a class.")
    parser.add_argument("--episodes", type=int, default=40, help="Episodes of a round.")
    parser.add_argument("--workers", type=int, default=2, help="Processes that load ahead.")
    parser.add_argument("--cache", type=int, default=DEFAULT_MEBIBYTES, help="MiB of images that each process keeps.")
    arguments = parser.parse_args(argv)
    device = start(arguments)

    with tempfile.TemporaryDirectory() as folder:
        render(Path(folder), arguments.classes, arguments.images, arguments.width, arguments.seed)
        domain = load_domain(f"folder:{folder}")
        cached, plain = (
            EpisodeSampler(
                [domain],
                "all",
                arguments.ways,
                arguments.shots,
                arguments.queries,
                seed=arguments.seed,
                transform=ImageTransform((arguments.image_size, arguments.image_size)),
                augment=True,
                cache=cache,
            )
            for cache in (ImageCache(arguments.cache), None)
        )
        loaded = batches(cached, range(sys.maxsize), size=1, workers=arguments.workers, device=device)
        read = (plain[number].to(device) for number in itertools.count())
        ahead = PREFETCHED * arguments.workers  # what the other processes load while they are not waited for

        def take(episodes: Iterator[object]) -> Iterator[str]:
            for phase, count in (("ahead", ahead), ("loading", arguments.episodes)):
                for _ in itertools.islice(episodes, count):
                    pass
                yield phase

        sides = {"ours": lambda: take(loaded), "baseline": lambda: take(read)}
        measured = interleave(sides, device, rounds=arguments.rounds, warmup=arguments.warmup)
    rates = {side: [arguments.episodes / s for s in phases["loading"]] for side, phases in measured.items()}
    row = compare("loading", rates["ours"], rates["baseline"], unit="episodes/s", ratio_is="ours / baseline")
    report([row], arguments)


def render(folder: Path, classes: int, images: int, width: int, seed: int) -> None:
    """A folder of class folders of JPEGs."""
    random, height = np.random.default_rng(seed), width * 3 // 4
    for number in tqdm(range(classes), desc="Rendering", unit="class", leave=False):
        of_class = folder / f"class-{number:03d}"
        of_class.mkdir()
        for image in range(images):
            noise = random.integers(0, 256, (GRAIN * 3 // 4, GRAIN, 3), dtype=np.uint8)
            smooth = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
            smooth.save(of_class / f"{image:04d}.jpg", quality=QUALITY)


if __name__ == "__main__":
    main()
