"""What `meta_tune` does with an adapter that is done: its packed form and a merged model beside it, and on the Hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel

from smat_peft.commands.arguments import SharingArguments
from smat_peft.commands.class_folders import FolderImages, read_examples
from smat_peft.episodes.episode import Episode
from smat_peft.episodes.images import ImageTransform
from smat_peft.errors import ConfigurationError, HubError
from smat_peft.few_shot.backbone import DEFAULT_BATCH_SIZE, device_of
from smat_peft.few_shot.inputs import encode_labels, pixel_batches
from smat_peft.sharing.hub import HubRepository, check_repository, open_repository
from smat_peft.sharing.merged import Specialisation, save_merged
from smat_peft.sharing.packed import describe_packed, pack_adapter
from smat_peft.tuner.adapters import has_experts

ADAPTER_FILES = ("adapter_*", "README.md", "metrics.json", "curves.png", ".eval_results/*")
PACKED, MERGED = "packed", "merged"  # folders in the output directory, and ends of their repositories' names
EVEN = "even"
COMMIT_MESSAGE = "End of training"  # as transformers' Trainer


class Sharing:
    """What becomes of the adapter, found out to be possible before the training begins.

    Args:
        arguments: What was asked for.
        output_dir: Where the run leaves everything.

    Raises:
        ConfigurationError: There is no token, or a repository cannot have that name.
        DataError: The support set of the merged model cannot be read.
    """

    def __init__(self, arguments: SharingArguments, output_dir: Path) -> None:
        self.arguments, self.output_dir = arguments, output_dir
        self.repositories: dict[Path, HubRepository] = {}  # by the folder that goes into them
        self._names: dict[Path, str] = {}
        self._support: FolderImages | None = None
        merged = arguments.save_merged
        if merged and merged != EVEN:
            self._support = read_examples(Path(merged), skip=False)
        if arguments.push_to_hub:
            name = arguments.hub_model_id or output_dir.resolve().name
            self._names[output_dir] = name
            for wanted, folder in ((arguments.pack, PACKED), (merged, MERGED)):
                if wanted:
                    self._names[output_dir / folder] = f"{name}-{folder}"
            for name in self._names.values():
                check_repository(name, arguments.hub_token)

    def check_model(self, model: PeftModel) -> None:
        """Raise a ConfigurationError where the model cannot be packed, or adapted to the set of `--save_merged`."""
        if self.arguments.pack and not has_experts(model):
            raise ConfigurationError("--pack needs an adapter of SMAT's kind, with gates and a delta")
        if self._support is not None and not has_experts(model):
            raise ConfigurationError(f"--save_merged {self._support.folder} needs experts to mix; use {EVEN}")

    def open_repositories(self) -> None:
        """Create the repositories, or see that they can be written to; a HubError where they cannot."""
        asked = self.arguments
        for folder, name in self._names.items():
            self.repositories[folder] = open_repository(
                name, private=asked.hub_private_repo, revision=asked.hub_revision, token=asked.hub_token
            )

    def name_of(self, folder: Path) -> str | None:
        """The whole name on the Hub of what is in a folder, if it goes there."""
        repository = self.repositories.get(folder)
        return repository.name if repository else None

    def pack(self, model: PeftModel, episodes: Sequence[Episode]) -> dict[Path, str]:
        """Leave the packed adapter, if one was asked for; returns its folder, with what its card is to say of it.

        Its error is measured on the images of the first of the episodes, or of noise where there is none.
        """
        if not self.arguments.pack:
            return {}
        images = torch.cat([episodes[0].support, episodes[0].query]) if len(episodes) else None
        folder = self.output_dir / PACKED
        return {folder: describe_packed(pack_adapter(model, folder, images=images))}

    def save_merged(self, model: PeftModel, transform: ImageTransform, base_model: str) -> None:
        """Leave the merged model, if one was asked for. `model` cannot be used after this."""
        if not self.arguments.save_merged:
            return
        specialisation = None if self._support is None else _adapt(model, self._support, transform)
        folder = self.output_dir / MERGED
        save_merged(
            model,
            folder,
            transform,
            base_model=base_model,
            adapter=self.name_of(self.output_dir) or self.output_dir.resolve().name,
            specialisation=specialisation,
            name=self.name_of(folder),
            license=self.arguments.license,
        )

    def push(self) -> list[str]:
        """Push what was asked for, each folder in one commit; returns the commits' addresses.

        Raises:
            HubError: The Hub refuses it, or stays out of reach; says how to push it later.
        """
        pushed = []
        for folder, repository in self.repositories.items():
            patterns = ADAPTER_FILES if folder == self.output_dir else ("*",)
            try:
                pushed.append(repository.push(folder, commit_message=COMMIT_MESSAGE, allow_patterns=patterns))
            except HubError as error:
                include = " ".join(f"'{pattern}'" for pattern in patterns)
                raise HubError(
                    f"{error}. Nothing is lost: later, `hf upload {repository.name} {folder} . --include {include}`"
                ) from error
        return pushed


def _adapt(model: PeftModel, support: FolderImages, transform: ImageTransform) -> Specialisation:
    classes, labels = encode_labels(support.classes)
    pixels = torch.cat(list(pixel_batches(support.paths, transform, DEFAULT_BATCH_SIZE)))
    device = device_of(model)
    model.adapt(pixels.to(device), labels.to(device))
    return Specialisation(support.folder.resolve().name, len(labels), len(classes))
