"""The backbone below a model's adapters: a plain copy that shares its memory, and runs with other weights."""

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import BertConfig, BertModel, CLIPConfig, CLIPModel, ViTMAEConfig, ViTMAEModel

from smat_peft.errors import CheckpointError, ConfigurationError
from smat_peft.few_shot import load_backbone
from smat_peft.few_shot.backbone import base_parameters, frozen_features, plain_copy, running_with
from smat_peft.tuner import tasks
from smat_peft.tuner.features import extract_features
from tests.tuner.backbones import BACKBONES, assert_same, outputs, task_images


@pytest.mark.parametrize("name", BACKBONES)
def test_a_plain_copy_is_the_backbone_and_takes_no_memory(name):
    plain, adapted = BACKBONES[name].base(), BACKBONES[name].adapted()
    images, _ = task_images(0)
    copied = plain_copy(adapted, {})
    with torch.no_grad():  # attention is computed otherwise where there is a gradient
        assert_same(outputs(copied, images), outputs(plain, images))
    assert not any(isinstance(module, BaseTunerLayer) for module in copied.modules())
    assert copied.state_dict().keys() == plain.state_dict().keys()
    places = base_parameters(adapted)
    assert places.keys() == {
        f"{path}.{key}".removeprefix(".")
        for path, module in plain.named_modules()
        for key, _ in module.named_parameters(recurse=False, remove_duplicate=False)
    }
    for key, parameter in copied.named_parameters():
        assert parameter.data_ptr() == places[key].parameter.data_ptr()
        assert parameter is not places[key].parameter
        assert not parameter.requires_grad


@pytest.mark.parametrize("name", BACKBONES)
def test_a_copy_with_a_task_s_weights_and_a_run_with_them_give_the_task_s_outputs(name):
    adapted = BACKBONES[name].adapted()
    images, _ = task_images(0)
    weights = {key: tensor.detach() for key, tensor in adapted.interpolate(torch.tensor([0.5, 0.2, 0.3])).items()}
    with adapted.task(weights):
        expected = outputs(adapted, images)
    with running_with(adapted, weights):
        torch.testing.assert_close(outputs(adapted, images), expected)
    torch.testing.assert_close(outputs(plain_copy(adapted, weights), images), expected)


def test_kept_gates_are_not_copied(smat_vit, monkeypatch):
    smat_vit.adapt(*task_images(0), keep_gates=True)
    copied = []
    clone = torch.Tensor.__deepcopy__
    monkeypatch.setattr(
        torch.Tensor, "__deepcopy__", lambda self, memo: copied.append(self.numel()) or clone(self, memo)
    )
    plain_copy(smat_vit, {})
    bare = ("embeddings.cls_token", "embeddings.position_embeddings")  # beside their module, copied with its layer
    places = base_parameters(smat_vit)
    assert sum(copied) <= 2 * 3 * sum(places[name].parameter.numel() for name in bare)


def test_weights_are_in_force_inside_the_block_only_and_other_names_are_refused(make_vit):
    model = make_vit()
    images, _ = task_images(0)
    before = frozen_features(model, images)
    with running_with(model, {"layernorm.weight": torch.zeros(16)}):
        assert not torch.allclose(tasks.features(model, images), before, atol=1e-4)
    assert_same(frozen_features(model, images), before)
    with (
        pytest.raises(ConfigurationError, match=r"no parameter 'layernorm\.scale'"),
        running_with(model, {"layernorm.scale": torch.zeros(16)}),
    ):
        pass


def test_of_a_model_of_images_and_text_the_vision_model_is_taken(tmp_path):
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = vision | {"vocab_size": 50, "projection_dim": 8}
    whole = CLIPModel(CLIPConfig(text_config=text, vision_config=vision | {"image_size": 16, "patch_size": 8}))
    whole.save_pretrained(tmp_path)
    loaded, images = load_backbone(tmp_path), torch.randn(2, 3, 16, 16)
    expected = whole.vision_model(images).pooler_output
    torch.testing.assert_close(extract_features(loaded, images), expected)


def test_a_model_of_text_is_refused(tmp_path):
    config = BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="is a BertModel, which takes input_ids and not images"):
        load_backbone(tmp_path)


def test_a_masked_autoencoder_sees_the_whole_image(tmp_path):
    config = ViTMAEConfig(image_size=16, patch_size=4, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    hiding = ViTMAEModel(config)
    hiding.save_pretrained(tmp_path)
    images = torch.randn(2, 3, 16, 16)
    with pytest.raises(ConfigurationError, match=r"set model\.config\.mask_ratio = 0"):
        extract_features(hiding, images)
    loaded = load_backbone(tmp_path)
    torch.testing.assert_close(extract_features(loaded, images), extract_features(loaded, images))
