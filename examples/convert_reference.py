"""Convert a checkpoint of the method's authors into an adapter.

Why: the authors publish meta-tuned vision transformers (szcjerry/smat-vit-* on the Hub) in the layout of their code. As
an adapter one is a folder like any other: PeftModel.from_pretrained and FewShotClassifier load it.

    python examples/convert_reference.py smat.pt --backbone facebook/dino-vits16 --output_dir outputs/smat-vits

CHECKPOINT is a file (.pt or safetensors), a folder, or a repository. The backbone must be the one that it was
meta-tuned from, which is checked. What is not a file is downloaded. It prints what became of every key of the
checkpoint. Only tensors are read: a pickle of anything else is refused, and nothing in it is run.

A checkpoint that was saved from a CUDA device lacks the router's expert keys and skill tokens, which the authors' code
draws anew at each start. Give them with --router_file (a file with masks_keys and skills_tokens, saved from a run of
that code), or do without routing: --mix_evenly.

The conversion is checked against the layout and golden numbers of the authors' code, not against published accuracies;
those are for examples/verify_reference.py, with a network.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from smat_peft.commands.console import HelpFormatter, run_command
from smat_peft.few_shot import load_backbone
from smat_peft.sharing.reference import convert_checkpoint
from smat_peft.sharing.reference_files import read_reference_checkpoint, read_router_file


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("checkpoint", help="file, folder with one, or repository on the Hub")
    parser.add_argument(
        "--backbone", required=True, help="the ViT that it was meta-tuned from: on the Hub, or a folder"
    )
    parser.add_argument("--output_dir", required=True, help="folder for the adapter")
    parser.add_argument("--filename", help="which file of a folder or repository that holds several")
    parser.add_argument("--revision", help="branch, tag or commit of the repository")
    parser.add_argument(
        "--router_file", type=Path, help="file with the keys and skill tokens that the checkpoint lacks"
    )
    parser.add_argument("--mix_evenly", action="store_true", help="mix the experts evenly instead of routing")
    return parser.parse_args(argv)


def convert(argv: Sequence[str]) -> None:
    arguments = parse_arguments(argv)
    checkpoint = read_reference_checkpoint(
        arguments.checkpoint, filename=arguments.filename, revision=arguments.revision
    )
    model, report = convert_checkpoint(
        checkpoint,
        load_backbone(arguments.backbone),
        router_tensors=read_router_file(arguments.router_file) if arguments.router_file else None,
        mix_evenly=arguments.mix_evenly,
    )
    print(report)
    model.save_pretrained(arguments.output_dir)
    print(f"The adapter is in {arguments.output_dir}.")


if __name__ == "__main__":
    raise SystemExit(run_command(convert, sys.argv[1:]))
