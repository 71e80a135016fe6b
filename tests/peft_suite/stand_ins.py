"""Tiny models, made here, in place of the Hub's that PEFT's tests load."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from transformers.models.auto import auto_factory

FOLDER = Path(os.environ["SMAT_PEFT_SUITE"]) / "models"

WORDS = {"vocab_size": 1024}
DECODER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64} | WORDS
ENCODER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "max_position_embeddings": 128,
} | WORDS
LLAMA = DECODER | {"intermediate_size": 64, "num_key_value_heads": 4, "bos_token_id": 0, "eos_token_id": 1}
OPT = DECODER | {
    "ffn_dim": 4,
    "num_hidden_layers": 5,
    "max_position_embeddings": 100,
    "word_embed_proj_dim": 16,
    "dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 1,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "bos_token_id": 1, "eos_token_id": 2} | WORDS
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 37, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0} | WORDS
RESNET = {"embedding_size": 10, "hidden_sizes": [10, 20, 30, 40], "depths": [1, 1, 2, 1], "num_labels": 3}
VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "image_size": 30,
    "patch_size": 6,
    "num_labels": 3,
}
DINOV2 = {name: value for name, value in VIT.items() if name != "intermediate_size"} | {"mlp_ratio": 2}
PAD = {"pad_token_id": 1}

MODELS: dict[str, tuple[type, type, dict[str, Any]]] = {
    "opt": (tf.OPTForCausalLM, tf.OPTConfig, OPT),
    "llama": (tf.LlamaForCausalLM, tf.LlamaConfig, LLAMA | {"pad_token_id": 2}),
    "qwen2": (tf.Qwen2ForCausalLM, tf.Qwen2Config, DECODER | {"intermediate_size": 64, "num_key_value_heads": 2}),
    "gpt2": (tf.GPT2LMHeadModel, tf.GPT2Config, GPT2),
    "bert": (tf.BertModel, tf.BertConfig, ENCODER),
    "roberta": (tf.RobertaModel, tf.RobertaConfig, ENCODER | PAD),
    "bert_classifier": (tf.BertForSequenceClassification, tf.BertConfig, ENCODER),
    "roberta_classifier": (tf.RobertaForSequenceClassification, tf.RobertaConfig, ENCODER | PAD),
    "llama_classifier": (tf.LlamaForSequenceClassification, tf.LlamaConfig, LLAMA | {"pad_token_id": 2}),
    "t5": (tf.T5ForConditionalGeneration, tf.T5Config, T5),
    "resnet": (tf.ResNetForImageClassification, tf.ResNetConfig, RESNET),
    "vit": (tf.ViTForImageClassification, tf.ViTConfig, VIT),
    "dinov2": (tf.Dinov2ForImageClassification, tf.Dinov2Config, DINOV2),
}
STAND_INS = {
    "peft-internal-testing/tiny-random-OPTForCausalLM": "opt",
    "hf-internal-testing/tiny-random-OPTForCausalLM": "opt",
    "peft-internal-testing/opt-125m": "opt",
    "facebook/opt-125m": "opt",
    "trl-internal-testing/tiny-random-LlamaForCausalLM": "llama",
    "peft-internal-testing/tiny-dummy-qwen2": "qwen2",
    "peft-internal-testing/tiny-random-GPT2LMHeadModel": "gpt2",
    "peft-internal-testing/tiny-random-BertModel": "bert",
    "hf-internal-testing/tiny-random-BertModel": "bert",
    "peft-internal-testing/tiny-random-RobertaModel": "roberta",
    "peft-internal-testing/tiny-random-BertForSequenceClassification": "bert_classifier",
    "peft-internal-testing/tiny-random-RobertaForSequenceClassification": "roberta_classifier",
    "trl-internal-testing/tiny-LlamaForSequenceClassification-3.2": "llama_classifier",
    "peft-internal-testing/tiny-random-t5": "t5",
    "peft-internal-testing/tiny-random-t5-v1.1": "t5",
    "peft-internal-testing/tiny-random-ResNetForImageClassification": "resnet",
}


def path_of(name: str) -> str:
    """Folder of a stand-in, made where it is not there yet."""
    folder = FOLDER / name
    if not (folder / "config.json").exists():
        model_class, config_class, settings = MODELS[name]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model_class(config_class(**settings)).save_pretrained(folder)
    return str(folder)


def use_stand_ins() -> None:
    """Let transformers' `from_pretrained` load stand-ins for the names that have one."""
    for cls in (auto_factory._BaseAutoModelClass, tf.PreTrainedModel, tf.AutoConfig, tf.PreTrainedConfig):
        cls.from_pretrained = classmethod(_with_stand_ins(cls.__dict__["from_pretrained"].__func__))


def _with_stand_ins(original: Any) -> Any:
    def from_pretrained(cls: type, name: Any = None, *args: Any, **kwargs: Any) -> Any:
        if name is None:
            name = kwargs.pop("pretrained_model_name_or_path", None)
        if isinstance(name, str) and name in STAND_INS:
            kwargs.pop("revision", None)
            name = path_of(STAND_INS[name])
        return original(cls, name, *args, **kwargs)

    return from_pretrained
