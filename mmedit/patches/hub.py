"""Patches on the Hugging Face Hub: push one with a model card made from its metadata, and pull one.

What a patch says of itself was written by whoever made it, so a card shows it in code spans only, in which Markdown,
HTML and links mean nothing, and lets none of it into the YAML but a well-formed model id.
"""

from __future__ import annotations

import re
import tempfile
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from huggingface_hub import HfApi, ModelCardData, hf_hub_download

from mmedit.errors import MmeditError, OutputError, PatchError
from mmedit.files import write_text
from mmedit.patches.format import MAX_FILE
from mmedit.patches.patch import Patch
from mmedit.patches.verify import extent

FILE, CARD = "patch.safetensors", "README.md"
LONGEST, MOST, DEEPEST = 200, 50, 8  # in a card: characters of a text, lines of a list, levels of an evaluation
_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_USE = {
    "mmedit": """\
import mmedit
from mmedit.patches.hub import pull

vlm = mmedit.load({base!r})
patch = pull({repo_id!r})
patch.apply(vlm)  # refuses any other weights; patch.revert(vlm) takes it out again, bit for bit""",
    "peft": """\
from peft import PeftModel
from transformers import AutoModelForImageTextToText

model = AutoModelForImageTextToText.from_pretrained({base!r})
model = PeftModel.from_pretrained(model, {repo_id!r})
model = model.merge_and_unload()  # exact, and no slower than the base model""",
}


def push(
    patch: Patch, repo_id: str, *, revision: str | None = None, private: bool | None = None, token: str | None = None,
    create_pr: bool = False, message: str | None = None,
) -> str:  # fmt: skip
    """Upload a patch to the Hub as `patch.safetensors`, with a model card; takes the place of those that are there.

    Args:
        patch: what to upload.
        repo_id: `owner/name`; made if it does not exist.
        revision: branch to commit to, made if it does not exist; the main one when None.
        private: whether a new repository is private; the owner's default when None.
        token: of the Hub; the one that is logged in when None.
        create_pr: open a pull request instead of committing.
        message: of the commit.

    Returns:
        The address of the commit or of the pull request.

    Raises:
        OutputError: if the name is malformed, the Hub refuses, or there is no network.
    """
    with tempfile.TemporaryDirectory() as folder:
        patch.save(Path(folder, FILE))
        write_text(Path(folder, CARD), model_card(patch, repo_id))
        with _told(OutputError, "cannot push to the Hub", repo_id, token):
            api = HfApi(token=token)
            api.create_repo(repo_id, private=private, exist_ok=True)
            if revision is not None and not create_pr:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            commit: Any = api.upload_folder(
                repo_id=repo_id, folder_path=folder, revision=revision, create_pr=create_pr,
                commit_message=message or f"Patch {patch.name}"[:LONGEST],
            )  # fmt: skip
    return str((create_pr and commit.pr_url) or commit.commit_url)


def pull(repo_id: str, revision: str | None = None, filename: str | None = None, token: str | None = None) -> Patch:
    """Download a patch from the Hub; of all that the repository holds, one `.safetensors` file is read.

    Args:
        repo_id: `owner/name`.
        revision: branch, tag or commit; the main branch when None.
        filename: the patch's, in the repository; its only `.safetensors` file when None.
        token: of the Hub; the one that is logged in when None.

    Returns:
        The patch, checked like any file by `Patch.load`.

    Raises:
        PatchError: if there is no such repository or patch, the file is no patch, or there is no network.
    """
    if filename is not None and PurePosixPath(filename).suffix != ".safetensors":
        raise PatchError("a patch is a .safetensors file", where=repo_id, got=filename[:LONGEST])
    with _told(PatchError, "cannot pull from the Hub", repo_id, token):
        listed = HfApi(token=token).model_info(repo_id, revision=revision, files_metadata=True)
    files = [file for file in listed.siblings or [] if file.rfilename.endswith(".safetensors")]
    sizes = {file.rfilename: file.size for file in files if ".." not in file.rfilename}
    chosen = [name for name in sizes if filename in (None, name)]
    if len(chosen) != 1:
        raise PatchError(
            "the repository has no such patch" if not chosen else "the repository has several .safetensors files", where=repo_id,
            got=filename, expected=f"one of {sorted(sizes)[:MOST]}", do="name the file that is the patch",
        )  # fmt: skip
    if (sizes[chosen[0]] or 0) > MAX_FILE:
        raise PatchError(
            "too large for a patch",
            where=chosen[0],
            got=f"{sizes[chosen[0]]:,} bytes",
            expected=f"at most {MAX_FILE:,}",
        )
    with _told(PatchError, "cannot pull from the Hub", repo_id, token):
        path = hf_hub_download(repo_id, chosen[0], revision=listed.sha, token=token)
    return Patch.load(path)


@contextmanager
def _told(kind: type[MmeditError], what: str, repo_id: str, token: str | None) -> Iterator[None]:
    """Turn whatever the Hub's client raises, which has no common type, into our own; never tells the token."""
    try:
        yield
    except Exception as error:
        text = str(error).replace(token, "…") if token else str(error)
        raise kind(
            what, where=repo_id, got=f"{type(error).__name__}: {text.strip()[: 2 * LONGEST]}",
            do="check the name, your login (hf auth login) and the network",
        ) from None  # fmt: skip


def model_card(patch: Patch, repo_id: str = "OWNER/NAME", library: Literal["mmedit", "peft"] = "mmedit") -> str:
    """The README of a patch on the Hub, from its metadata.

    Args:
        patch: what it describes.
        repo_id: where it will lie, for the example of use.
        library: `mmedit` for a patch, `peft` for an adapter made from one.

    Returns:
        Markdown with the Hub's YAML in front.

    Example:
        >>> import torch
        >>> from mmedit import Site
        >>> from mmedit.patches.base import Base
        >>> rows = {Site(0): (torch.tensor([1]), torch.ones(1, 2))}
        >>> patch = Patch(rows, {Site(0): torch.zeros(1, 2)}, Base("llava-hf/llava-1.5-7b-hf", None, "llava", 1, 2, 4, ""))
        >>> print(model_card(patch)[:61])
        ---
        base_model: llava-hf/llava-1.5-7b-hf
        library_name: mmedit
    """
    base = patch.base
    use = _USE[library].format(base=base.model, repo_id=repo_id)
    lines = [
        f"---\n{_front_matter(patch, library)}\n---\n",
        f"# {code(patch.name)}\n",
        f"An edit of {code(base.model)} by mmedit: it changes {extent(patch)}.\n",
        "## What was swapped\n",
        *_listed([f"{code(e['source'])} → {code(e['target'])}" for e in patch.edits] or ["not recorded"]),
        f"- method: {code(patch.editor)}, {code(patch.created)}, mmedit {code(patch.library_version)}\n",
        "## Base\n",
        f"- model: {code(base.model)}, revision {code(base.revision or 'not recorded')}",
        f"- type: {code(base.model_type)}, {base.n_layers} layers, d_model {base.d_model}, d_ffn {base.d_ffn}\n",
        "## Measured\n",
        *_listed([f"{code(name)}: {value:.4g}" for name, value in figures(patch.evaluation or {})] or ["nothing was measured"]),
        "\n## Neurons\n",
        *_listed([str(neuron) for neuron in patch.neurons] + [f"all of {site}, rank {len(right)}" for site, (_, right) in patch.low_rank.items()]),
        f"\nDigest: `{patch.digest}`\n",
        f"## How to use it\n\n```python\n{use}\n```",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def code(text: object) -> str:
    """Anybody's text as a Markdown code span on one line, in which nothing has a meaning.

    Example:
        >>> print(code("<b>`cat`" + chr(10) + "# dog"))
        `<b>'cat' # dog`
    """
    shown = "".join(" " if unicodedata.category(c) in ("Cc", "Cs") else c for c in str(text))
    cut = shown if len(shown) <= LONGEST else shown[:LONGEST] + "…"
    return f"`{cut.replace('`', chr(39)).strip() or '?'}`"


def figures(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of an evaluation with their dotted names; lists, which hold single cases, are left out."""
    for key, value in values.items():
        if isinstance(value, Mapping) and path.count(".") < DEEPEST:
            yield from figures(value, f"{path}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300:
            yield f"{path}{key}", value


def _front_matter(patch: Patch, library: str) -> str:
    """The card's YAML; of a base that is no Hub id, a local folder say, nothing: the Hub would refuse the card."""
    base = patch.base.model if _ID.fullmatch(patch.base.model) else None
    tags = ["mmedit", "model-editing"] + ["lora"] * (library == "peft")
    return str(ModelCardData(base_model=base, library_name=library, tags=tags).to_yaml())


def _listed(items: list[str]) -> list[str]:
    more = [f"- … and {len(items) - MOST} more"] if len(items) > MOST else []
    return [f"- {item}" for item in items[:MOST]] + more
