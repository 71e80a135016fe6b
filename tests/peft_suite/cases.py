"""What takes the place of PEFT's own cases: the same models, with SMATConfig and targets that it can adapt."""

from __future__ import annotations

import dataclasses
from typing import Any

from smat_peft import SMATConfig

FEW = {"num_experts": 2}
RANDOM = FEW | {"init_weights": False}
FIELDS = {field.name for field in dataclasses.fields(SMATConfig)}

_CUSTOM: list[tuple[str, str, dict[str, Any]]] = [
    ("Vanilla MLP 1", "MLP", {"target_modules": "lin0"}),
    ("Vanilla MLP 2", "MLP", {"target_modules": ["lin0"]}),
    ("Vanilla MLP 3", "MLP", {"target_modules": ["lin1"]}),
    ("Vanilla MLP 4", "MLP", {"target_modules": ["lin0", "lin1"]}),
    ("Vanilla MLP 5", "MLP", {"target_modules": ["lin0"], "modules_to_save": ["lin1"]}),
    ("Embedding + transformers Conv1D 1", "EmbConv1D", {"target_modules": ["conv1d"]}),
    ("Embedding 2", "EmbConv1D", {"target_modules": ["emb"]}),
    ("Embedding + transformers Conv1D 3", "EmbConv1D", {"target_modules": ["emb", "conv1d"]}),
    ("Conv1d 1", "Conv1d", {"target_modules": ["conv1d"]}),
    ("Conv1d 2", "Conv1dBigger", {"target_modules": ["conv1d"]}),
    ("Conv2d 1", "Conv2d", {"target_modules": ["conv2d"]}),
    ("Conv2d 2", "Conv2d", {"target_modules": ["conv2d", "lin0"]}),
    ("Conv2d 1x1", "Conv2d1x1", {"target_modules": ["conv2d"]}),
    ("Conv2d Groups", "Conv2dGroups", {"target_modules": ["conv2d"]}),
    ("Conv2d Groups2", "Conv2dGroups2", {"target_modules": ["conv2d"]}),
    ("Conv3d 1", "Conv3d", {"target_modules": ["conv3d"]}),
    ("Conv3d 2", "Conv3d", {"target_modules": ["conv3d", "lin0"]}),
    ("LayerNorm 1", "MLP_LayerNorm", {"target_modules": "layernorm0"}),
    ("LayerNorm 2", "MLP_LayerNorm", {"target_modules": ["layernorm0", "lin0"]}),
    ("LayerNorm 3", "MLP_LayerNorm", {"target_modules": ["layernorm0"], "modules_to_save": ["layernorm1"]}),
    ("Parameter 1", "MlpUsingParameters", {"target_modules": [], "target_parameters": ["lin0.weight"]}),
    ("Parameter 2", "MlpUsingParameters", {"target_modules": [], "target_parameters": ["lin0.weight", "lin1.weight"]}),
    ("Owner of parameters 1", "MlpUsingParameters", {"target_modules": ["lin0"]}),
    ("Owner of parameters 2", "MlpUsingParameters", {"target_modules": ["lin0", "lin1"]}),
]
CUSTOM = [(f"{name} SMATConfig", model, SMATConfig, FEW | settings) for name, model, settings in _CUSTOM]

LIN0, LIN1 = RANDOM | {"target_modules": ["lin0"]}, RANDOM | {"target_modules": ["lin1"]}
SEVERAL_ADAPTERS = [
    ("SMAT Same", "smat", SMATConfig, LIN0, LIN0),
    ("SMAT Different", "smat", SMATConfig, LIN0, LIN1),
]

# By test module: task type, models, targets.
LANGUAGE: dict[str, tuple[str, list[str], list[str]]] = {
    "test_decoder_models": (
        "CAUSAL_LM",
        [
            "peft-internal-testing/tiny-random-OPTForCausalLM",
            "trl-internal-testing/tiny-random-LlamaForCausalLM",
            "peft-internal-testing/tiny-random-GPT2LMHeadModel",
        ],
        ["q_proj", "v_proj", "c_attn"],
    ),
    "test_feature_extraction_models": (
        "FEATURE_EXTRACTION",
        ["peft-internal-testing/tiny-random-BertModel", "peft-internal-testing/tiny-random-RobertaModel"],
        ["query", "value"],
    ),
    "test_seq_classifier": (
        "SEQ_CLS",
        [
            "peft-internal-testing/tiny-random-BertForSequenceClassification",
            "peft-internal-testing/tiny-random-RobertaForSequenceClassification",
            "trl-internal-testing/tiny-LlamaForSequenceClassification-3.2",
        ],
        ["query", "value", "q_proj", "v_proj"],
    ),
    "test_encoder_decoder_models": ("SEQ_2_SEQ_LM", ["peft-internal-testing/tiny-random-t5-v1.1"], ["q", "v"]),
}


def parameter_sets(module: str, test: str, names: tuple[str, ...]) -> list[Any] | None:
    """What to run a test with that PEFT parametrises by `names`; None where SMAT has no part in it."""
    if names == ("model_id",) and module in LANGUAGE:
        return LANGUAGE[module][1]
    if names == ("config_cls", "config_kwargs") and module in LANGUAGE:
        task_type, _, targets = LANGUAGE[module]
        return [(SMATConfig, FEW | {"task_type": task_type, "target_modules": targets})]
    if names == ("config",) and module == "test_vision_models":
        return [SMATConfig(**FEW, target_modules=["convolution"], modules_to_save=["classifier", "normalization"])]
    if names == ("config0",) and test == "test_adapter_name_makes_no_difference":
        return [
            SMATConfig(**LIN0),
            SMATConfig(**RANDOM, target_modules=["lin0", "lin1"]),
            SMATConfig(**LIN0, modules_to_save=["lin1"]),
        ]
    return {
        ("test_name", "model_id", "config_cls", "config_kwargs"): CUSTOM,
        ("test_name", "tuner_method", "config_cls", "config_kwargs_1", "config_kwargs_2"): SEVERAL_ADAPTERS,
        ("config_cls",): [SMATConfig],
        ("config_class", "mandatory_kwargs"): [(SMATConfig, {})],
    }.get(names)


def in_place_of_lora(**settings: Any) -> SMATConfig:
    """What `LoraConfig(**settings)` becomes in tests that name it though they are about tuners in general."""
    if "init_lora_weights" in settings:
        settings["init_weights"] = settings.pop("init_lora_weights")
    settings = FEW | {name: value for name, value in settings.items() if name in FIELDS}
    return SMATConfig(**{"target_modules": ["q_proj", "v_proj"]} | settings)
