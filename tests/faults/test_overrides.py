"""Overrides and options that Hydra or Python would answer with a traceback, an internal name or a guess."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fsmerge_cli.cli import main
from fsmerge_cli.cli.keys import TOP
from fsmerge_cli.cli.overrides import checked
from fsmerge_cli.common import presets
from fsmerge_cli.common.errors import ConfigError
from tests.support.command import listed

PAIR = "models.sources=[{name: a, checkpoint: gone}, {name: b, checkpoint: gone}]"
READ = "cannot read '{}'. Write KEY=VALUE; quote a value with spaces or symbols: 'KEY=\"a, b\"'."
KEYS = listed(key for key in TOP if key not in ("models", "data"))
METHODS, DATA = listed(presets.names("method")), listed(presets.names("data"))
OPTIONS = (
    "Available: --cfg, --config-dir, --fail-under, --headers-only, --json, --multirun, --quiet, --resolve, "
    "--strict, -c, -cd, -m, -q."
)
SEVERAL = (
    "gives several values. Write a list as [a,b], one text with commas as 'KEY=\"a,b\"'; several runs need "
    "`fsmerge merge --multirun`."
)
MODELS_FOLDER = "Pass a folder with models/*.yaml, data/*.yaml, ..."

UNREAD = [
    *("+", "++x", "x", "a.b.c", "method.steps=[1", "method.=1", "method..steps=1", ".=1", "my key=1", "naïve=1"),
    *(
        "{a:1}",
        "[1]",
        "*=1",
        "#=1",
        "method.steps=${",
        "method.steps=${}",
        "method.steps=]",
        'seed="1',
        "'",
        "💥=1",
    ),
]
REFUSED = [
    *((argument, READ.format(argument)) for argument in UNREAD),
    ("a\nb=1", READ.format("a\\nb=1")),
    ("a=\0", READ.format("a=\\x00")),
    ("\udcff=1", READ.format("\\udcff=1")),
    (
        "~",
        "cannot read '~': it has no key. Write KEY=VALUE; quote a value with spaces or symbols: 'KEY=\"a, b\"'.",
    ),
    (
        "=5",
        "cannot read '=5': it has no key. Write KEY=VALUE; quote a value with spaces or symbols: 'KEY=\"a, b\"'.",
    ),
    ("@=1", "cannot read '@=1': a key has no @. Write GROUP=NAME or KEY=VALUE."),
    ("method@x=y", "cannot read 'method@x=y': a key has no @. Write GROUP=NAME or KEY=VALUE."),
    ("+data@foo=digits", "cannot read '+data@foo=digits': a key has no @. Write GROUP=NAME or KEY=VALUE."),
    (
        "seed=" + "9" * 5000,
        f"cannot read 'seed={'9' * 195}...': Exceeds the limit (4300 digits) for integer string conversion: value "
        "has 5000 digits; use sys.set_int_max_str_digits() to increase the limit. Give a smaller number.",
    ),
    (
        "seed=" + "[" * 60 + "]" * 60,
        f"cannot read 'seed={'[' * 60}{']' * 60}': an override has at most 100000 characters, and at most 50 "
        "brackets inside each other.",
    ),
    (
        "seed=" + "x" * 200_000,
        f"cannot read 'seed={'x' * 195}...': an override has at most 100000 characters, and at most 50 brackets "
        "inside each other.",
    ),
    ("a=", f"unknown key 'a'. Available: {KEYS}."),
    ("foo/bar=baz", f"unknown key 'foo/bar'. Available: {KEYS}."),
    ("$=1", f"unknown key '$'. Available: {KEYS}."),
    ("method=", f"unknown method ''. Available: {METHODS}."),
    ("method=3", f"unknown method '3'. Available: {METHODS}."),
    ("method=true", f"unknown method 'True'. Did you mean 'dare'? Available: {METHODS}."),
    ("method=[kd]", f"unknown method '['kd']'. Did you mean 'kd'? Available: {METHODS}."),
    ("method=../merge", f"unknown method '../merge'. Did you mean 'fs_merge'? Available: {METHODS}."),
    ("method=/etc/passwd", f"unknown method '/etc/passwd'. Available: {METHODS}."),
    ("method=\udcff", f"unknown method '\\udcff'. Available: {METHODS}."),
    ("data=3", f"unknown data '3'. Available: {DATA}."),
    ("data=[]", f"unknown data '[]'. Available: {DATA}."),
    ("hardware=[]", f"unknown hardware '[]'. Available: {listed(presets.names('hardware'))}."),
    ("hydra=x", "hydra is no group of this command."),
    ("hydra.mode=x", "hydra.mode=x cannot be set (Invalid value 'x', expected one of [RUN, MULTIRUN])."),
    ("~nothing", "nothing cannot be removed: there is no such key."),
    ("~models", "models cannot be removed: nothing is chosen there."),
    ("seed=1,2", f"seed=1,2 {SEVERAL}"),
    ("method=kd,average", f"method=kd,average {SEVERAL}"),
    ("seed=range(3)", "seed=range(3) gives several values, which needs `fsmerge merge --multirun`."),
    ("method.steps.x=1", "method.steps.x cannot be set: method.steps is null. Write method.steps=..."),
    (
        "method.task_weights.x=1",
        "method.task_weights.x cannot be set: method.task_weights is null. Write method.task_weights=...",
    ),
    ("models.sources.x=1", "models.sources.x: should be the index of a source: models.sources.0.KEY=VALUE."),
    ("models.sources={}", "models.sources={} cannot be set (Cannot merge DictConfig with ListConfig)."),
    ("method.steps==1", "method.steps: should be a valid integer, got '=1'."),
    ("method.steps=(1)", "method.steps: should be a valid integer, got '(1)'."),
    ("seed=💥", "seed: should be a valid integer, got '💥'."),
    ("--foo", f"fsmerge check: unknown option '--foo'. Did you mean '--cfg'? {OPTIONS}"),
    ("--config-path=x", f"fsmerge check: unknown option '--config-path'. Did you mean '--config-dir'? {OPTIONS}"),
    ("--hydra-help", f"fsmerge check: unknown option '--hydra-help'. {OPTIONS}"),
    ("--", f"fsmerge check: unknown option '--'. Did you mean '--cfg'? {OPTIONS}"),
    ("--cfg", "fsmerge check: --cfg takes job, hydra, all, got ''."),
    ("--cfg=x", "fsmerge check: --cfg takes job, hydra, all, got 'x'."),
    ("--resolve", "fsmerge check: --resolve only applies to --cfg. Write --cfg job --resolve."),
    ("--config-dir", f"--config-dir: '' is not a folder. {MODELS_FOLDER}"),
    (
        "--config-dir=~nobody-of-that-name",
        "--config-dir: '~nobody-of-that-name' cannot be used (Could not determine home directory). "
        f"{MODELS_FOLDER}",
    ),
    (
        "hydra.mode=MULTIRUN",
        "fsmerge check inspects one merge. Leave out --multirun and give every key one value.",
    ),
]


@pytest.mark.full
@pytest.mark.parametrize(("argument", "message"), REFUSED, ids=[ascii(argument[:40]) for argument, _ in REFUSED])
def test_an_override_gets_one_line(
    argument: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["check", PAIR, argument]) == 2
    assert capsys.readouterr() == ("", f"fsmerge: error: {message}\n")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("command", [["evaluate", "gone"], ["finetune", "model.arch=vit_tiny_patch16_224"]])
@pytest.mark.parametrize("argument", ["=5", "@=1", "method.=1", "seed=[1", "data=3"])
def test_other_commands_check_their_overrides_alike(
    command: list[str], argument: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, argument]) == 2
    err = capsys.readouterr().err
    assert err in [
        f"fsmerge: error: {message}\n" for message in (dict(REFUSED).get(argument), READ.format(argument))
    ]


@pytest.mark.parametrize(
    ("argument", "passed"),
    [
        ("output.dir=~/out", 'output.dir="~/out"'),
        ("data.root=/a b/(c)!", 'data.root="/a b/(c)!"'),
        ("models.sources.0.checkpoint=epoch=3.ckpt", 'models.sources.0.checkpoint="epoch=3.ckpt"'),
        ("data.root=images/{task}/x", 'data.root="images/{task}/x"'),
        ("data.root=Bücher", 'data.root="Bücher"'),
        ("method.t=interval(0,1)", "method.t=interval(0,1)"),
        ("seed=1,2", "seed=1,2"),
        ("+method=kd", "method=kd"),
        ("++models=x", "+models=x"),
        ("~data", "~data"),
    ],
)
def test_a_plain_text_is_quoted_where_it_must_be(argument: str, passed: str) -> None:
    assert checked([argument], "merge") == [passed]


@pytest.mark.parametrize("argument", ["data.root=a'b", "data.root=a$b}", "data.root=[a(]", "data.root=a\tb\n"])
def test_a_text_with_syntax_is_never_guessed(argument: str) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        checked([argument], "merge")


@pytest.mark.parametrize(
    "option", [["--config-dir", "."], ["--config-dir=."], ["--cfg", "job"], ["-c", "job"], ["--multirun"], ["-m"]]
)
def test_options_may_stand_between_overrides(option: list[str]) -> None:
    found = checked(["method=kd", *option, "seed=1"], "merge")
    assert found[-2:] == ["method=kd", "seed=1"]
    assert found[0] == option[0].partition("=")[0]


@pytest.mark.full
@pytest.mark.parametrize("group", ["data", "method"])
@pytest.mark.parametrize("lists", [{"mine": "mine"}, {"mine": "other", "other": "mine"}])
def test_configurations_that_contain_themselves(
    group: str, lists: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / group).mkdir()
    for name, inner in lists.items():
        (tmp_path / group / f"{name}.yaml").write_text(f"defaults: [{inner}]\nname: digits\n")
    for command in (["check", PAIR], ["evaluate", "gone"]):
        if command[0] == "evaluate" and group == "method":
            continue
        assert main([*command, "--config-dir", str(tmp_path), f"{group}=mine"]) == 2
        assert capsys.readouterr() == (
            "",
            "fsmerge: error: a file of --config-dir contains itself, directly or by way of others. Check its "
            "defaults: list.\n",
        )


def test_a_batch_has_a_limit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "+models=digits_mlp_pair", "method=kd", "method.batch_size=1" + "0" * 20]) == 2
    assert capsys.readouterr().err == (
        "fsmerge: error: method.batch_size: should be less than or equal to 1000000, got 100000000000000000000.\n"
    )


@pytest.mark.full
@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "method=average", PAIR.replace("gone", '"{}"', 1)],
        ["check", "+models=digits_mlp_pair", "data=folder", 'data.root="{}"'],
        ["evaluate", "{}"],
        ["compare", "{}"],
        ["compare", "a", "--{}"],
    ],
    ids=lambda arguments: arguments[-1],
)
def test_a_line_break_in_a_path_is_an_escape(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([argument.replace("{}", "x\ny") for argument in arguments]) == 2
    err = capsys.readouterr().err
    assert "x\\ny" in err
    assert not any(line.startswith("y") for line in err.splitlines())


def test_a_cache_in_the_folder_of_an_unknown_user(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FSMERGE_CACHE", "~nobody-of-that-name/cache")
    assert main(["check", "+models=digits_mlp_pair", "method=average"]) == 2
    assert capsys.readouterr().err == (
        "fsmerge: error: FSMERGE_CACHE=~nobody-of-that-name/cache cannot be used (Could not determine home "
        "directory). Pass another path.\n"
    )
