"""Configurations that are refused, and lists of sources that cannot be merged."""

from __future__ import annotations

from tests.support.bad_inputs.case import (
    AVERAGE,
    KD,
    PAIR,
    Case,
    config,
    fails,
    missing,
    two,
)

SOURCES = [
    Case(
        "a class to instantiate, in the method",
        AVERAGE + " +method._target_=os.system",
        2,
        (
            "method._target_='os.system': a configuration cannot call Python code. Remove the key and choose by "
            "name (`fsmerge list` shows the names)."
        ),
        quick=True,
    ),
    Case(
        "a class to instantiate, in the data",
        KD + " +data._target_=os.system",
        2,
        (
            "data._target_='os.system': a configuration cannot call Python code. Remove the key and choose by "
            "name (`fsmerge list` shows the names)."
        ),
    ),
    Case(
        "a class to instantiate, in the hardware",
        AVERAGE + " +hardware._target_=os.system",
        2,
        (
            "hardware._target_='os.system': a configuration cannot call Python code. Remove the key and choose by "
            "name (`fsmerge list` shows the names)."
        ),
    ),
    Case(
        "a class to instantiate, in the output",
        AVERAGE + " +output._target_=os.system",
        2,
        (
            "output._target_='os.system': a configuration cannot call Python code. Remove the key and choose by "
            "name (`fsmerge list` shows the names)."
        ),
    ),
    Case(
        "a class to instantiate, at the top",
        AVERAGE + " +_target_=os.system",
        2,
        (
            "unknown key '_target_'. Available: checkpoint, data, evaluation, hardware, method, models, output, "
            "resume, seed."
        ),
    ),
    Case(
        "a class to instantiate, in an architecture",
        two(
            "name:v,checkpoint:v,arch:{family:vit,name:vit_tiny_patch16_224,args:{norm_layer:{_target_:os.system}}}"
        )
        + " method=average",
        2,
        (
            "models.sources.0.arch.args.norm_layer._target_='os.system': a configuration cannot call Python code. "
            "Remove the key and choose by name (`fsmerge list` shows the names)."
        ),
    ),
    Case(
        "a class to instantiate, in a recipe",
        two("name:a,recipe:{_target_:os.system,data:digits,seed:0}") + " method=average",
        2,
        (
            "models.sources.0.recipe._target_='os.system': a configuration cannot call Python code. Remove the "
            "key and choose by name (`fsmerge list` shows the names)."
        ),
    ),
    Case(
        "a class to instantiate, in config.json",
        AVERAGE,
        2,
        (
            "source 'a': a: arch._target_='os.system': a configuration cannot call Python code. Remove the key "
            "and choose by name (`fsmerge list` shows the names)."
        ),
        config("a", model_args___target_="os.system"),
    ),
    Case(
        "a key that is a number",
        AVERAGE + " '+method.x={1:2,a:3}'",
        2,
        "method.x.1: the key 1 is not a string. Quote it or remove it.",
    ),
    Case(
        "one source only",
        "merge 'models.sources=[{name:a,checkpoint:a}]' method=average output.dir=out",
        2,
        (
            "these sources cannot be merged, for 1 reason:\n"
            "  - a merge needs at least two sources, got 1. Add one to models.sources\n"
            "Change the entries of models.sources (checkpoint, arch, head, labels, name), or take other "
            "sources."
        ),
    ),
    Case(
        "no sources",
        "merge 'models.sources=[]' method=average output.dir=out",
        2,
        (
            "these sources cannot be merged, for 1 reason:\n"
            "  - a merge needs at least two sources, got 0. Add one to models.sources\n"
            "Change the entries of models.sources (checkpoint, arch, head, labels, name), or take other "
            "sources."
        ),
    ),
    Case(
        "the same source twice",
        two(second="name:b,checkpoint:a") + " method=average",
        0,
        ("no data: nothing was evaluated\n'b' has the same weights as 'a'; check models.sources.N.checkpoint"),
    ),
    Case(
        "the same task name twice",
        two(second="name:a,checkpoint:b") + " method=average",
        2,
        (
            "these sources cannot be merged, for 1 reason:\n"
            "  - the task name 'a' is used 2 times; give each source a unique name\n"
            "Change the entries of models.sources (checkpoint, arch, head, labels, name), or take other "
            "sources."
        ),
    ),
    Case(
        "a task named like a row of the score table",
        two(second="name:merged,checkpoint:b") + " method=average",
        2,
        (
            "these sources cannot be merged, for 1 reason:\n"
            "  - the task name 'merged' is a row of the score table; give the source another name\n"
            "Change the entries of models.sources (checkpoint, arch, head, labels, name), or take other "
            "sources."
        ),
    ),
    Case(
        "a task without a name",
        two(second="checkpoint:b") + " method=average",
        2,
        "models.sources.1.name is missing.",
    ),
    Case(
        "an empty task name",
        two(second="name:'',checkpoint:b").replace("''", '""') + " method=average",
        2,
        (
            "the task name '' cannot be used: it becomes part of file and tensor names. Pass "
            "models.sources.N.name=... "
            "of 1 to 80 printable characters, without / and \\, not starting with a "
            "dot, without spaces at either end."
        ),
    ),
    Case(
        "a task name with a path to a parent folder",
        two(second="name:../../b,checkpoint:b") + " method=average",
        2,
        (
            "the task name '../../b' cannot be used: it becomes part of file and tensor names. Pass "
            "models.sources.N.name=... of 1 to 80 printable characters, without / and \\, not starting with a "
            "dot, without spaces at either end."
        ),
        quick=True,
    ),
    Case(
        "a task name with terminal control characters",
        two(second='name:"\x1b[2J",checkpoint:b') + " method=average",
        2,
        (
            "the task name '\\x1b[2J' cannot be used: it becomes part of file and tensor names. Pass "
            "models.sources.N.name=... of 1 to 80 printable characters, without / and \\, not starting with a "
            "dot, without spaces at either end."
        ),
    ),
    Case(
        "a task name that is too long",
        two(second=f"name:{'n' * 300},checkpoint:b") + " method=average",
        2,
        (
            "the task name "
            "'nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn"
            "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn' cannot be used: it becomes "
            "part of file and tensor names. Pass models.sources.N.name=... of 1 to 80 printable characters, "
            "without / and \\, not starting with a dot, without spaces at either end."
        ),
    ),
    Case(
        "a label set without a recipe",
        two("name:a,checkpoint:a,labels:low") + " method=average",
        2,
        (
            "source 'a': labels=low names a label set, but only a source with a recipe has label sets. "
            "Pass a list, a file (.txt, .json) or `data`: models.sources.N.labels=[...]"
        ),
    ),
    Case(
        "scikit-learn is not installed",
        PAIR + " data=digits",
        2,
        "data=digits needs scikit-learn: pip install scikit-learn",
        missing("sklearn.datasets"),
    ),
    Case(
        "hardware=slurm without a cluster",
        AVERAGE + " hardware=slurm",
        2,
        (
            "hardware.distributed=true: only one process was started. Start N processes with\n"
            "  torchrun --nproc-per-node=N -m fsmerge_cli merge ... hardware=multi_gpu\n"
            "or let a cluster start them: fsmerge merge --multirun ... hardware=slurm"
        ),
    ),
    Case(
        "the hub cannot be reached",
        "merge +models=vit_b_pair method=average output.dir=out",
        2,
        (
            "source 'augreg': the hub cannot be reached for the weights 'vit_base_patch16_224.augreg_in1k' "
            "(no route to the hub). Pass a local checkpoint instead: models.sources.N.checkpoint=PATH"
        ),
        fails("huggingface_hub.HfApi.model_info", ConnectionError("no route to the hub")),
    ),
]
