"""Which packages that smat_peft needs are missing or too old. Imported first, so that they are one clear error."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

PACKAGE = "smat_peft"


def stated(extras: bool = False) -> list[Requirement]:
    """What setup.cfg asks for, or what it can use besides; nothing where the package lies on the path uninstalled."""
    try:
        requirements = [Requirement(text) for text in requires(PACKAGE) or ()]
    except PackageNotFoundError:
        return []
    return [requirement for requirement in requirements if (requirement.marker is not None) == extras]


def installed(name: str) -> str | None:
    """A package's version; None where there is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def unmet() -> list[str]:
    """What is asked for and not there, a phrase each."""
    found = [(requirement, installed(requirement.name)) for requirement in stated()]
    return [
        f"{requirement} is needed, {own or 'none'} is installed"
        for requirement, own in found
        if own is None or not requirement.specifier.contains(own, prereleases=True)
    ]


if problems := unmet():
    raise ImportError(f"{'; '.join(problems)}. Mend it with: pip install --upgrade {PACKAGE}")
