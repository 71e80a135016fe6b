"""What a launcher's processes can share, and what is refused."""

from types import SimpleNamespace
from typing import Any

import pytest
from accelerate.utils import DistributedType

from smat_peft.errors import ConfigurationError
from smat_peft.meta_tuning.processes import check_processes, is_of_lost_process


def launched(kind: DistributedType) -> Any:
    return SimpleNamespace(distributed_type=kind, num_processes=2, gradient_accumulation_steps=1)


@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM])
def test_a_launcher_that_shards_is_refused_and_told_what_saves_memory_instead(kind: DistributedType) -> None:
    with pytest.raises(ConfigurationError, match=f"launched with {kind.value}, .*--max_batch_size"):
        check_processes(launched(kind), 4)


@pytest.mark.parametrize("kind", [DistributedType.MULTI_GPU, DistributedType.MULTI_CPU, DistributedType.NO])
def test_episodes_are_spread_evenly_or_not_at_all(kind: DistributedType) -> None:
    check_processes(launched(kind), 4)
    with pytest.raises(ConfigurationError, match=r"--episodes_per_step \(5\) must be a multiple of the 2 processes"):
        check_processes(launched(kind), 5)


def test_gradients_that_accelerate_would_divide_are_refused() -> None:
    accelerator = launched(DistributedType.NO)
    accelerator.gradient_accumulation_steps = 4
    with pytest.raises(ConfigurationError, match="gradient_accumulation_steps is 4"):
        check_processes(accelerator, 4)


def test_a_lost_process_is_told_from_other_errors() -> None:
    assert is_of_lost_process(RuntimeError("[../gloo/transport/tcp/pair.cc] Connection closed by peer [127.0.0.1]"))
    assert not is_of_lost_process(RuntimeError("shapes cannot be multiplied"))
