"""The script of ``metalearn completion`` in a real shell."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from metalearn.cli import main
from metalearn.cli.commands import COMMANDS
from metalearn.cli.shipped import shipped_configs

CASES: dict[str, set[str]] = {
    "": set(COMMANDS), "swee": {"sweep"}, "fit --model MA": {"MAML"}, "fit --data Omni": {"OmniglotDataModule"},
    "fit --model.norm ": {"transductive", "support", "running", "per_step"}, "fit --seed_e": {"--seed_everything"},
    "fit --config maml_glyphs_5": {"maml_glyphs_5w1s"}, "test --ckpt": {"--ckpt_path"}, "predict --supp": {"--support"},
    "fit --model.backbone.zero": {"--model.backbone.zero_head"}, "fit --model.backbone Conv": {"Conv4"},
    "data in": {"info"}, "data info --config anil_mini": {name for name in shipped_configs() if name.startswith("anil_mini")},
    "list data": {"datasets"}, "study few_shot --mini": {"--miniimagenet"}, "sweep --set": {"--set"}, "runs --cs": {"--csv"},
    "fit --js": {"--json"}, "fit --trainer.max_st": {"--trainer.max_steps"}, "completion z": {"zsh"},
}  # fmt: skip
DRIVER = """
source "$1"; shift
function=$(complete -p metalearn | sed 's/.* -F \\([^ ]*\\) .*/\\1/')
for line in "$@"; do
    COMP_LINE="$line"; read -ra COMP_WORDS <<< "$line"
    [[ "$line" == *" " ]] && COMP_WORDS+=("")
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=()
    $function
    echo "${COMPREPLY[@]}"
done
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the scripts, one a shell."""
    folder = tmp_path_factory.mktemp("completion")
    code = (
        "import contextlib, sys; from metalearn.cli import main\n"
        "for shell in ('bash', 'zsh'):\n"
        "    with open(shell, 'w') as file, contextlib.redirect_stdout(file): main(['completion', shell])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")
    return folder


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_what_there_is(scripts: Path, tmp_path: Path) -> None:
    lines = [f"metalearn {words}" for words in CASES]
    done = subprocess.run(
        ["bash", "-c", DRIVER, "bash", scripts / "bash", *lines],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    offered = dict(zip(CASES, (set(line.split()) for line in done.stdout.splitlines()), strict=True))
    assert offered == CASES


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_zsh_takes_the_script(scripts: Path) -> None:
    subprocess.run(["zsh", "-n", scripts / "zsh"], check=True, timeout=60)


def test_another_shell_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["completion", "bsh"])
    assert end.value.code == 2
    assert "shell is 'bsh', but it must be bash or zsh; use bash" in capsys.readouterr().err
