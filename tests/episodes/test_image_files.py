"""Image files that Pillow lacks: an error that names the package, and pictures where it is installed."""

import sys
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from smat_peft.episodes.domains import load_domain
from smat_peft.episodes.image_files import PLUGINS, open_image
from smat_peft.errors import DataError


@pytest.fixture
def photo(tmp_path):
    """An image file whose format goes by another name, as if it took a package."""

    def save(suffix, plugin, monkeypatch):
        path = tmp_path / f"photo{suffix}"
        image = Image.new("RGB", (20, 10), (200, 30, 30))
        exif = Image.Exif()
        exif[0x0112] = 6  # turned by a quarter
        image.save(path, "PNG", exif=exif)
        monkeypatch.setitem(PLUGINS, suffix, plugin._replace(format="PNG"))
        return path

    return save


@pytest.mark.parametrize("suffix", PLUGINS)
def test_a_format_that_pillow_lacks_names_the_package_to_install(tmp_path, monkeypatch, suffix):
    monkeypatch.setitem(sys.modules, PLUGINS[suffix].module, None)  # it cannot be imported
    folder = tmp_path / "class"
    folder.mkdir()
    path = folder / f"photo{suffix.upper()}"
    path.write_bytes(b"something")
    with pytest.raises(DataError, match=rf"photo\{suffix.upper()}: .*pip install {PLUGINS[suffix].package}"):
        open_image(path)
    Image.new("RGB", (4, 4)).save(folder / "other.png")
    domain = load_domain(f"folder:{tmp_path}")  # such files are not passed over
    with pytest.raises(DataError, match=f"pip install {PLUGINS[suffix].package}"):
        list(domain.class_images["class"])


@pytest.mark.parametrize("suffix", PLUGINS)
def test_with_the_package_the_image_is_read_and_turned(photo, monkeypatch, suffix):
    plugin, registered = PLUGINS[suffix], []
    module = ModuleType(plugin.module)
    if plugin.package == "pillow-heif":
        module.register_heif_opener = lambda: registered.append(True)
    monkeypatch.setitem(sys.modules, plugin.module, module)
    image = open_image(photo(suffix, plugin, monkeypatch))
    assert image.size == (10, 20)
    assert image.getpixel((0, 0)) == (200, 30, 30)
    assert bool(registered) == (plugin.package == "pillow-heif")


def test_a_damaged_file_of_such_a_format_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pillow_jxl", ModuleType("pillow_jxl"))
    (tmp_path / "photo.jxl").write_bytes(b"something")
    with pytest.raises(DataError, match=r"photo\.jxl cannot be read as an image"):
        open_image(tmp_path / "photo.jxl")


@pytest.mark.parametrize("suffix", PLUGINS)
def test_the_real_package_where_it_is_installed(tmp_path, suffix):
    module = pytest.importorskip(PLUGINS[suffix].module)
    if hasattr(module, "register_heif_opener"):
        module.register_heif_opener()
    Image.new("RGB", (20, 10), (200, 30, 30)).save(tmp_path / f"photo{suffix}", PLUGINS[suffix].format)
    assert open_image(tmp_path / f"photo{suffix}").size == (20, 10)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_16_bits_are_not_cut_off_at_255(tmp_path, suffix):
    values = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)
    path = tmp_path / f"deep{suffix}"
    if suffix == ".pgm":
        path.write_bytes(b"P5 4 1 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(path)
    assert np.asarray(open_image(path))[0].tolist() == [[0] * 3, [1] * 3, [128] * 3, [255] * 3]


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_values_whose_range_is_not_known_are_refused(tmp_path, kind):
    Image.fromarray(np.zeros((4, 4), dtype=kind)).save(tmp_path / "deep.tif")
    with pytest.raises(DataError, match=r"deep\.tif cannot be read .*32-bit values"):
        open_image(tmp_path / "deep.tif")


def test_of_an_animation_the_first_picture_is_taken(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert open_image(tmp_path / "moving.gif").getpixel((0, 0)) == (255, 0, 0)


def test_a_picture_that_would_exhaust_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("1", (20, 20)).save(tmp_path / "bomb.png")
    with pytest.raises(DataError, match=r"bomb\.png cannot be read .*DecompressionBombError"):
        open_image(tmp_path / "bomb.png")
