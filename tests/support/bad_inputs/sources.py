"""What a configuration must not do, and lists of sources that cannot be merged."""

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
        "a class to be called, in the method",
        AVERAGE + " +method._target_=os.system",
        2,
        (
            "method._target_='os.system': a configuration of fsmerge names no Python to be called. Choose by "
            "name (`fsmerge list` shows the names) and take the key away."
        ),
        quick=True,
    ),
    Case(
        "a class to be called, in the data",
        KD + " +data._target_=os.system",
        2,
        (
            "data._target_='os.system': a configuration of fsmerge names no Python to be called. Choose by "
            "name (`fsmerge list` shows the names) and take the key away."
        ),
    ),
    Case(
        "a class to be called, in the hardware",
        AVERAGE + " +hardware._target_=os.system",
        2,
        (
            "hardware._target_='os.system': a configuration of fsmerge names no Python to be called. Choose "
            "by name (`fsmerge list` shows the names) and take the key away."
        ),
    ),
    Case(
        "a class to be called, in the output",
        AVERAGE + " +output._target_=os.system",
        2,
        (
            "output._target_='os.system': a configuration of fsmerge names no Python to be called. Choose by "
            "name (`fsmerge list` shows the names) and take the key away."
        ),
    ),
    Case(
        "a class to be called, at the top",
        AVERAGE + " +_target_=os.system",
        2,
        (
            "unknown key '_target_'. Available: checkpoint, data, evaluation, hardware, method, models, output, "
            "resume, seed."
        ),
    ),
    Case(
        "a class to be called, in an architecture",
        two(
            "name:v,checkpoint:v,arch:{family:vit,name:vit_tiny_patch16_224,args:{norm_layer:{_target_:os.system}}}"
        )
        + " method=average",
        2,
        (
            "models.sources.0.arch.args.norm_layer._target_='os.system': a configuration of fsmerge names no "
            "Python to be called. Choose by name (`fsmerge list` shows the names) and take the key away."
        ),
    ),
    Case(
        "a class to be called, in a recipe",
        two("name:a,recipe:{_target_:os.system,data:digits,seed:0}") + " method=average",
        2,
        (
            "models.sources.0.recipe._target_='os.system': a configuration of fsmerge names no Python to be "
            "called. Choose by name (`fsmerge list` shows the names) and take the key away."
        ),
    ),
    Case(
        "a class to be called, in config.json",
        AVERAGE,
        2,
        (
            "source 'a': a: arch._target_='os.system': a configuration of fsmerge names no Python to be "
            "called. Choose by name (`fsmerge list` shows the names) and take the key away."
        ),
        config("a", model_args___target_="os.system"),
    ),
    Case(
        "a key that is a number",
        AVERAGE + " '+method.x={1:2,a:3}'",
        2,
        "method.x.1: the key 1 is not a text. Quote it, or take it away.",
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
        "no source at all",
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
            "  - the task name 'a' is used 2 times; give each source a name of its own\n"
            "Change the entries of models.sources (checkpoint, arch, head, labels, name), or take other "
            "sources."
        ),
    ),
    Case(
        "a task called like a row",
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
        "a task of an empty name",
        two(second="name:'',checkpoint:b").replace("''", '""') + " method=average",
        2,
        (
            "the task name '' cannot be used: it names a folder and a head. Pass models.sources.N.name=... "
            "of 1 to 80 printable characters, without / and \\, no dot first, no space at an end."
        ),
    ),
    Case(
        "a task that climbs out of its folder",
        two(second="name:../../b,checkpoint:b") + " method=average",
        2,
        (
            "the task name '../../b' cannot be used: it names a folder and a head. Pass "
            "models.sources.N.name=... of 1 to 80 printable characters, without / and \\, no dot first, "
            "no space at an end."
        ),
        quick=True,
    ),
    Case(
        "a task that would clear the terminal",
        two(second='name:"\x1b[2J",checkpoint:b') + " method=average",
        2,
        (
            "the task name '\\x1b[2J' cannot be used: it names a folder and a head. Pass "
            "models.sources.N.name=... of 1 to 80 printable characters, without / and \\, no dot first, "
            "no space at an end."
        ),
    ),
    Case(
        "a task with a name too long",
        two(second=f"name:{'n' * 300},checkpoint:b") + " method=average",
        2,
        (
            "the task name "
            "'nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn"
            "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn' cannot be used: it names a "
            "folder and a head. Pass models.sources.N.name=... of 1 to 80 printable characters, without / "
            "and \\, no dot first, no space at an end."
        ),
    ),
    Case(
        "labels of a recipe that is not there",
        two("name:a,checkpoint:a,labels:low") + " method=average",
        2,
        (
            "source 'a': labels=low names a label set, but only a source with a recipe has some. Give a "
            "list, a file (.txt, .json) or `data`: models.sources.N.labels=[...]"
        ),
    ),
    Case(
        "scikit-learn is not installed",
        PAIR + " data=digits",
        2,
        "data=digits needs scikit-learn: pip install 'fsmerge[embedded]'",
        missing("sklearn.datasets"),
    ),
    Case(
        "a cluster's hardware without a cluster",
        AVERAGE + " hardware=slurm",
        2,
        (
            "hardware.distributed=true: this process was started alone. Start N of them with\n"
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
