"""The job file: what it accepts, and how it refuses the rest."""

from __future__ import annotations

import json
from typing import Literal, get_args, get_origin

import msgspec
import pytest

from launcher.errors import SpecError
from launcher.job import explain, ranges, spec, yamlfile
from launcher.job.load import convert, dump_job, read_job


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "job.yaml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def refusal(*args, **kwargs) -> SpecError:
    with pytest.raises(SpecError) as caught:
        read_job(*args, **kwargs)
    return caught.value


def test_scalars_follow_yaml_1_2(write):
    job = read_job(
        write("train: {learning_rate: 2e-4, global_batch_size: 0x10}\nslurm: {time: 04:00:00}\nenv: {A: no, B: 1.0}\n")
    ).spec
    assert job.train.learning_rate == pytest.approx(2e-4)
    assert job.train.global_batch_size == 16
    assert job.slurm.time == "04:00:00"
    assert job.env == {"A": "no", "B": "1.0"}


def test_flags_win_over_the_file_and_set_wins_over_flags(write):
    file = write("train: {epochs: 3}\nlora: {r: 4}\n")
    job = read_job(file, ["train.epochs=5"], {"train.epochs": 4, "lora.r": 8, "lora.alpha": None}).spec
    assert (job.train.epochs, job.lora.r, job.lora.alpha) == (5, 8, 32)


def test_an_unknown_key_names_the_nearest_known_one(write):
    error = refusal(write("train: {learning_rte: 1}\n"))
    assert "train.learning_rte" in str(error)
    assert error.hint == "did you mean `train.learning_rate`?"


def test_a_known_key_in_the_wrong_section_names_the_right_place():
    assert refusal(None, ["data.epochs=2"]).hint == "did you mean `train.epochs`?"


def test_an_unknown_key_far_from_all_lists_the_section():
    assert refusal(None, ["model.zzzzzz=2"]).hint.startswith("known here: dtype, path, ")
    assert refusal(None, ["train.zzzzzz=2"]).hint.startswith("`zlaunch keys train` lists")


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("train.epochs=many", ["train.epochs: expected a number, got 'many'"]),
        ("train.epochs=0", ["train.epochs: expected above 0, got 0"]),
        ("train.epochs=.inf", ["train.epochs", "above 0"]),
        ("train.seed=-1", ["train.seed", "-1", "0 to 4294967295"]),
        ("train.weight_decay=-1", ["train.weight_decay", "at least 0"]),
        ("train.max_grad_norm=-1", ["train.max_grad_norm", "at least 0"]),
        ("train.learning_rate=0", ["train.learning_rate", "above 0, at most 1"]),
        ("train.learning_rate=2", ["train.learning_rate", "above 0, at most 1"]),
        ("lora.plus_ratio=-1", ["lora.plus_ratio", "above 0"]),
        ("ssh.slots=0", ["ssh.slots", "at least 1"]),
        ("ssh.connect_timeout=-1", ["ssh.connect_timeout", "at least 1"]),
        ("train.micro_batch_size=x", ["train.micro_batch_size: expected a whole number or auto, got 'x'"]),
        ("train.gradient_checkpointing=2", ["expected true, false or auto, got 2"]),
        ("train.max_steps=true", ["train.max_steps: expected a whole number or null, got true"]),
        ("slurm.setup=module load", ["slurm.setup: expected a list like [a, b], got 'module load'"]),
        ("secrets=[1]", ["secrets[0]: expected a string, got a number"]),
        ("env=[A]", ["env: expected a mapping like {name: value}, got a list"]),
        ("env={A: b, B: }", ["env.B: expected a string, got null"]),
        ("env={1: a}", ["env: expected a string as a name, got a number", "put it in quotes"]),
        ("data.train={path: a}", ["data.train: expected a string or a list like [a, b], got a mapping"]),
        (
            "data.train=[[a]]",
            ["data.train[0]: expected a string or a mapping like {path: ..., weight: ...}"],
        ),
        ("data.train=[{path: a, weight: x}]", ["data.train[0].weight: expected a number, got 'x'"]),
        ("data.train=[a, {weight: 2}]", ["data.train[1]: missing key `path`", "{path: ..., weight: ...}"]),
        (
            "data.eval=[{path: a, weigt: 2}]",
            ["unknown key `data.eval[0].weigt`", "`data.eval[0].weight`?"],
        ),
        ("train.zero_stage=4", ["train.zero_stage: expected 0, 1, 2, 3 or auto, got 4"]),
        ("model.quantization=nf5", ["model.quantization: expected none, nf4, int8, fp8 or published, got 'nf5'"]),
        ("train.global_batch_size=0", ["train.global_batch_size", "at least 1"]),
        ("train.learning_rate=nan", ["train.learning_rate: expected above 0, at most 1, got nan"]),
        ("lora.dropout=1.5", ["lora.dropout", "0 to 0.99"]),
        ("eval.batch_size=0", ["eval.batch_size", "at least 1"]),
        ("eval.max_new_tokens=-1", ["eval.max_new_tokens", "at least 1"]),
        ("stop_deadline=-4", ["stop_deadline", "at least 1"]),
        ("data.train=[{path: a.jsonl, weight: 0}]", ["data.train[0].weight: expected above 0, got 0"]),
        ("env.A-B=1", ["A-B", "environment variable"]),
        ("train=3", ["train: expected a mapping like {epochs: ..., max_steps: ...}, got 3"]),
        ("lora.r=", ["lora.r: expected a whole number, got ''"]),
    ],
)
def test_a_wrong_value_is_reported_with_its_place_and_what_was_expected(setting, parts):
    error = refusal(None, [setting])
    text = f"{error} -> {error.hint}"
    assert [part for part in parts if part not in text] == []


def test_every_number_of_a_job_has_its_range():
    def kinds(kind):
        return {kind}.union(*(kinds(option) for option in get_args(kind) if get_origin(kind) is not Literal))

    numbers = {key for key, kind in explain.known_keys().items() if {int, float} & kinds(kind)}
    assert numbers == set(ranges.JOB_RANGES)


def accepts(tree) -> bool:
    try:
        msgspec.convert(tree, spec.JobSpec, strict=False)
    except msgspec.ValidationError:
        return False
    return True


VALUES = (
    None, True, 2, -1.5, "", "3", "auto", "nf4", [], ["a"], [1], [None], {}, {"path": "a"}, {"weight": 1}, {1: "a"},
    [{"path": "a"}], [{"path": 1, "weight": "x"}], [{"weigt": 1, "path": "a"}], {"a": "b"}, {"a": None},
)  # fmt: skip


@pytest.mark.parametrize("key", sorted(explain.known_keys()))
def test_a_value_is_refused_at_its_place_exactly_if_the_schema_refuses_it(key):
    for value in VALUES:
        section, _, name = key.rpartition(".")
        tree = {section: {name: value}} if section else {name: value}
        found = list(explain.refusals(tree))
        assert bool(found) is not accepts(tree), (key, value, found)
        assert all(refusal.key.startswith(key) for refusal in found)


def test_a_refusal_says_where_the_value_was_given(write):
    error = refusal(None, ["data.train=[{path: a, weight: x}]"])
    assert str(error).startswith("--set: data.train[0].weight: ")
    file = write("train: {epochs: 0}\n")
    assert str(refusal(file)).startswith(f"{file}, line 1: train.epochs: ")
    file = write("lora: {r: 4}\n")
    assert str(refusal(file, ["env.A\n\nB=[1"])).startswith(r"--set 'env.A\n\nB', line 1, column 3: not valid YAML")
    assert str(refusal(file, ["train={epochs: 0}"])).startswith("--set: train.epochs: ")
    assert str(refusal(file, [], {"train.epochs": 0})).startswith("the command line: train.epochs: ")
    assert str(refusal(file, [], {"lora.rr": 4})).startswith("the command line: unknown key `lora.rr`")
    assert str(refusal(file, ["lora..r=4"])).startswith("--set: unknown key `lora.`")
    assert str(refusal(file, ["lora.rr.x=4"])).startswith("--set: unknown key `lora.rr`")
    assert str(refusal(file, ["lora.r=x"], {"train.epochs": 1})).startswith("--set: lora.r: ")
    assert str(refusal(write("lora: {r: x}\n"), [], {"lora.alpha": 4})).startswith(f"{file}, line 1: lora.r: ")


def test_a_wrong_secret_is_not_shown():
    assert "hf_do_not_show" not in str(refusal(None, ["secrets=hf_do_not_show"]))
    assert "hf_do_not_show" not in str(refusal(None, ["env=[hf_do_not_show]"]))


@pytest.mark.parametrize(
    ("text", "part"), [("foo", "expected section.key=value"), (" =3", "expected"), ("lora.r=[1", "line 1, column 3")]
)
def test_a_malformed_set_shows_the_expected_form(text, part):
    error = refusal(None, [text])
    assert part in str(error)
    assert error.hint


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("train: {epochs: 1}\ntrain: {epochs: 2}\n", "line 2"),
        ("train: [1, 2\n", "not valid YAML"),
        ("- a\n- b\n", "expected a mapping"),
        ("train: {? [a, b] : 1}\n", "plain scalar"),
        ("a: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
    ],
)
def test_a_file_that_is_not_a_job_says_where(write, text, part):
    assert part in str(refusal(write(text)))


def test_a_file_that_is_not_yaml_says_what_to_look_for(write):
    error = refusal(write("name: a\ntrain: {epochs: 1\n"))
    assert "line 3, column 1" in str(error)
    assert "bracket" in (error.hint or "")


def test_wrong_encoding_missing_file_and_directory_have_clear_errors(tmp_path):
    bad = tmp_path / "gbk.yaml"
    bad.write_bytes("name: 训练".encode("gbk"))
    assert "UTF-8" in str(refusal(bad))
    assert "no such job file" in str(refusal(tmp_path / "none.yaml"))
    assert "cannot read" in str(refusal(tmp_path))


def test_paths_of_a_file_are_relative_to_it_and_those_of_flags_to_here(write, tmp_path, monkeypatch):
    (tmp_path / "数据 $(x)").mkdir()
    file = write("data: {train: a.jsonl, eval: [b.jsonl, {path: c.jsonl, weight: 2}]}\n", "数据 $(x)/job.yaml")
    elsewhere = tmp_path / "else"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    job = read_job(file).spec
    assert job.data.train == str(file.parent / "a.jsonl")
    assert job.data.eval[0] == str(file.parent / "b.jsonl")
    assert (job.data.eval[1].path, job.data.eval[1].weight) == (str(file.parent / "c.jsonl"), 2)
    assert read_job(file, ["data.train=a.jsonl"]).spec.data.train == str(elsewhere / "a.jsonl")


def test_a_chat_template_may_be_a_file_a_name_or_itself(write, tmp_path):
    own = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    (tmp_path / "own.jinja").write_text(own)
    for value in ("own.jinja", str(tmp_path / "own.jinja"), own):
        job = read_job(write(json.dumps({"data": {"chat_template": value}})))
        assert job.spec.data.chat_template == own
        assert job.tree["data"]["chat_template"] == own
    assert read_job(write(json.dumps({"data": {"chat_template": "chatml"}}))).spec.data.chat_template == "chatml"
    for value in ("other.jinja", "lama3"):
        with pytest.raises(SpecError, match=rf"'{value}' is neither a Jinja template, .* alpaca, .*llama3"):
            read_job(write(json.dumps({"data": {"chat_template": value}})))


def test_a_local_model_directory_is_found_beside_the_file_and_a_hub_id_left_alone(write, tmp_path):
    (tmp_path / "my-model").mkdir()
    assert read_job(write("model: {path: my-model}\n")).spec.model.path == str(tmp_path / "my-model")
    assert read_job(write("model: {path: Qwen/Qwen3-8B}\n")).spec.model.path == "Qwen/Qwen3-8B"


def test_an_interpreter_here_may_be_named_by_a_relative_path_or_by_its_name(write, tmp_path):
    assert read_job(write("local: {python: env/bin/python}\n")).spec.local.python == f"{tmp_path}/env/bin/python"
    assert read_job(write("local: {python: python3}\n")).spec.local.python == "python3"
    assert "local.python" in str(refusal(write("local: {python: [a/b]}\n")))


def test_the_merged_job_loads_to_the_same_job_again(write, tmp_path):
    first = read_job(write("name: 情感\ntrain: {learning_rate: 1e-3}\n"), ["lora.r=8", "env.X=a b"])
    again = write(dump_job(first), "again.yaml")
    assert read_job(again).spec == first.spec


def test_empty_sections_and_an_empty_file_mean_the_defaults(write):
    assert read_job(write("ssh:\nslurm:\n")).spec == spec.JobSpec()
    assert read_job(write("")).spec == spec.JobSpec()


def test_every_engine_has_its_flag():
    from typing import get_args

    from launcher.commands.options import JOB_FLAGS
    from train.config import Engine

    (flag,) = [flag for flag in JOB_FLAGS if flag.names == "--engine"]
    assert tuple(flag.type.choices) == get_args(Engine)


@pytest.mark.parametrize("entry", ["HF_TOKEN=hf_do_not_show", "hf do not show"])
def test_a_secret_that_was_written_into_the_job_is_refused_and_not_shown(entry):
    with pytest.raises(SpecError) as caught:
        convert({"secrets": ["WANDB_API_KEY", entry]}, where="job.yaml")
    text = f"{caught.value} {caught.value.hint}"
    assert "secrets: entry 2" in text
    assert "not show" not in text.replace("_", " ")


@pytest.mark.parametrize("key", ["lora.r", "train.max_steps", "train.global_batch_size", "train.learning_rate"])
@pytest.mark.parametrize("value", [10**20, 10**400], ids=["too-long-for-json", "too-long-for-a-float"])
def test_a_number_too_large_for_a_file_is_out_of_range(key, value):
    assert f"{key}: " in str(refusal(None, [f"{key}={value}"]))


EVERYTHING_WRONG = """\
name: a
learning_rate: 1e-4
train:
  warmup_ratio: 0.1
  epochs: many
  warmup_ratio: 0.2
  learning_rte: 1
lora: {r: 0, alpah: 1}
data:
  train:
  - a.jsonl
  - {path: b.jsonl,
     weigt: 2}
env: {A-B: 1}
"""


def test_all_mistakes_of_a_job_are_reported_at_once_each_with_its_line(write):
    file = write(EVERYTHING_WRONG)
    lines = str(refusal(file, ["lora.dropout=2", "nonsense", "eval.evry=3"], {"train.seed": -1})).splitlines()
    assert lines[0] == "12 mistakes in the job:"
    found = [line.strip().replace(str(file), "job") for line in lines[1:] if not line.strip().startswith("->")]
    assert found == [
        "job, line 6, column 3: duplicate key 'warmup_ratio'",
        "--set 'nonsense': expected section.key=value",
        "--set: unknown key `eval.evry`",
        "--set: lora.dropout: expected 0 to 0.99, got 2.0",
        "the command line: train.seed: expected 0 to 4294967295, got -1",
        "job, line 2: unknown key `learning_rate`",
        "job, line 5: train.epochs: expected a number, got 'many'",
        "job, line 7: unknown key `train.learning_rte`",
        "job, line 8: unknown key `lora.alpah`",
        "job, line 8: lora.r: expected at least 1, got 0",
        "job, line 13: unknown key `data.train[1].weigt`",
        "job, line 14: env: 'A-B' is not a valid name of an environment variable",
    ]


@pytest.mark.parametrize("key", ["'x[0]'", "a.b", "''", "1", "~", "lora.r", "true", "'[0]'", "'a: b'", "问", '"\\n"'])
def test_no_odd_key_hides_a_mistake_or_is_a_bug(write, key):
    for text in (f"{key}: 1\nlora: {{rr: 0}}\n", f"lora: {{{key}: 1, alpha: x}}\n"):
        assert str(refusal(write(text))).startswith("2 mistakes")


def test_all_keys_that_stand_twice_are_named(write):
    error = refusal(write("name: a\ntrain: {epochs: 1, epochs: 2}\nname: b\n"))
    assert "line 3, column 1: duplicate key 'name'" in str(error)
    assert "line 2, column 20: duplicate key 'epochs'" in str(error)


def test_the_lines_of_a_file_are_those_of_its_keys_and_entries(write):
    file = write("a: 1\nb:\n  c: {d: 1,\n      e: [x,\n          y]}\n")
    assert yamlfile.lines(file) == {"a": 1, "b": 2, "b.c": 3, "b.c.d": 3, "b.c.e": 4, "b.c.e[0]": 4, "b.c.e[1]": 5}
    assert yamlfile.lines(write("a: [")) == {}
    assert yamlfile.lines(file.with_name("none")) == {}


def test_a_file_of_another_program_is_recognized_by_its_many_unknown_keys(write):
    file = write("lora_rank: 8\ncutoff_len: 9\nbf16: true\nstage: sft\n")
    assert refusal(file).hint == f"of another program? zlaunch init new.yaml --from {file}"
    assert refusal(write("lora_rank: 8\ncutoff_len: 9\ntrain: {bf16: true, stage: 2}\n")).hint is None


def test_an_unusable_address_does_not_hide_other_mistakes_nor_show_itself(write):
    error = refusal(write("notify: {url: nowhere-secret, sign: $KEY, frmat: json}\nlora: {r: 0}\n"))
    assert str(error).startswith("3 mistakes")
    assert all(part in str(error) for part in ("notify.url: not an address", "unknown key `notify.frmat`", "lora.r: "))
    assert "nowhere-secret" not in str(error)


def test_a_source_may_end_with_its_number_of_records_unless_a_file_has_that_name(write, tmp_path):
    (tmp_path / "c.jsonl#3").write_text("")
    job = read_job(write("data: {train: [a.jsonl#500, 'hub:o/n#20', c.jsonl#3, 'd#x'], eval: 5%, max_samples: 100}\n"))
    assert [(source.path.rpartition("/")[2], source.first) for source in job.spec.data.train_sources] == [
        ("a.jsonl", 100), ("n", 20), ("c.jsonl#3", 100), ("d#x", 100),
    ]  # fmt: skip
    assert job.spec.data.train[1].path == "hub:o/n"
    assert job.spec.data.eval == "5%"
    assert read_job(write(dump_job(job), "again.yaml")).spec == job.spec
    (one,) = read_job(write("data: {train: a.jsonl#7}\n")).spec.data.train
    assert (one.path, one.first) == (str(tmp_path / "a.jsonl"), 7)


@pytest.mark.parametrize(("text", "of_1000"), [("5%", 50), ("0.5%", 5), ("200", 200), ("5000", 1000), ("'200'", 200)])
def test_data_eval_may_be_a_part_of_data_train(write, text, of_1000):
    data = read_job(write(f"data: {{train: a.jsonl, eval: {text}}}\n")).spec.data
    assert (data.held_out.of(1000), data.eval_sources) == (of_1000, ())
    assert [key for key, _ in data.sources] == ["data.train"]


@pytest.mark.parametrize("text", ["./5%", "5 %", "eval.jsonl", "[5%]", "five%"])
def test_other_values_of_data_eval_name_files(write, text):
    data = read_job(write(f"data: {{train: a.jsonl, eval: '{text}'}}\n")).spec.data
    assert data.held_out is None
    assert len(data.eval_sources) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0%", "above 0%"), ("100%", "below 100%"), ("250%", "below 100%"), ("0", "data.eval"), ("-3", "data.eval"),
        ("0.05", "data.eval"), ("true", "data.eval"), ("'0'", "data.eval"),
    ],
)  # fmt: skip
def test_a_part_that_cannot_be_is_refused(write, text, words):
    assert words in str(refusal(write(f"data: {{train: a.jsonl, eval: {text}}}\n")))


def test_the_first_records_of_held_out_files_are_no_part_of_them(write):
    assert "eval.max_records" in refusal(write("data: {train: a.jsonl, eval: b.jsonl#10}\n")).text


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["eval.keep_best=accuracy"], "eval.keep_best: there is no data.eval to measure on"),
        (["train.early_stopping_patience=2"], "train.early_stopping_patience: there is no data.eval to measure on"),
        (["data.eval=5%", "eval.every=0", "eval.keep_best=bleu"], "eval.keep_best: eval.every is 0"),
        (
            ["data.eval=5%", "eval.keep_best=none", "train.early_stopping_patience=2"],
            "train.early_stopping_patience: eval.keep_best is none",
        ),
    ],
)
def test_a_best_step_needs_measurements_to_compare(settings: list[str], reason: str) -> None:
    with pytest.raises(SpecError) as refused:
        read_job(None, settings)
    assert reason in str(refused.value)
    assert read_job(None, ["data.eval=5%", "eval.keep_best=bleu", "train.early_stopping_patience=2"])
