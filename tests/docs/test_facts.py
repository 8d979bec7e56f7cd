"""What the pages say about the code: paths, names, options, variables and statuses exist and are complete."""

import argparse
import importlib.util
import inspect
import re

import pytest
import yaml
from monai.bundle import run as bundle_run

import monai_wscxr
from monai_wscxr.commands import exit_status
from monai_wscxr.commands.main import create_parser
from monai_wscxr.system.signals import STOPPED
from tests.helpers.pages import PAGES, ROOT, code_lines, name, rows
from tests.test_import_order import FLOOR

DOCS = ROOT / "docs"
CONFIGS = ROOT / "bundles" / "wscxr_chest_xray" / "configs"
SOURCES = [
    path
    for pattern in (
        "monai_wscxr/**/*",
        "csrc/**/*",
        "tests/**/*",
        "bundles/**/*",
        "docs/examples/*",
        "docs/notebooks/*",
        "*",
    )
    for path in ROOT.glob(pattern)
    if path.suffix in (".py", ".cpp", ".h", ".cu", ".inl", ".yaml", ".sbatch") or path.name == "Makefile"
    if "node_modules" not in path.parts
]
# The changelog names what is gone.
CURRENT = [page for page in PAGES if page.name != "CHANGELOG.md"]


@pytest.mark.parametrize("page", CURRENT, ids=name)
def test_paths_exist(page):
    """A path may be given from any folder on; a bare name is enough if some file has it."""
    known = ["/" + path.relative_to(ROOT).as_posix() for path in [*SOURCES, *ROOT.glob("monai_wscxr/**/*.txt")]]
    missing = []
    for text in code_lines(page):
        for path in re.findall(r"(?<![\w./$-])(?:[\w-]+/)*[\w-]+\.(?:py|cpp|cu|h|inl|yaml)\b", text):
            if "NAME" not in path and not any(file.endswith("/" + path) for file in known):
                missing.append(path)
        for folder in re.findall(r"(?<![\w./$-])(?:monai_wscxr|tests|csrc|docs|bundles)/[\w/-]*(?![\w.*/-])", text):
            if not (ROOT / folder).exists():
                missing.append(folder)
    assert missing == []


@pytest.mark.parametrize("page", CURRENT, ids=name)
def test_names_can_be_imported(page):
    dotted = re.findall(r"\bmonai_wscxr(?:\.[A-Za-z]\w*)+", page.read_text(encoding="utf-8"))
    assert [text for text in dotted if not exists(text)] == []


def exists(dotted):
    """Return whether a dotted name is a module, or a name in one."""
    owner, _, last = dotted.rpartition(".")
    try:
        module = importlib.import_module(owner)
    except ModuleNotFoundError:
        return False
    return hasattr(module, last) or (hasattr(module, "__path__") and importlib.util.find_spec(dotted) is not None)


def architecture_map():
    """Return the modules of each folder of `monai_wscxr` as the page lists them."""
    packages = [row for row in rows(DOCS / "architecture.md", "Map") if len(row) == 3]
    return {folder.strip("`"): sorted(re.findall(r"`(\w+)`", files)) for folder, _, files in packages}


def test_map_of_the_code_is_complete():
    package = ROOT / "monai_wscxr"
    found = {}
    for file in package.glob("*/**/*.py"):
        folder = file.parent.relative_to(package).as_posix()
        if not file.stem.startswith("_") and folder != "label/app":  # MONAI Label loads it under its own rules
            found.setdefault(folder, []).append(file.stem)
    assert architecture_map() == {folder: sorted(files) for folder, files in found.items()}


def test_map_is_in_the_order_of_imports():
    order = list(dict.fromkeys(folder.partition("/")[0] for folder in architecture_map()))
    assert order == sorted(order, key=FLOOR.__getitem__)


def documented_variables():
    """Return the variables that have a row on their page."""
    return {variable for row in rows(DOCS / "environment.md") for variable in re.findall(r"`([A-Z][A-Z_]+)`", row[0])}


def test_every_variable_that_is_read_is_documented():
    """Of what tests read, only the project's own variables count: the others are for the programs that they start."""
    access = r"(?:environ(?:\.get|\.setdefault|\.pop)?\s*[\[(]|getenv\()\s*[\"']([A-Z][A-Z0-9_]+)[\"']"
    membership = r"[\"']([A-Z][A-Z0-9_]+)[\"']\s+(?:not\s+)?in\s+os\.environ"
    read = set()
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        found = {*re.findall(access, text), *re.findall(membership, text)}
        read |= {v for v in found if "WSCXR" in v} if path.is_relative_to(ROOT / "tests") else found
    assert read - documented_variables() == set()
    assert {v for v in read if "WSCXR" in v and not v.startswith("MONAI_WSCXR_")} == set()


def test_own_variables_are_used_and_documented():
    prefix = re.compile(r"\bMONAI_WSCXR_[A-Z][A-Z_]*[A-Z]\b")
    used = {v for path in SOURCES for v in prefix.findall(path.read_text(encoding="utf-8"))}
    assert used == {v for v in documented_variables() if v.startswith("MONAI_WSCXR_")}


def test_options_of_the_training_page():
    config = yaml.safe_load((CONFIGS / "train.yaml").read_text(encoding="utf-8"))
    listed = {row[0].strip("`- "): row[1].strip("`") for row in rows(DOCS / "training.md", "Options")}
    assert listed == {option: yaml.safe_dump(config[option]).split("\n")[0] for option in listed}
    assert len(listed) >= 10


def options_by_command(parser):
    """Return the options of a parser by the words that lead to them."""
    parser.format_help()  # some parsers add their options when they are needed
    children = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not children:
        return {(): set(parser._option_string_actions)}
    return {
        (word, *rest): options
        for word, child in children[0].choices.items()
        for rest, options in options_by_command(child).items()
    }


@pytest.mark.parametrize("page", CURRENT, ids=name)
def test_commands_and_their_options(page):
    known, wrong = options_by_command(create_parser()), []
    for line in code_lines(page):
        words = line.partition("#")[0].split()
        if words[:1] != ["monai-wscxr"] or len(words) == 1:
            continue
        # `monai-wscxr bank` alone stands for all its actions
        matching = [c for c in known if tuple(words[1 : 1 + len(c)]) == c or words[1:] == list(c[:1])]
        options = set().union(*(known[c] for c in matching))
        if "--config_file" in words:  # options of the configuration that it names
            named = CONFIGS / words[words.index("--config_file") + 1]
            options |= {f"--{key}" for key in yaml.safe_load(named.read_text(encoding="utf-8"))}
        if not matching or not {w for w in words if w.startswith("--")} <= options:
            wrong.append(line)
    assert wrong == []


def test_options_of_predict():
    """Its table leaves out what other tables of the page explain."""
    accepted = {option.removeprefix("--no-").strip("-") for option in options_by_command(create_parser())[("predict",)]}
    page = (DOCS / "predict.md").read_text(encoding="utf-8")
    listed = {row[0].strip("`").split()[0].strip("-`") for row in rows(DOCS / "predict.md") if row[0].startswith("`--")}
    assert listed <= accepted
    assert [option for option in accepted - {"help", "h"} if not re.search(rf"--(no-)?{option}\b", page)] == []


@pytest.mark.parametrize("page", CURRENT, ids=name)
def test_options_of_bundle_commands(page):
    keys = set(inspect.signature(bundle_run).parameters)
    for config in CONFIGS.glob("*.yaml"):
        keys |= set(yaml.safe_load(config.read_text(encoding="utf-8")))
    commands = [line.partition("#")[0] for line in code_lines(page) if "monai.bundle run" in line]
    given = {o for command in commands for o in re.findall(r"--([\w-]+)", command.partition("monai.bundle run")[2])}
    assert given - keys == set()


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][\w-]*):", makefile, re.MULTILINE))
    lines = [line for page in CURRENT for line in code_lines(page)]
    assert {target for line in lines for target in re.findall(r"\bmake ([a-z][\w-]*)", line)} - targets == set()


def test_continuous_integration_runs_what_the_readme_explains():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    steps = [line for line in script.splitlines() if line and not line.startswith(("#", "set ", "cd "))]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert steps
    assert [step for step in steps if step not in readme] == []


def test_exit_statuses():
    numbers = {value for key, value in vars(exit_status).items() if key.isupper()}
    assert {row[0] for row in rows(DOCS / "exit_codes.md", "`monai-wscxr`")} == {"0", *map(str, numbers), str(STOPPED)}


def test_citation():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == monai_wscxr.__version__
    assert citation["cff-version"] == "1.2.0"
    assert all(citation[key] for key in ("message", "title", "authors", "license"))
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert citation["references"][0]["title"] in readme
