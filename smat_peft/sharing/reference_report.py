"""What a conversion did with each key of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from smat_peft.sharing import reference_layout as layout
from smat_peft.sharing.reference_files import ReferenceCheckpoint
from smat_peft.sharing.reference_layout import Expected, Row
from smat_peft.sharing.reference_names import Naming


@dataclass
class ConversionReport:
    """What became of each key of a checkpoint; printed, it is a table of them all and the notes.

    Attributes:
        source: The checkpoint.
        naming: Whose names it has for the backbone's parameters.
        used: Key -> what it became.
        ignored: Key -> why it is not needed.
        missing: Key -> what stands in its place.
        notes: What a reader should know, one sentence each.
    """

    source: str
    naming: str
    used: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """All keys, then how many there are and the notes."""
        parts = {"used": self.used, "ignored": self.ignored, "missing": self.missing}
        lines = [f"{self.source} (names of {self.naming})"]
        for title, keys in parts.items():
            width = max(map(len, keys), default=0)
            lines += [f"{title}:", *(f"  {key:{width}}  {what}" for key, what in keys.items())] if keys else []
        lines.append(", ".join(f"{len(keys)} keys {title}" for title, keys in parts.items()))
        return "\n".join([*lines, *self.notes])


def make_report(
    checkpoint: ReferenceCheckpoint, naming: Naming, rows: list[Row], expected: Mapping[str, Expected], mix_evenly: bool
) -> ConversionReport:
    """A report of a checkpoint that holds the expected keys, but for some that are given or not needed."""
    tensors = checkpoint.tensors
    used = {key: use for key, (_, use) in expected.items() if key in tensors}
    stand_in = "zeros, for an even mix of the experts" if mix_evenly else "given by the caller"
    reasons = layout.UNUSED | dict.fromkeys(layout.head_keys(rows), "of the placeholder of a head")
    ignored = {key: reasons.get(key, "unknown") for key in tensors if key not in expected}
    if mix_evenly and used.pop(layout.KEYS, ""):
        ignored[layout.KEYS] = "the experts are mixed evenly"
    return ConversionReport(
        checkpoint.source,
        naming.title,
        used,
        ignored | dict.fromkeys(checkpoint.others, "state of training"),
        missing={key: stand_in for key in expected if key not in tensors},
    )
