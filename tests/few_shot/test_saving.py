"""A fitted classifier on disk: the same probabilities after loading, and an error for everything that is not whole."""

import json

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model
from sklearn.exceptions import NotFittedError

from smat_peft import FewShotClassifier, SMATConfig
from smat_peft.errors import CheckpointError
from smat_peft.few_shot import load_backbone, load_model
from smat_peft.few_shot.saving import DESCRIPTION, TENSORS
from tests.sharing.hub_server import Commit, Repository


@pytest.fixture
def fitted(backbone_folder, adapter_folder, examples):
    return FewShotClassifier.from_pretrained(backbone_folder, adapter_folder).fit(*examples)


@pytest.fixture
def folder(fitted, tmp_path):
    fitted.save(tmp_path / "mine")
    return tmp_path / "mine"


@pytest.mark.parametrize("adaptation", ["prototype", "full", "lora"])
@pytest.mark.parametrize("with_adapter", [False, True], ids=["backbone", "experts"])
def test_a_loaded_classifier_gives_equal_probabilities(
    backbone_folder, adapter_folder, examples, queries, tmp_path, with_adapter, adaptation
):
    settings = {"adaptation": adaptation, "steps": 2, "learning_rate": 1e-3, "batch_size": 5}
    before = FewShotClassifier.from_pretrained(backbone_folder, adapter_folder if with_adapter else None, **settings)
    before.fit(*examples).save(tmp_path / "mine")
    after = FewShotClassifier.load(tmp_path / "mine")
    np.testing.assert_array_equal(after.predict_proba(queries[0]), before.predict_proba(queries[0]))
    assert after.predict(queries[0]).tolist() == before.predict(queries[0]).tolist()
    assert after.transform_ == before.transform_
    assert after.learning_rate_ == before.learning_rate_
    assert (after.task_.expert_weights is None) == (not with_adapter)
    named = settings | {"augment": True, "seed": 0, "verbose": True}
    assert {name: after.get_params()[name] for name in named} == named


def test_numpy_s_numbers_are_saved_as_numbers(make_vit, transform, examples, tmp_path):
    settings = {"steps": np.int64(3), "learning_rate": np.float32(0.5), "augment": np.bool_(False)}
    FewShotClassifier(make_vit(), transform).fit(*examples).set_params(**settings).save(tmp_path)
    assert {name: FewShotClassifier.load(tmp_path, make_vit()).get_params()[name] for name in settings} == settings


def test_fitting_anew_without_the_adapter_is_warned_of(fitted, folder, examples):
    with pytest.warns(UserWarning, match="loaded without the adapter"):
        FewShotClassifier.load(folder).fit(*examples)
    FewShotClassifier.load(folder, fitted.model).fit(*examples)


def test_a_setting_that_cannot_be_written_leaves_the_classifier_that_was_there(fitted, folder, queries):
    before = fitted.predict_proba(queries[0])
    fitted.verbose = object()
    with pytest.raises(TypeError):
        fitted.save(folder)
    np.testing.assert_array_equal(FewShotClassifier.load(folder).predict_proba(queries[0]), before)


@pytest.mark.parametrize("labels", [["é", "b", "c"], [3, -2, 7], [0.5, 1.5, 2.5]])
def test_labels_come_back_as_they_were(make_vit, transform, examples, tmp_path, labels):
    model = make_vit()
    before = FewShotClassifier(model, transform).fit(examples[0], [label for label in labels for _ in range(4)])
    before.save(tmp_path / "mine")
    after = FewShotClassifier.load(tmp_path / "mine", model)
    assert after.classes_.tolist() == before.classes_.tolist()
    assert after.classes_.dtype == before.classes_.dtype


def test_the_feature_of_the_adapter_is_kept(backbone_folder, examples, queries, tmp_path):
    model = get_peft_model(load_backbone(backbone_folder), SMATConfig(num_experts=2, feature="mean")).eval()
    transform = FewShotClassifier.from_pretrained(backbone_folder).image_processor
    before = FewShotClassifier(model, transform).fit(*examples)
    before.save(tmp_path / "mine")
    after = FewShotClassifier.load(tmp_path / "mine")
    np.testing.assert_array_equal(after.predict_proba(queries[0]), before.predict_proba(queries[0]))


def test_pixels_need_no_transform_after_loading_either(make_vit, transform, examples, tmp_path):
    pixels = torch.stack([transform.evaluation(image) for image in examples[0]])
    model = make_vit()
    before = FewShotClassifier(model).fit(pixels, examples[1])
    before.save(tmp_path / "mine")
    after = FewShotClassifier.load(tmp_path / "mine", model)
    assert after.transform_ is None
    np.testing.assert_array_equal(after.predict_proba(pixels), before.predict_proba(pixels))


def test_saving_again_replaces_what_was_there(fitted, folder, examples):
    fitted.fit(examples[0][4:], examples[1][4:]).save(folder)
    assert FewShotClassifier.load(folder).classes_.tolist() == ["broom", "chicory"]
    assert sorted(path.name for path in folder.iterdir()) == [DESCRIPTION, TENSORS]


def test_a_backbone_of_no_name_has_to_be_given(make_vit, transform, examples, tmp_path):
    model = torch.nn.Flatten()
    FewShotClassifier(model, transform).fit(*examples).save(tmp_path / "mine")
    with pytest.raises(CheckpointError, match="does not say where its backbone comes from; give it as model"):
        FewShotClassifier.load(tmp_path / "mine")
    assert FewShotClassifier.load(tmp_path / "mine", model).model_ is model


def test_a_backbone_with_another_method_s_adapter_is_not_loaded_without_it(
    backbone_folder, transform, examples, tmp_path
):
    config = LoraConfig(target_modules=["v_proj"], lora_alpha=64, init_lora_weights=False)
    model = get_peft_model(load_backbone(backbone_folder), config).eval()
    FewShotClassifier(model, transform).fit(*examples).save(tmp_path / "mine")
    with pytest.raises(CheckpointError, match="give it as model"):
        FewShotClassifier.load(tmp_path / "mine")
    with pytest.raises(CheckpointError, match="is not the backbone of the classifier"):
        FewShotClassifier.load(tmp_path / "mine", load_backbone(backbone_folder))
    FewShotClassifier.load(tmp_path / "mine", model)


def test_a_backbone_of_the_hub_is_loaded_as_it_was(
    hub, backbone_folder, make_vit, examples, queries, tmp_path, monkeypatch
):
    def files(folder):
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    repository = hub.repositories["user/vit"] = Repository()
    repository.files.update(files(backbone_folder))
    before = FewShotClassifier.from_pretrained("user/vit").fit(*examples)
    before.save(tmp_path / "mine")
    make_vit(seed=1).save_pretrained(tmp_path / "newer")
    repository.files.update(files(tmp_path / "newer"))
    repository.commits.append(Commit("newer", "main", []))
    newer = FewShotClassifier.from_pretrained("user/vit").fit(*examples)
    assert np.abs(newer.predict_proba(queries[0]) - before.predict_proba(queries[0])).max() > 1e-3
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # the cache has both; this Hub, the newest alone
    after = FewShotClassifier.load(tmp_path / "mine")
    np.testing.assert_array_equal(after.predict_proba(queries[0]), before.predict_proba(queries[0]))
    after.save(tmp_path / "again")
    assert (tmp_path / "again" / DESCRIPTION).read_text() == (tmp_path / "mine" / DESCRIPTION).read_text()


def test_a_classifier_that_was_saved_without_a_revision_is_loaded(fitted, folder, queries):
    drop(folder / DESCRIPTION, "revision")
    np.testing.assert_array_equal(
        FewShotClassifier.load(folder).predict_proba(queries[0]), fitted.predict_proba(queries[0])
    )


def test_another_backbone_is_refused(folder, make_vit):
    for other in (make_vit(hidden_size=8, intermediate_size=16), make_vit(num_hidden_layers=3), torch.nn.Flatten()):
        with pytest.raises(CheckpointError, match="is not the backbone of the classifier"):
            FewShotClassifier.load(folder, other)


def test_a_backbone_with_other_weights_is_refused(backbone_folder, make_vit, examples, tmp_path):
    FewShotClassifier.from_pretrained(backbone_folder).fit(*examples).save(tmp_path / "mine")
    with pytest.raises(CheckpointError, match="is not the backbone of the classifier"):
        FewShotClassifier.load(tmp_path / "mine", make_vit(seed=1))


def test_the_adapted_model_may_be_given_too(folder, backbone_folder, adapter_folder, fitted, queries):
    after = FewShotClassifier.load(folder, load_model(backbone_folder, adapter_folder))
    np.testing.assert_array_equal(after.predict_proba(queries[0]), fitted.predict_proba(queries[0]))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d, t: d.unlink(), r"No such file.*classifier\.json"),
        (lambda d, t: t.unlink(), r"No such file.*classifier\.safetensors"),
        (lambda d, t: d.write_text("{"), "Expecting"),
        (lambda d, t: d.write_text("[]"), "list indices"),
        (lambda d, t: d.write_bytes(b"\xff\xfe"), "decode"),
        (lambda d, t: t.write_bytes(t.read_bytes()[:-1]), "is not the file that"),
        (lambda d, t: edit(d, format_version=2), "format_version is 2, and 1 can be read"),
        (lambda d, t: edit(d, classes=["a", "b"]), "labels of type .* for 3 prototypes"),
        (lambda d, t: edit(d, labels="|O"), "labels of type object"),
        (lambda d, t: edit(d, image_size=[16]), "values to unpack"),
        (lambda d, t: edit(d, transform={"sise": 3, "resample": 2}), "sise"),
        (lambda d, t: edit(d, settings={"stepps": 3}), "stepps"),
        (lambda d, t: edit(d, settings=None), "NoneType"),
        (lambda d, t: drop(d, "feature"), "it lacks 'feature'"),
    ],
)
def test_a_damaged_folder_is_one_clear_line(folder, damage, message):
    damage(folder / DESCRIPTION, folder / TENSORS)
    with pytest.raises(CheckpointError, match=f"mine holds no whole classifier: .*{message}") as error:
        FewShotClassifier.load(folder)
    assert "\n" not in str(error.value)


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def drop(path, name):
    description = json.loads(path.read_text())
    del description[name]
    path.write_text(json.dumps(description))


def test_a_classifier_that_was_not_fitted_cannot_be_saved(make_vit, tmp_path):
    with pytest.raises(NotFittedError):
        FewShotClassifier(make_vit()).save(tmp_path / "mine")


def test_a_place_that_cannot_be_written_to_is_named(fitted, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot write .*file"):
        fitted.save(tmp_path / "file")
