"""The adapter that validated best so far, kept on disk until a run is done."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from smat_peft.errors import CheckpointError
from smat_peft.files import remove_folder
from smat_peft.meta_tuning.checkpoints import checkpoints, load_checkpoint, save_checkpoint, step_of


class BestAdapter:
    """The best of a run's adapters, in a folder of checkpoints of its own.

    Older ones stay as long as a checkpoint of the run does that they were the best of.

    Attributes:
        score: Its accuracy in validation; None before the first.
        step: The update that it was best after.
    """

    def __init__(self, output_dir: Path) -> None:
        self.output_dir = output_dir
        self.score: float | None = None
        self.step: int | None = None

    @property
    def folder(self) -> Path:
        """Where it is."""
        return self.output_dir / "best"

    def save(self, tensors: dict[str, Tensor]) -> None:
        """Write the adapter of the present `step`."""
        assert self.step is not None
        save_checkpoint(self.folder, self.step, tensors, {"score": self.score})

    def load(self) -> tuple[Path, dict[str, Tensor]]:
        """Its folder and its tensors.

        Raises:
            CheckpointError: It is not there, or not what was written.
        """
        folder = self.folder / f"checkpoint-{self.step}"
        return folder, load_checkpoint(folder).tensors

    def adopt(self, output_dir: Path) -> None:
        """Copy the best of another output directory, where a run that has moved comes from.

        Raises:
            CheckpointError: It is not there, or not what was written.
        """
        other = BestAdapter(output_dir)
        other.step = self.step
        try:
            _, tensors = other.load()
        except CheckpointError as error:
            raise CheckpointError(f"the best adapter so far has to be beside the checkpoint: {error}") from error
        self.save(tensors)

    def prune(self) -> None:
        """Remove those that no checkpoint of the run needs any more."""
        kept = checkpoints(self.output_dir)
        oldest = step_of(kept[0]) if kept else self.step or 0
        needed = max((step for path in checkpoints(self.folder) if (step := step_of(path)) <= oldest), default=0)
        for path in checkpoints(self.folder):
            if step_of(path) < needed:
                remove_folder(path)

    def drop_later(self) -> None:
        """Remove those after the present one: of a try that was given up."""
        for path in checkpoints(self.folder):
            if self.step is None or step_of(path) > self.step:
                remove_folder(path)
