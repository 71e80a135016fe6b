"""Image files that Pillow lacks: an error that names the package, and pictures where it is installed."""

import sys
from types import ModuleType

import pytest
from PIL import Image

from smat_peft import FewShotClassifier
from smat_peft.errors import DataError
from smat_peft.few_shot.image_files import PLUGINS, open_image


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
def test_a_format_that_pillow_lacks_names_the_package_to_install(make_vit, transform, tmp_path, monkeypatch, suffix):
    monkeypatch.setitem(sys.modules, PLUGINS[suffix].module, None)  # it cannot be imported
    path = tmp_path / f"photo{suffix.upper()}"
    path.write_bytes(b"something")
    with pytest.raises(DataError, match=rf"photo\{suffix.upper()}: .*pip install {PLUGINS[suffix].package}"):
        FewShotClassifier(make_vit(), transform).fit([path, path], ["a", "b"])


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
