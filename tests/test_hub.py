"""The Hub. Its network cannot be reached from a test: what stands for it here takes the place of huggingface_hub's own
functions, keeps the files in a folder, and answers with huggingface_hub's own types. So these tests show what mmedit asks
for and what it makes of the answers, not that the Hub gives them."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import CommitInfo, ModelCard
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import ModelInfo

import mmedit
from mmedit.errors import OutputError, PatchError
from mmedit.patches import hub
from mmedit.patches.base import Base
from mmedit.patches.hub import code, model_card, pull, push

SHA = "0123456789abcdef0123456789abcdef01234567"


def patch_of(**changes: Any) -> mmedit.Patch:
    site, base = mmedit.Site(0), Base("owner/base", "abc", "llava", 2, 8, 16, "")
    edits = ({"source": "cat", "target": "dog"},)
    patch = mmedit.Patch(
        {site: (torch.tensor([3]), torch.ones(1, 8))}, {site: torch.zeros(1, 8)}, base, "MMNeurons", {}, edits
    )
    named = {name: value for name, value in changes.items() if name in vars(base)}
    return dataclasses.replace(
        patch, base=dataclasses.replace(base, **named), **{n: v for n, v in changes.items() if n not in named}
    )


class StandIn:
    """Stands for the Hub: a folder per repository, and a list of what was asked."""

    def __init__(self, root: Path) -> None:
        self.root, self.asked = root, list[tuple[str, dict[str, Any]]]()
        self.error: Exception | None = None

    def __call__(self, token: str | None = None) -> StandIn:  # HfApi(token=...)
        self.asked.append(("login", {"token": token}))
        return self

    def _ask(self, what: str, **options: Any) -> None:
        self.asked.append((what, options))
        if self.error is not None:
            raise self.error

    def create_repo(self, repo_id: str, **options: Any) -> None:
        self._ask("create_repo", repo_id=repo_id, **options)
        (self.root / repo_id).mkdir(parents=True, exist_ok=True)

    def create_branch(self, repo_id: str, **options: Any) -> None:
        self._ask("create_branch", repo_id=repo_id, **options)

    def upload_folder(self, *, repo_id: str, folder_path: str, **options: Any) -> CommitInfo:
        self._ask("upload_folder", repo_id=repo_id, **options)
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)
        url = f"https://huggingface.co/{repo_id}/commit/{SHA}"
        pr = f"https://huggingface.co/{repo_id}/discussions/1" if options["create_pr"] else None
        return CommitInfo(commit_url=url, commit_message="", commit_description="", oid=SHA, pr_url=pr)

    def model_info(self, repo_id: str, **options: Any) -> ModelInfo:
        self._ask("model_info", repo_id=repo_id, **options)
        files = [path for path in sorted((self.root / repo_id).rglob("*")) if path.is_file()]
        siblings = [
            {"rfilename": str(path.relative_to(self.root / repo_id)), "size": path.stat().st_size} for path in files
        ]
        return ModelInfo(id=repo_id, sha=SHA, siblings=siblings)

    def download(self, repo_id: str, filename: str, **options: Any) -> str:
        self._ask("download", repo_id=repo_id, filename=filename, **options)
        return str(self.root / repo_id / filename)

    def options(self, what: str) -> dict[str, Any]:
        return next(options for name, options in self.asked if name == what)


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn(tmp_path / "hub")
    monkeypatch.setattr(hub, "HfApi", stand_in)
    monkeypatch.setattr(hub, "hf_hub_download", stand_in.download)
    return stand_in


def test_push_then_pull_is_the_same_patch(net: StandIn) -> None:
    patch = patch_of()
    assert push(patch, "me/cat-to-dog") == f"https://huggingface.co/me/cat-to-dog/commit/{SHA}"
    assert sorted(path.name for path in (net.root / "me/cat-to-dog").iterdir()) == ["README.md", "patch.safetensors"]
    again = pull("me/cat-to-dog")
    assert (again.digest, again.base, again.edits, again.created) == (
        patch.digest,
        patch.base,
        patch.edits,
        patch.created,
    )
    assert "pull('me/cat-to-dog')" in (net.root / "me/cat-to-dog/README.md").read_text()


def test_what_push_asks_for(net: StandIn) -> None:
    address = push(patch_of(), "me/x", revision="dev", private=True, token="hf_secret", message="first")
    assert net.asked[0] == ("login", {"token": "hf_secret"}) and address.endswith(SHA)
    assert net.options("create_repo") == {"repo_id": "me/x", "private": True, "exist_ok": True}
    assert net.options("create_branch") == {"repo_id": "me/x", "branch": "dev", "exist_ok": True}
    assert net.options("upload_folder") == {
        "repo_id": "me/x",
        "revision": "dev",
        "create_pr": False,
        "commit_message": "first",
    }


def test_a_pull_request_makes_no_branch(net: StandIn) -> None:
    assert push(patch_of(), "me/x", create_pr=True).endswith("/discussions/1")
    assert "create_branch" not in dict(net.asked) and net.options("upload_folder")["commit_message"] == "Patch cat→dog"


def test_pull_downloads_the_commit_that_it_looked_at(net: StandIn) -> None:
    push(patch_of(), "me/x")
    pull("me/x", revision="main", token="hf_secret")
    assert net.options("model_info") == {"repo_id": "me/x", "revision": "main", "files_metadata": True}
    assert net.options("download") == {
        "repo_id": "me/x",
        "filename": "patch.safetensors",
        "revision": SHA,
        "token": "hf_secret",
    }


def test_pull_reads_nothing_but_a_safetensors_file(net: StandIn) -> None:
    push(patch_of(), "me/x")
    (net.root / "me/x/evil.py").write_text("raise SystemExit")
    (net.root / "me/x/pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert pull("me/x").name == "cat→dog"
    for name in ("evil.py", "pytorch_model.bin", "README.md", "patch.safetensors.py", ""):
        with pytest.raises(PatchError, match=r"a patch is a \.safetensors file"):
            pull("me/x", filename=name)
    (net.root / "me/x/patch.safetensors").unlink()
    with pytest.raises(PatchError, match="no such patch"):
        pull("me/x")
    assert [options["filename"] for what, options in net.asked if what == "download"] == ["patch.safetensors"]


def test_pull_of_several_asks_which(net: StandIn) -> None:
    push(patch_of(), "me/x")
    patch_of(edits=({"source": "cat", "target": "cow"},)).save(net.root / "me/x/other.safetensors")
    with pytest.raises(PatchError, match=r"several[\s\S]*'other.safetensors', 'patch.safetensors'"):
        pull("me/x")
    assert pull("me/x", filename="other.safetensors").name == "cat→cow"
    for name in ("none.safetensors", "../x/other.safetensors", "/etc/x.safetensors"):
        with pytest.raises(PatchError, match="no such patch"):
            pull("me/x", filename=name)


def test_pull_of_what_is_no_patch_is_refused(net: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    (net.root / "me/x").mkdir(parents=True)
    (net.root / "me/x/model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(PatchError, match="not a patch"):
        pull("me/x")
    monkeypatch.setattr(hub, "MAX_FILE", 99)
    net.asked.clear()
    with pytest.raises(PatchError, match="too large for a patch"):
        pull("me/x")
    assert "download" not in dict(net.asked)


def hub_error(kind: type[HfHubHTTPError], text: str) -> HfHubHTTPError:
    """An error of the client's own; the response that it wants is of the HTTP library that the client was built with."""
    error = kind.__new__(kind)
    Exception.__init__(error, text)
    error.args = (text,)
    return error


ERRORS = [
    hub_error(RepositoryNotFoundError, "404 Client Error: Repository Not Found"), hub_error(HfHubHTTPError, "401 Unauthorized"),
    ConnectionError("Name or service not known"), TimeoutError("timed out"), ValueError("bad name"), RuntimeError("Xet failed"),
]  # fmt: skip


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_whatever_the_client_raises_is_an_error_of_ours(net: StandIn, error: Exception) -> None:
    net.error = error
    with pytest.raises(OutputError, match=rf"cannot push[\s\S]*me/x[\s\S]*{re.escape(str(error))}"):
        push(patch_of(), "me/x")
    with pytest.raises(PatchError, match=rf"cannot pull[\s\S]*me/x[\s\S]*{re.escape(str(error))}"):
        pull("me/x")


def test_the_token_is_never_told(net: StandIn) -> None:
    net.error = ValueError("Illegal header value b'Bearer hf_secret'")
    for call in (lambda: push(patch_of(), "me/x", token="hf_secret"), lambda: pull("me/x", token="hf_secret")):
        with pytest.raises((OutputError, PatchError)) as caught:
            call()
        assert "hf_secret" not in str(caught.value) and "Bearer …" in str(caught.value)
        assert caught.value.__suppress_context__  # so that no traceback shows it either


def test_a_malformed_name_is_refused_by_the_client_itself() -> None:
    """No stand-in here: huggingface_hub refuses before it asks the network."""
    for name in ("a/b/c", "no spaces", "../x"):
        with pytest.raises(PatchError, match=r"cannot pull[\s\S]*HFValidationError"):
            pull(name)
        with pytest.raises(OutputError, match=r"cannot push[\s\S]*HFValidationError"):
            push(patch_of(), name)


def front(card: str) -> Any:
    return yaml.safe_load(card.split("---\n")[1])


def test_the_card_tells_what_the_patch_does() -> None:
    evaluation = {"reliability": 1.0, "locality": {"image": 0.987654, "cases": [1, 2]}, "name": "x", "ok": True}
    card = model_card(patch_of(evaluation=evaluation), "me/x")
    assert front(card) == {"base_model": "owner/base", "library_name": "mmedit", "tags": ["mmedit", "model-editing"]}
    assert ModelCard(card).data.base_model == "owner/base"  # the Hub's own reader
    for words in ("`cat` → `dog`", "method: `MMNeurons`", "model: `owner/base`, revision `abc`", "- `reliability`: 1\n", "- `locality.image`: 0.9877\n", "- L0.U3\n", "vlm = mmedit.load('owner/base')", "pull('me/x')"):  # fmt: skip
        assert words in card, words
    assert "cases" not in card and "`ok`" not in card
    assert "nothing was measured" in model_card(patch_of())


def test_the_code_in_a_card_is_code() -> None:
    for library in ("mmedit", "peft"):
        block = re.findall(r"```python\n(.*?)```", model_card(patch_of(model='it\'s\n"x"'), library=library), re.DOTALL)  # type: ignore[arg-type]
        compile(block[0], "card", "exec")


@pytest.mark.parametrize("model", ["/home/me/llava", "", "a/b/c", "x\ny", "owner/name: x", "-x", "…"])
def test_a_base_that_is_no_hub_id_is_not_in_the_yaml(model: str) -> None:
    card = model_card(patch_of(model=model))
    assert "base_model" not in front(card) and front(card)["library_name"] == "mmedit"
    assert code(model) in card


EVIL = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "[click](https://evil.example)", "https://evil.example", "@someone",
    "\n---\nlicense: mit\n---\n", "\r\n# Heading", "\u2028# Heading", "```\nfenced", "``a``", "`", "| a | b |", "![x](https://evil.example/x.png)", "\x1b[2J", "\ud800",
    "x" * 10_000, "<!--", "$$x$$", "{model!r}", "'); import os; os.system('x",
]  # fmt: skip


@pytest.mark.parametrize("text", EVIL)
@pytest.mark.parametrize("library", ["mmedit", "peft"])
def test_nothing_in_the_metadata_has_a_meaning_in_a_card(text: str, library: Any) -> None:
    patch = patch_of(
        model=text, revision=text, model_type=text, editor=text, created=text, library_version=text,
        edits=({"source": text, "target": text},), evaluation={text: 1.0},
    )  # fmt: skip
    card = model_card(patch, library=library)
    plain, tags = model_card(patch_of(model="?"), library=library), ["mmedit", "model-editing"]
    assert front(card) == {"library_name": library, "tags": tags + ["lora"] * (library == "peft")}
    fence = re.compile(r"```python\n.*?\n```", re.DOTALL)
    assert len(fence.findall(card)) == 1 and compile(fence.findall(card)[0][10:-3], "card", "exec")
    rest = re.sub(r"`[^`\n]*`", "`?`", fence.sub("", card)).replace("`?` @ ", "")
    expected = re.sub(r"`[^`\n]*`", "`?`", fence.sub("", plain)).replace("- nothing was measured", "- `?`: 1")
    assert rest.split() == expected.split(), (
        "outside of code spans and the code block, a card is the same for every text"
    )
    assert max(map(len, fence.sub("", card).splitlines())) < 1000


def test_a_card_of_many_neurons_is_short() -> None:
    site = mmedit.Site(0)
    rows = {site: (torch.arange(16), torch.ones(16, 8))}
    patch = dataclasses.replace(
        patch_of(), deltas=rows, base_rows={site: torch.zeros(16, 8)}, edits=({"source": "a", "target": "b"},) * 99
    )
    card = model_card(patch)
    assert "- … and 49 more" in card and card.count("`a` → `b`") == 50 and "it changes 16 rows of 1 W_out" in card
