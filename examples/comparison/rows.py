"""What is compared with what, on which episodes, and the claims that the comparison is to judge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from smat_peft.evaluation.claims import Claim, Contrast
from smat_peft.evaluation.predictors import BACKBONE, EVEN_MIX, FIXED_MEAN
from smat_peft.evaluation.records import Role

SEARCH_SEED = 100  # of the runs that rates are chosen by; none of those that are compared
RATES = (0.003125, 0.0125, 0.05, 0.2)  # of the delta; at 0.8 SMAT and dense diverged
PART_RATES = (0.0125, 0.05, 0.2, 0.8)  # where a fixed part of the weights is trained: the more, the fewer they are
LORA_RATES = (1.25e-4, 5e-4, 2e-3, 8e-3)  # AdamW's


@dataclass(frozen=True)
class Row:
    """A method as it is compared.

    Attributes:
        method: The meta-tuner's `--method`.
        settings: Further arguments of it.
        rate_of: The row that its learning rate was chosen for; its own by default.
        base: The row whose adapter it changes without any training.
        rates: The learning rates that are tried.
    """

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    rate_of: str | None = None
    base: str | None = None
    rates: tuple[float, ...] = RATES


SMAT, DENSE, TAUGHT, WISE, PRUNED = "SMAT", "dense (PMF)", "dense + teachers", "WiSE-FT", "dense, pruned"
UNTAUGHT, ALONE, SPARSEST = "SMAT without teachers", "SMAT, one expert", "SMAT, 99 % sparse"
OPEN = "soft merge"
ROWS: dict[str, Row] = {
    SMAT: Row("smat"),
    DENSE: Row("dense"),
    TAUGHT: Row("dense-teachers"),
    WISE: Row("wise-ft", base=DENSE),
    PRUNED: Row("dense-pruned", base=DENSE),
    UNTAUGHT: Row("smat", {"distillation_weight": 0}, rate_of=SMAT),
    ALONE: Row("smat", {"num_experts": 1}, rate_of=SMAT),
    "random experts": Row("random", rates=PART_RATES),
    OPEN: Row("soft-merge"),
    SPARSEST: Row("smat", {"target_sparsity": 0.99, "multiplier_lr": 2.0}),  # at 0.4 it ends where SMAT does, at 0.90
    "magnitude": Row("magnitude", rates=PART_RATES),
    "attention": Row("attention", rates=PART_RATES),
    "MLP": Row("mlp", rates=PART_RATES),
    "first layers": Row("first-layers", rates=PART_RATES),
    "last layers": Row("last-layers", rates=PART_RATES),
    "LayerNorm": Row("norms", rates=PART_RATES),
    "biases": Row("biases", rates=PART_RATES),
    "LoRA": Row("lora", rates=LORA_RATES),
}
HAS_ITS_OWN_SPARSITY = ("smat", "soft-merge", "dense", "dense-teachers", "wise-ft", "lora")
QUICK = {"max_steps": 120}
QUICK_ROWS = (SMAT, DENSE, "random experts")
QUICK_RATES = {SMAT: 0.2, DENSE: 0.0125}  # where nothing was searched; the third of the row's own otherwise
FINE_TUNED = (SMAT, DENSE, TAUGHT)  # and the backbone: also by gradient steps on the support

REGRESSION = f"{BACKBONE}, logistic regression"
SMAT_EVEN, SMAT_MEAN = f"{SMAT}, {EVEN_MIX}", f"{SMAT}, {FIXED_MEAN}"

WAYS, QUERIES = 5, 5
FIVE_SHOT = "prototypes of 5 shots"
SHOTS = {"prototype": 1, FIVE_SHOT: 5, "full": 5, "lora": 5}  # one image is too little to take steps on
STEPS = ("full", "lora")  # adaptations by gradient steps
TITLES = {"prototype": "prototypes", FIVE_SHOT: "prototypes", "full": "full adaptation", "lora": "LoRA adaptation"}
FITTING_EPISODES = 10  # of each training domain's validation classes, for temperatures
TUNING_EPISODES = 2  # and for rates of fine-tuning


def _on(role: Role, *baselines: str, kind: str = "prototype", margin: float = 0.0) -> list[Contrast]:
    return [Contrast((SMAT, kind), (baseline, kind), role, margin) for baseline in baselines]


def _main_claims(kind: str, dense: tuple[str, ...]) -> list[Claim]:
    after = "" if kind == "prototype" else f"after {TITLES[kind]}: "
    return [
        Claim(f"{after}SMAT above the backbone on ID", _on("id", BACKBONE, kind=kind)),
        Claim(f"{after}SMAT at most 1 point below dense on ID", _on("id", DENSE, kind=kind, margin=0.01)),
        Claim(f"{after}SMAT above the backbone on OOD", _on("test_ood", BACKBONE, kind=kind)),
        Claim(f"{after}SMAT above {', '.join(dense)} on OOD", _on("test_ood", *dense, kind=kind)),
    ]


HAND_DESIGNED = [name for name, row in ROWS.items() if row.method not in HAS_ITS_OWN_SPARSITY and row.base is None]
CLAIMS = [
    *_main_claims("prototype", (DENSE, TAUGHT, WISE)),
    *_main_claims("full", (DENSE, TAUGHT)),
    *_main_claims("lora", (DENSE, TAUGHT)),
    Claim(
        "SMAT without a gradient step above the backbone with LoRA adaptation on OOD",
        [Contrast((SMAT, FIVE_SHOT), (BACKBONE, "lora"), "test_ood")],
    ),
    Claim("learned gates above every hand-designed pattern on OOD", _on("test_ood", *HAND_DESIGNED)),
    Claim(
        "SMAT better on OOD than with all gates open, and than with 99 % of them closed",
        _on("test_ood", OPEN, SPARSEST),
    ),
    Claim("SMAT at most 1 point below all gates open on ID", _on("id", OPEN, margin=0.01)),
    Claim("SMAT above dense pruned to its density on ID", _on("id", PRUNED)),
    Claim("SMAT above dense pruned to its density on OOD", _on("test_ood", PRUNED)),
    Claim("teachers help on OOD", _on("test_ood", UNTAUGHT)),
    Claim("more experts help on OOD", _on("test_ood", ALONE)),
    Claim("routing beats an even mix on OOD", _on("test_ood", SMAT_EVEN)),
]
