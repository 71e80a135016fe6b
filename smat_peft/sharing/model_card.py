"""The model card of an adapter: what it is, how to use it, how good it is, and how it was made."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from smat_peft.assets import DEMO_BACKBONE
from smat_peft.errors import ConfigurationError
from smat_peft.files import replacing
from smat_peft.sharing.eval_results import hub_data_set

TAGS = ("smat", "few-shot-learning", "meta-learning")

TEMPLATE = """\
---
{{ card_data }}
---

# {{ name }}

A SMAT adapter for `{{ backbone }}`: experts, each a gate over one shared change of the backbone's weights. From the
labelled images of a new task a router mixes the experts into one set of weights for it; no gradient step is needed.
{% if note %}
{{ note }}
{% endif %}
## How to use it

```python
from smat_peft import FewShotClassifier

classifier = FewShotClassifier.from_pretrained(
    {%- if on_the_hub %}"{{ name }}"{% else %}"{{ backbone }}", adapter="{{ name }}"{% endif %}
    {%- if image_size %}, image_size={{ image_size }}{% endif -%}
)
classifier.fit(images, labels)  # a few PIL images of each class, and their labels
classifier.predict(other_images)
```

Or as any PEFT adapter; the first import teaches PEFT the method:

```python
import smat_peft
from peft import PeftModel
{% if packaged %}from smat_peft.assets import demo_backbone
{% endif %}from transformers import AutoModel

backbone = AutoModel.from_pretrained({% if packaged %}demo_backbone(){% else %}"{{ backbone }}"{% endif %})
model = PeftModel.from_pretrained(backbone, "{{ name }}")
model.adapt(pixel_values, labels)  # [N, 3, H, W] and 0..C-1; the model stays on this task until reset_task()
```

## Evaluation

{{ table }}

## Sparsity and size

Share of closed gates, expert by expert: {{ sparsity }}.
{% if size %}The adapter takes {{ size }}.
{% endif %}
## How it was made

```yaml
{{ settings }}
```

## Citation

```bibtex
@inproceedings{chen2024unleashing,
  title     = {Unleashing the Power of Meta-tuning for Few-shot Generalization Through Sparse Interpolated Experts},
  author    = {Chen, Shengzhuang and Tack, Jihoon and Yang, Yunqiao and Teh, Yee Whye and Schwarz, Jonathan Richard
               and Wei, Ying},
  booktitle = {International Conference on Machine Learning},
  year      = {2024},
  note      = {arXiv:2403.08477}
}
```
"""


def write_model_card(
    output_dir: str | Path,
    *,
    base_model: str,
    table_markdown: str,
    metrics: Mapping[str, float],
    settings: Mapping[str, Any],
    sparsity: Sequence[float],
    datasets: Sequence[str] | None = None,
    license: str | None = None,
    note: str = "",
    name: str | None = None,
    image_size: int | None = None,
    origins: Mapping[str, str] | None = None,
) -> Path:
    """Write the card of the adapter in `output_dir`, in place of the one that PEFT's `save_pretrained` leaves there.

    Nothing needs the network. The card is made to be published: a base model that is a folder on this machine is called
    by the folder's name alone, and `settings` should hold nothing private.

    Args:
        output_dir: The adapter's folder; the card is its `README.md`.
        base_model: The backbone's name on the Hub, or its folder.
        table_markdown: The evaluation as a Markdown table.
        metrics: Accuracy of the adapted backbone by domain or average, each in `[0, 1]`; the Hub lists them beside the
            card.
        settings: What a recipe file would hold to meta-tune this adapter again.
        sparsity: Share of each expert's gates that are closed, in `[0, 1]`, `M` numbers.
        datasets: Names on the Hub of the data sets that it was meta-tuned on.
        license: The adapter's licence, as the Hub spells it, such as `"apache-2.0"`.
        note: What a user must know first, such as the only kind of image the adapter is for.
        name: Its whole name on the Hub, `user/name`; the folder's own name if it is not there.
        image_size: Height and width of images where they are not the image processor's.
        origins: Specifications of the domains of `metrics`; the Hub then knows the data sets of those from there.

    Returns:
        The path of the card.

    Raises:
        ConfigurationError: A metric or a sparsity that is no share.
    """
    for what, value in [*metrics.items(), *((f"sparsity of expert {m}", value) for m, value in enumerate(sparsity))]:
        if not (math.isfinite(value) and 0 <= value <= 1):
            raise ConfigurationError(f"model card: {what} is {value}, but it is a share and must lie in [0, 1]")
    folder = Path(output_dir)
    name = name or folder.resolve().name
    results = [_few_shot_accuracy(domain, value, (origins or {}).get(domain, "")) for domain, value in metrics.items()]
    data = ModelCardData(
        library_name="peft",
        base_model=base_model,
        base_model_relation="adapter",
        pipeline_tag="image-classification",
        tags=list(TAGS),
        datasets=list(datasets) if datasets else None,
        license=license,
        model_name=name.rpartition("/")[2],
        eval_results=results or None,
    )
    return save_card(
        folder,
        TEMPLATE,
        data,
        name=name,
        packaged=base_model == DEMO_BACKBONE,
        image_size=image_size,
        size=_size_of(folder),
        note=note,
        table=table_markdown.strip(),
        sparsity=", ".join(f"{share:.3f}" for share in sparsity),
        settings=_plain(settings),
    )


def save_card(folder: Path, template: str, data: ModelCardData, **body: Any) -> Path:
    """Write a folder's card and return its path; a base model that is itself a folder is called by its name alone.

    Args:
        folder: Where to.
        template: What is filled with `body`, with `backbone`, which is the base model, and with `on_the_hub`.
        data: What the Hub reads.
        body: What a user reads.
    """
    backbone = str(data.base_model)
    on_the_hub = is_hub_name(backbone)
    if not on_the_hub:
        backbone, data.base_model, data["base_model_relation"] = Path(backbone).name, None, None
    card = ModelCard.from_template(data, template_str=template, backbone=backbone, on_the_hub=on_the_hub, **body)
    path = folder / "README.md"
    with replacing(path) as partial:
        card.save(partial)
    return path


def _size_of(folder: Path) -> str:
    size = sum(path.stat().st_size for path in folder.glob("adapter_*.safetensors"))
    return f"{size / 1e6:.1f} MB" if size else ""


def is_hub_name(base_model: str) -> bool:
    """Whether a backbone's name is one that others can load it by: no folder here, and fit for the Hub."""
    if Path(base_model).exists():
        return False
    try:
        validate_repo_id(base_model)
    except HFValidationError:
        return False
    return True


def _few_shot_accuracy(domain: str, accuracy: float, origin: str) -> EvalResult:
    data_set, task = hub_data_set(origin) or (domain, None)
    return EvalResult(
        task_type="image-classification",
        task_name="Few-shot image classification",
        dataset_type=data_set,
        dataset_config=task,
        dataset_name=domain,
        metric_type="accuracy",
        metric_value=round(accuracy, 4),
    )


def _plain(settings: Mapping[str, Any]) -> str:
    # By way of JSON, since YAML's safe form knows neither enumerations nor paths.
    return yaml.safe_dump(json.loads(json.dumps(dict(settings), default=str)), sort_keys=False).strip()
