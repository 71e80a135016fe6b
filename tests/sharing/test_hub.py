"""Pushing to the Hub with the real client: whole or one clear error, whatever the Hub does on the way."""

from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, constants
from peft import PeftModel, get_peft_model

from smat_peft import SMATConfig
from smat_peft.errors import ConfigurationError, HubError
from smat_peft.sharing.hub import HubRepository, check_repository, open_repository
from tests.sharing.hub_server import READER, WRITER, Hub

# The client's own, where it uploads a large file without Xet.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

CONTENT = {"README.md": b"---\nlicense: mit\n---\n", "model.safetensors": bytes(100), ".eval_results/a.yaml": b"[]"}
REQUESTS = [
    "POST /api/repos/create",
    "GET .*/auth-check/write",
    "POST /api/validate-yaml",
    "POST .*/preupload/main",
    "POST .*/objects/batch",
    "PUT /large/",
    "POST .*/commit/main",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in (CONTENT | {"checkpoint-5/model.safetensors": b"training"}).items():
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_bytes(content)
    return tmp_path / "run"


def push(folder: Path, name: str = "glyphs", token: str = WRITER, **settings: Any) -> HubRepository:
    repository = open_repository(name, token=token, **settings)
    repository.push(folder, commit_message="End of training", allow_patterns=["*.md", "model*", ".eval_results/*"])
    return repository


@pytest.mark.parametrize("xet", [True, False], ids=["the client's pipeline", "without Xet"])
def test_a_folder_is_one_commit_of_what_belongs_in_it(hub: Hub, folder: Path, monkeypatch: Any, xet: bool) -> None:
    if xet:
        hub.large_suffix = "none is large"  # the pipeline that the client has with Xet, for files that need it not
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    assert push(folder).name == "user/glyphs"
    repository = hub.repositories["user/glyphs"]
    assert repository.files == CONTENT
    assert [(commit.message, commit.branch) for commit in repository.commits] == [("End of training", "main")]


@pytest.mark.parametrize(("private", "expected"), [(True, True), (False, False), (None, False)])
def test_a_new_repository_can_be_private(hub: Hub, folder: Path, private: bool | None, expected: bool) -> None:
    push(folder, private=private)
    assert hub.repositories["user/glyphs"].private is expected


def test_a_revision_is_a_branch_that_is_made_if_need_be(hub: Hub, folder: Path) -> None:
    push(folder, revision="v2")
    push(folder, revision="v2")
    branches = hub.repositories["user/glyphs"].branches
    assert branches == {"main": {}, "v2": CONTENT}


def test_what_is_there_already_is_not_committed_again(hub: Hub, folder: Path) -> None:
    push(folder)
    push(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    push(folder)
    commits = hub.repositories["user/glyphs"].commits
    assert [commit.paths for commit in commits] == [sorted(CONTENT), ["README.md"]]


@pytest.mark.parametrize("request_", REQUESTS)
@pytest.mark.parametrize("failure", [429, 503, "cut", "lost"])
def test_whatever_request_fails_for_a_while_the_repository_ends_whole(
    hub: Hub, folder: Path, request_: str, failure: Any
) -> None:
    hub.fail(request_, *[failure] * (1 if failure == "lost" else 2))  # after a lost answer, it is there
    push(folder)
    assert hub.all_failed()
    assert hub.repositories["user/glyphs"].files == CONTENT
    assert len(hub.repositories["user/glyphs"].commits) == 1
    assert all(wait >= 3 for wait in hub.waits) if failure == 429 else hub.waits[0] <= 1  # a 429 says how long


@pytest.mark.parametrize("request_", REQUESTS)
def test_a_refusal_is_one_error_at_once(hub: Hub, folder: Path, request_: str) -> None:
    hub.fail(request_, *[403] * 100)
    with pytest.raises(HubError, match=r"^cannot push to (user/)?glyphs: .*403") as error:
        push(folder)
    assert "\n" not in str(error.value)
    assert WRITER not in str(error.value)
    assert hub.waits == []


def test_a_hub_that_stays_away_is_given_up_on(hub: Hub) -> None:
    hub.fail("repos/create", *["cut"] * 100)
    with pytest.raises(HubError, match=r"^cannot push to glyphs: "):
        open_repository("glyphs", token=WRITER)
    assert len(hub.waits) == 5


@pytest.mark.parametrize(("name", "token"), [("glyphs", READER), ("user/glyphs", READER), ("other/glyphs", WRITER)])
def test_a_repository_of_another_is_refused_before_anything_is_sent(hub: Hub, name: str, token: str) -> None:
    HfApi(token=WRITER).create_repo("user/glyphs")
    before = dict(hub.repositories)
    with pytest.raises(HubError, match="403"):
        open_repository(name, token=token)
    assert hub.repositories == before


def test_offline_it_is_one_error(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="offline mode is enabled"):
        open_repository("glyphs", token=WRITER)


@pytest.mark.parametrize("name", ["a b", "user/a/b", "-a", "a--b", "user/" + 97 * "a", ""])
def test_a_name_that_no_repository_can_have_is_refused(hub: Hub, name: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be the name of a repository"):
        check_repository(name, WRITER)


def test_a_token_comes_from_the_argument_the_environment_or_a_login(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_repository("user/glyphs", WRITER)
    with pytest.raises(ConfigurationError, match="needs a token: run `hf auth login`"):
        check_repository("user/glyphs", None)
    (tmp_path / "no-token").write_text(WRITER)
    check_repository("user/glyphs", None)
    (tmp_path / "no-token").unlink()
    monkeypatch.setenv("HF_TOKEN", WRITER)
    check_repository("user/glyphs", None)
    assert open_repository("glyphs").name == "user/glyphs"
    assert hub.requests


def test_peft_s_own_push_to_hub_and_from_pretrained_give_the_same_adapter(hub: Hub, make_vit: Any) -> None:
    torch.manual_seed(0)
    model = get_peft_model(make_vit(), SMATConfig(num_experts=2, init_weights=False)).eval()
    model.push_to_hub("user/glyphs", token=WRITER, private=True, commit_message="First")
    assert hub.repositories["user/glyphs"].private
    assert [commit.message for commit in hub.repositories["user/glyphs"].commits] == ["First"]
    loaded = PeftModel.from_pretrained(make_vit(), "user/glyphs", token=WRITER).eval()
    pixels = torch.rand(2, 3, 16, 16)
    assert torch.equal(loaded.features(pixels), model.features(pixels))
