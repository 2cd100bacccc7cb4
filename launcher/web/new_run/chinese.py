"""Names and help of the form's fields in Chinese, by key. A key that is missing here shows the schema's English."""

from __future__ import annotations

CHINESE: dict[str, tuple[str, str]] = {
    "name": ("名称", "训练的名称，运行 ID 以它开头。"),
    "device": ("设备", "auto：使用 GPU；没有 GPU 的机器使用 CPU。"),
    "model.path": ("模型", "模型库 ID、本地目录，或（来源为 `package` 时）内含 GGUF 文件的已安装 Python 包的名称。"),
    "model.source": ("来源", "`random` 会生成一个未经训练的微型模型和分词器，用于试跑。"),
    "model.revision": ("版本", "模型库中的分支、标签或提交；留空为最新。"),
    "model.quantization": (
        "量化",
        "nf4 与 int8：冻结的权重以 bitsandbytes 的格式加载。fp8：权重按原样加载，融合层以 fp8 相乘，"
        "速度约为 bfloat16 的两倍（Ada、Hopper 及更新的 GPU）。",
    ),
    "model.dtype": ("精度", "auto：支持 bfloat16 的 GPU 用 bfloat16，较旧的 GPU 用 float16，CPU 用 float32。"),
    "model.trust_remote_code": ("信任远程代码", "运行模型自带的 Python 代码。"),
    "model.thinking": (
        "思考",
        "回答是否以思考内容开头（用于因此改变提问方式的对话模板）。"
        "auto：训练记录含思考内容时为 on。off：舍去记录中的思考内容。",
    ),
    "data.train": (
        "训练数据",
        "文件、目录、`hub:所有者/名称`，或其列表（每行一个）。某一项可写作 `{path: 文件, weight: 2}`。",
    ),
    "data.eval": ("留出数据", "格式相同的留出记录，用来测量损失与回答。"),
    "data.max_length": ("最大长度", "一条记录的最多词元数，提示与回答合计。"),
    "data.overlong": ("超长记录", "cut：截去回答的末尾及其结束词元，仅提示就超长的记录会被舍弃；drop：舍弃。"),
    "data.turns": (
        "多轮对话",
        "对话中的回答如何成为序列。joined：全部回答合为一条；each：每个回答一条；last：只用最后一个回答；"
        "auto：一般为 joined，若对话模板对历史轮次写法不同则为 each。",
    ),
    "data.on_error": (
        "无法读取的记录",
        "遇到无法读取的记录（错误的 JSON、缺少字段、空回答）时停止或跳过。重复只会提示。",
    ),
    "data.system": ("系统提示", "用于自身没有系统消息的记录。"),
    "data.columns": ("列名", "数据中与我们的键对应的列名，如 {instruction: 问题, output: 答案}。多列按行拼接。"),
    "data.roles": ("角色名", "数据中与我们的角色对应的名称，如 {user: [客户, 买家], assistant: 客服}。"),
    "data.chat_template": ("对话模板", "代替分词器自带模板的 Jinja 模板；可填名称（`chatml` 等）或文件。"),
    "lora.r": ("秩", "适配器在每个模块上有两个此宽度的矩阵。"),
    "lora.alpha": ("缩放 alpha", "适配器的输出乘以 `alpha / r`（rslora：`alpha / sqrt(r)`）。"),
    "lora.dropout": ("随机失活", "每步随机舍去适配器输入的比例。"),
    "lora.target_modules": ("目标模块", "auto：由模型家族决定；模块名的列表；或匹配完整模块名的正则表达式。"),
    "lora.rslora": ("rsLoRA", "按 `alpha / sqrt(r)` 缩放，大秩时更稳定（Kalajdzievski 2023，arXiv 2312.03732）。"),
    "lora.dora": ("DoRA", "幅度与方向分开训练（Liu 等 2024，arXiv 2402.09353）。"),
    "lora.plus_ratio": ("LoRA+ 比率", "B 与 A 的学习率之比（Hayou 等 2024，arXiv 2402.12354）。"),
    "lora.init": ("初始化", "default：A 随机，B 为零。pissa：取权重的最大奇异值（Meng 等 2024，arXiv 2404.02948）。"),
    "lora.modules_to_save": ("整体训练的模块", "与适配器一起整体训练的模块，如 embed_tokens、lm_head。"),
    "lora.adapter": ("已有适配器", "从该目录（PEFT 格式）的适配器继续训练。"),
    "train.epochs": ("训练轮数", "遍历全部记录的次数。"),
    "train.max_steps": ("最多步数", "优化器步数；设定后训练轮数不起作用。"),
    "train.learning_rate": ("学习率", "优化器学习率的峰值。"),
    "train.scheduler": ("学习率曲线", "预热之后学习率如何下降。"),
    "train.warmup_ratio": ("预热比例", "学习率从 0 上升所占的步数比例。"),
    "train.weight_decay": ("权重衰减", "AdamW 的权重衰减。"),
    "train.max_grad_norm": ("梯度裁剪", "范数更大的梯度缩小到此值；0：不裁剪。"),
    "train.seed": ("随机种子", "种子相同，记录及其顺序就相同。"),
    "train.global_batch_size": (
        "全局批大小",
        "每个优化器步的记录数。`about 8`：能均分的、最接近 8 的数；auto：约 64。",
    ),
    "train.micro_batch_size": ("微批大小", "每个进程一次前向计算的记录数。"),
    "train.zero_stage": (
        "ZeRO 阶段",
        "ZeRO 在进程间分摊什么。0：无；1：优化器状态；2：加梯度；3：再加权重。",
    ),
    "train.offload": ("卸载", "cpu：优化器状态放在主机内存中。"),
    "train.engine": ("引擎", "模型各层的实现。fused：我们为 NVIDIA GPU 写的层；unsloth 与 peft：同名软件包。"),
    "train.packing": ("打包", "记录如何组成一批。none：填充；bucket：长度相近的放在一起；pack：拼成没有填充的行。"),
    "train.gradient_checkpointing": ("梯度检查点", "重新计算激活值而不保存：更省显存，约慢三分之一。"),
    "train.checkpoint_every": ("检查点间隔", "两个检查点之间的步数；0：只保存最后一个和按请求保存的。"),
    "train.keep_checkpoints": ("保留检查点数", "更旧的检查点会被删除。"),
    "train.log_every": ("记录间隔", "metrics.jsonl 两行之间的步数。"),
    "train.hang_timeout": (
        "卡住判定",
        "多少秒没有新的一步就取所有进程的调用栈，并使训练失败或重启。auto：步长中位数的 20 倍，至少 600 秒。"
        "加载、一批评估和保存可以用六倍的时间。",
    ),
    "train.report_to": ("跟踪器", "tensorboard、wandb、swanlab、mlflow、trackio。项目与账户由它们各自的变量决定。"),
    "train.tensorboard": ("TensorBoard", "等同于 `report_to: [tensorboard]`。"),
    "eval.before": ("训练前评估", "训练前也生成留出数据的回答，以便对比。"),
    "eval.after": ("训练后评估", "训练后生成留出数据的回答并评分。"),
    "eval.every": ("评估间隔", "两次测量留出损失之间的步数；auto：全程约十次；0：只在结束时。"),
    "eval.max_records": ("回答条数", "生成回答的留出记录数；留空为全部。"),
    "eval.max_new_tokens": ("回答长度", "一个回答的最多词元数。"),
    "eval.batch_size": ("评估批大小", "同时回答的记录数。"),
    "eval.samples": ("样例数", "result.json 中供人阅读的回答数。"),
    "container.runtime": ("容器引擎", "auto：没有镜像时不用容器，否则用目标机器上最先找到的引擎。"),
    "container.image": ("容器镜像", "运行所用镜像的名称或文件；留空：不用容器。"),
    "container.mounts": ("挂载", "更多挂载，写作 `主机路径:容器路径`；除非加 `:rw`，否则只读。"),
    "container.args": ("引擎参数", "传给引擎运行命令的更多参数。"),
    "local.gpus": ("GPU 数", "每个 GPU 一个进程；留空：本机的全部 GPU。"),
    "local.procs": ("CPU 进程数", "在 CPU 上训练的进程数；留空：1。"),
    "local.python": ("Python", "训练环境的解释器；留空：运行 zlaunch 的解释器。"),
    "ssh.hosts": ("主机", "`a,b,user@c:2222`，或每行一个，或 DeepSpeed 格式的主机文件。"),
    "ssh.hostfile": ("主机文件", "DeepSpeed 格式的主机与槽位。"),
    "ssh.include": ("只用", "只使用这些主机和槽位，如 `a@b:0,1`。"),
    "ssh.exclude": ("排除", "不使用这些主机和槽位。"),
    "ssh.slots": ("每机进程数", "主机文件没有写明时每台主机的进程数；留空：每个 GPU 一个（CPU：1）。"),
    "ssh.workdir": ("工作目录", "主机上存放运行的目录。"),
    "ssh.python": ("Python", "主机上训练环境的解释器。"),
    "ssh.ssh_config": ("SSH 配置", "代替 ~/.ssh/config 的配置文件。"),
    "ssh.accept_new_host_keys": ("接受新主机密钥", "把未知的主机密钥加入 known_hosts，而不是拒绝。"),
    "ssh.connect_timeout": ("连接超时", "等待主机的秒数。"),
    "ssh.master_addr": ("主节点地址", "其他主机访问第一台主机所用的地址；留空：它的名称。"),
    "ssh.setup": ("准备命令", "每台主机启动 Python 前执行的 shell 命令：module load、conda activate。"),
    "slurm.nodes": ("节点数", "作业的节点数，每个节点一个任务。"),
    "slurm.gpus_per_node": (
        "每节点 GPU 数",
        "也可带 GRES 类型，如 `h200:2`。留空：8。没有 GPU 时由每节点进程数决定。",
    ),
    "slurm.procs_per_node": ("每节点进程数", "在 CPU 上训练时每个节点的进程数。"),
    "slurm.cpus_per_task": ("每任务 CPU 数", "一个节点上所有进程合计；留空：与其 GPU 相称的份额。"),
    "slurm.gpu": ("GPU 型号", "节点的 GPU，写名称（h100）或显存（24GiB）；留空：由 Slurm 报告的分区信息决定。"),
    "slurm.cluster": ("集群", "本机所属以外的集群（Slurm 命令的 `-M`），或由 sbatch 选择的多个集群。"),
    "slurm.partition": ("分区", "提交到的分区；留空：集群的默认分区。"),
    "slurm.account": ("账户", "计费账户。"),
    "slurm.qos": ("QOS", "服务质量。"),
    "slurm.time": ("时限", "每次启动的时限，如 1-12:00:00；更长的训练会重新排队。"),
    "slurm.constraint": ("节点特性", "节点必须具备的特性。"),
    "slurm.reservation": ("预留", "在此预留中运行。"),
    "slurm.nodelist": ("指定节点", "作业必须包含的节点。"),
    "slurm.exclude": ("排除节点", "不使用的节点。"),
    "slurm.mem": ("内存", "每个节点的内存，如 64G；0：全部。"),
    "slurm.array_limit": ("同时运行的点数", "扫描中同时运行的点数（--array 的 `%N`）。"),
    "slurm.signal_before": ("提前通知", "时限前多少秒由 Slurm 请求最后一个检查点。"),
    "slurm.max_requeues": (
        "最多重新排队",
        "被抢占、到时限或丢失节点后重新排队的次数；0：从不。重启次数优先。",
    ),
    "slurm.sbatch": ("其他 sbatch 选项", "sbatch 的任何其他选项，不带短横线。"),
    "slurm.setup": ("准备命令", "每个节点启动代理前执行的 shell 命令：module load、conda activate。"),
    "slurm.python": ("Python", "节点上训练环境的解释器；留空：运行 zlaunch 的解释器，经登录主机时为 python3。"),
    "slurm.login": ("登录主机", "经此主机通过 SSH 提交，如 user@login。"),
    "slurm.workdir": ("工作目录", "登录主机上存放运行的目录；留空：~/zlaunch。"),
    "slurm.template": ("批处理模板", "自己的批处理脚本，见 `zlaunch templates`。"),
    "env": ("环境变量", "各进程的环境变量。"),
    "secrets": ("机密变量", "传给各进程的环境变量的名称。运行的任何文件都不保存它们的值。"),
    "notify.url": ("通知地址", "`$NAME`：保存地址的变量。直接写地址时，读取任务后会从任务中取出。"),
    "notify.format": ("通知格式", "auto：由地址的主机名决定；不是已知服务时为 json。"),
    "notify.sign": ("签名密钥", "`$NAME`：保存钉钉或飞书机器人签名密钥的变量。"),
    "notify.command": ("通知命令", "在第一个节点上运行；标准输入为 JSON 通知，ZLAUNCH_NOTICE 为文字。"),
    "notify.on": ("通知时机", "end：结束；failure：失败；preemption：被抢占；hang：卡住。"),
    "verify_adapter": ("验证适配器", "结束时把保存的适配器加载到全新的基础模型，并比较 logits。"),
    "max_restarts": ("重启次数", "失败后从最新检查点重启的次数。"),
    "elastic": ("弹性", "丢失节点时用剩下的节点重启。"),
    "heartbeat_timeout": ("心跳超时", "多少秒没有心跳就视节点为丢失。"),
    "stop_deadline": ("停止期限", "请求停止后多少秒 zlaunch 会结束进程。"),
}

ENGLISH: dict[str, str] = {
    "model.path": "Model",
    "notify.url": "Address",
    "notify.sign": "Signing key",
    "model.dtype": "Precision",
    "data.train": "Training records",
    "data.eval": "Held-out records",
    "data.system": "System message",
    "lora.r": "Rank",
    "lora.rslora": "rsLoRA",
    "lora.dora": "DoRA",
    "lora.plus_ratio": "LoRA+ ratio",
    "train.zero_stage": "ZeRO stage",
    "train.tensorboard": "TensorBoard",
    "local.gpus": "GPUs",
    "slurm.gpus_per_node": "GPUs per node",
    "slurm.gpu": "GPU",
    "slurm.qos": "QOS",
    "slurm.sbatch": "Other options of sbatch",
    "ssh.ssh_config": "SSH configuration",
    "env": "Environment variables",
}
"""Names that are clearer than the last word of the key."""

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


def label(key: str) -> tuple[str, str]:
    """(English, Chinese) name of a field."""
    word = key.rpartition(".")[2].replace("_", " ")
    english = ENGLISH.get(key) or word[0].upper() + word[1:]
    return english, CHINESE.get(key, (english, ""))[0]


def help_of(key: str, english: str) -> tuple[str, str]:
    """(English, Chinese) help of a field, whose English is the schema's."""
    return english, CHINESE.get(key, ("", english))[1]


def range_of(english: str) -> tuple[str, str]:
    """(English, Chinese) of a range of numbers (train.config.Range)."""
    chinese = english.replace("at least ", "至少 ").replace("above ", "大于 ").replace(", at most ", "，至多 ")
    return english, chinese.replace(" to ", " 至 ")
