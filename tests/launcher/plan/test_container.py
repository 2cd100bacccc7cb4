"""What a run needs of a container, in every engine's words."""

from __future__ import annotations

import csv
import os

import msgspec
import pytest

from launcher.errors import UsageError
from launcher.job.spec import JobSpec, SlurmSpec
from launcher.node.agent.in_container import place_container
from launcher.plan import container
from launcher.plan.container import ContainerChoice, Mount, Needs
from launcher.plan.engines.own_words import OwnWords
from launcher.plan.engines.table import ENGINES
from launcher.plan.resolve import plan
from launcher.plan.types import Target
from tests.beds.places import GOLDEN
from train.config import Data, Lora, Model

FILES = GOLDEN / "container"
RUN_DIR = Mount("{run_dir}", "{run_dir}", read_only=False)
NEEDS = Needs(
    image="sha256:0123abcd",
    name="zlaunch-demo-20261123-120000-abcd-{node_rank}",
    gpus=True,
    stop_timeout=40,
    mounts=(RUN_DIR, Mount("/data/中文", "/data/中文"), Mount("/cache/hf", "/hf", read_only=False)),
    own=OwnWords(("--label=team=nlp",)),
)
DOCKER = ContainerChoice("docker", "i")
NOT_MOUNTABLE = {"docker": '/a"b', "podman": '/a"b', "apptainer": '/a"b', "enroot": "/a:b", "charliecloud": "/a:b"}


def words(engine: str, needs: Needs = NEEDS) -> str:
    made = container.container_plan(engine, needs)
    when = [f"if {kind} {subject}".rstrip() + f": {' '.join(extra)}" for kind, subject, extra in made.when]
    return "\n".join([*made.argv, "", *when]) + "\n"


@pytest.mark.parametrize("engine", ENGINES)
def test_the_arguments_of_an_engine_equal_the_golden_file(engine):
    file = FILES / f"{engine}.txt"
    if os.environ.get("ZLAUNCH_GOLDEN") == "write":
        file.write_text(words(engine), encoding="utf-8")
    assert words(engine) == file.read_text(encoding="utf-8")


def test_the_flags_of_pyxis_are_the_reviewed_ones():
    made = container.pyxis_flags(Needs(**{**vars(NEEDS), "image": "registry.example.com/team/zlaunch:0.1.0"}))
    text = "\n".join([*made["flags"], "", *made["mounts"]]) + "\n"
    file = FILES / "pyxis.txt"
    if os.environ.get("ZLAUNCH_GOLDEN") == "write":
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8")


@pytest.mark.parametrize("engine", ENGINES)
def test_the_image_comes_after_every_option_and_the_run_directory_is_writable(engine):
    argv = container.container_plan(engine, NEEDS).argv
    assert [word for word in argv if word != "--"][-1] == NEEDS.image
    own = next(word for word in argv if word.count("{run_dir}") == 2)
    assert not own.endswith((",ro", ",readonly"))


@pytest.mark.parametrize(("engine", "path"), NOT_MOUNTABLE.items())
def test_a_path_that_an_engine_cannot_express_is_refused_by_name(engine, path):
    with pytest.raises(UsageError, match="mount grammar"):
        container.container_plan(engine, Needs("i", "n", False, 40, (RUN_DIR, Mount(path, path))))


def test_without_gpus_no_gpu_and_no_raised_limit_is_requested():
    made = container.container_plan("docker", Needs("i", "n", gpus=False, stop_timeout=40))
    words_ = [*made.argv, *(word for *_, extra in made.when for word in extra)]
    assert not any("gpu" in word or "ulimit" in word for word in words_)


def test_a_comma_in_a_path_does_not_end_the_path():
    mount = Mount("/data/a,b", "/data/a,b")
    argv = container.container_plan("docker", Needs("img", "box", False, 40, (RUN_DIR, mount))).argv
    assert next(csv.reader([argv[-2].removeprefix("--mount=")])) == [
        "type=bind", "source=/data/a,b", "target=/data/a,b", "readonly",
    ]  # fmt: skip


def test_a_value_is_never_read_as_a_template():
    mount = Mount("/data/{name}", "/data/{image}")
    argv = container.container_plan("docker", Needs("img", "box", False, 40, (RUN_DIR, mount))).argv
    assert '--mount=type=bind,"source=/data/{name}","target=/data/{image}",readonly' in argv


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        ("/data", Mount("/data", "/data")),
        ("/data:/d", Mount("/data", "/d")),
        ("/data:/d:rw", Mount("/data", "/d", read_only=False)),
        ("/data:ro", Mount("/data", "/data")),
    ],
)
def test_a_mount_of_the_job_is_read_only_unless_it_says_rw(text, mount):
    assert container.parse_mount(text) == mount


@pytest.mark.parametrize("text", ["data:/d", "/data:d", "/a:/b:/c", ""])
def test_a_mount_without_absolute_paths_is_refused(text):
    with pytest.raises(UsageError, match=r"container\.mounts"):
        container.parse_mount(text)


def test_a_path_inside_a_mounted_directory_is_not_mounted_again():
    mounts = container.mounts_of(["/w/data.jsonl", "/d/x", "data/y"], ["/w"])
    assert mounts == (RUN_DIR, Mount("/w", "/w", read_only=False), Mount("/d/x", "/d/x"))


@pytest.mark.parametrize(
    ("image", "written"),
    [
        ("registry.example.com/team/zl:1", "registry.example.com#team/zl:1"),
        ("localhost:5000/zl", "localhost:5000#zl"),
        ("team/zl:1", "team/zl:1"),
        ("/shared/zl.sqsh", "/shared/zl.sqsh"),
    ],
)
def test_pyxis_gets_the_registry_form_of_an_image(image, written):
    assert container.pyxis_image(image) == written


def target(backend: str) -> Target:
    hosts = (("a", 2), ("b", 2))
    return Target(
        backend=backend, device="cuda", hosts=hosts, python="/env/bin/python", master_port=1, control_port=2, token="t"
    )


def test_the_agent_runs_on_the_host_and_the_ranks_with_the_images_python():
    launch = plan(JobSpec(), target("local"), run_id="r", container=DOCKER).launch
    assert launch.python == "/env/bin/python"
    assert launch.argv[0] == "python3"
    assert launch.container is not None
    assert launch.container.name == "zlaunch-r-{node_rank}"


def argv_of(spec: JobSpec, backend: str) -> tuple[str, ...]:
    container_ = plan(spec, target(backend), run_id="r", container=DOCKER).launch.container
    assert container_ is not None
    return container_.argv


def test_an_adapter_to_continue_from_is_mounted_like_the_data():
    spec = JobSpec(
        model=Model(path="/m"),
        data=Data(train="/d.jsonl"),
        lora=Lora(adapter="/a/adapter"),
    )
    for backend in ("local", "slurm"):
        for path in ("/m", "/d.jsonl", "/a/adapter"):
            assert f'--mount=type=bind,"source={path}","target={path}",readonly' in argv_of(spec, backend)


def test_the_files_of_an_adapter_that_was_sent_to_a_host_are_mounted_through_their_links(tmp_path):
    spec = JobSpec(model=Model(path="/m"), lora=Lora(adapter="/a/ad"))
    sent = msgspec.structs.replace(target("ssh"), paths={"/a/ad": "inputs/00ff/ad"})
    (tmp_path / "inputs/00ff/ad").mkdir(parents=True)
    (tmp_path / "inputs/00ff/ad/adapter_config.json").symlink_to("/store/adapter_config.json")
    made = msgspec.to_builtins(plan(spec, sent, run_id="r", container=DOCKER).launch.container)
    argv = place_container(made, tmp_path, 0)["argv"]
    file = "/store/adapter_config.json"
    assert argv.count(f'--mount=type=bind,"source={file}","target={file}",readonly') == 1


def test_an_engine_waits_on_stop_until_the_last_checkpoint_can_be_written():
    assert "--stop-timeout=40" in argv_of(JobSpec(), "local")
    assert "--stop-timeout=75" in argv_of(JobSpec(stop_deadline=60), "ssh")
    spec = JobSpec(slurm=SlurmSpec(signal_before=300))
    deadline = plan(spec, target("slurm"), run_id="r", container=DOCKER).launch.stop_deadline
    assert deadline > 200
    assert f"--stop-timeout={int(deadline) + container.MARGIN}" in argv_of(spec, "slurm")


def test_the_plan_says_why_auto_became_this_engine():
    chosen = ContainerChoice("docker", "zl:1", reason="zl:1 is a name")
    reason = plan(JobSpec(), target("ssh"), run_id="r", container=chosen).reasons[-1]
    assert (reason.setting, reason.value, reason.reason) == ("container.runtime", "docker", "zl:1 is a name")


@pytest.mark.parametrize("engine", [name for name, words_ in ENGINES.items() if words_.makes_places])
def test_a_host_mounts_the_hub_cache_that_it_has_and_its_own_variable_wins(tmp_path, monkeypatch, engine):
    place = tmp_path / "hf"
    chosen = ContainerChoice(engine, "i", host_caches=(("HF_HOME", str(place)),))
    made = msgspec.to_builtins(plan(JobSpec(), target("ssh"), run_id="r", container=chosen).launch.container)

    def words_with(name: str) -> list[str]:
        return [word for word in place_container(made, tmp_path, 0)["argv"] if name in word]

    monkeypatch.delenv("HF_HOME", raising=False)
    assert words_with("HF_HOME") == words_with(str(place)) == []
    place.mkdir()
    assert words_with("HF_HOME=")[-1].endswith("HF_HOME=/mnt/hf_home")
    assert len(words_with(str(place))) == 1
    monkeypatch.setenv("HF_HOME", str(place))
    assert words_with("HF_HOME=")[-1].endswith(f"HF_HOME={place}")


def test_charliecloud_gets_no_hub_cache_because_it_cannot_make_a_mount_point():
    chosen = ContainerChoice("charliecloud", "/i", host_caches=(("HF_HOME", "/c"),))
    made = plan(JobSpec(), target("ssh"), run_id="r", container=chosen).launch.container
    assert made is not None
    assert not any("HF_HOME" in word for *_, extra in made.when for word in extra)


def test_under_pyxis_the_agent_is_inside_as_well():
    chosen = ContainerChoice("pyxis", "/shared/zl.sqsh")
    made = plan(JobSpec(), target("slurm"), run_id="r", container=chosen)
    assert made.launch.container is None
    assert made.launch.python == "python3"
    assert made.slurm is not None
    assert "--container-image=/shared/zl.sqsh" in made.slurm["pyxis"]["flags"]


def test_the_agent_fills_in_what_only_its_host_knows(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    when = [
        ["variable", "CUDA_VISIBLE_DEVICES", ["--env={value}"]],
        ["variable", "SLURM_JOB_ID", ["--never"]],
        ["path", str(tmp_path), ["--device=there"]],
        ["path", str(tmp_path / "absent"), ["--never"]],
    ]
    (tmp_path / "inputs/ab").mkdir(parents=True)
    (tmp_path / "inputs/ab/data.jsonl").symlink_to("/elsewhere/数.jsonl")
    (tmp_path / "inputs/ab/own.jsonl").write_text("here")
    when.append(["links", "inputs", ["--mount={value}:{value}"]])
    plan_ = {"name": "zl-{node_rank}", "argv": ["e", "--user={uid}", "{when}", "{run_dir}:{x}", "img"], "when": when}
    placed = place_container(plan_, tmp_path, 3)
    assert placed["name"] == "zl-3"
    assert placed["argv"] == [
        "e", f"--user={os.getuid()}", "--env=2,3", "--device=there", "--mount=/elsewhere/数.jsonl:/elsewhere/数.jsonl",
        f"{tmp_path}:{{x}}", "img",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("environ", "docker", "podman"),
    [
        ({}, ["--gpus=all"], ["--device=nvidia.com/gpu=all"]),
        (
            {"CUDA_VISIBLE_DEVICES": "2,3"},
            ['--gpus="device=2,3"'],
            ["--device=nvidia.com/gpu=2", "--device=nvidia.com/gpu=3"],
        ),
        # ConstrainDevices: the job's second pair of GPUs is 0,1 to its own processes, and 2,3 to the daemon.
        (
            {"SLURM_STEP_GPUS": "2,3", "SLURM_JOB_GPUS": "1,2,3", "CUDA_VISIBLE_DEVICES": "0,1"},
            ['--gpus="device=2,3"'],
            ["--device=nvidia.com/gpu=2", "--device=nvidia.com/gpu=3"],
        ),
        ({"SLURM_JOB_GPUS": "5", "CUDA_VISIBLE_DEVICES": "0"}, ['--gpus="device=5"'], ["--device=nvidia.com/gpu=5"]),
    ],
)
def test_a_daemon_gets_each_device_by_its_number_on_the_host(tmp_path, monkeypatch, environ, docker, podman):
    for name in ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    for engine, wanted in (("docker", docker), ("podman", podman)):
        made = msgspec.to_builtins(container.container_plan(engine, NEEDS))
        argv = place_container(made, tmp_path, 0)["argv"]
        assert [word for word in argv if "gpu" in word] == wanted
        assert not any("CUDA_VISIBLE_DEVICES" in word for word in argv)  # inside they are 0, 1, ...


def test_engines_inside_the_task_get_the_gpu_numbers_of_the_task(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_STEP_GPUS", "2,3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    made = msgspec.to_builtins(container.container_plan("apptainer", NEEDS))
    assert "--env=CUDA_VISIBLE_DEVICES=0,1" in place_container(made, tmp_path, 0)["argv"]


def made_with(engine: str, *args: str, omit: tuple[str, ...] = (), **needs: object) -> str:
    """The arguments of an engine that a job adds to and leaves out of, one per line."""
    asked = Needs(**{**vars(NEEDS), "own": OwnWords(args, omit), **needs})
    return words(engine, asked)


@pytest.mark.parametrize(
    ("args", "gone", "there"),
    [
        (("--shm-size=64g",), (), ("--shm-size=64g", "--ipc=host", "memlock=-1")),
        (("--shm-size", "64g", "--privileged"), (), ("--shm-size", "64g", "--privileged")),
        (("--ipc=private",), ("--ipc=host",), ("--ipc=private",)),
        (("--user=0",), ("{uid}",), ("--user=0",)),
        (("-u", "0:0"), ("{uid}",), ("-u",)),
        (("--net=host",), ("--network=host",), ("--net=host",)),
        (("--ulimit=memlock=64:64",), ("memlock=-1",), ("--ulimit=memlock=64:64", "stack=67108864")),
        (("--ulimit", "stack=1"), ("stack=67108864",), ("memlock=-1",)),
        (("--env=A=b", "-v", "/x:/x"), (), ("--env=SLURM_JOB_ID", "--env=A=b")),
        (("--gpus=all",), ("device={value}",), ("--gpus=all",)),
        (("--stop-timeout=90",), ("--stop-timeout=40",), ("--stop-timeout=90",)),
    ],
)
def test_an_argument_of_the_job_takes_the_place_of_the_plans(args, gone, there):
    text = made_with("docker", *args)
    assert [word for word in gone if word in text] == []
    assert [word for word in there if word not in text] == []


@pytest.mark.parametrize(
    ("engine", "entry", "gone", "there"),
    [
        ("docker", "--ulimit", "--ulimit", "--init"),
        ("docker", "--ulimit=memlock", "memlock", "stack"),
        ("docker", "--init", "--init", "--ipc=host"),
        ("docker", "--gpus", "--gpus", "--init"),
        ("docker", "--device=/dev/infiniband", "infiniband", "--gpus"),
        ("podman", "--userns", "keep-id", "--device=nvidia.com"),
        ("podman", "--device=nvidia.com/gpu", "nvidia", "infiniband"),
        ("apptainer", "--no-home", "--no-home", "--nv"),
        ("apptainer", "--nv", "--nv", "--cleanenv"),
        ("enroot", "--rw", "--rw", "NVIDIA_VISIBLE"),
        ("charliecloud", "--unset-env", "--unset-env", "--set-env"),
    ],
)
def test_an_argument_of_the_plans_is_left_out_by_name(engine, entry, gone, there):
    assert gone in made_with(engine)
    text = made_with(engine, omit=(entry,))
    assert gone not in text
    assert there in text


@pytest.mark.parametrize(
    ("engine", "args", "omit", "said"),
    [
        ("docker", ("ubuntu",), (), "take it for the image"),
        ("docker", ("--privileged", "ubuntu"), (), "take it for the image"),
        ("docker", ("--a=b", "c"), (), "take it for the image"),
        ("docker", ("--",), (), "end the engine's options"),
        ("docker", ("-d",), (), "the agent waits"),
        ("podman", ("--detach=true",), (), "the agent waits"),
        ("docker", ("-t",), (), "secrets from standard input"),
        ("docker", ("--interactive=false",), (), "secrets come on standard input"),
        ("docker", ("--name=mine",), (), "by the name"),
        ("docker", ("--restart", "always"), (), "max_restarts"),
        ("docker", ("--env=TOKEN=abc",), (), "value of a secret"),
        ("docker", ("-e", "TOKEN=abc"), (), "value of a secret"),
        ("charliecloud", ("--set-env=TOKEN=abc",), (), "value of a secret"),
        ("docker", ("--network=none",), (), "would not reach"),
        ("docker", (), ("--mount",), "the run needs it"),
        ("docker", (), ("--interactive",), "the run needs it"),
        ("docker", (), ("--nv",), "no argument '--nv'"),
        ("apptainer", (), ("--ulimit",), "no argument '--ulimit'"),
        ("docker", (), ("run",), "no argument 'run'"),
        ("docker", (), ("",), "no argument ''"),
    ],
)
def test_arguments_that_would_take_the_container_from_the_agent_are_refused(engine, args, omit, said):
    with pytest.raises(UsageError) as refused:
        made_with(engine, *args, omit=omit, secrets=("TOKEN",), hosts=2)
    assert said in f"{refused.value} {refused.value.hint}"


def test_variables_and_networks_that_harm_nothing_are_taken():
    made_with("docker", "--env=TOKEN", "--env=OTHER=x", secrets=("TOKEN",))
    made_with("docker", "--network=none", hosts=1)


@pytest.mark.parametrize("word", ["--nodes=3", "-n", "--container-image=x", "--container-mounts=/a:/b"])
def test_srun_keeps_the_tasks_and_mounts_of_the_run_under_pyxis(word):
    with pytest.raises(UsageError, match=r"container\.args"):
        container.pyxis_flags(Needs(**{**vars(NEEDS), "own": OwnWords((word,))}))
    left = container.pyxis_flags(Needs(**{**vars(NEEDS), "own": OwnWords(omit=("--container-writable",))}))
    assert "--container-writable" not in left["flags"]
