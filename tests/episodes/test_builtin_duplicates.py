"""No class of the built-in suite is drawn like another one, be it in another domain or in the pre-training."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from smat_peft.episodes.builtin import KINDS, builtin_names, load_builtin, load_pretraining
from smat_peft.episodes.builtin.characters import CHARACTERS
from smat_peft.episodes.builtin.glyphs import FACES, faces_of, outline, place
from smat_peft.episodes.builtin.grid import plane
from smat_peft.episodes.builtin.shapes import FILLS, FLAG_DOMAINS, SHAPE_DOMAINS, SHAPES
from smat_peft.episodes.builtin.textures import TEXTURE_DOMAINS

SAME = 0.915  # drawings more alike than this differ by no more than size, position and a stroke's weight
BLUR = torch.tensor([0.25, 0.5, 0.25])
SHIFTS = ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))  # pixels


def normalised(inks: Sequence[Image.Image]) -> Tensor:
    """Ink of one size in the middle of the image, `[N, H, W]`, softened by about a pixel."""
    placed = np.stack([np.asarray(place(ink, longest=24)) for ink in inks])[:, 2:-2, 2:-2]
    kernel = (BLUR[:, None] * BLUR)[None, None]
    return F.conv2d(torch.from_numpy(placed).float()[:, None], kernel, padding=1)[:, 0]


def likeness(drawings: Tensor, others: Tensor) -> Tensor:
    """Cosine between all drawings and all others, `[N, M]`, at the best of five shifts."""
    units = F.normalize(others.flatten(1), dim=1).T
    shifted = [F.normalize(drawings.roll(shift, dims=(1, 2)).flatten(1), dim=1) @ units for shift in SHIFTS]
    return torch.stack(shifted).amax(0)


def likeness_of_characters(characters: Sequence[str]) -> Tensor:
    """For each pair the mean likeness over the faces that hold both, or in their own first faces if they share none."""
    total = torch.zeros(len(characters), len(characters))
    count = torch.zeros_like(total)
    for face in FACES:
        held = torch.tensor([number for number, character in enumerate(characters) if face in faces_of(character)])
        if len(held):
            drawings = normalised([outline(characters[number], face) for number in held])
            total[held[:, None], held] += likeness(drawings, drawings)
            count[held[:, None], held] += 1
    first = normalised([outline(character, faces_of(character)[0]) for character in characters])
    return torch.where(count > 0, total / count.clamp_min(1), likeness(first, first))


def pairs_above(likenesses: Tensor, names: Sequence[str], bound: float) -> list[str]:
    rows, columns = torch.nonzero(torch.triu(likenesses, diagonal=1) > bound, as_tuple=True)
    return [names[row] + names[column] for row, column in zip(rows.tolist(), columns.tolist(), strict=True)]


def ink_of_shape(shape: str, fill: str) -> Image.Image:
    ink = np.asarray(FILLS[fill](SHAPES[shape], *plane(scale=0.9)), dtype=np.float64)
    image = Image.fromarray((ink * 255).astype(np.uint8))
    return image.crop(image.getbbox())


@pytest.fixture(scope="module")
def characters() -> list[str]:
    return [character for script in CHARACTERS.values() for character in script]


def test_no_character_is_in_two_scripts_or_twice_in_one(characters):
    assert [character for character, count in Counter(characters).items() if count > 1] == []


def test_no_two_characters_are_the_same_drawing(characters):
    assert pairs_above(likeness_of_characters(characters), characters, SAME) == []


@pytest.mark.parametrize("pair", ["AΑ", "AА", "ВΒ", "Oo", "Cc", "Ss", "Жж", "оo", "ІI", "Кк"])
def test_the_measure_finds_drawings_that_differ_in_script_or_size_alone(pair):
    assert likeness_of_characters(pair)[0, 1] > SAME


@pytest.mark.parametrize("pair", ["AB", "бв", "Σξ", "אב", "ԱԲ", "ᐁᐃ", "QO", "bd"])
def test_the_measure_keeps_drawings_that_a_reader_tells_apart(pair):
    assert likeness_of_characters(pair)[0, 1] < SAME


def test_braille_is_left_out_because_its_dots_have_no_frame(characters):
    assert not [character for character in characters if 0x2800 <= ord(character) <= 0x28FF]


def test_no_character_is_a_coloured_shape(characters):
    names = [f"{fill} {shape}" for shape in SHAPES for fill in ("full", "hollow")]
    shapes = normalised([ink_of_shape(*reversed(name.split())) for name in names])
    drawn = normalised([outline(character, faces_of(character)[0]) for character in characters])
    rows, columns = torch.nonzero(likeness(drawn, shapes) > SAME, as_tuple=True)
    assert [characters[row] + " " + names[column] for row, column in zip(rows, columns, strict=True)] == []


def test_shapes_flags_and_textures_share_no_shape_layout_or_family_between_domains():
    for of_domain in (
        [shapes for shapes, _, _ in SHAPE_DOMAINS.values()],
        [pairs for _, _, pairs in SHAPE_DOMAINS.values()],
        [layouts for layouts, _ in FLAG_DOMAINS.values()],
        [triples for _, triples in FLAG_DOMAINS.values()],
        [[family for family, _ in families] for families in TEXTURE_DOMAINS.values()],
    ):
        everything = [item for items in of_domain for item in items]
        assert len(set(everything)) == len(everything)


def test_no_two_shapes_have_the_same_outline():
    outlines = normalised([ink_of_shape(shape, "hollow") for shape in SHAPES])  # insides of blobs are all alike
    assert pairs_above(likeness(outlines, outlines), list(SHAPES), SAME) == []


def mean_image(images: Sequence[Image.Image]) -> Tensor:
    """Colours at half resolution."""
    pixels = torch.from_numpy(np.stack(images)).float().permute(0, 3, 1, 2)
    return F.avg_pool2d(pixels, 2).mean(0).flatten()


def mean_spectrum(images: Sequence[Image.Image]) -> Tensor:
    """Logarithm of the power of each spatial frequency, whatever the position, the colours and the contrast."""
    grey = torch.from_numpy(np.stack(images)).float().mean(-1)
    grey = (grey - grey.mean((1, 2), keepdim=True)) / grey.std((1, 2), keepdim=True)
    window = torch.hann_window(grey.shape[-1])
    return torch.log(torch.fft.fft2(grey * window[:, None] * window).abs().square().mean(0) + 0.1).flatten()


@pytest.mark.parametrize(("kind", "look"), [("flags", mean_image), ("textures", mean_spectrum)])
def test_half_the_images_of_a_class_are_most_like_its_other_half(kind, look):
    everything = [*map(load_builtin, builtin_names()), *load_pretraining()]
    domains = [domain for domain in everything if domain.name in KINDS[kind]]
    classes = {f"{domain.name}: {name}": images for domain in domains for name, images in domain.class_images.items()}
    halves = [torch.stack([look(images[start::2]) for images in classes.values()]) for start in (0, 1)]
    units = [F.normalize(half - half.mean(0), dim=1) for half in halves]
    nearest = (units[0] @ units[1].T).argmax(1).tolist()
    names = list(classes)
    assert [(name, names[other]) for name, other in zip(names, nearest, strict=True) if name != names[other]] == []
