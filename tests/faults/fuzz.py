"""Feed the readers of others' files with mutated ones, guided by coverage; anything but a SmatError is a finding.

    pip install atheris
    python tests/faults/fuzz.py --inputs 100000

Each reader gets as many inputs as the others, in a process of its own whose memory is bounded. A finding is left as a
file `crash-*`, which `--input FILE` tries again.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
LONGEST = 4096  # bytes of an input


def main() -> int:
    """Run the fuzzer on each reader, or be the process of one."""
    sys.path[:0] = [str(ROOT)]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000, help="Of all readers together.")
    parser.add_argument("--megabytes", type=int, default=2048, help="Most memory of a process.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--reader", help="Only this one.")
    parser.add_argument("--input", type=Path, help="Try this file alone.")
    arguments, rest = parser.parse_known_args()
    if arguments.reader and rest:
        return fuzz(arguments.reader, rest)

    from tests.faults.readers import READERS, survives

    names = [arguments.reader] if arguments.reader else list(READERS)
    if arguments.input is not None:
        print("read" if survives(READERS[names[0]][0], arguments.input.read_bytes()) else "refused")
        return 0
    total, failed = 0, []
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            for number, seed in enumerate(READERS[name][1]()):
                (Path(folder) / f"{number}").write_bytes(seed)
            limits = [f"-runs={arguments.inputs // len(names)}", f"-rss_limit_mb={arguments.megabytes}"]
            words = [*limits, f"-seed={arguments.seed}", f"-max_len={LONGEST}", folder]
            command = [sys.executable, "-W", "ignore", __file__, "--reader", name, "--", *words]
            ended = subprocess.run(command, capture_output=True, text=True, check=False)
        done = re.findall(r"Done (\d+) runs|^#(\d+)", ended.stderr, re.MULTILINE)
        count = max((int(number) for numbers in done for number in numbers if number), default=0)
        peak = re.findall(r"rss: (\d+)Mb", ended.stderr)
        total += count
        print(f"{name}: {count:,} inputs, at most {max(map(int, peak), default=0)} MB", flush=True)
        if ended.returncode:
            failed.append(name)
            print(ended.stderr[-3000:], file=sys.stderr)
    print(f"{total:,} inputs; {'nothing but SmatError' if not failed else 'findings: ' + ', '.join(failed)}")
    return 1 if failed else 0


def fuzz(name: str, words: list[str]) -> int:
    """Be the process that feeds one reader."""
    import atheris  # a compiled package, of this command alone

    with atheris.instrument_imports(include=["smat_peft"]):
        from tests.faults.readers import READERS, survives

    atheris.Setup(
        [sys.argv[0], *(word for word in words if word != "--")], lambda data: survives(READERS[name][0], data)
    )
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
