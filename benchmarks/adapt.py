"""What a new task costs: adapting to its support set, and a query afterwards.

    python benchmarks/adapt.py --model vit-small

Both are compared with transformers' own forward pass of the plain backbone. Adapting is one pass over the support
images, a router and one merge; afterwards a query is classified with merged weights. Where the values of the gates are
kept (`keep_gates`), the next task does not evaluate them again. Gates are such as training leaves: 90 % closed, 5 % in
between.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from peft import get_peft_model

from measure import compare, interleave, make_parser, report, start
from smat_peft import SMATConfig
from smat_peft.tuner.adapters import adapter_gates
from workloads import add_model_arguments, as_trained_, make_backbone, make_episodes

KEPT_BYTES = 2  # of a gate that is kept


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = make_parser(__doc__, rounds=15)
    add_model_arguments(parser, "vit-small")
    parser.set_defaults(episodes=1)
    arguments = parser.parse_args(argv)
    device = start(arguments)

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[arguments.dtype]
    plain, backbone = (make_backbone(arguments.model, arguments.layers).to(device, dtype) for _ in range(2))
    model = get_peft_model(backbone, SMATConfig(num_experts=arguments.experts)).eval()
    as_trained_(model)
    keeper = copy.deepcopy(model)
    if arguments.torch_compile:
        model.compile_interpolation()
    (task,) = make_episodes(arguments, device)
    sides = {
        "adapt": lambda: model.adapt(task.support, task.support_labels),
        "adapt, kept": lambda: keeper.adapt(task.support, task.support_labels, keep_gates=True),
        "support": lambda: plain(task.support, interpolate_pos_encoding=True),
        "query": lambda: model.features(task.query),
        "plain": lambda: plain(task.query, interpolate_pos_encoding=True),
    }
    measured = interleave(sides, device, rounds=arguments.rounds, warmup=arguments.warmup)
    seconds = {side: phases[""] for side, phases in measured.items()}
    rows = [
        compare(f"{name} / plain forward", seconds[side], seconds[plain_side], ratio_is="ours / baseline")
        for name, side, plain_side in (
            ("adapting", "adapt", "support"),
            ("adapting, gates kept", "adapt, kept", "support"),
            ("query after it", "query", "plain"),
        )
    ]
    kept = sum(KEPT_BYTES * gates.numel() for _, _, gates in adapter_gates(model, "default"))
    report(rows, arguments, megabytes_of_kept_gates=kept / 1e6)


if __name__ == "__main__":
    main()
