"""Writes a file of each format as it is today, to be read for ever: `python -m tests.sharing.write_formats`.

Run it when a format gets a new version; files of earlier versions stay as they are.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import Tensor
from transformers import ViTConfig, ViTModel

from smat_peft import SMATConfig, pack_adapter, save_task
from smat_peft.meta_tuning.checkpoints import save_checkpoint

FORMATS = Path(__file__).parents[1] / "golden" / "formats"
EXPECTED = "expected.safetensors"
PIXELS = torch.linspace(-1, 1, 4 * 3 * 8 * 8).sin().view(4, 3, 8, 8)
LABELS = torch.tensor([0, 0, 1, 1])


def smallest_vit() -> ViTModel:
    """A ViT of a few hundred weights, the same on every machine."""
    shape = {"hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = ViTModel(ViTConfig(**shape, image_size=8, patch_size=4), add_pooling_layer=False).eval()
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).add(number).sin().view(parameter.shape))
    return model


def changes(model: PeftModel) -> dict[str, Tensor]:
    """What an adapter adds to the backbone with its experts mixed evenly."""
    count = model.peft_config["default"].num_experts
    base = dict(smallest_vit().named_parameters())
    mixed = model.interpolate(torch.full((count,), 1 / count))
    return {name: (weight - base[name]).detach() for name, weight in mixed.items()}


def main() -> None:
    """Write all that was written as of the newest version; an older one had checkpoints of format 1."""
    torch.manual_seed(0)
    folder = FORMATS / "2"
    shutil.rmtree(folder, ignore_errors=True)
    config = SMATConfig(num_experts=2, init_weights=False, gate_init_std=4.0, router_heads=1, router_skill_tokens=1)
    model = get_peft_model(smallest_vit(), config).eval()
    model.save_pretrained(folder / "trainable")
    pack_adapter(model, folder / "packed", images=PIXELS)
    model.adapt(PIXELS, LABELS)
    save_task(model, folder / "task")
    for name in ("trainable", "packed", "task"):
        save_file(changes(PeftModel.from_pretrained(smallest_vit(), folder / name)), folder / name / EXPECTED)
        (folder / name / "README.md").unlink(missing_ok=True)
    save_checkpoint(folder, 3, {"tensor": torch.arange(3.0)}, {"step": 3, "best": 0.5})


if __name__ == "__main__":
    main()
