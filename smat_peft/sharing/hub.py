"""Folders to repositories of the Hub: what will be refused is refused before the work, what can be repeated is."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from json import JSONDecodeError
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from huggingface_hub.utils import parse_ratelimit_headers, validate_repo_id

from smat_peft.errors import ConfigurationError, HubError

PASSING = (408, 429, 500, 502, 503, 504)  # statuses that huggingface_hub repeats a request for, where it does
WAITS = (1, 2, 4, 8, 8)  # seconds, as huggingface_hub's own

Result = TypeVar("Result")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HubRepository:
    """A repository of the Hub that can be written to.

    Attributes:
        name: Its whole name, `user/name`.
        revision: The branch to commit to; the main one by default.
        token: What it was opened with.
    """

    name: str
    revision: str | None = None
    token: str | None = field(default=None, repr=False)

    def push(self, folder: Path, *, commit_message: str, allow_patterns: Sequence[str] = ("*",)) -> str:
        """Make one commit of a folder's files.

        Args:
            folder: The folder.
            commit_message: First line of the commit's message.
            allow_patterns: Which files, by their paths in the folder.

        Returns:
            The address of the commit.

        Raises:
            HubError: The Hub has refused it, or cannot be reached for longer than half a minute.
        """
        api = HfApi(token=self.token)
        with _one_line_errors(self.name):
            commit = _persist(
                lambda: api.upload_folder(
                    repo_id=self.name,
                    folder_path=folder,
                    commit_message=commit_message,
                    revision=self.revision,
                    allow_patterns=list(allow_patterns),
                )
            )
        return commit.commit_url


def check_repository(name: str, token: str | None) -> None:
    """Find out without the network whether a repository can be of that name, and whether there is a token.

    Raises:
        ConfigurationError: There is none, or the name is not one that the Hub takes.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigurationError(f"{name!r} cannot be the name of a repository: {error}") from error
    if not (token or get_token()):
        raise ConfigurationError("pushing to the Hub needs a token: run `hf auth login`, set HF_TOKEN, or give one")


def open_repository(
    name: str, *, private: bool | None = None, revision: str | None = None, token: str | None = None
) -> HubRepository:
    """Create a model repository and a branch of it, unless they are there, and see that one can write to it.

    Args:
        name: `user/name` or `organisation/name`; a name alone is the token's user's.
        private: Whether a new repository is private; what the owner's default is if not given.
        revision: Branch that will be committed to.
        token: The one of `hf auth login` by default.

    Raises:
        HubError: The Hub refuses it, or cannot be reached.
    """
    api = HfApi(token=token)
    with _one_line_errors(name):
        whole: str = _persist(lambda: api.create_repo(name, private=private, exist_ok=True)).repo_id
        _persist(lambda: api.auth_check(whole, write=True))  # one that is there already may be another's
        if revision is not None:
            _persist(lambda: api.create_branch(whole, branch=revision, exist_ok=True))
    return HubRepository(whole, revision, token)


def _persist(request: Callable[[], Result]) -> Result:
    """Repeat a request while the Hub is busy or out of reach.

    The client does so for most of an upload, but not for creating a repository or, without Xet, for the commit. All
    that is asked for here can be repeated: what the Hub has already is not sent or committed again.
    """
    for wait in WAITS:
        try:
            return request()
        except JSONDecodeError:  # a gateway's page where the client expects JSON, whatever the status
            seconds = wait
        except HTTPError as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code not in PASSING:
                raise
            seconds = max(wait, _seconds_asked_for(error))
        _logger.warning("The Hub is busy or out of reach; trying again in %d s", seconds)
        time.sleep(seconds)
    return request()


def _seconds_asked_for(error: HTTPError) -> int:
    if not isinstance(error, HfHubHTTPError):
        return 0
    limit = parse_ratelimit_headers(error.response.headers)
    if limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds + 1
    asked = error.response.headers.get("Retry-After", "")
    return int(asked) if asked.isdigit() else 0


@contextmanager
def _one_line_errors(name: str) -> Iterator[None]:
    try:
        yield
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error  # of a large file
        reason = " ".join(str(cause).split())
        raise HubError(f"cannot push to {name}: {reason or type(cause).__name__}") from error
