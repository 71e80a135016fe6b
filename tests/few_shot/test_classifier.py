"""FewShotClassifier: scikit-learn's protocol, a model that never changes, and clear errors."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.metrics import confusion_matrix, log_loss
from transformers import ViTImageProcessorPil

from smat_peft.errors import CheckpointError, ConfigurationError, DataError
from smat_peft.experts.prototypes import class_means, cosine_logits
from smat_peft.few_shot import Adaptation, AdaptedTask, FewShotClassifier, adapt_to_support, load_backbone, load_model
from smat_peft.tuner import tasks


class NoAnswer:
    """As pandas' NA: a comparison with it is neither true nor false."""

    def __ne__(self, other):
        return self

    def __bool__(self):
        raise TypeError("boolean value of NA is ambiguous")

    __hash__ = None


@pytest.fixture(params=["backbone", "experts"])
def model(request, make_vit, smat_vit):
    return make_vit() if request.param == "backbone" else smat_vit


def test_classes_that_look_different_are_told_apart(model, transform, examples, queries):
    classifier = FewShotClassifier(model, transform).fit(*examples)
    assert list(classifier.classes_) == ["anemone", "broom", "chicory"]
    assert classifier.score(*queries) == 1.0
    assert list(classifier.predict(queries[0])) == queries[1]


def test_probabilities_sum_to_one_in_the_order_of_the_classes(model, transform, examples, queries):
    classifier = FewShotClassifier(model, transform).fit(*examples)
    probabilities = classifier.predict_proba(queries[0])
    assert probabilities.shape == (12, 3)
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert list(classifier.classes_[probabilities.argmax(1)]) == list(classifier.predict(queries[0]))


def test_it_predicts_as_the_adapted_model_does(smat_vit, transform, examples, queries):
    classifier = FewShotClassifier(smat_vit, transform).fit(*examples)
    support = torch.stack([transform.evaluation(image) for image in examples[0]])
    labels = torch.arange(3).repeat_interleave(4)
    weights = tasks.adapt(smat_vit, support, labels).weights
    query = torch.stack([transform.evaluation(image) for image in queries[0]])
    with torch.no_grad():
        prototypes = class_means(tasks.features(smat_vit, support), labels)
        expected = cosine_logits(tasks.features(smat_vit, query), prototypes).softmax(-1)
    np.testing.assert_allclose(classifier.predict_proba(queries[0]), expected, atol=1e-6)
    torch.testing.assert_close(classifier.task_.expert_weights, weights)


def test_images_may_come_as_pictures_files_or_pixels(model, transform, examples, queries, tmp_path):
    paths = []
    for number, image in enumerate(queries[0]):
        image.save(tmp_path / f"{number}.png")
        paths.append(tmp_path / f"{number}.png")
    pixels = torch.stack([transform.evaluation(image) for image in queries[0]])
    classifier = FewShotClassifier(model, transform).fit(*examples)
    of_pictures = classifier.predict_proba(queries[0])
    np.testing.assert_array_equal(classifier.predict_proba(paths), of_pictures)
    np.testing.assert_array_equal(classifier.predict_proba([str(path) for path in paths]), of_pictures)
    np.testing.assert_array_equal(classifier.predict_proba(pixels), of_pictures)
    arrays = [np.asarray(image) for image in queries[0]]
    np.testing.assert_array_equal(classifier.predict_proba(arrays), of_pictures)
    np.testing.assert_array_equal(classifier.predict_proba(np.stack(arrays)), of_pictures)
    np.testing.assert_array_equal(classifier.predict_proba(np.array(paths)), of_pictures)


def test_an_image_processor_of_transformers_does_as_well(model, transform, examples, queries):
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    ours = FewShotClassifier(model, transform).fit(*examples).predict_proba(queries[0])
    theirs = FewShotClassifier(model, processor).fit(*examples).predict_proba(queries[0])
    np.testing.assert_allclose(theirs, ours, atol=1e-6)


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_labels_may_be_integers(model, transform, examples, kind):
    numbers = [3] * 4 + [-1] * 4 + [7] * 4
    classifier = FewShotClassifier(model, transform).fit(examples[0], kind(numbers))
    assert classifier.classes_.tolist() == [-1, 3, 7]
    assert classifier.predict(examples[0]).tolist() == numbers


def test_one_image_of_each_class_is_enough(model, transform, examples, queries):
    classifier = FewShotClassifier(model, transform).fit(examples[0][::4], examples[1][::4])
    assert classifier.score(*queries) == 1.0


def test_the_batch_size_changes_nothing(model, transform, examples, queries):
    whole = FewShotClassifier(model, transform).fit(*examples).predict_proba(queries[0])
    single = FewShotClassifier(model, transform, batch_size=5).fit(*examples).predict_proba(queries[0])
    np.testing.assert_allclose(single, whole, atol=1e-5)


def test_reordering_the_examples_changes_nothing(model, transform, examples, queries):
    order = np.random.default_rng(0).permutation(12)
    before = FewShotClassifier(model, transform).fit(*examples)
    after = FewShotClassifier(model, transform).fit([examples[0][i] for i in order], [examples[1][i] for i in order])
    np.testing.assert_allclose(after.predict_proba(queries[0]), before.predict_proba(queries[0]), atol=1e-5)


def test_renaming_classes_renames_the_predictions_and_nothing_else(model, transform, examples, queries):
    renamed = {"anemone": "z", "broom": "y", "chicory": "x"}
    before = FewShotClassifier(model, transform).fit(*examples)
    after = FewShotClassifier(model, transform).fit(examples[0], [renamed[label] for label in examples[1]])
    np.testing.assert_allclose(after.predict_proba(queries[0])[:, ::-1], before.predict_proba(queries[0]), atol=1e-5)


def test_the_model_given_is_never_changed(smat_vit, transform, examples, queries):
    support = torch.stack([transform.evaluation(image) for image in queries[0]])
    tasks.adapt(smat_vit, support, torch.arange(3).repeat_interleave(4))  # a task of the user's own
    smat_vit.train()
    smat_vit.get_submodule("base_model.model.layernorm").eval()
    modes = {name: module.training for name, module in smat_vit.named_modules()}
    weights = {name: tensor.clone() for name, tensor in smat_vit.state_dict().items()}
    before = tasks.features(smat_vit, support)
    FewShotClassifier(smat_vit, transform).fit(*examples).predict(queries[0])
    assert {name: module.training for name, module in smat_vit.named_modules()} == modes
    assert all(torch.equal(weights[name], tensor) for name, tensor in smat_vit.state_dict().items())
    assert torch.equal(tasks.features(smat_vit, support), before)


def test_two_classifiers_on_one_model_do_not_disturb_each_other(model, transform, examples, queries):
    alone = FewShotClassifier(model, transform).fit(*examples).predict_proba(queries[0])
    first = FewShotClassifier(model, transform).fit(*examples)
    second = FewShotClassifier(model, transform).fit(queries[0][:8], queries[1][:8])
    second.predict(queries[0])
    np.testing.assert_array_equal(first.predict_proba(queries[0]), alone)


def test_threads_that_share_a_model_wait_for_each_other(model, transform, examples, queries):
    settings = {"adaptation": "full", "steps": 3, "learning_rate": 0.01}
    both = [FewShotClassifier(model, transform, **settings, seed=seed).fit(*examples) for seed in (0, 1)]
    alone = [each.predict_proba(queries[0]) for each in both]
    assert np.abs(alone[0] - alone[1]).max() > 1e-3
    barrier = threading.Barrier(2)

    def meet(*_):  # where they could be inside at the same time, they are
        with suppress(threading.BrokenBarrierError):
            barrier.wait(0.5)

    handle = next(model.children()).register_forward_pre_hook(meet)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda each: each.predict_proba(queries[0]), both))
    handle.remove()
    np.testing.assert_array_equal(found, alone)


def test_an_adapter_of_another_method_takes_images_of_another_size(make_vit, transform, examples):
    model = get_peft_model(make_vit(), LoraConfig(target_modules=["q_proj"]))
    larger = replace(transform, size=(32, 32), resize=None)
    plain = FewShotClassifier(make_vit(), larger).fit(*examples).predict_proba(examples[0])
    np.testing.assert_allclose(FewShotClassifier(model, larger).fit(*examples).predict_proba(examples[0]), plain)


def test_experts_make_a_difference(smat_vit, make_vit, transform, examples, queries):
    adapted = FewShotClassifier(smat_vit, transform).fit(*examples).predict_proba(queries[0])
    plain = FewShotClassifier(make_vit(), transform).fit(*examples).predict_proba(queries[0])
    assert np.abs(adapted - plain).max() > 0.01


def test_a_model_without_experts_is_used_as_it_is(transform, examples, queries):
    flat = torch.nn.Flatten()
    classifier = FewShotClassifier(flat, transform).fit(*examples)
    assert classifier.task_.expert_weights is None
    assert classifier.score(*queries) == 1.0


def test_it_speaks_scikit_learns_protocol(model, transform, examples, queries):
    classifier = FewShotClassifier(model, transform, batch_size=7)
    assert is_classifier(classifier)
    assert classifier.get_params(deep=False) == {
        "model": model,
        "image_processor": transform,
        "adaptation": "prototype",
        "steps": 50,
        "learning_rate": "auto",
        "augment": True,
        "batch_size": 7,
        "device": None,
        "seed": 0,
        "verbose": True,
    }
    assert classifier.set_params(batch_size=3).batch_size == 3
    copied = clone(classifier)
    assert copied.batch_size == 3
    assert type(copied.fit(*examples)) is FewShotClassifier
    np.testing.assert_allclose(
        copied.predict_proba(queries[0]), classifier.fit(*examples).predict_proba(queries[0]), atol=1e-6
    )
    assert "batch_size=3" in repr(classifier)


def test_its_predictions_work_in_scikit_learns_metrics(model, transform, examples, queries):
    classifier = FewShotClassifier(model, transform).fit(*examples)
    assert confusion_matrix(queries[1], classifier.predict(queries[0])).tolist() == np.diag([4, 4, 4]).tolist()
    assert log_loss(queries[1], classifier.predict_proba(queries[0])) < np.log(3)


@pytest.mark.parametrize("call", ["predict", "predict_proba"])
def test_predicting_before_fitting_is_scikit_learns_error(model, transform, queries, call):
    with pytest.raises(NotFittedError, match="not fitted yet"):
        getattr(FewShotClassifier(model, transform), call)(queries[0])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a"] * 12, "only one class, 'a'"),
        (["a"] * 11, "only one class, 'a'"),
        (["a"] * 6 + ["b"] * 5, "12 images but 11 labels"),
        (["a"] * 6 + [None] + ["b"] * 5, "label 6 is missing"),
        ([1.0] * 6 + [float("nan")] + [2.0] * 5, "label 6 is missing"),
        (["a"] * 6 + [NoAnswer()] + ["b"] * 5, "label 6 is missing"),
        (["a"] * 6 + [1] * 6, "strings and numbers mixed"),
        ([["a"]] * 12, "label 0 is a list"),
        (np.eye(2)[[0, 1] * 6], r"not a ndarray of shape \[12, 2\] \(of one-hot rows, take argmax\(1\)\)"),
        (torch.tensor(3), r"must be a list with one string or number for each image, not a Tensor of shape \[\]"),
        (np.array("a"), r"not a ndarray of shape \[\]"),
        ("abababababab", "must be a list with one string or number for each image, not a str"),
        ({"a": 6, "b": 6}, "not a dict"),
        (None, "not a NoneType"),
        ([], "no labels"),
    ],
)
def test_labels_that_cannot_be_used_are_named(make_vit, transform, examples, labels, message):
    with pytest.raises(DataError, match=message):
        FewShotClassifier(make_vit(), transform).fit(examples[0], labels)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "no images"),
        ("photo.jpg", "must be a list"),
        ({"a": 1}, "not a dict"),
        (np.zeros((12, 16, 16, 3)), r"uint8 \[N, H, W, 3\], got float64 \[12, 16, 16, 3\]"),
        (np.zeros((12, 3, 16, 16), np.uint8), r"uint8 \[N, H, W, 3\], got uint8 \[12, 3, 16, 16\]"),
        (np.zeros((16, 16, 3), np.uint8), r"uint8 \[N, H, W, 3\], got uint8 \[16, 16, 3\]"),
        ([np.zeros((16, 16), np.uint8)] * 12, r"image 0 is an array uint8 \[16, 16\]"),
        (torch.zeros(12, 16, 16, 3), r"\[N, 3, H, W\].*\[12, 16, 16, 3\]"),
        (torch.zeros(12, 3, 16, 16, dtype=torch.uint8), "floating-point"),
        ([3] * 12, "image 0 is a int"),
    ],
)
def test_images_that_cannot_be_used_are_named(make_vit, transform, examples, images, message):
    with pytest.raises(DataError, match=message):
        FewShotClassifier(make_vit(), transform).fit(images, examples[1])
    with pytest.raises(DataError, match=message):
        FewShotClassifier(make_vit(), transform).fit(*examples).predict(images)


def test_a_file_that_is_no_image_is_named(make_vit, transform, examples, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken\.jpg cannot be read"):
        FewShotClassifier(make_vit(), transform).fit([*examples[0][:11], broken], examples[1])


def test_a_picture_that_is_closed_is_named(make_vit, transform, examples, tmp_path):
    examples[0][0].save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as closed:
        pass
    with pytest.raises(DataError, match=r"image 11 cannot be read \(.*\); give it open, or give its path"):
        FewShotClassifier(make_vit(), transform, batch_size=5).fit([*examples[0][:11], closed], examples[1])


def test_images_without_an_image_processor_are_an_error_and_pixels_are_not(make_vit, transform, examples):
    classifier = FewShotClassifier(make_vit())
    with pytest.raises(DataError, match="without an image_processor"):
        classifier.fit(*examples)
    pixels = torch.stack([transform.evaluation(image) for image in examples[0]])
    assert classifier.fit(pixels, examples[1]).score(pixels, examples[1]) == 1.0


def test_a_batch_size_below_one_is_an_error(make_vit, transform, examples):
    with pytest.raises(ConfigurationError, match="batch_size must be a whole number, at least 1, got 0"):
        FewShotClassifier(make_vit(), transform, batch_size=0).fit(*examples)


def test_a_classifier_for_another_device_leaves_the_model_where_it_is(make_vit, examples, monkeypatch):
    task = AdaptedTask(torch.zeros(3, 16), {})
    monkeypatch.setattr("smat_peft.few_shot.classifier.adapt_to_support", lambda *_, **__: task)
    model = make_vit()
    classifier = FewShotClassifier(model, device="meta").fit(torch.zeros(12, 3, 16, 16), examples[1])
    assert next(classifier.model_.parameters()).device.type == "meta"
    assert next(model.parameters()).device.type == "cpu"
    assert FewShotClassifier(model, device="cpu").fit(torch.zeros(12, 3, 16, 16), examples[1]).model_ is model


@pytest.mark.parametrize("adaptation", ["full", "lora"])
def test_fine_tuning_is_a_setting(smat_vit, transform, examples, queries, adaptation):
    settings = {"adaptation": adaptation, "steps": 3, "learning_rate": 1e-3, "seed": 1}
    classifier = FewShotClassifier(smat_vit, transform, **settings).fit(*examples)
    support = torch.stack([transform.evaluation(image) for image in examples[0]])
    labels = torch.arange(3).repeat_interleave(4)
    expected = adapt_to_support(smat_vit, support, labels, adaptation=Adaptation(adaptation, 3, 1e-3, seed=1))
    torch.testing.assert_close(classifier.task_.prototypes, expected.prototypes)
    assert classifier.learning_rate_ == 1e-3
    assert classifier.score(*queries) == 1.0
    unchanged = FewShotClassifier(smat_vit, transform, **settings | {"steps": 0}).fit(*examples)
    assert unchanged.learning_rate_ == 0
    assert not torch.equal(unchanged.task_.prototypes, expected.prototypes)


def test_augmentation_can_be_turned_off(smat_vit, transform, examples):
    def fitted(augment, seed):
        classifier = FewShotClassifier(
            smat_vit, transform, adaptation="full", steps=3, learning_rate=1e-3, augment=augment, seed=seed
        )
        return classifier.fit(*examples).task_.prototypes

    assert not torch.equal(fitted(True, 0), fitted(True, 1))
    assert torch.equal(fitted(False, 0), fitted(False, 1))


@pytest.mark.parametrize("verbose", [True, False])
def test_the_cost_of_choosing_a_learning_rate_is_told_first(
    smat_vit, transform, examples, monkeypatch, capsys, verbose
):
    def choose(model, support, labels, adaptation, *, batch_size, tell):
        if tell is not None:
            tell(41.7)
        return 2e-5

    monkeypatch.setattr("smat_peft.few_shot.classifier.choose_learning_rate", choose)
    classifier = FewShotClassifier(smat_vit, transform, adaptation="lora", steps=1, verbose=verbose).fit(*examples)
    assert classifier.learning_rate_ == 2e-5
    said = capsys.readouterr().err
    assert said == ("choosing the learning rate takes about 42 s\n" if verbose else "")


def test_nothing_is_chosen_or_said_without_fine_tuning(smat_vit, transform, examples, capsys):
    FewShotClassifier(smat_vit, transform).fit(*examples)
    assert capsys.readouterr().err == ""


def test_a_learning_rate_that_diverges_is_an_error(smat_vit, transform, examples):
    classifier = FewShotClassifier(smat_vit, transform, adaptation="full", steps=20, learning_rate=1e30)
    with pytest.raises(ConfigurationError, match="the learning rate is too high, or the pixels are not finite"):
        classifier.fit(*examples)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"adaptation": "adapter"}, "adaptation must be prototype, full or lora, got 'adapter'"),
        ({"learning_rate": "best"}, "a number or 'auto', got 'best'"),
        ({"learning_rate": -1.0}, "learning_rate must be at least 0"),
        ({"steps": -1}, "steps must be a whole number, at least 0"),
    ],
)
def test_settings_out_of_range_are_named_when_they_are_used(make_vit, transform, examples, settings, message):
    classifier = FewShotClassifier(make_vit(), transform).set_params(**settings)
    with pytest.raises(ConfigurationError, match=message):
        classifier.fit(*examples)


@pytest.mark.parametrize(
    ("labels", "rejected"),
    [(["ox", "ant", "bee"], "none of these"), ([3, 0, 7], -1), ([0.5, 1.5, 2.5], -1)],
)
def test_an_image_of_no_class_can_be_rejected(model, transform, examples, queries, labels, rejected):
    named = [label for label in labels for _ in range(4)]
    classifier = FewShotClassifier(model, transform).fit(examples[0], named)
    confidence = classifier.predict_proba(queries[0]).max(1)
    limit = float(np.sort(confidence)[6])  # as probable as this is not below it
    answers = classifier.predict(queries[0], reject_below=limit)
    assert answers.dtype.kind == classifier.classes_.dtype.kind
    expected = [rejected if p < limit else label for p, label in zip(confidence, named, strict=True)]
    assert answers.tolist() == expected
    assert set(answers.tolist()) > {rejected}
    assert classifier.predict(queries[0], reject_below=0.0).tolist() == named
    assert classifier.predict(queries[0], reject_below=1.0).tolist() == [rejected] * 12


@pytest.mark.parametrize("name", ["none of these", -1])
def test_a_class_with_the_name_of_a_rejection_is_an_error_only_where_it_matters(make_vit, transform, examples, name):
    other = "a" if isinstance(name, str) else 5
    classifier = FewShotClassifier(make_vit(), transform).fit(examples[0], [name] * 6 + [other] * 6)
    assert set(classifier.predict(examples[0]).tolist()) == {name, other}
    with pytest.raises(ConfigurationError, match=f"{name!r} is the name of a class"):
        classifier.predict(examples[0], reject_below=0.5)


def test_a_limit_that_is_no_probability_is_an_error(make_vit, transform, examples):
    with pytest.raises(ConfigurationError, match="reject_below must be a probability, got 50"):
        FewShotClassifier(make_vit(), transform).fit(*examples).predict(examples[0], reject_below=50.0)


def test_half_precision_gives_nearly_the_same_probabilities(make_vit, transform, examples, queries):
    full = FewShotClassifier(make_vit(), transform).fit(*examples).predict_proba(queries[0])
    half = FewShotClassifier(make_vit().bfloat16(), transform).fit(*examples).predict_proba(queries[0])
    np.testing.assert_allclose(half, full, atol=0.05)


def test_a_classifier_comes_from_folders(backbone_folder, make_vit, transform, examples, queries):
    loaded = FewShotClassifier.from_pretrained(backbone_folder).fit(*examples)
    expected = FewShotClassifier(make_vit(), transform).fit(*examples)
    np.testing.assert_allclose(loaded.predict_proba(queries[0]), expected.predict_proba(queries[0]), atol=1e-6)


def test_a_classifier_comes_with_an_adapter(backbone_folder, adapter_folder, adapted, transform, examples, queries):
    loaded = FewShotClassifier.from_pretrained(backbone_folder, adapter_folder).fit(*examples)
    expected = FewShotClassifier(adapted, transform).fit(*examples)
    assert loaded.task_.expert_weights is not None
    np.testing.assert_allclose(loaded.predict_proba(queries[0]), expected.predict_proba(queries[0]), atol=1e-6)


def test_an_adapter_alone_finds_its_backbone_and_image_processor(backbone_folder, adapter_folder, examples, queries):
    alone = FewShotClassifier.from_pretrained(adapter_folder).fit(*examples)
    named = FewShotClassifier.from_pretrained(backbone_folder, adapter_folder).fit(*examples)
    assert alone.transform_ == named.transform_
    np.testing.assert_array_equal(alone.predict_proba(queries[0]), named.predict_proba(queries[0]))


def test_an_adapter_that_names_no_backbone_is_one_line(adapter_folder):
    config = json.loads((adapter_folder / "adapter_config.json").read_text())
    (adapter_folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(CheckpointError, match="does not name its backbone; give the backbone, and it as the adapter"):
        load_model(adapter_folder)


def test_an_adapter_whose_configuration_is_damaged_is_one_line(adapter_folder):
    (adapter_folder / "adapter_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"^cannot load model .*adapter.*JSONDecodeError|Expecting") as error:
        load_model(adapter_folder)
    assert "\n" not in str(error.value)


def test_another_image_size_is_taken(backbone_folder, examples, queries):
    classifier = FewShotClassifier.from_pretrained(backbone_folder, image_size=24).fit(*examples)
    assert classifier.transform_.size == (24, 24)
    assert classifier.score(*queries) == 1.0


def test_loading_says_nothing_about_a_pooler_that_is_not_used(backbone_folder, capfd):
    load_model(backbone_folder)
    assert capfd.readouterr() == ("", "")


def test_a_backbone_or_adapter_that_cannot_be_loaded_is_one_line(backbone_folder, tmp_path):
    with pytest.raises(CheckpointError, match=r"^cannot load model .*nowhere") as error:
        load_model(tmp_path / "nowhere")
    assert "\n" not in str(error.value)
    with pytest.raises(CheckpointError, match=r"^cannot load adapter .*nowhere.* on backbone") as error:
        load_model(backbone_folder, tmp_path / "nowhere")
    assert "\n" not in str(error.value)


def test_an_adapter_of_another_backbone_is_refused(make_vit, adapter_folder, tmp_path):
    make_vit(hidden_size=8, intermediate_size=16).save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"^cannot load adapter .*size mismatch") as error:
        load_model(tmp_path / "other", adapter_folder)
    assert "\n" not in str(error.value)


def test_a_backbone_with_missing_weights_is_refused(make_vit, tmp_path):
    weights = make_vit().state_dict()
    del weights["layernorm.weight"]
    make_vit().save_pretrained(tmp_path / "holes", state_dict=weights)
    with pytest.raises(CheckpointError, match=r"no weights for 1 parameters of ViTModel, layernorm\.weight"):
        load_model(tmp_path / "holes")


def test_an_adapter_of_another_method_is_merged_and_can_be_fine_tuned(backbone_folder, examples, queries, tmp_path):
    config = LoraConfig(target_modules=["v_proj"], lora_alpha=64, init_lora_weights=False)
    adapted = get_peft_model(load_backbone(backbone_folder), config).eval()
    adapted.save_pretrained(tmp_path / "lora", save_embedding_layers=False)
    loaded = FewShotClassifier.from_pretrained(backbone_folder, tmp_path / "lora").fit(*examples)
    expected = FewShotClassifier(adapted, loaded.transform_).fit(*examples)
    np.testing.assert_allclose(loaded.predict_proba(queries[0]), expected.predict_proba(queries[0]), atol=1e-5)
    loaded.set_params(adaptation="lora", steps=np.int64(1), learning_rate=1e-3, seed=np.int64(3)).fit(*examples).save(
        tmp_path / "mine"
    )
    with pytest.raises(CheckpointError, match="give it as model"):
        FewShotClassifier.load(tmp_path / "mine")


def test_settings_of_a_wrong_kind_are_named(make_vit, examples, transform):
    images, names = examples
    for settings, reason in [
        ({"model": "a name"}, "model must be a torch module"),
        ({"steps": 2.5}, "steps must be a whole number"),
        ({"seed": None}, "seed must be a whole number"),
        ({"batch_size": 1.5}, "batch_size must be a whole number"),
        ({"image_processor": "a name"}, "image_processor must be one of transformers' or an ImageTransform, not a str"),
        ({"learning_rate": None}, "learning_rate must be a number or 'auto'"),
    ]:
        classifier = FewShotClassifier(make_vit(), transform).set_params(**settings)
        with pytest.raises(ConfigurationError, match=reason):
            classifier.fit(images, names)


def test_pictures_of_16_bits_and_turned_ones_are_read_as_their_files_are(make_vit, examples, transform, tmp_path):
    classifier = FewShotClassifier(make_vit(), transform).fit(*examples)
    deep = Image.fromarray((np.arange(256).reshape(16, 16) * 256).astype(np.uint16))
    deep.save(tmp_path / "deep.png")
    turned = examples[0][0].copy()
    turned.putpixel((0, 0), (255, 255, 255))
    turned.getexif()[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=turned.getexif())
    with Image.open(tmp_path / "turned.png") as opened:
        given = classifier.predict_proba([deep, opened])
    np.testing.assert_allclose(given, classifier.predict_proba([tmp_path / "deep.png", tmp_path / "turned.png"]))
    with pytest.raises(DataError, match="32-bit values"):
        classifier.predict([Image.new("F", (16, 16))])
