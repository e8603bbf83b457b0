"""A stranger's file: 5,000 mutated patches are patches or PatchErrors, in little time and memory, and never anything else."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import random
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mmedit
from mmedit.errors import PatchError
from mmedit.patches.base import Base
from mmedit.patches.format import MAX_HEADER

N_FILES = 5000
SLOWEST, COSTLIEST = 2.0, 10.0  # seconds of CPU for one file, and for one made to cost as much as it can
NUMBERS = [0, -1, 1, 7, 8, 2**31, 2**53, 2**63, 2**64 - 1, 2**64, 10**30, 0.5, 1e400, True]
TEXTS = ["", "x", "é", "\x00", "\x1b[2J", "\ud800", "../../x", "__import__('os')", "!!python/object", "x" * 100_000]
KEYS = [
    "layers.0.w_out.units",
    "layers.99999.w_out.delta",
    "layers.0.experts.3.w_out.base",
    "layers.0.shared.w_out.left",
    "__metadata__",
    "evil",
    "",
]
DTYPES = ["F32", "F64", "F16", "BF16", "I64", "I8", "BOOL", "F8_E4M3", "F4", "C64", "U64", "nothing", "", 3, None]
JSON_TEXTS = ["", "{", "null", "NaN", "[]", "{}", "[[]]", "[" * 50_000, "{\"a\":" * 50_000, "9" * 5000, "-Infinity", "\"\\ud800\"", "[{\"source\": 1}]", "1e999"]  # fmt: skip


def originals() -> list[bytes]:
    """A row-sparse patch and one that is also low-rank, as files."""
    base, r = Base("m", None, "llava", 4, 8, 16, "0" * 64), torch.Generator().manual_seed(0)
    first, second, third = mmedit.Site(0), mmedit.Site(2), mmedit.Site(1, 3)
    rows = {
        first: (torch.tensor([1, 5, 9]), torch.randn(3, 8, generator=r)),
        second: (torch.tensor([4]), torch.randn(1, 8, generator=r)),
    }
    under = {first: torch.randn(3, 8, generator=r), second: torch.randn(1, 8, generator=r).bfloat16()}
    edit = {"source": "cat", "target": "dog", "neurons": ["L0.U1"], "scores": [0.5]}
    plain = mmedit.Patch(
        rows, under, base, "test", {"lr": 0.1}, (edit,), evaluation={"locality": 1.0}, created="2026-11-21T00:00:00+00:00"
    )  # fmt: skip
    factors = torch.randn(6, 2, generator=r), torch.randn(2, 8, generator=r)
    mixed = dataclasses.replace(plain, evaluation=None, low_rank={third: factors}, base_digests={third: "0" * 64})
    return [content_of(plain), content_of(mixed)]


def content_of(patch: mmedit.Patch) -> bytes:
    """A patch's file; the texts in order, which safetensors writes in another one each time."""
    with tempfile.TemporaryDirectory() as folder:
        patch.save(Path(folder, "p.safetensors"))
        header, data = split(Path(folder, "p.safetensors").read_bytes())
    return join({**header, "__metadata__": dict(sorted(header["__metadata__"].items()))}, data)


def split(content: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join(header: Any, data: bytes) -> bytes:
    text = (
        header if isinstance(header, bytes) else json.dumps(header, ensure_ascii=False).encode(errors="surrogatepass")
    )
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def tensors_of(header: dict[str, Any]) -> list[str]:
    return [key for key in header if key != "__metadata__"]


def flip(content: bytes, r: random.Random) -> bytes:
    out = bytearray(content)
    for _ in range(r.choice([1, 1, 2, 8, 64])):
        out[r.randrange(len(out))] = r.randrange(256)
    return bytes(out)


def flip_header(content: bytes, r: random.Random) -> bytes:
    (length,) = struct.unpack("<Q", content[:8])
    out = bytearray(content)
    for _ in range(r.choice([1, 1, 2, 4])):
        out[8 + r.randrange(length)] = r.choice(b'{}[]",:0129-eE.\\ \x00\xff') if r.random() < 0.7 else r.randrange(256)
    return bytes(out)


def cut(content: bytes, r: random.Random) -> bytes:
    return content[: r.randrange(len(content))] + r.choice([b"", b"", b"\x00" * 64])


def insert(content: bytes, r: random.Random) -> bytes:
    at = r.randrange(len(content))
    piece = r.choice([b"\x00", r.randbytes(8), content[:64], b"x" * 4096])
    return content[:at] + piece + content[at:]


def length(content: bytes, r: random.Random) -> bytes:
    claimed = r.choice(
        [
            0,
            1,
            7,
            8,
            len(content) - 8,
            len(content),
            2**31,
            2**32,
            2**40,
            2**63 - 1,
            2**64 - 1,
            r.randrange(len(content)),
        ]
    )
    return struct.pack("<Q", claimed) + content[8:]


def change_tensor(content: bytes, r: random.Random) -> bytes:
    """Another dtype, shape or place of a tensor."""
    header, data = split(content)
    tensor = header[r.choice(tensors_of(header))]
    what = r.choice(["dtype", "shape", "reshape", "offsets", "drop", "extra", "type"])
    if what == "dtype":
        tensor["dtype"] = r.choice(DTYPES)
    elif what == "shape":
        shape = tensor["shape"]
        choices = [
            [],
            [0],
            [*shape, 1],
            [1, *shape],
            shape[::-1],
            [0, *shape],
            [2**32, 2**32],
            [-1],
            [2**64],
            "3",
            None,
            [1] * 1000,
            [n * 2 for n in shape],
        ]
        tensor["shape"] = r.choice([*choices, [r.choice(NUMBERS) for _ in shape]])
        if r.random() < 0.3 and isinstance(tensor["shape"], list):  # a consistent lie: no bytes for no elements
            tensor["data_offsets"] = [tensor["data_offsets"][0]] * 2
    elif what == "reshape":  # the same number of elements
        shape = tensor["shape"]
        tensor["shape"] = r.choice(
            [
                [1, *shape],
                [*shape, 1],
                [1] * 70 + shape,
                shape[::-1],
                [math.prod(shape)],
                shape if math.prod(shape) > 1 else [],
            ]
        )
    elif what == "offsets":
        tensor["data_offsets"] = r.choice(
            [[0, 0], [8, 0], [0, 2**63], [-8, 8], [0, len(data)], [r.choice(NUMBERS) for _ in range(2)], [], None, "0"]
        )
    elif what == "drop":
        tensor.pop(r.choice(list(tensor)))
    elif what == "extra":
        tensor[r.choice(["code", "dtype ", "__reduce__"])] = r.choice([*NUMBERS, *TEXTS])
    else:
        header[r.choice(tensors_of(header))] = r.choice([None, [], "x", 3, {}])
    return join(header, data)


def change_keys(content: bytes, r: random.Random) -> bytes:
    """Tensors renamed, left out, doubled or invented."""
    header, data = split(content)
    old = r.choice(tensors_of(header))
    what = r.choice(["rename", "drop", "double", "invent", "swap", "many"])
    if what == "rename":
        header[
            r.choice([*KEYS, *TEXTS, old.upper(), old.replace("0", "٠"), old.replace("w_out", "experts.2.w_out")])
        ] = header.pop(old)
    elif what == "drop":
        del header[old]
    elif what == "double":
        text = json.dumps(header)
        return join((text[:-1] + f", {json.dumps(old)}: {json.dumps(header[old])}" + "}").encode(), data)
    elif what == "invent":
        header[r.choice(KEYS)] = {"dtype": "F32", "shape": [2], "data_offsets": [len(data), len(data) + 8]}
        data += b"\x00" * 8
    elif what == "swap":
        other = r.choice(tensors_of(header))
        header[old], header[other] = header[other], header[old]
    else:
        header |= {
            f"layers.{i}.w_out.units": {"dtype": "I64", "shape": [0], "data_offsets": [0, 0]} for i in range(2000)
        }
    return join(header, data)


def change_metadata(content: bytes, r: random.Random) -> bytes:
    """Other texts, other JSON inside the texts, or no texts at all."""
    header, data = split(content)
    metadata = header["__metadata__"]
    key = r.choice([*metadata, "evaluation", "base_digests"])
    what = r.choice(["text", "json", "drop", "whole", "field", "field", "type", "long"])
    if what == "text":
        metadata[key] = r.choice(TEXTS)
    elif what == "json":
        metadata[key] = r.choice(JSON_TEXTS)
    elif what == "drop":
        metadata.pop(key, None)
    elif what == "whole":
        header["__metadata__"] = r.choice([None, [], {}, "x", {"format": "mmedit-patch"}])
    elif what == "type":
        metadata[key] = r.choice([None, 3, [], {}, True])
    elif what == "long":
        metadata[r.choice([key, "note", "x" * 1000])] = "x" * r.choice([10_000, 1_000_000])
    else:
        key = r.choice(["base", "edits", "hparams"])
        value = json.loads(metadata[key])
        inner = value[0] if isinstance(value, list) else value
        inner[r.choice([*inner, "new"])] = r.choice(
            [*NUMBERS[:-3], float("nan"), float("inf"), *TEXTS, None, [], {}, [[[]]]]
        )
        metadata[key] = json.dumps(value)
    return join(header, data)


def change_numbers(content: bytes, r: random.Random) -> bytes:
    """Values that no patch has: NaN, infinity, units out of order or out of range."""
    header, data = split(content)
    tensor = header[r.choice(tensors_of(header))]
    begin, end = tensor["data_offsets"]
    size = {"I64": 8, "F32": 4, "BF16": 2}[tensor["dtype"]]
    at = begin + size * r.randrange((end - begin) // size)
    value = {8: struct.pack("<q", r.choice([-1, 0, 15, 16, 2**31, 2**63 - 1, -(2**63)])), 4: struct.pack("<f", r.choice([float("nan"), float("inf"), 3e38])), 2: b"\xff\x7f"}  # fmt: skip
    return join(header, data[:at] + value[size] + data[at + size :])


def nest(content: bytes, r: random.Random) -> bytes:
    """Deep, wide or no JSON at all where the header should be."""
    _, data = split(content)
    deep = r.choice([100, 1000, 100_000])
    return join(
        r.choice(
            [
                b"[" * deep,
                b'{"a":' * deep,
                b"[" * deep + b"]" * deep,
                b"{" + b'"a":{},' * deep + b"}",
                b"null",
                b'"x"',
                b"3",
                b"",
            ]
        ),
        data,
    )


def garbage(content: bytes, r: random.Random) -> bytes:
    return r.choice(
        [
            b"",
            r.randbytes(r.randrange(300)),
            b"\x80\x04\x95" + content,
            b"PK\x03\x04" + content,
            json.dumps({"a": 1}).encode() * 20,
        ]
    )


MUTATIONS: list[Callable[[bytes, random.Random], bytes]] = [
    flip, flip_header, flip_header, cut, insert, length, change_tensor, change_tensor, change_keys, change_metadata, change_metadata, change_numbers, nest, garbage,
]  # fmt: skip


def load_all(folder: Path, n_files: int) -> Counter[str]:
    """Load mutated files; raises what is no PatchError, or when one takes long."""
    outcomes: Counter[str] = Counter()
    random_, contents, path = random.Random(0), originals(), folder / "p.safetensors"
    for number in range(n_files):
        mutate = random_.choice(MUTATIONS)
        content = mutate(random_.choice(contents), random_)
        path.unlink(missing_ok=True)  # or ext4 waits for the disk at every overwriting
        path.write_bytes(content)
        began = time.process_time()
        try:
            patch = mmedit.Patch.load(path)
            assert patch.sites and patch.digest and patch.name
            outcomes["patch"] += 1
        except PatchError as error:
            assert str(path) in str(error), f"{number}, {mutate.__name__}: the error does not name the file: {error}"
            outcomes["PatchError"] += 1
        except BaseException as error:
            raise AssertionError(f"file {number}, {mutate.__name__}: {type(error).__name__}: {error}") from error
        took = time.process_time() - began
        assert took < SLOWEST, f"file {number}, {mutate.__name__}: took {took:.1f} s"
    return outcomes


def costly(limit: int) -> dict[str, bytes]:
    """Valid or nearly valid files, as large as a header may be, that cost much to read."""
    header, data = split(originals()[0])
    room = limit - 4096

    def with_text(key: str, text: str) -> bytes:
        return join({**header, "__metadata__": {**header["__metadata__"], key: text}}, data)

    lists = "[" + "{}," * (room // 3 - 2) + "{}]"
    chains = "[" + ("[" * 900 + "]" * 900 + ",") * (room // 1801) + "0]"
    empty = {"dtype": "I64", "shape": [0], "data_offsets": [0, 0]}
    files = {
        "hparams of empty dictionaries": with_text("hparams", '{"a":' + lists + "}"),
        "hparams of nested lists": with_text("hparams", '{"a":' + chains + "}"),
        "edits of empty dictionaries": with_text("edits", lists),
        "evaluation of empty lists": with_text("evaluation", '{"a":' + lists.replace("{}", "[]") + "}"),
        "many small keys": with_text("hparams", "{" + ",".join(f'"{i:x}":0' for i in range(room // 12)) + "}"),
        "one long text": with_text("editor", "é" + "x" * room),
        "many tensors": join({f"layers.{i}.w_out.units": empty for i in range(room // 95)} | header, data),
        "many texts": join({**header, "__metadata__": header["__metadata__"] | {f"{i:x}": "" for i in range(room // 14)}}, data),
        "deep": with_text("hparams", '{"a":' * 900 + "0" + "}" * 900),
    }  # fmt: skip
    assert all(len(content) < limit for content in files.values())
    return files | {"too large a header": with_text("editor", "x" * 2 * limit)}


def peak() -> float:
    """The most memory that this process has ever held, in MB; ru_maxrss would begin with that of the parent."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1e3


def main(folder: Path) -> None:
    """What the subprocess of the test does: it prints how much its peak rose."""
    for content in originals():  # whatever a first load imports and allocates is no file's fault
        (folder / "p.safetensors").write_bytes(content)
        mmedit.Patch.load(folder / "p.safetensors")
    before = peak()
    began = time.process_time()
    outcomes = load_all(folder, N_FILES)
    took, after_fuzz, slowest = time.process_time() - began, peak(), 0.0
    for path in sorted(folder.glob("costly/*")):
        began = time.process_time()
        with contextlib.suppress(PatchError):
            mmedit.Patch.load(path)
        slowest = max(slowest, time.process_time() - began)
        print(f"{path.stem}: {time.process_time() - began:.2f} s, {peak() - before:.0f} MB so far", file=sys.stderr)
    print(
        json.dumps(
            {
                "outcomes": outcomes,
                "fuzz_mb": after_fuzz - before,
                "costly_mb": peak() - before,
                "seconds": took,
                "slowest": slowest,
            }
        )
    )


def test_the_files_that_are_mutated_are_patches(tmp_path: Path) -> None:
    for content in originals():
        (tmp_path / "p.safetensors").write_bytes(join(*split(content)))
        assert mmedit.Patch.load(tmp_path / "p.safetensors").name == "cat→dog"


def test_what_could_not_be_loaded_again_is_not_saved(tmp_path: Path) -> None:
    (tmp_path / "p.safetensors").write_bytes(originals()[0])
    patch = mmedit.Patch.load(tmp_path / "p.safetensors")
    for note in ("x" * MAX_HEADER, "é" * (MAX_HEADER // 2), '"' * (MAX_HEADER // 4)):
        with pytest.raises(PatchError, match="too large for a patch"):
            dataclasses.replace(patch, hparams={"note": note}).save(tmp_path / "p.safetensors")
    assert (tmp_path / "p.safetensors").read_bytes() == originals()[0] and len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_5000_mutated_files_are_patches_or_patch_errors(tmp_path: Path) -> None:
    (tmp_path / "costly").mkdir()
    for name, content in costly(MAX_HEADER).items():
        (tmp_path / "costly" / f"{name}.safetensors").write_bytes(content)
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert sum(found["outcomes"].values()) == N_FILES and found["outcomes"]["patch"] > 100
    assert found["fuzz_mb"] < 200 and found["costly_mb"] < 200, done.stderr
    assert found["slowest"] < COSTLIEST and found["seconds"] < 60


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
