"""Pack an adapter for inference: at 90 % sparsity a twelfth the size, and it classifies as the adapter does.

Why: an adapter that can be trained holds a number for each gate of each expert. Classifying needs a bit for most of
them, and the delta only where an expert uses it. What comes out is a folder like any other: PeftModel.from_pretrained
and FewShotClassifier load it, and nothing can train it.

    accelerate launch examples/meta_tune.py --output_dir outputs/demo
    python examples/pack.py outputs/demo outputs/demo-packed

It prints sizes and by how much logits differ (their range is -10 to 10); the file says so, too. Gate values between 0
and 1 take 8 bits and the delta 16; with --lossless both stay as they are, and a task's weights the same to the bit.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from peft.utils import SAFETENSORS_WEIGHTS_NAME

from smat_peft import pack_adapter
from smat_peft.commands.console import HelpFormatter, run_command
from smat_peft.few_shot.loading import backbone_name, load_model

TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("adapter", metavar="ADAPTER", type=Path, help="folder of the adapter")
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="folder to write")
    parser.add_argument("--backbone", help="the backbone, where it is not what the adapter's configuration says")
    parser.add_argument("--lossless", action="store_true", help="the same task weights to the bit")
    parser.add_argument("--dtype", choices=TYPES, default="fp16", help="type of the delta; not with --lossless")
    parser.add_argument("--tolerance", type=float, default=1e-2, help="largest difference of logits to accept")
    return parser.parse_args(argv)


def pack(argv: Sequence[str]) -> None:
    arguments = parse_arguments(argv)
    header = pack_adapter(
        load_model(arguments.backbone or backbone_name(arguments.adapter), arguments.adapter),
        arguments.output,
        dtype=TYPES[arguments.dtype],
        tolerance=arguments.tolerance,
        lossless=arguments.lossless,
    )
    before, after = (megabytes(folder) for folder in (arguments.adapter, arguments.output))
    print(
        f"{arguments.adapter}: {before:.2f} MB, {arguments.output}: {after:.2f} MB, {before / after:.1f} times smaller"
    )
    if arguments.lossless:
        print("task weights are the same to the bit")
    else:
        print(f"logits differ by at most {header['logit_error']:.2g}, on {header['measured_on']}")
    print(f"left out: {header['left_out']}")


def megabytes(folder: Path) -> float:
    return (folder / SAFETENSORS_WEIGHTS_NAME).stat().st_size / 1e6


if __name__ == "__main__":
    sys.exit(run_command(pack, sys.argv[1:]))
