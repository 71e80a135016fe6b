"""`python -m smat_peft.classify`: see `smat_peft.commands.classify`."""

from smat_peft.commands.classify import main

if __name__ == "__main__":
    raise SystemExit(main())
