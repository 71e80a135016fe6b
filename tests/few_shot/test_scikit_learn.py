"""scikit-learn's own checks, and its tools with images in them.

scikit-learn runs its checks with tables of numbers, and skips estimators that take none. So they are run on a subclass
that makes images of a table's rows, one pixel a column; what it adds, checks of tables, is scikit-learn's own code.
"""

import numpy as np
import pytest
import sklearn
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data
from torch import nn

from smat_peft import FewShotClassifier


def as_pixels(table):
    return torch.from_numpy(table.astype(np.float64))[:, None, None, :].expand(-1, 3, -1, -1)


class Columns(nn.Module):
    """The features are the columns, and a constant: without it the cosine would not see how large they are."""

    def __init__(self):
        super().__init__()
        self.constant = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, pixel_values):
        columns = pixel_values[:, 0, 0]
        return torch.cat([columns, self.constant.expand(len(columns), 1)], dim=1)


class TableClassifier(FewShotClassifier):
    model, image_processor, device, verbose = Columns(), None, None, False

    def __init__(self, *, adaptation="prototype", steps=2, learning_rate=1e-3, augment=False, batch_size=64, seed=0):
        self.adaptation = adaptation
        self.steps = steps
        self.learning_rate = learning_rate
        self.augment = augment
        self.batch_size = batch_size
        self.seed = seed

    def fit(self, table, y):
        table, y = validate_data(self, table, y)
        check_classification_targets(y)
        return super().fit(as_pixels(table), y)

    def predict_proba(self, table):
        if hasattr(self, "classes_"):
            table = as_pixels(validate_data(self, table, reset=False))
        return super().predict_proba(table)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        return tags


@parametrize_with_checks(
    [TableClassifier(), TableClassifier(adaptation="full"), TableClassifier(adaptation="full", learning_rate="auto")]
)
def test_scikit_learn_s_checks(estimator, check):
    check(estimator)


@pytest.fixture
def classifier(smat_vit, transform):
    return FewShotClassifier(smat_vit, transform)


@pytest.mark.parametrize("form", ["pictures", "array", "pixels", "paths"])
def test_cross_validation_works_on_images_of_every_form(classifier, transform, examples, tmp_path, form):
    images, labels = examples
    if form == "array":
        images = np.stack([np.asarray(image) for image in images])
    elif form == "pixels":
        images = torch.stack([transform.evaluation(image) for image in images])
    elif form == "paths":
        for number, image in enumerate(images):
            image.save(tmp_path / f"{number}.png")
        images = np.array([str(tmp_path / f"{number}.png") for number in range(len(images))])
    folds = StratifiedKFold(4)
    assert cross_val_score(classifier, images, labels, cv=folds).tolist() == [1.0] * 4
    assert cross_val_predict(classifier, images, labels, cv=folds, method="predict_proba").shape == (12, 3)


def test_it_is_the_last_step_of_a_pipeline(classifier, examples, queries):
    crop = FunctionTransformer(lambda images: [image.crop((0, 0, 3, 4)) for image in images])
    pipeline = make_pipeline(crop, classifier).fit(*examples)
    assert list(pipeline.classes_) == ["anemone", "broom", "chicory"]
    assert pipeline.score(*queries) == 1.0
    cropped = [image.crop((0, 0, 3, 4)) for image in queries[0]]
    np.testing.assert_array_equal(pipeline.predict_proba(queries[0]), classifier.predict_proba(cropped))
    assert cross_val_score(pipeline, *examples, cv=StratifiedKFold(2)).tolist() == [1.0, 1.0]


def test_a_grid_search_chooses_among_its_settings(classifier, examples):
    search = GridSearchCV(
        classifier.set_params(learning_rate=1e-3, steps=2, augment=False),
        {"adaptation": ["prototype", "lora"]},
        cv=StratifiedKFold(2),
    ).fit(*examples)
    assert search.best_params_ == {"adaptation": "prototype"}
    assert search.best_score_ == 1.0


def test_a_clone_shares_the_model_and_nothing_that_was_fitted(classifier, examples):
    copied = clone(classifier.set_params(steps=7).fit(*examples))
    assert copied.model is classifier.model
    assert copied.steps == 7
    assert not hasattr(copied, "task_")


def test_a_clone_keeps_what_was_requested(make_vit):
    with sklearn.config_context(enable_metadata_routing=True):
        classifier = FewShotClassifier(make_vit()).set_predict_request(reject_below=True)
        assert clone(classifier).get_metadata_routing().predict.requests["reject_below"] is True
