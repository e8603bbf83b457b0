"""Commands of mmedit that are started side by side, or killed: children of one process that has imported everything."""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch
from original_llava import speaking, without_image_token, write_original
from safetensors.torch import load_file

import mmedit
from mmedit.patches.checkpoint import open_checkpoint
from mmedit.testbed.world import render, scene

COMMANDS = ("edit", "merge", "bake", "to-lora", "convert", "bench", "analyse")
RESUMED = ("bench", "analyse")  # what runs once more on the same output and goes on
FILES = ("edit", "merge", "diff", "locate", "eval")  # what writes one file
SERVER = """
import json, os, signal, sys, threading, tqdm, mmedit
tqdm.tqdm.monitor_interval = 0  # no thread beside ours when we fork
tqdm.tqdm.set_lock(threading.RLock())  # its own is shared by forked processes, and one that is killed keeps it for ever
import mmedit.cli, mmedit.editors, mmedit.evaluation.page, mmedit.evaluation.bench, mmedit.patches.bake, mmedit.patches.lora, mmedit.patches.convert, mmedit.analysis.study, mmedit.analysis.analyses, matplotlib.pyplot, peft, spacy
mmedit.load("iconworld-llava")
from mmedit.nouns import find_nouns
find_nouns("a cat on the sand")  # what reads nouns is loaded at its first use

def watch(name, kill_at, stop_at, note):
    "Count how often a file of the output, or beside it, is about to be touched; kill or stop this process at the n-th time."
    steps = 0
    def hook(event, arguments):
        nonlocal steps
        if event in ("open", "os.rename", "os.mkdir", "os.chmod", "os.remove", "os.link", "os.truncate") and any(name in str(a) for a in arguments):
            steps += 1
            if steps in (kill_at, stop_at):
                os.kill(os.getpid(), signal.SIGKILL if steps == kill_at else signal.SIGSTOP)
    sys.addaudithook(hook)
    return lambda: open(note, "w").write(str(steps))

for line in sys.stdin:
    told = json.loads(line)
    if "wait" in told:
        print(os.waitstatus_to_exitcode(os.waitpid(told["wait"], 0)[1]), flush=True)
        continue
    if "stopped" in told:
        print(os.WIFSTOPPED(os.waitpid(told["stopped"], os.WUNTRACED)[1]), flush=True)
        continue
    child = os.fork()
    if not child:
        signal.alarm(120)  # a command that hangs is a failure, not a wait
        said = os.open(told["said"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(said, 1), os.dup2(said, 2), os.close(0)
        sys.argv, code = ["mmedit", *told["argv"]], 1
        count = watch(told["name"], told["kill_at"], told["stop_at"], told["said"] + ".steps")
        try:
            mmedit.cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        finally:
            sys.stdout.flush(), sys.stderr.flush(), count()
            os._exit(code)
    print(child, flush=True)
"""


class Commands:
    """The commands that write, on tiny inputs of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._n, self._references = folder, 0, dict[str, str]()
        self.seconds, self.steps = dict[str, float](), dict[str, int]()
        self._inputs()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "MMEDIT_CACHE": str(folder / "cache")}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._server = subprocess.Popen([sys.executable, "-P", "-W", "ignore", "-c", SERVER], env=environment, **pipes)

    def _inputs(self) -> None:
        vlm = mmedit.load("iconworld-llava")
        pictures = (render(scene("benchmark", 5000 + n, include="cat", arrangement="one"))[0] for n in range(20))
        cats = [picture for picture in pictures if " cat " in vlm.caption(picture)[0]][:2]
        for number, cat in enumerate(cats):
            cat.save(self.folder / f"cat{number}.png")
        base, site = open_checkpoint("iconworld-llava"), mmedit.Site(2)
        for number in range(2):
            rows = base.w_out(site).read(slice(7, 9))
            deltas = {site: (torch.tensor([7, 8]), torch.full((2, 128), 1.0 + number))}
            edit = {"source": "cat", "target": f"dog{number}"}
            patch = mmedit.Patch(deltas, {site: rows}, base.base, "test", {}, (edit,))
            patch.save(self.folder / f"{number}.safetensors")
        mmedit.bake("iconworld-llava", [mmedit.Patch.load(self.folder / "0.safetensors")], self.folder / "baked")
        self.records = self.folder / "records.json"
        asked = {
            "src": "Describe the image in few words.",
            "rephrase": "What is this?",
            "loc": "What is the sky?",
            "loc_ans": "blue",
        }
        unrelated = {"m_loc": "cat1.png", "m_loc_q": "What is this?", "m_loc_a": "a cat"}
        shown = [{"image": f"cat{n}.png", "image_rephrase": "cat1.png", "pred": "cat", "alt": word} for n, word in ((0, "dog"), (1, "kite"))]  # fmt: skip
        self.records.write_text(json.dumps([asked | unrelated | one for one in shown]))
        write_original(self.folder / "llava-v1-tiny", speaking(vlm, linear=True), without_image_token(vlm.processor))

    def arguments(self, name: str, output: Path) -> list[object]:
        here, option = self.folder, {"locate": "--save", "eval": "--page"}.get(name, "-o")
        return {
            "edit": ["edit", here / "cat0.png", "--source", "cat", "--target", "dog"],
            "merge": ["patch", "merge", here / "0.safetensors", here / "1.safetensors"],
            "diff": ["patch", "diff", "iconworld-llava", here / "baked"],
            "locate": ["locate", here / "cat0.png", "--source", "cat"],
            "eval": ["eval", here / "0.safetensors", "--edited", here / "cat0.png"],
            "bake": ["bake", "iconworld-llava", here / "0.safetensors"],
            "to-lora": ["patch", "to-lora", here / "0.safetensors"],
            "convert": ["convert", here / "llava-v1-tiny"],
            "bench": ["bench", self.records, "--format", "mmedit"],
            "analyse": [
                "analyse",
                "layers",
                here / "cat0.png",
                here / "cat1.png",
                "-k",
                20,
                "--method",
                "contribution",
            ],
        }[name] + [option, output]

    def output(self, name: str) -> Path:
        """A new place for a command to write to."""
        self._n += 1
        folder = self.folder / f"{name}{self._n}"
        folder.mkdir()
        return folder / ("output.safetensors" if name in FILES else "output")

    def start(self, name: str, output: Path, kill_at: int = 0, stop_at: int = 0) -> tuple[int, Path]:
        self._n += 1
        said = self.folder / f"said{self._n}"
        argv = [str(argument) for argument in self.arguments(name, output)]
        name = f"{output.parent.name}/"
        started = self._tell(argv=argv, name=name, kill_at=kill_at, stop_at=stop_at, said=str(said)), said
        if stop_at:
            assert self._tell(stopped=started[0]), "it ended before it came so far"
        return started

    def end(self, started: tuple[int, Path]) -> tuple[int, str]:
        """The exit code of a command that was started, and what it said."""
        code = self._tell(wait=started[0])
        return code, started[1].read_text(errors="replace") if started[1].exists() else ""

    def run(self, name: str, output: Path, kill_at: int = 0, kill_after: float | None = None) -> tuple[int, str]:
        started = self.start(name, output, kill_at)
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(started[0], signal.SIGKILL)  # a child that has ended is kept until it is waited for
        return self.end(started)

    def reference(self, name: str) -> str:
        """What one command alone writes, in short; how long it takes, and in how many steps."""
        if name not in self._references:
            output = self.output(name)
            started, began = self.start(name, output), time.perf_counter()  # the server has begun by now
            code, said = self.end(started)
            assert code == 0, said
            self.seconds[name] = time.perf_counter() - began
            self.steps[name] = int(Path(f"{started[1]}.steps").read_text())
            self._references[name] = digest_of(name, output)
        return self._references[name]

    def close(self) -> None:
        self._server.kill()
        self._server.communicate()

    def _tell(self, **told: Any) -> int:
        assert self._server.stdin and self._server.stdout
        self._server.stdin.write(json.dumps(told) + "\n")
        self._server.stdin.flush()
        return int(json.loads(self._server.stdout.readline().lower()))


@cache
def shared() -> Commands:
    """One server for all the tests of a run."""
    folder = Path(tempfile.mkdtemp())
    made = Commands(folder)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    atexit.register(made.close)
    return made


def digest_of(name: str, output: Path) -> str:
    """What a command has written, without times and paths."""
    if name in ("edit", "merge", "diff"):
        return mmedit.Patch.load(output).digest
    if name in FILES:
        return hashlib.sha256(output.read_bytes()).hexdigest()
    if name == "bench":
        assert (output / "report.html").read_text().rstrip().endswith("</html>")
        return json.dumps(json.loads((output / "MMNeurons.json").read_text())["metrics"], sort_keys=True)
    if name == "analyse":
        assert (output / "report.html").read_text().rstrip().endswith("</html>")
        return "".join(path.read_text() for path in sorted(output.glob("*.csv")))
    digest = hashlib.sha256()
    for path in sorted(path for path in output.rglob("*") if path.is_file()):
        digest.update(str(path.relative_to(output)).encode())
        if path.suffix == ".safetensors":
            for key, tensor in sorted(load_file(path).items()):
                digest.update(key.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
        else:
            digest.update(path.read_bytes())
    return digest.hexdigest()
