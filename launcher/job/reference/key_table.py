"""The table of keys: Chinese, an example, and the peers' names for each.

A key's English stands below the key itself, in launcher/job/spec.py and train/config.py; its range in ranges.py. A key
without a row here fails a test.
"""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    chinese: str
    """Name of the key in Chinese."""
    text: str
    """What it means, in Chinese."""
    example: str
    """A value, as YAML; not the default."""
    peers: str = ""
    """Names that peers have for it, as in `num_epochs axolotl; r PEFT Unsloth`."""
    label: str = ""
    """Name in English, where it is clearer than the last word of the key."""


PEERS = {
    "HF": "Transformers",
    "DeepSpeed-launcher": "the deepspeed launcher",
}
"""Names of peers that are longer than in the table. What HF has, TRL, LLaMA-Factory and ms-swift have too."""

SECTIONS: dict[str, tuple[str, str]] = {
    "": ("Run", "运行"),
    "model": ("Model", "模型"),
    "data": ("Data", "数据"),
    "lora": ("Adapter (LoRA)", "适配器（LoRA）"),
    "train": ("Training", "训练"),
    "eval": ("Evaluation", "评估"),
    "container": ("Container", "容器"),
    "local": ("This machine", "本机"),
    "ssh": ("Hosts over SSH", "SSH 主机"),
    "slurm": ("Slurm", "Slurm"),
    "notify": ("Notices", "通知"),
}

# fmt: off
ROWS: dict[str, Row] = {
    "name": Row("名称", "训练的名称，运行 ID 以它开头。", "sentiment-qwen3", "run_name HF; --job-name Slurm"),
    "device": Row("设备", "auto：使用 GPU；没有 GPU 的机器使用 CPU。", "cuda", "use_cpu HF"),
    "node_template": Row(
        "节点脚本", "自己的节点脚本 node.sh，用于各个后端，见 `zlaunch templates`。", "node.sh.j2", label="Node script",
    ),
    "model.path": Row(
        "模型", "模型库 ID、本地目录，或（来源为 `package` 时）内含 GGUF 文件的已安装 Python 包的名称。",
        "Qwen/Qwen3-8B",
        "model_name_or_path HF LLaMA-Factory; base_model axolotl; model ms-swift; model_name Unsloth; "
        "model_id_or_path ms-swift", label="Model",
    ),
    "model.source": Row(
        "来源", "`random` 会生成一个未经训练的微型模型和分词器，用于试跑。", "modelscope",
        "use_hf ms-swift; USE_MODELSCOPE_HUB LLaMA-Factory",
    ),
    "model.revision": Row(
        "版本", "模型库中的分支、标签或提交；留空为最新。", "main",
        "model_revision HF LLaMA-Factory ms-swift; revision_of_model axolotl",
    ),
    "model.quantization": Row(
        "量化",
        "nf4 与 int8：冻结的权重以 bitsandbytes 的格式加载。published："
        "按检查点原有的量化形式（GPTQ、AWQ）。fp8：权重按原样加载，融合层以 fp8 相乘，速度约为 "
        "bfloat16 的两倍（Ada、Hopper 及更新的 GPU）。", "nf4",
        "quantization_bit LLaMA-Factory; load_in_4bit axolotl TRL Unsloth; load_in_8bit axolotl TRL Unsloth; "
        "quant_bits ms-swift; quant_method ms-swift; bnb_4bit_quant_type TRL ms-swift; quantization_method "
        "LLaMA-Factory; fp8 axolotl LLaMA-Factory; qlora axolotl",
    ),
    "model.dtype": Row(
        "精度", "auto：支持 bfloat16 的 GPU 用 bfloat16，较旧的 GPU 用 float16，CPU 用 float32。", "bfloat16",
        "bf16 HF DeepSpeed axolotl; fp16 HF DeepSpeed axolotl; torch_dtype ms-swift; dtype TRL Unsloth; "
        "pure_bf16 LLaMA-Factory; infer_dtype LLaMA-Factory; compute_dtype LLaMA-Factory; bfloat16 axolotl; "
        "float16 axolotl; float32 axolotl; mixed_precision Accelerate", label="Precision",
    ),
    "model.trust_remote_code": Row(
        "信任远程代码", "运行模型自带的 Python 代码。", "true", "trust_remote_code HF LLaMA-Factory axolotl",
    ),
    "model.rope_scaling": Row(
        "RoPE 缩放", "如何把旋转位置编码（RoPE）扩展到比模型位置数更长的行。合并导出的 config.json 中含有它；"
        "单独使用适配器时，加载基础模型的地方都需要它。", "yarn",
        "rope_scaling HF LLaMA-Factory axolotl ms-swift", label="RoPE scaling",
    ),
    "model.rope_factor": Row(
        "RoPE 倍数", "rope_scaling 使位置数变为几倍。auto：data.max_length 所需的倍数，向上取整。", "4",
        "max_model_len ms-swift", label="RoPE factor",
    ),
    "model.thinking": Row(
        "思考",
        "回答是否以思考内容开头（用于因此改变提问方式的对话模板）。auto：训练记录含思考内容时为 on。off："
        "舍去记录中的思考内容。", "off", "enable_thinking LLaMA-Factory ms-swift; add_non_thinking_prefix ms-swift",
    ),
    "data.train": Row(
        "训练数据",
        "文件、目录、`hub:所有者/名称`、`ms:所有者/名称`（ModelScope），或其列表（每行一个）。其中的一个文件："
        "`hub:所有者/名称/文件`。某一项可写作 `{path: 文件, weight: 2, first: 1000}`，"
        "`文件#1000` 表示其前 1000 条记录。",
        "[zh.jsonl, {path: en.jsonl, weight: 0.5}]",
        "dataset LLaMA-Factory ms-swift; datasets axolotl; dataset_name TRL; train_file HF", label="Training records",
    ),
    "data.eval": Row(
        "留出数据",
        "格式相同的留出记录，用来测量损失与回答。写成 `5%` 或一个数时，按记录的哈希从 data.train 中留出这么多条："
        "相同的记录总在一边，新增记录不影响其他记录。", "5%",
        "eval_dataset LLaMA-Factory; val_dataset ms-swift; test_datasets axolotl; validation_file HF",
        label="Held-out records",
    ),
    "data.max_samples": Row(
        "每个来源的最多记录", "每个来源最多用这么多条记录训练，取最前面的；null：全部。", "1000",
        "max_samples LLaMA-Factory; max_train_samples HF",
    ),
    "data.mix": Row(
        "混合方式", "各来源 weight 的含义。repeats：每轮中每条记录出现几次。shares：各来源在一轮中所占的份额，"
        "一轮的记录数等于各来源之和。", "shares",
        "mix_strategy LLaMA-Factory; interleave_probs LLaMA-Factory; interleave_prob ms-swift",
    ),
    "data.mix_temperature": Row(
        "混合温度", "大于 1 时，各来源按（weight × 记录数）^（1 / 温度）更接近平分一轮；要求 `mix: repeats`。", "2.0",
    ),
    "data.order": Row(
        "记录顺序", "一轮中记录的顺序。shuffled：按 train.seed 打乱。given：按来源中的顺序。shortest_first："
        "按词元数从短到长，即课程学习。", "shortest_first",
        "disable_shuffling LLaMA-Factory; curriculum_sampling axolotl; shuffle_dataset TRL; dataset_shuffle ms-swift; "
        "train_dataloader_shuffle ms-swift",
    ),
    "data.max_length": Row(
        "最大长度", "一条记录的最多词元数，提示与回答合计。", "4096",
        "cutoff_len LLaMA-Factory; sequence_len axolotl; max_length TRL ms-swift; max_seq_length TRL Unsloth "
        "ms-swift; max_seq_len DeepSpeed-Chat; model_max_length LLaMA-Factory; seq_length Megatron",
    ),
    "data.overlong": Row(
        "超长记录", "cut：截去回答的末尾及其结束词元，仅提示就超长的记录会被舍弃；drop：舍弃。", "drop",
        "truncation_strategy ms-swift; excess_length_strategy axolotl; truncation_mode TRL",
    ),
    "data.turns": Row(
        "多轮对话",
        "对话中的回答如何成为序列。joined：全部回答合为一条；each：每个回答一条；last：只用最后一个回答；auto："
        "一般为 joined，若对话模板对历史轮次写法不同则为 each。", "last",
        "mask_history LLaMA-Factory; roles_to_train axolotl; loss_scale ms-swift; assistant_only_loss TRL",
    ),
    "data.documents": Row(
        "整篇文本", "把只有一段文本的记录（`{text: ...}`、.txt 与 .md 文件）当作文档，训练其全部词元，即继续预训练；"
        "超过 max_length 的文档分成几个序列。", "true",
        "pretraining_dataset axolotl; pt ms-swift", label="Whole documents",
    ),
    "data.document_overlap": Row(
        "文档重叠", "长文档的每一部分重复前一部分末尾的词元数，只作上文，不计损失。", "64",
    ),
    "data.train_on_prompt": Row(
        "也训练提示", "训练序列的每个词元，而不只是回答。data.eval 上的损失仍只计回答。", "true",
        "train_on_prompt LLaMA-Factory; train_on_inputs axolotl", label="Train on prompts",
    ),
    "data.on_error": Row(
        "无法读取的记录", "遇到无法读取的记录（错误的 JSON、缺少字段、空回答）时停止或跳过。重复只会提示。", "skip",
        "strict ms-swift",
    ),
    "data.system": Row(
        "系统提示", "用于自身没有系统消息的记录。", "You are a helpful assistant.",
        "default_system LLaMA-Factory; system ms-swift; default_system_message axolotl; system_prompt axolotl",
        label="System message",
    ),
    "data.columns": Row(
        "列名", "数据中与我们的键对应的列名，如 {instruction: 问题, output: 答案}。多列按行拼接。",
        "{instruction: question, output: answer}",
        "columns ms-swift LLaMA-Factory; field_instruction axolotl; field_input axolotl; field_output axolotl; "
        "field_system axolotl; field_messages axolotl; dataset_text_field TRL; message_property_mappings "
        "axolotl; prompt_column ChatGLM; response_column ChatGLM",
    ),
    "data.roles": Row(
        "角色名", "数据中与我们的角色对应的名称，如 {user: [客户, 买家], assistant: 客服}。",
        "{user: human, assistant: gpt}",
        "tags LLaMA-Factory; roles axolotl; message_field_role axolotl; user_tag LLaMA-Factory; assistant_tag "
        "LLaMA-Factory",
    ),
    "data.replace": Row(
        "替换文字", "要在记录中替换的文字，如 {'{{NAME}}': 小智}。若为两个，如 [小智, Ada]，第一个用于含中文的记录。",
        "{'{{NAME}}': Ada, '{{AUTHOR}}': the Ada team}",
        "model_name ms-swift; model_author ms-swift",
    ),
    "data.chat_template": Row(
        "对话模板", "代替分词器自带模板的 Jinja 模板；可填名称（`chatml` 等）或文件。", "chatml",
        "template LLaMA-Factory ms-swift; chat_template axolotl ms-swift; chat_template_jinja axolotl; "
        "chat_template_path TRL",
    ),
    "lora.r": Row(
        "秩", "适配器在每个模块上有两个此宽度的矩阵。", "64",
        "lora_rank LLaMA-Factory ms-swift; lora_r axolotl TRL; r PEFT Unsloth", label="Rank",
    ),
    "lora.alpha": Row(
        "缩放 alpha", "适配器的输出乘以 `alpha / r`（rslora：`alpha / sqrt(r)`）。", "128",
        "lora_alpha PEFT LLaMA-Factory axolotl ms-swift TRL",
    ),
    "lora.rank_pattern": Row(
        "部分模块的秩",
        "个别模块自己的秩：{模块名的结尾，或与之匹配的正则表达式: 秩}，先匹配者有效。"
        "缩放仍用 alpha，除非 alpha_pattern 另有设定。",
        "{q_proj: 32, 'layers.31.mlp.down_proj': 4}", "rank_pattern PEFT; lora_rank_pattern axolotl",
    ),
    "lora.alpha_pattern": Row(
        "部分模块的 alpha", "个别模块自己的 alpha，写法同 rank_pattern。", "{q_proj: 64}",
        "alpha_pattern PEFT; lora_alpha_pattern axolotl",
    ),
    "lora.layers_to_transform": Row(
        "训练的层", "哪些层加适配器，从 0 起编号；空表示全部。", "[28, 29, 30, 31]",
        "layers_to_transform PEFT; peft_layers_to_transform axolotl",
    ),
    "lora.dropout": Row(
        "随机失活", "每步随机舍去适配器输入的比例。", "0.05", "lora_dropout PEFT LLaMA-Factory axolotl ms-swift TRL",
    ),
    "lora.target_modules": Row(
        "目标模块", "auto：由模型家族决定；模块名的列表；或匹配完整模块名的正则表达式。列表中的 auto 代表由家族决定的"
        "那些：[auto, embed_tokens, lm_head]。",
        "[q_proj, k_proj, v_proj, o_proj]",
        "lora_target LLaMA-Factory; lora_target_modules axolotl TRL; lora_target_linear axolotl; target_modules "
        "PEFT ms-swift Unsloth; target_regex ms-swift",
    ),
    "lora.rslora": Row(
        "rsLoRA", "按 `alpha / sqrt(r)` 缩放，大秩时更稳定（Kalajdzievski 2023，arXiv 2312.03732）。", "true",
        "use_rslora PEFT LLaMA-Factory ms-swift TRL; peft_use_rslora axolotl", label="rsLoRA",
    ),
    "lora.dora": Row(
        "DoRA", "幅度与方向分开训练（Liu 等 2024，arXiv 2402.09353）。", "true",
        "use_dora PEFT LLaMA-Factory ms-swift TRL; peft_use_dora axolotl", label="DoRA",
    ),
    "lora.plus_ratio": Row(
        "LoRA+ 比率", "B 与 A 的学习率之比（Hayou 等 2024，arXiv 2402.12354）。", "16",
        "loraplus_lr_ratio LLaMA-Factory axolotl; lorap_lr_ratio ms-swift", label="LoRA+ ratio",
    ),
    "lora.init": Row(
        "初始化",
        "default：A 随机，B 为零。gaussian：A 取正态分布。orthogonal：A、B 由正交向量组成，乘积为零。"
        "olora：取权重 QR 分解的前几列（Büyükakyüz 2024，arXiv 2406.01775）。"
        "pissa：取权重的最大奇异值（Meng 等 2024，arXiv 2404.02948）。", "pissa",
        "init_lora_weights PEFT; pissa_init LLaMA-Factory; init_weights ms-swift; peft_init_lora_weights axolotl",
    ),
    "lora.modules_to_save": Row(
        "整体训练的模块", "与适配器一起整体训练的模块，如 embed_tokens、lm_head。", "[embed_tokens, lm_head]",
        "modules_to_save PEFT ms-swift Unsloth; additional_target LLaMA-Factory; lora_modules_to_save axolotl TRL",
    ),
    "lora.adapter": Row(
        "已有适配器", "从该目录（PEFT 格式）的适配器继续训练。", "../first/adapter",
        "adapter_name_or_path LLaMA-Factory; lora_model_dir axolotl; adapters ms-swift",
    ),
    "train.epochs": Row("训练轮数", "遍历全部记录的次数。", "3", "num_train_epochs HF; num_epochs axolotl"),
    "train.max_steps": Row(
        "最多步数", "优化器步数；设定后训练轮数不起作用。", "1000", "max_steps HF axolotl; train_iters Megatron",
    ),
    "train.learning_rate": Row(
        "学习率", "优化器学习率的峰值。", "1e-4", "learning_rate HF axolotl; lr DeepSpeed Megatron",
    ),
    "train.learning_rates": Row(
        "各模块学习率", "部分权重自己的学习率峰值：{正则表达式: 学习率}，以名称中先匹配到的为准。", "{lm_head: 1e-5}",
        "lr_groups axolotl; embedding_lr axolotl; embedding_lr_scale axolotl", label="Learning rates by name",
    ),
    "train.scheduler": Row(
        "学习率曲线", "预热之后学习率如何下降。inverse_sqrt：随步数的平方根下降，以预热步数计。"
        "warmup_stable_decay：先保持，最后按余弦下降。", "linear",
        "lr_scheduler_type HF; lr_scheduler axolotl; scheduler DeepSpeed",
    ),
    "train.min_lr_ratio": Row(
        "最低学习率比例", "学习率降到峰值的这一比例而不是 0。warmup_stable_decay 也从这里开始。", "0.1",
        "min_lr_rate HF; min_lr HF Megatron; cosine_min_lr_ratio axolotl; lr_end HF", label="Lowest learning rate",
    ),
    "train.scheduler_power": Row("多项式次数", "`scheduler: polynomial` 的指数；1：与 linear 相同。", "2", "power HF"),
    "train.scheduler_cycles": Row(
        "重启次数", "`scheduler: cosine_with_restarts` 下降多少次；1：与 cosine 相同。", "4", "num_cycles HF",
    ),
    "train.decay_ratio": Row(
        "下降比例", "`scheduler: warmup_stable_decay` 下降所占的步数比例。", "0.2", "lr_wsd_decay_style Megatron",
    ),
    "train.decay_steps": Row(
        "下降步数", "`scheduler: warmup_stable_decay` 下降的步数；设定后下降比例不起作用。", "200",
        "num_decay_steps HF; lr_wsd_decay_iters Megatron",
    ),
    "train.warmup_ratio": Row(
        "预热比例", "学习率从 0 上升所占的步数比例。", "0.1",
        "warmup_ratio HF axolotl; lr_warmup_fraction Megatron",
    ),
    "train.warmup_steps": Row(
        "预热步数", "学习率从 0 上升的步数；设定后预热比例不起作用。", "100",
        "warmup_steps HF axolotl; warmup_num_steps DeepSpeed; lr_warmup_iters Megatron",
    ),
    "train.optimizer": Row(
        "优化器", "如何改变权重。8bit：状态为 8 位的 AdamW；paged：状态在驱动可移到主机的内存中。adafactor：只存行与列"
        "的状态。lion、muon：别的规则，一份状态（见 docs/optimizers.md）。", "adamw_8bit",
        "optim HF; optimizer axolotl DeepSpeed ms-swift; use_muon LLaMA-Factory",
    ),
    "train.weight_decay": Row(
        "权重衰减", "每步从权重中减去的比例，再乘学习率。", "0.01", "weight_decay HF axolotl DeepSpeed",
    ),
    "train.adam_beta1": Row("Adam beta1", "AdamW 与 Lion 的梯度均值变化得多慢。", "0.95", "adam_beta1 HF axolotl"),
    "train.adam_beta2": Row(
        "Adam beta2", "AdamW 的梯度平方均值变化得多慢，或 Lion 的第二个均值。", "0.95",
        "adam_beta2 HF axolotl; betas DeepSpeed",
    ),
    "train.adam_epsilon": Row(
        "Adam epsilon", "AdamW 加在梯度平方均值的平方根上的数。", "1e-6", "adam_epsilon HF axolotl; eps DeepSpeed",
    ),
    "train.label_smoothing": Row(
        "标签平滑", "目标中分给整个词表的比例；只改变训练的损失。", "0.1",
        "label_smoothing_factor HF; label_smoothing axolotl",
    ),
    "train.neftune_alpha": Row(
        "NEFTune", "训练时加在词嵌入上的噪声大小（Jain 等 2023，arXiv 2310.05914）；留空：无。", "5",
        "neftune_noise_alpha HF axolotl Unsloth; noisy_embedding_alpha axolotl", label="NEFTune",
    ),
    "train.max_grad_norm": Row(
        "梯度裁剪", "范数更大的梯度缩小到此值；0：不裁剪。", "0.3",
        "max_grad_norm HF axolotl; gradient_clipping DeepSpeed; clip_grad Megatron",
    ),
    "train.seed": Row(
        "随机种子", "种子相同，记录及其顺序就相同。", "42", "seed HF axolotl; data_seed HF; random_state Unsloth",
    ),
    "train.global_batch_size": Row(
        "全局批大小", "每个优化器步的记录数。`about 8`：能均分的、最接近 8 的数；auto：约 64。", "128",
        "train_batch_size DeepSpeed; global_batch_size Megatron; gradient_accumulation_steps HF axolotl "
        "DeepSpeed; batch_size axolotl",
    ),
    "train.micro_batch_size": Row(
        "微批大小", "每个进程一次前向计算的记录数。", "4",
        "per_device_train_batch_size HF; micro_batch_size axolotl Megatron; train_micro_batch_size_per_gpu "
        "DeepSpeed; per_gpu_train_batch_size HF",
    ),
    "train.batch_tokens": Row(
        "每步词元数", "每个优化器步的大约词元数，代替 global_batch_size：取平均共有这么多词元的记录数。", "65536", "",
    ),
    "train.zero_stage": Row(
        "ZeRO 阶段", "ZeRO 在进程间分摊什么。0：无；1：优化器状态；2：加梯度；3：再加权重。", "2",
        "zero_optimization DeepSpeed; zero_stage Accelerate; fsdp HF "
        "axolotl; fsdp_config HF axolotl", label="ZeRO stage",
    ),
    "train.zero_group": Row(
        "ZeRO 组", "融合层在 ZeRO-3 下由哪些进程分担权重。host：同一台主机的进程，权重不经过网络；all：全部进程。"
        "auto：放得下时为 host，否则为 all。", "host",
        "zero_hpz_partition_size DeepSpeed", label="ZeRO group",
    ),
    "train.offload": Row(
        "卸载", "cpu：优化器状态放在主机内存中。", "cpu",
        "offload_optimizer DeepSpeed; offload_optimizer_device Accelerate",
    ),
    "train.offload_param": Row(
        "权重卸载", "ZeRO-3 把暂时不用的权重放在哪里。none：GPU；cpu：主机内存。", "cpu",
        "offload_param DeepSpeed; offload_param_device Accelerate; offload_params axolotl", label="Offload weights",
    ),
    "train.reduce_bucket_size": Row(
        "归约桶大小", "DeepSpeed 一次归约的梯度个数：越少越省显存。留空：五亿。", "200000000",
        "reduce_bucket_size DeepSpeed",
    ),
    "train.allgather_bucket_size": Row(
        "收集桶大小", "ZeRO-1 和 ZeRO-2 每步之后一次收集的权重个数。留空：五亿。", "200000000",
        "allgather_bucket_size DeepSpeed",
    ),
    "train.prefetch_bucket_size": Row(
        "预取桶大小", "ZeRO-3 在轮到某层之前提前收集的权重个数。留空：五千万。", "15000000",
        "stage3_prefetch_bucket_size DeepSpeed",
    ),
    "train.sub_group_size": Row(
        "子组大小", "ZeRO-3 一次更新的权重个数。留空：十亿。", "100000000", "sub_group_size DeepSpeed",
    ),
    "train.round_robin_gradients": Row(
        "轮流复制梯度", "ZeRO-1 和 ZeRO-2 让各进程分担把梯度复制到主机内存的工作，用于 `offload: cpu`。", "true",
        "round_robin_gradients DeepSpeed",
    ),
    "train.ds_config": Row(
        "DeepSpeed 配置", "自己的 DeepSpeed 配置：JSON 文件或其内容。它设置作业未指定的键；精度由 model.dtype 决定。",
        "{zero_optimization: {stage: 2}}",
        "deepspeed HF axolotl ms-swift; --deepspeed_config DeepSpeed-launcher; deepspeed_config_file Accelerate",
        label="DeepSpeed configuration",
    ),
    "train.engine": Row(
        "引擎", "模型各层的实现。fused：我们为 NVIDIA GPU 写的层；unsloth 与 peft：同名软件包。", "peft",
        "use_unsloth LLaMA-Factory; enable_liger_kernel LLaMA-Factory; use_liger_kernel HF; liger_kernel "
        "axolotl; tuner_backend ms-swift",
    ),
    "train.packing": Row(
        "打包", "记录如何组成一批。none：填充；bucket：长度相近的放在一起；pack：拼成没有填充的行。", "pack",
        "packing LLaMA-Factory TRL ms-swift; neat_packing LLaMA-Factory; sample_packing axolotl; padding_free "
        "TRL ms-swift; group_by_length HF axolotl; pad_to_sequence_len axolotl",
    ),
    "train.gradient_checkpointing": Row(
        "梯度检查点", "重新计算激活值而不保存：更省显存，约慢三分之一。", "true",
        "gradient_checkpointing HF axolotl; use_gradient_checkpointing Unsloth; disable_gradient_checkpointing "
        "LLaMA-Factory; activation_checkpointing DeepSpeed",
    ),
    "train.router_loss": Row(
        "路由损失权重", "平衡混合专家模型各专家负载的损失的权重；0：不加。auto：取模型自己的权重。", "0.001",
        "router_aux_loss_coef ms-swift TRL axolotl; moe_aux_loss_coef LLaMA-Factory; moe_aux_loss_coeff Megatron",
    ),
    "train.checkpoint_every": Row(
        "检查点间隔", "两个检查点之间的步数，或 `epoch`、`0.25 epochs`；0：只保存最后一个和按请求保存的。", "epoch",
        "save_steps HF axolotl; save_strategy HF axolotl; saves_per_epoch axolotl; save_interval Megatron",
    ),
    "train.keep_checkpoints": Row(
        "保留检查点数", "保留最新的这么多个，另加最佳的一个；更旧的检查点会被删除。", "3",
        "save_total_limit HF axolotl",
    ),
    "train.early_stopping_patience": Row(
        "提前结束", "连续这么多次测量都不优于此前最佳值时结束训练；留空：不提前结束。", "3",
        "early_stopping_patience HF axolotl; early_stopping_steps LLaMA-Factory; early_stop_interval ms-swift",
        label="Early stopping",
    ),
    "train.early_stopping_min_delta": Row(
        "最小改进", "一次测量至少要好这么多，才算对 early_stopping_patience 有改进。", "0.01",
        "early_stopping_threshold HF; early_stopping_delta Lightning",
    ),
    "train.checkpoint_copies": Row(
        "检查点副本",
        "保存每个检查点的主机数，使第一台主机失效后训练仍能继续。auto：各主机没有共享文件系统时为 2。", "2",
    ),
    "train.log_every": Row(
        "记录间隔", "metrics.jsonl 两行之间的步数。", "10",
        "logging_steps HF axolotl; steps_per_print DeepSpeed; logging_first_step HF",
    ),
    "train.hang_timeout": Row(
        "卡住判定",
        "多少秒没有新的一步就取所有进程的调用栈，并使训练失败或重启。auto：步长中位数的 20 倍，至少 600 秒。"
        "加载、一批评估和保存可以用六倍的时间。", "1800", "ddp_timeout HF axolotl",
    ),
    "train.report_to": Row(
        "跟踪器", "tensorboard、wandb、swanlab、mlflow、trackio。项目与账户由它们各自的变量决定。",
        "[tensorboard, wandb]",
        "report_to HF; use_wandb axolotl; use_swanlab LLaMA-Factory axolotl; use_mlflow axolotl; wandb_project "
        "axolotl; swanlab_project LLaMA-Factory ms-swift; use_trackio axolotl; wandb DeepSpeed",
    ),
    "train.tensorboard": Row(
        "TensorBoard", "等同于 `report_to: [tensorboard]`。", "true",
        "use_tensorboard axolotl; tensorboard DeepSpeed; logging_dir HF", label="TensorBoard",
    ),
    "eval.before": Row("训练前评估", "训练前也生成留出数据的回答，以便对比。", "true", "eval_on_start HF"),
    "eval.after": Row(
        "训练后评估", "训练后生成留出数据的回答并评分。", "false",
        "predict_with_generate HF; do_predict HF; do_eval HF",
    ),
    "eval.every": Row(
        "评估间隔", "两次测量留出损失之间的步数，或 `epoch`、`0.25 epochs`；auto：全程约十次；0：只在结束时。", "100",
        "eval_steps HF axolotl; eval_strategy HF axolotl; evaluation_strategy HF; evals_per_epoch axolotl; "
        "eval_interval Megatron",
    ),
    "eval.keep_best": Row(
        "保留最佳",
        "适配器取哪一步：按此项在 data.eval 上测得最好的一步，损失取最小，得分取最大。auto：训练中测量损失时按损失。"
        "none：最后一步。", "accuracy",
        "load_best_model_at_end HF axolotl; metric_for_best_model HF axolotl; greater_is_better HF axolotl; "
        "create_checkpoint_symlink ms-swift",
    ),
    "eval.scored_records": Row(
        "测量回答数", "keep_best 为得分时，每次测量所回答的 data.eval 记录数，均匀取自全部记录。", "200",
    ),
    "eval.max_records": Row(
        "回答条数", "生成回答的留出记录数；留空为全部。", "200",
        "max_eval_samples HF; eval_limit ms-swift; num_generation_samples axolotl",
    ),
    "eval.max_new_tokens": Row(
        "回答长度", "一个回答的最多词元数。", "256",
        "max_new_tokens LLaMA-Factory ms-swift HF; generation_max_length HF; generation_max_new_tokens axolotl; "
        "eval_max_new_tokens axolotl; max_target_length ChatGLM",
    ),
    "eval.batch_size": Row(
        "评估批大小", "同时回答的记录数。auto：16；融合层在 GPU 上以显存容得下为限，最多 64。", "8",
        "per_device_eval_batch_size HF; eval_batch_size axolotl; per_gpu_eval_batch_size HF",
    ),
    "eval.samples": Row("样例数", "result.json 中供人阅读的回答数。", "10"),
    "container.runtime": Row(
        "容器引擎",
        "auto：没有镜像时不用容器，否则用目标机器上最先找到的引擎。apptainer、enroot 与 pyxis 按其文档生成，"
        "测试中没有实际运行。",
        "apptainer",
    ),
    "container.image": Row(
        "容器镜像", "运行所用镜像的名称或文件；留空：不用容器。", "zlaunch.sif", "--container-image Slurm",
    ),
    "container.mounts": Row(
        "挂载", "更多挂载，写作 `主机路径:容器路径`；除非加 `:rw`，否则只读。",
        '["/data:/data", "/scratch:/scratch:rw"]', "--container-mounts Slurm",
    ),
    "container.args": Row(
        "引擎参数", "传给引擎运行命令的更多参数；zlaunch 自己的同名参数让位。", "[--shm-size=64g]",
    ),
    "container.omit": Row(
        "省去的参数", "按名称省去 zlaunch 自己的参数，例如 `--init` 或 `--ulimit=memlock`。", '["--ulimit=memlock"]',
    ),
    "local.gpus": Row(
        "GPU 数", "每个 GPU 一个进程；留空：本机的全部 GPU。", "4",
        "--nproc-per-node torchrun; --num_gpus DeepSpeed-launcher; --num_processes Accelerate; NPROC_PER_NODE "
        "ms-swift; CUDA_VISIBLE_DEVICES NVIDIA; n_gpu HF", label="GPUs",
    ),
    "local.procs": Row("CPU 进程数", "在 CPU 上训练的进程数；留空：1。", "2"),
    "local.python": Row("Python", "训练环境的解释器；留空：运行 zlaunch 的解释器。", "/opt/venv/bin/python"),
    "ssh.hosts": Row(
        "主机", "`a,b,user@c:2222`，或每行一个，或 DeepSpeed 格式的主机文件。", "[gpu1, ubuntu@gpu2:2222]",
        "--hosts Horovod",
    ),
    "ssh.hostfile": Row(
        "主机文件", "DeepSpeed 格式的主机与槽位。", "hostfile",
        "--hostfile DeepSpeed-launcher; --deepspeed_hostfile Accelerate",
    ),
    "ssh.include": Row(
        "只用", "只使用这些主机和槽位，如 `a@b:0,1`。", '"gpu1@gpu2:0,1"', "--include DeepSpeed-launcher",
    ),
    "ssh.exclude": Row("排除", "不使用这些主机和槽位。", '"gpu3@gpu1:7"', "--exclude DeepSpeed-launcher"),
    "ssh.slots": Row("每机进程数", "主机文件没有写明时每台主机的进程数；留空：每个 GPU 一个（CPU：1）。", "8"),
    "ssh.workdir": Row("工作目录", "主机上存放运行的目录。", "/scratch/zlaunch"),
    "ssh.python": Row("Python", "主机上训练环境的解释器。", "/opt/venv/bin/python"),
    "ssh.ssh_config": Row(
        "SSH 配置", "代替 ~/.ssh/config 的配置文件。", "cluster.ssh_config", label="SSH configuration",
    ),
    "ssh.accept_new_host_keys": Row(
        "接受新主机密钥", "把未知的主机密钥加入 known_hosts，而不是拒绝。", "true", "StrictHostKeyChecking OpenSSH",
    ),
    "ssh.connect_timeout": Row("连接超时", "等待主机的秒数。", "30", "ConnectTimeout OpenSSH"),
    "ssh.master_addr": Row(
        "主节点地址", "其他主机访问第一台主机所用的地址；留空：它的名称。", "10.0.0.1",
        "--master-addr torchrun; --master_addr DeepSpeed-launcher; --main_process_ip Accelerate; MASTER_ADDR "
        "torchrun; --rdzv-endpoint torchrun",
    ),
    "ssh.setup": Row(
        "准备命令", "每台主机启动 Python 前执行的 shell 命令：module load、conda activate。", "[module load cuda]",
    ),
    "slurm.nodes": Row(
        "节点数", "作业的节点数，每个节点一个任务。", "4",
        "--nodes Slurm; --nnodes torchrun; --num_nodes DeepSpeed-launcher; --num_machines Accelerate; NNODES "
        "ms-swift",
    ),
    "slurm.gpus_per_node": Row(
        "每节点 GPU 数", "也可带 GRES 类型，如 `h200:2`。留空：8。没有 GPU 时由每节点进程数决定。", "h200:8",
        "--gpus-per-node Slurm; --gres Slurm; --gpus Slurm; --gpus-per-task Slurm", label="GPUs per node",
    ),
    "slurm.procs_per_node": Row("每节点进程数", "在 CPU 上训练时每个节点的进程数。", "8", "--ntasks-per-node Slurm"),
    "slurm.cpus_per_task": Row(
        "每任务 CPU 数", "一个节点上所有进程合计；留空：与其 GPU 相称的份额。", "64", "--cpus-per-task Slurm",
    ),
    "slurm.gpu": Row(
        "GPU 型号", "节点的 GPU，写名称（h100）或显存（24GiB）；留空：由 Slurm 报告的分区信息决定。", "h100",
        label="GPU",
    ),
    "slurm.cluster": Row(
        "集群", "本机所属以外的集群（Slurm 命令的 `-M`），或由 sbatch 选择的多个集群。", "west", "--clusters Slurm",
    ),
    "slurm.partition": Row("分区", "提交到的分区；留空：集群的默认分区。", "gpu", "--partition Slurm"),
    "slurm.account": Row("账户", "计费账户。", "nlp", "--account Slurm"),
    "slurm.qos": Row("QOS", "服务质量。", "high", "--qos Slurm", label="QOS"),
    "slurm.time": Row(
        "时限", "每次启动的时限，如 1-12:00:00；更长的训练会重新排队。", '"1-12:00:00"', "--time Slurm",
    ),
    "slurm.constraint": Row("节点特性", "节点必须具备的特性。", "a100&nvlink", "--constraint Slurm"),
    "slurm.reservation": Row("预留", "在此预留中运行。", "course", "--reservation Slurm"),
    "slurm.nodelist": Row("指定节点", "作业必须包含的节点。", "gpu[1-4]", "--nodelist Slurm"),
    "slurm.exclude": Row("排除节点", "不使用的节点。", "gpu7", "--exclude Slurm"),
    "slurm.mem": Row("内存", "每个节点的内存，如 64G；0：全部。", "256G", "--mem Slurm"),
    "slurm.array_limit": Row("同时运行的点数", "扫描中同时运行的点数（--array 的 `%N`）。", "4", "--array Slurm"),
    "slurm.signal_before": Row("提前通知", "时限前多少秒由 Slurm 请求最后一个检查点。", "300", "--signal Slurm"),
    "slurm.max_requeues": Row(
        "最多重新排队", "被抢占、到时限或丢失节点后重新排队的次数；0：从不。重启次数优先。", "5", "--requeue Slurm",
    ),
    "slurm.sbatch": Row(
        "其他 sbatch 选项", "sbatch 的任何其他选项，不带短横线。", '{mail-type: END, comment: "first try"}',
        label="Other options of sbatch",
    ),
    "slurm.setup": Row(
        "准备命令", "每个节点启动代理前执行的 shell 命令：module load、conda activate。",
        "[module load cuda, conda activate lora]",
    ),
    "slurm.python": Row(
        "Python", "节点上训练环境的解释器；留空：运行 zlaunch 的解释器，经登录主机时为 python3。",
        "/opt/venv/bin/python",
    ),
    "slurm.login": Row("登录主机", "经此主机通过 SSH 提交，如 user@login。", "user@login"),
    "slurm.workdir": Row(
        "工作目录", "登录主机上存放运行的目录；留空：~/zlaunch。", "/scratch/me/zlaunch", "--chdir Slurm",
    ),
    "slurm.template": Row("批处理模板", "自己的批处理脚本，见 `zlaunch templates`。", "train.sbatch.j2"),
    "env": Row(
        "环境变量", "各进程的环境变量。", "{NCCL_DEBUG: WARN}", "--export Slurm", label="Environment variables",
    ),
    "secrets": Row(
        "机密变量", "传给各进程的环境变量的名称。运行的任何文件都不保存它们的值。", "[HF_TOKEN, WANDB_API_KEY]",
        "hub_token HF; hf_hub_token LLaMA-Factory; ms_hub_token LLaMA-Factory; hf_use_auth_token axolotl; "
        "swanlab_api_key LLaMA-Factory; swanlab_token ms-swift; hf_token HF",
    ),
    "notify.url": Row(
        "通知地址", "`$NAME`：保存地址的变量。直接写地址时，读取作业后会从作业中取出。", "$FEISHU_HOOK",
        "swanlab_lark_webhook_url LLaMA-Factory; swanlab_webhook_url ms-swift", label="Address",
    ),
    "notify.format": Row(
        "通知格式", "auto：由地址的主机名决定；不是已知服务时为 json。", "feishu",
        "swanlab_notification_method ms-swift",
    ),
    "notify.sign": Row(
        "签名密钥", "`$NAME`：保存钉钉或飞书机器人签名密钥的变量。", "$FEISHU_KEY",
        "swanlab_lark_secret LLaMA-Factory; swanlab_secret ms-swift", label="Signing key",
    ),
    "notify.command": Row(
        "通知命令", "在第一个节点上运行；标准输入为 JSON 通知，ZLAUNCH_NOTICE 为文字。", "[notify-send, zlaunch]",
    ),
    "notify.on": Row(
        "通知时机", "end：结束；failure：失败；preemption：被抢占；hang：卡住。", "[end, failure]",
        "--mail-type Slurm",
    ),
    "verify_adapter": Row("验证适配器", "结束时把保存的适配器加载到全新的基础模型，并比较 logits。", "true"),
    "network": Row(
        "网络速率",
        "计划所用的主机间速率，例如 `25Gb`（比特）或 `3.1GB`（字节）。"
        "auto：`zlaunch doctor net` 测得的值，否则 25 Gb/s。",
        "100Gb",
    ),
    "max_restarts": Row(
        "重启次数", "失败后从最新检查点重启的次数。", "3",
        "--max-restarts torchrun; --max_restarts Accelerate; MAX_RESTARTS LLaMA-Factory",
    ),
    "elastic": Row("弹性", "丢失节点时用剩下的节点重启。", "true"),
    "heartbeat_timeout": Row("心跳超时", "多少秒没有心跳就视节点为丢失。", "120"),
    "stop_deadline": Row("停止期限", "请求停止后多少秒 zlaunch 会结束进程。", "60"),
    "program": Row("自己的程序", "代替训练程序的用户程序：命令行中 `--` 之后的词。", "[train.py, --fast]"),
}
# fmt: on
