"""What comes from a hub comes once: real clients, a hub on this machine, and two ranks that want the same at once."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.beds.forked import Forkserver
from tests.beds.hubserver import HubServer
from tests.beds.ranks import ROOT, events, result
from tests.train.conftest import write_records

ASKS = """
import os, sys, time
from pathlib import Path
from train.hub import hub

def ask():
    with open("asked", "a") as file:
        file.write("asked\\n")
    time.sleep(0.3)
    Path("held").touch()
    return [os.path.abspath("held")]

assert hub.once("owner/some:thing@newest", ask) == hub.once("owner/some:thing@newest", ask) == [os.path.abspath("held")]
"""


def ask(place: Path, count: int, port: int) -> int:
    """How often the hub has been asked when so many ranks of a start have been through."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "ZLAUNCH_CACHE": str(place / "cache")}
    env |= {"LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [subprocess.Popen([sys.executable, "-c", ASKS], cwd=place, env=env) for _ in range(count)]
    assert [rank.wait(60) for rank in ranks] == [0] * count
    return (place / "asked").read_text().count("asked")


def test_the_ranks_of_a_start_query_once_and_every_start_queries_again(tmp_path: Path) -> None:
    assert ask(tmp_path, 4, port=1) == 1
    assert ask(tmp_path, 2, port=2) == 2
    assert ask(tmp_path, 1, port=2) == 3  # alone on its node: nobody to ask for
    assert ask(tmp_path, 2, port=2) == 3
    (tmp_path / "held").unlink()
    assert ask(tmp_path, 2, port=2) == 4


def test_a_cache_that_cannot_be_made_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    assert ask(tmp_path, 2, port=1) == 2


def test_a_failed_query_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from train.hub import hub

    monkeypatch.setenv("ZLAUNCH_CACHE", str(tmp_path))

    def in_vain() -> list[str]:
        raise OSError("no route to the hub")

    with pytest.raises(OSError, match="no route"):
        hub.once("in vain", in_vain)
    assert hub.once("in vain", lambda: []) == []


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HubServer, Forkserver]]:
    """A hub with a tiny model and a small data set, and ranks that know of no other."""
    from train.model.random import make_random

    place = tmp_path_factory.mktemp("hub")
    (place / "set").mkdir()
    train = write_records(place / "set" / "train.jsonl", 24)
    write_records(place / "set" / "test.jsonl", 4, start=100)
    (place / "tiny").mkdir()
    make_random(place / "tiny", [train.read_text(encoding="utf-8")], 0)
    with HubServer({"owner/tiny": place / "tiny"}, {"owner/set": place / "set"}) as hub:
        env = {"HF_ENDPOINT": hub.url, "MODELSCOPE_ENDPOINT": hub.url, "ZLAUNCH_CACHE": str(place / "cache")}
        caches = {"HF_HOME": str(place / "hf"), "MODELSCOPE_CACHE": str(place / "ms")}
        with Forkserver(**env, **caches, HF_HUB_OFFLINE="0") as server:
            yield hub, server


SHORT = {"train.max_steps": 2, "train.checkpoint_every": 0, "eval.after": False}


@pytest.mark.train
def test_two_ranks_fetch_the_model_and_the_data_of_the_hub_once(
    served: tuple[HubServer, Forkserver], configure: Any
) -> None:
    hub, server = served
    hub.asked.clear()
    data = {"data.train": "hub:owner/set", "data.eval": "hub:owner/set:test"}
    run = configure("hub", 2, model={"path": "owner/tiny"}, **data, **SHORT)
    server.start(run, 2)
    assert server.wait() == [0, 0], (run / "ranks.log").read_text()
    assert {event["part"]: event["records"] for event in events(run, "data")} == {"train": 24, "eval": 4}
    assert set(Counter(hub.fetched()).values()) == {1}
    asked = Counter(hub.asked)
    assert asked["GET", "/api/models/owner/tiny/revision/main"] == 1
    assert asked["HEAD", "/owner/tiny/resolve/main/config.json"] == 1
    assert asked["HEAD", "/datasets/owner/set/resolve/main/README.md"] == 2  # once for each split


@pytest.mark.train
def test_a_data_set_that_the_hub_does_not_have_ends_the_run_as_a_mistake(
    served: tuple[HubServer, Forkserver], configure: Any
) -> None:
    run = configure("hub-wrong", 2, model={"path": "owner/tiny"}, **{"data.train": "hub:owner/sett"}, **SHORT)
    served[1].start(run, 2, grace=60)
    assert served[1].wait() == [2, 2]
    assert "hub:owner/sett: cannot load the data set" in (run / "ranks.log").read_text()


@pytest.mark.train
def test_two_ranks_fetch_the_model_from_modelscope_once(served: tuple[HubServer, Forkserver], configure: Any) -> None:
    pytest.importorskip("modelscope")
    hub, server = served
    hub.asked.clear()
    run = configure("modelscope", 2, model={"path": "owner/tiny", "source": "modelscope"}, **SHORT)
    server.start(run, 2)
    assert server.wait() == [0, 0], (run / "ranks.log").read_text()
    assert result(run)["steps"] == 2
    assert "FilePath=model.safetensors" in " ".join(hub.fetched())
    assert set(Counter(hub.fetched()).values()) == {1}
    shutil.rmtree(run / "checkpoints")
    hub.asked.clear()
    server.start(run, 2)
    assert server.wait() == [0, 0], (run / "ranks.log").read_text()
    assert hub.fetched() == []  # it is in ModelScope's own cache


@pytest.mark.train
def test_a_model_that_modelscope_does_not_have_is_named(served: tuple[HubServer, Forkserver], configure: Any) -> None:
    pytest.importorskip("modelscope")
    run = configure("modelscope-wrong", 2, model={"path": "owner/tyni", "source": "modelscope"}, **SHORT)
    served[1].start(run, 2, grace=60)
    assert served[1].wait() == [2, 2]
    assert "ModelScope could not provide owner/tyni" in (run / "ranks.log").read_text()


WANTS = """
import sys
from train import config, datacheck
from train.hub.download import download

place = download(config.Model(path="owner/both", source=sys.argv[1]))
assert not list(place.glob("pytorch_model*")) and (place / "model.safetensors").is_file()
tokenizer = datacheck.load_tokenizer(config.load("job.json"))
print(tokenizer.decode(tokenizer("你好").input_ids, skip_special_tokens=True))
"""


@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
def test_weights_that_are_not_needed_are_not_downloaded(
    served: tuple[HubServer, Forkserver], source: str, tmp_path: Path
) -> None:
    """Pickles beside safetensors are not fetched; a look at the data fetches no weights, of an original layout too."""
    from tests.beds.models import MODELS

    if source == "modelscope":
        pytest.importorskip("modelscope")
    hub, _ = served
    both = tmp_path / "both"
    shutil.copytree(hub.repositories["models"]["owner/tiny"], both)
    (both / "pytorch_model-00001-of-00001.bin").write_bytes(b"never read")
    (both / "pytorch_model.bin.index.json").write_text("{}")
    hub.repositories["models"] |= {"owner/both": both, "owner/chatglm": MODELS["chatglm2"][1](tmp_path / "chatglm")}
    hub.asked.clear()
    job = {"run_id": "r", "device": "cpu", "model": {"path": "owner/chatglm", "source": source}, "lora": {}, "data": {}}
    numbers = dict.fromkeys(("global_batch_size", "micro_batch_size", "gradient_accumulation_steps"), 1)
    (tmp_path / "job.json").write_text(json.dumps(job | {"train": numbers}))
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": hub.url, "MODELSCOPE_ENDPOINT": hub.url}
    env |= {"ZLAUNCH_CACHE": "cache", "HF_HOME": "hf", "MODELSCOPE_CACHE": "ms", "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", WANTS, source], cwd=tmp_path, env=env, text=True, capture_output=True, check=False
    )
    assert done.stdout.splitlines()[-1:] == ["你好"], done.stderr
    fetched = " ".join(hub.fetched())
    assert "model.safetensors" in fetched
    assert "tokenizer.model" in fetched
    assert not re.search(r"\.bin(?!\.index)", fetched)


@pytest.mark.train
def test_two_ranks_fetch_data_sets_of_modelscope_and_single_files_once(
    served: tuple[HubServer, Forkserver], configure: Any
) -> None:
    pytest.importorskip("modelscope")
    hub, server = served
    hub.asked.clear()
    data = {"data.train": ["ms:owner/set", "hub:owner/set/test.jsonl"], "data.eval": "ms:owner/set:test"}
    run = configure("ms", 2, model={"path": "owner/tiny"}, **data, **SHORT)
    server.start(run, 2)
    assert server.wait() == [0, 0], (run / "ranks.log").read_text()
    assert {event["part"]: event["records"] for event in events(run, "data")} == {"train": 28, "eval": 4}
    fetched = Counter(path for path in hub.fetched() if "datasets" in path)
    assert set(fetched.values()) == {1}
    assert sum("FilePath=" in path for path in fetched) == 2


WHERE = """
import json, sys
from train.errors import UserError
from train.records.files import files

for path in sys.argv[1:]:
    try:
        print(json.dumps([file.rpartition("/")[2] for file, _ in files(path)]))
    except UserError as error:
        print(error)
"""


def test_names_on_modelscope_lead_to_splits_folders_and_files(tmp_path: Path) -> None:
    pytest.importorskip("modelscope")
    place = tmp_path / "many"
    for file in ("zh/train.jsonl", "zh/test.jsonl", "en/train.csv", "README.md"):
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        (place / file).write_text("{}\n")
    names = ["zh:train", "zh:test", "en", "zh", "fr:train", "zh:dev"]
    with HubServer({}, {"owner/many": place}) as hub:
        env = {"HF_ENDPOINT": hub.url, "MODELSCOPE_ENDPOINT": hub.url, "MODELSCOPE_CACHE": str(tmp_path / "ms")}
        paths = [f"ms:owner/many:{name}" for name in names]
        paths += ["ms:owner/many/zh/test.jsonl", "ms:owner/many/zh/tset.jsonl", "ms:owner/mony", "ms:many"]
        said = subprocess.run(
            [sys.executable, "-c", WHERE, *paths], env={**os.environ, **env}, capture_output=True, text=True, check=True
        ).stdout.splitlines()
    assert said[:3] == ['["train.jsonl"]', '["test.jsonl"]', '["train.csv"]']
    assert "several splits" in said[3]
    assert "has no folder fr" in said[4]
    assert "no split" in said[5]
    assert said[6] == '["test.jsonl"]'
    assert "has no file zh/tset.jsonl" in said[7]
    assert "ms:owner/mony: ModelScope could not provide the data set" in said[8]
    assert "expected ms:owner/name" in said[9]
