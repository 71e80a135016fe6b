"""A run that is killed at random moments, over and over, ends with the adapter of one that never was.

    python tests/faults/soak.py                             # 200 updates of the demo, 20 kills
    python tests/faults/soak.py --updates 30 --kills 5

Each kill is SIGKILL to all processes of the run, a random time after a random update; the next one resumes with another
number of processes that load episodes.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
ADAPTER = "adapter_model.safetensors"
SETTINGS = ("--evaluation_episodes=0", "--validation_episodes=5", "--checkpointing_steps=3", "--logging_steps=7")
PROGRESS = re.compile(rb"\| (\d+)/\d+ \[")  # of tqdm's bar


def start(folder: Path, arguments: argparse.Namespace, workers: int) -> subprocess.Popen[bytes]:
    """A run in a folder, or the rest of it, in a session of its own."""
    words = [f"--output_dir={folder}", f"--max_steps={arguments.updates}", f"--threads={arguments.threads}"]
    words += [*SETTINGS, f"--validation_steps={max(1, arguments.updates // 6)}", f"--dataloader_num_workers={workers}"]
    if any(folder.glob("checkpoint-*")):
        words.append("--resume_from_checkpoint=latest")
    command = [sys.executable, "-W", "ignore", "-m", "smat_peft.meta_tune", str(arguments.recipe), *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(arguments.threads)}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )


def wait_for_update(run: subprocess.Popen[bytes], update: int) -> bytes:
    """Read what a run prints until its bar has come to an update, or it ends; returns the last of it."""
    printed = b""
    assert run.stderr is not None
    while piece := os.read(run.stderr.fileno(), 4096):
        printed = (printed + piece)[-8192:]
        if any(int(number) >= update for number in PROGRESS.findall(printed)):
            break
    return printed


def finish(run: subprocess.Popen[bytes]) -> None:
    """Let a run end; its last words are the error where it fails."""
    printed = wait_for_update(run, sys.maxsize)
    if run.wait():
        raise SystemExit(f"a run failed with status {run.returncode}:\n{printed.decode(errors='replace')}")


def main() -> int:
    """Run undisturbed and disturbed, and compare; the exit status says whether they are the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--recipe", type=Path, default=ROOT / "smat_peft/assets/demo.yaml")
    parser.add_argument("--folder", type=Path, default=Path("outputs/soak"), help="Emptied before and left after.")
    arguments = parser.parse_args()
    whole, killed = arguments.folder / "undisturbed", arguments.folder / "killed"
    shutil.rmtree(arguments.folder, ignore_errors=True)

    started = time.perf_counter()
    finish(start(whole, arguments, workers=0))
    seconds = (time.perf_counter() - started) / arguments.updates
    print(
        f"undisturbed: {arguments.updates} updates, {seconds:.2f} s each with what comes before and after", flush=True
    )

    draws = random.Random(arguments.seed)
    for number, update in enumerate(sorted(draws.sample(range(1, arguments.updates), arguments.kills))):
        run = start(killed, arguments, workers=number % 3)
        wait_for_update(run, update)
        time.sleep(draws.uniform(0, seconds))
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        left = sorted(path.name for path in killed.glob("*checkpoint-*"))
        print(f"kill {number + 1} in or after update {update}: left {', '.join(left) or 'nothing'}", flush=True)
    finish(start(killed, arguments, workers=1))

    same = (whole / ADAPTER).read_bytes() == (killed / ADAPTER).read_bytes()
    print(f"after {arguments.kills} kills the adapter is {'the same to the bit' if same else 'ANOTHER'}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
