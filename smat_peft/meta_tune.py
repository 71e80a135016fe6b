"""`python -m smat_peft.meta_tune`: see [`smat_peft.commands.meta_tune`]."""

from smat_peft.commands.meta_tune import main

if __name__ == "__main__":
    raise SystemExit(main())
