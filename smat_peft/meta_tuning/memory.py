"""How much memory an update takes, and for what: to know before a run whether it fits."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from smat_peft.meta_tuning.learner import MetaLearner
from smat_peft.meta_tuning.optimisers import ParameterGroups
from smat_peft.meta_tuning.prototype_learner import PrototypeLearner
from smat_peft.tuner.adapters import adapted_size
from smat_peft.tuner.features import extract_features
from smat_peft.tuner.tasks import features, task

FLOAT = 4  # bytes of what is learned, of its gradients, and of a task's weights
COPIES = 3  # of an episode's task weights: themselves, after the inner step, and the teacher's


def memory_of_update(
    learner: MetaLearner | PrototypeLearner, groups: ParameterGroups, *, processes: int, count: int, kept: int
) -> dict[str, int]:
    """Bytes that each process holds at the peak of an update, by what they are for (METHOD 7, 8).

    What libraries and the device's kernels take comes on top.

    Args:
        learner: Holds the model, and says how many images pass at a time.
        groups: What is learned.
        processes: How many spread an update's episodes between them.
        count: Support and query images of an episode.
        kept: Bytes that the pass of one image keeps: see [`kept_by_image`].
    """
    arguments, learned = learner.arguments, list(groups.all().values())
    own = {id(parameter) for parameter in learned}
    moments = [*groups.delta.values()] * (arguments.delta_momentum > 0)  # SGD has one, AdamW two
    moments += 2 * [*groups.router.values(), *groups.other.values()]
    found = {
        "backbone": _bytes(parameter for parameter in learner.model.parameters() if id(parameter) not in own),
        "adapter": _bytes(learned),
        "gradients": _bytes(learned) * min(2, processes),  # averaging over processes has buffers of its own
        "moments": _bytes(moments),
    }
    if isinstance(learner, MetaLearner):
        held = arguments.episodes_per_step // processes + COPIES  # each episode leaves a gradient
        found["task weights"] = FLOAT * adapted_size(learner.model) * held
    return found | {"activations": kept * min(count, arguments.max_batch_size or count)}


def kept_by_image(learner: MetaLearner | PrototypeLearner, image: Tensor) -> int:
    """Bytes that a training pass of an image `[1, 3, H, W]` keeps, found by trying it: see [`kept_for_backward`]."""
    model = learner.model
    if isinstance(learner, PrototypeLearner):
        backbone = model.get_base_model()  # type: ignore[operator]
        return kept_for_backward(lambda: extract_features(backbone, image), model.parameters())
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    with task(model, {}):
        try:
            for parameter in frozen:  # a task's weights, in their place, have a gradient
                parameter.requires_grad_()
            return kept_for_backward(lambda: features(model, image), frozen)
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)


def kept_for_backward(forward: Callable[[], Tensor], parameters: Iterable[Tensor]) -> int:
    """Bytes that a pass keeps for its backward pass, beside the parameters themselves."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), saved_tensors_hooks(note, lambda tensor: tensor):
        result = forward()  # while it is there, no place is given to another tensor
    own = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    del result
    return sum(size for place, size in kept.items() if place not in own)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
