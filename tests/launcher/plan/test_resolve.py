from __future__ import annotations

import pytest

from launcher.errors import CompatibilityError
from tests.beds.plans import make


def test_hosts_get_their_ranks_in_order_with_unequal_slots():
    launch = make(hosts=(("a", 2), ("b", 1), ("c", 5))).launch
    assert [(node.node_rank, node.host, node.first_rank, node.procs) for node in launch.nodes] == [
        (0, "a", 0, 2),
        (1, "b", 2, 1),
        (2, "c", 3, 5),
    ]
    assert launch.world_size == 8


def test_nothing_automatic_is_left_for_the_training_program():
    plan = make()
    assert plan.train is not None
    numbers = plan.train.train
    assert numbers.global_batch_size == 8
    assert numbers.micro_batch_size * numbers.gradient_accumulation_steps * plan.launch.world_size == 8
    assert "auto" not in (numbers.zero_stage, numbers.packing, numbers.gradient_checkpointing, plan.train.model.dtype)


def test_a_program_of_the_users_own_replaces_the_training():
    plan = make(tree={"program": ("tool", "--x", "a b")})
    assert plan.launch.argv == ("tool", "--x", "a b")
    assert (plan.launch.cwd, plan.launch.cooperative, plan.train) == ("/home/user", False, None)
    assert make(tree={"program": ("a.py", "1")}).launch.argv == ("/usr/bin/python3", "-u", "a.py", "1")


@pytest.mark.parametrize(
    ("settings", "model_config", "hint"),
    [
        (("train.offload=cpu", "train.zero_stage=0"), None, "train.zero_stage: 2"),
        (("train.engine=unsloth",), {"model_type": "alibi_llama"}, "train.engine: peft"),
        (("model.quantization=int8", "train.zero_stage=3"), {"model_type": "llama"}, "train.zero_stage: 2"),
        (("train.packing=pack",), {"model_type": "qwen3_next"}, "train.packing: bucket"),
        (("data.max_length=2048",), {"model_type": "gpt2", "n_positions": 1024}, "data.max_length: 1024"),
    ],
)
def test_what_cannot_work_is_refused_before_submission_with_what_does(settings, model_config, hint):
    with pytest.raises(CompatibilityError) as caught:
        make(*settings, device="cuda", hosts=(("a", 2),), model_config=model_config)
    assert hint in str(caught.value.hint)


def test_secrets_are_names_only():
    plan = make("secrets=[HF_TOKEN]")
    assert plan.launch.secrets == ("HF_TOKEN",)
