"""`python -m smat_peft.evaluate`: see [`smat_peft.commands.evaluate`]."""

import sys

from smat_peft.commands.evaluate import main
from smat_peft.evaluation import evaluate

if __name__ == "__main__":
    raise SystemExit(main())

# An import binds a module to its name in the package, and that is the public function's name. What it binds is what
# sys.modules holds when this file ends.
sys.modules[__name__] = evaluate  # type: ignore[assignment]
