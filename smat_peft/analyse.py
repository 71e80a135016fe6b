"""`python -m smat_peft.analyse`: see `smat_peft.commands.analyse`."""

from smat_peft.commands.analyse import main

if __name__ == "__main__":
    raise SystemExit(main())
