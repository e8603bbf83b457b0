"""Mutation testing: do the tests notice when an operator, a number, a condition or a loop of a module is wrong?

`python tests/mutants.py --module mmedit/patches/merge.py --n 60` has cosmic-ray write mutants of the module, one small
change each, and runs the module's tests on every one, in a copy of the tree. A mutant that fails no test is a hole in the
tests, or equivalent.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import gc
import importlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names
from hypothesis import Phase, settings

ROOT = Path(__file__).parent.parent
TESTS = {
    "editors/descent.py": "test_mm_neurons.py",
    "editors/wishes.py": "test_wishes.py test_margin.py::test_the_target_leads_by_what_was_asked_for test_margin.py::test_layers_are_kept_to "
    "test_margin.py::test_several_requests_are_one_patch test_margin.py::test_a_model_that_will_not_be_taught_is_said_so",
    "mmedit/locate.py": "test_trace_and_locate.py test_scorers.py",
    "mmedit/patches/base_rows.py": "test_patch.py test_stack.py",
    "mmedit/patches/entries.py": "test_patch.py test_stack.py",
    "mmedit/patches/live.py": "test_patch.py test_stack.py",
    "mmedit/patches/merge.py": "test_merge.py",
    "mmedit/patches/patch.py": "test_patch.py test_merge.py",
    "mmedit/patches/rows.py": "test_rows.py test_patch.py test_merge.py",
}
"""The quick tests of each module, besides its docstring examples."""
PAIRS = (
    "Add_Sub Sub_Add Mul_Div Div_Mul FloorDiv_Mul Mod_Mul Pow_Mul BitOr_BitAnd BitAnd_BitOr BitXor_BitOr Eq_NotEq NotEq_Eq "
    "Lt_LtE Lt_GtE LtE_Lt LtE_Gt Gt_GtE Gt_LtE GtE_Gt GtE_Lt Is_IsNot IsNot_Is Delete_USub Delete_Not Delete_Invert"
)
"""What an operator becomes: its opposite or neighbour. Most of cosmic-ray's other pairs end in a TypeError and flatter the score."""
WARM = "torch spacy peft omegaconf transformers.models.llava.modeling_llava transformers.generation.utils"
"""Slow to import, and the same for every mutant."""


def mutants(text: str) -> Iterator[tuple[str, str]]:
    """The line that changes and the text of each mutant of a module, without those that do not compile or are run alike."""
    seen, nodes = {what_is_run(text)}, list(ast_nodes(get_ast(text)))
    names = [name for name in operator_names() if name.partition("Operator_")[2] in ("", *PAIRS.split())]
    for operator in (kind() for kind in map(get_operator, names) if not kind.arguments()):
        for occurrence in range(sum(len(list(operator.mutation_positions(node))) for node in nodes)):
            mutant = mutate_code(text, operator, occurrence)
            with contextlib.suppress(SyntaxError):
                if (run := what_is_run(mutant)) not in seen:
                    seen.add(run)
                    lines = list(difflib.unified_diff(text.splitlines(), mutant.splitlines(), n=0, lineterm=""))[2:]
                    number = lines[0].split()[1].lstrip("-").partition(",")[0]
                    yield f"{number}: " + "  ".join(f"{x[0]} {x[1:].strip()}" for x in lines if x[0] in "+-"), mutant


def what_is_run(text: str) -> str:
    """A module without its annotations, which are texts (`from __future__ import annotations`)."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        for name in {"annotation", "returns"} & {*node._fields}:
            setattr(node, name, None)
    return ast.dump(tree)


def copy_tree(shadow: Path) -> None:
    """The packages where an import finds them, the tests, and links to the data."""
    for name in ("mmedit", "editors", "hparams", "tests"):
        shutil.copytree(ROOT / name, shadow / name, ignore=shutil.ignore_patterns("__pycache__", "checkpoints"))
    for name in ("editors", "hparams"):
        (shadow / "mmedit" / name).symlink_to(shadow / name)
    for name in ("mmedit/testbed/checkpoints", "setup.cfg", "README.md", "examples"):
        (shadow / name).symlink_to(ROOT / name)


def run_tests(shadow: Path, tests: Sequence[str], found: Mapping[str, int]) -> None:
    """Run tests on the copy, first those that found most mutants so far; this process, a child, ends with pytest's code."""
    os.setpgrp()  # to be killed with all that the tests start
    resource.setrlimit(resource.RLIMIT_DATA, (6 << 30, 6 << 30))
    log = os.open(shadow / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1), os.dup2(log, 2)
    os.chdir(shadow)
    sys.path[:] = [str(shadow), *(place for place in sys.path if place != str(ROOT / "tests"))]

    class Order:
        def pytest_collection_modifyitems(self, items: list[pytest.Function]) -> None:
            items.sort(key=lambda item: (-found.get(item.nodeid, 0), hasattr(item.obj, "hypothesis")))

    options = ("-x", "-q", "--tb=line", "--assert=plain", "-p", "no:cacheprovider", f"--rootdir={shadow}")
    code = pytest.main([*options, *tests], plugins=[Order()])
    os._exit(code if str(sys.modules["mmedit"].__file__).startswith(str(shadow)) else 3)


def outcome(shadow: Path, tests: Sequence[str], limit: float, found: Mapping[str, int]) -> tuple[str, str, float]:
    """Whether the tests notice, which of them does, and the seconds that it takes."""
    began = time.monotonic()
    child = multiprocessing.get_context("fork").Process(target=run_tests, args=(shadow, tests, found))
    child.start()
    child.join(limit)
    late = child.is_alive()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid or 0, signal.SIGKILL)
    child.join()
    lines = (shadow / "log").read_text(errors="replace").splitlines()
    by = next((line.split(" - ")[0].split(" ", 1)[1] for line in lines if line.startswith(("FAILED ", "ERROR "))), "")
    return "timeout" if late else "killed" if child.exitcode else "survived", by, time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--module", nargs="+", choices=TESTS, default=list(TESTS))
    parser.add_argument("--n", type=int, help="so many mutants of each module, at random; all when not given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("mutants.jsonl"), help="results, one JSON object a line")
    parser.add_argument("--again", type=Path, help="only the mutants that survived in this file of results")
    asked = parser.parse_args()
    earlier = map(json.loads, asked.again.read_text().splitlines()) if asked.again else ()
    again = {(one["module"], one["change"].partition(": ")[2]) for one in earlier if one["outcome"] == "survived"}
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    sys.dont_write_bytecode = True  # a mutant of the same size and second would find the last one's
    for name in WARM.split():
        importlib.import_module(name)
    gc.freeze()
    phases = (Phase.explicit, Phase.generate)  # any failure will do, it need not be shrunk
    settings.register_profile("mutants", phases=phases, derandomize=True, database=None, deadline=None)
    settings.load_profile("mutants")
    table = ["| module | mutants | killed | score |", "|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder, asked.out.open("w") as out:
        copy_tree(shadow := Path(folder))
        os.environ["PYTHONPATH"] = folder  # for the commands that tests start
        for module in asked.module:
            place, found, alive = shadow / module, Counter[str](), list[str]()
            text, dotted = place.read_text(), module.removesuffix(".py").removeprefix("mmedit/").replace("/", ".")
            tests = [f"test_docs.py::test_docstring_examples[mmedit.{dotted}]", *TESTS[module].split()]
            tests = [f"tests/{name}" for name in tests]
            result, by, whole = outcome(shadow, tests, 600, found)
            if result != "survived":
                sys.exit(f"{module} as it is: {result} {by}\n{(shadow / 'log').read_text()[-2000:]}")
            chosen = [one for one in mutants(text) if not asked.again or (module, one[0].partition(": ")[2]) in again]
            chosen = random.Random(asked.seed).sample(chosen, min(len(chosen), asked.n or len(chosen)))
            for change, mutant in chosen:
                place.write_text(mutant)
                result, by, seconds = outcome(shadow, tests, 3 * whole + 30, found)
                found[by] += 1
                alive += [f"{module}:{change}"] * (result == "survived")
                record = {"module": module, "change": change, "outcome": result, "by": by, "seconds": round(seconds, 1)}
                print(json.dumps(record, ensure_ascii=False), file=out, flush=True)
            place.write_text(text)
            print(*alive, sep="\n", flush=True)
            dead, n = len(chosen) - len(alive), len(chosen)
            table.append(f"| `{module}` | {n} | {dead} | {dead / max(1, n):.2f} |")
    print(*table, sep="\n")


if __name__ == "__main__":
    main()
