"""torch.compile: one graph of an adapted backbone, with the outputs of eager mode."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# In a process of its own: torch cannot compile the checks of shapes that the tests put around functions.
PROGRAM = """
import torch
from _pytest.outcomes import Skipped
from tests.tuner.backbones import BACKBONES, outputs, task_images

torch.set_num_threads(1)
images = task_images(7)[0]
for name, backbone in BACKBONES.items():
    try:
        model = backbone.adapted()
    except Skipped:
        continue
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        even = outputs(model, images)
        model.adapt(*task_images(1))
        torch.testing.assert_close(outputs(compiled, images), outputs(model, images), msg=f"{name} on a task")
        model.reset_task()
        torch.testing.assert_close(outputs(compiled, images), even, msg=f"{name} without a task")
    print(name)
"""


def test_every_backbone_compiles_without_a_graph_break_to_the_outputs_of_eager_mode() -> None:
    root = Path(__file__).parents[2]
    ended = subprocess.run([sys.executable, "-c", PROGRAM], cwd=root, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert {"vit", "dinov2", "clip", "swin", "resnet", "plain"} <= set(ended.stdout.split())
