"""Files that come with the package: the demo's backbone and its recipe."""

from pathlib import Path

_FOLDER = Path(__file__).parent
DEMO_BACKBONE = "demo-vit"
DEMO_RECIPE = _FOLDER / "demo.yaml"


def demo_backbone() -> Path:
    """The folder of the demo's small ViT, in `save_pretrained` format; a card in it says how it was made."""
    return _FOLDER / DEMO_BACKBONE


def backbone_source(name_or_path: str | Path) -> str:
    """Where to load a backbone from: the packaged one's folder for its name, anything else as it is."""
    return str(demo_backbone()) if str(name_or_path) == DEMO_BACKBONE else str(name_or_path)
