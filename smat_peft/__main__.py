"""`python -m smat_peft env`: see `smat_peft.commands.env`."""

from smat_peft.commands.env import main

if __name__ == "__main__":
    raise SystemExit(main())
