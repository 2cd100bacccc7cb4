"""What is wrong with a job, its records and its start, and what helps, in Chinese."""

from __future__ import annotations

_Q = r"(['\"].*?['\"])"
"""A quoted text."""

ROWS = (
    # launcher/job/explain.py, ranges.py, yamlfile.py
    (r"expected at least (\S+), got (?P<t>.+)", r"应至少为 \1，得到的是 \g<t>"),
    (r"expected above (\S+), at most (\S+), got (?P<t>.+)", r"应大于 \1，至多为 \2，得到的是 \g<t>"),
    (r"expected above (\S+), got (?P<t>.+)", r"应大于 \1，得到的是 \g<t>"),
    (r"expected (?P<w>.+), got (?P<t>.+)", r"应为\g<w>，得到的是 \g<t>"),
    (r"expected (?P<w>a mapping .+|a list .+)", r"应为\g<w>"),
    (r"unknown key `(.+)`", r"没有 `\1` 这个键"),
    (r"missing key `(.+)`", r"缺少键 `\1`"),
    (r"did you mean `(.+)`\?", r"是否想写 `\1`？"),
    (r"known here: (.+)", r"此处可用的键：\1"),
    (r"`zlaunch keys *(\S*)` lists the keys that are known here", r"`zlaunch keys \1` 列出此处可用的键"),
    (r"did you mean `([^`]+)`\? It is `([^`]+)` here", r"是否想写 `\1`？在此写作 `\2`"),
    (r"`([^`]+)` is `([^`]+)` here", r"`\1` 在此写作 `\2`"),
    (r"`([^`]+)` is `([^`]+)` here: (.+)", r"`\1` 在此写作 `\2`：\3"),
    (r"`([^`]+)` is not a key here: (.+)", r"此处没有与 `\1` 对应的键：\2"),
    (r"known: (.+)", r"可用的有：\1"),
    (r"a string as a name", "作为名称的文字"),
    (r"a string", "文字"),
    (r"a whole number", "整数"),
    (r"a number", "数字"),
    (r"a number of (\d+) digits", r"\1 位的数"),
    (r"a mapping of sections", "由各节组成的映射"),
    (r"a mapping like (.+)", r"形如 \1 的映射"),
    (r"a list like (.+)", r"形如 \1 的列表"),
    (r"a mapping", "映射"),
    (r"a list", "列表"),
    (r"at least (\S+)", r"至少 \1"),
    (r"above (\S+), at most (\S+)", r"大于 \1，至多 \2"),
    (r"above (\S+)", r"大于 \1"),
    (r"(-?[\d.e+]+) to (-?[\d.e+]+)", r"\1 至 \2"),
    (r"put it in quotes", "请加引号"),
    (rf"{_Q} is not a valid name of an environment variable", r"\1 不是合法的环境变量名"),
    (rf"{_Q} is not a regular expression: (?P<t>.+)", r"\1 不是合法的正则表达式：\g<t>"),
    (
        r"lora.target_modules is a regular expression, which can name the layers itself",
        "lora.target_modules 是正则表达式，可以直接写明层号",
    ),
    (
        r"lora.init: orthogonal takes half of a rank for A and half for B, and (\d+) is odd",
        r"lora.init: orthogonal 把秩一半用于 A、一半用于 B，而 \1 是奇数",
    ),
    (r"entry (\d+) is not a valid name of an environment variable", r"第 \1 项不是合法的环境变量名"),
    (
        r"list names only, for example \[HF_TOKEN\]; zlaunch reads the values from the environment",
        "只写名称，如 [HF_TOKEN]；zlaunch 从环境中读取它们的值",
    ),
    (r"there is no notify.url that it signs for", "没有与此签名对应的 notify.url"),
    (
        r"train.global_batch_size is given too; a step is counted in one of them",
        "也给出了 train.global_batch_size；一步只能按其中一种计量",
    ),
    (r"an empty text stands everywhere; name the text to replace", "空文字处处都有；请写明要替换的文字"),
    (r"only data.train has it", "只有 data.train 有它"),
    (r"data.mix is shares, so the weights are the shares already", "data.mix 为 shares，weight 已经是份额"),
    (r"data.mix: repeats", "data.mix: repeats"),
    (r"expected less than data.max_length, (\d+), got (\d+)", r"应小于 data.max_length（\1），得到的是 \2"),
    (r"there is no data.eval to measure on", "没有可供测量的 data.eval"),
    (r"hold a part out: data.eval: 5%", "留出一部分：data.eval: 5%"),
    (r"eval.every is 0: nothing is measured during the training", "eval.every 为 0：训练中不做任何测量"),
    (
        r"eval.keep_best is none, so no measurement is the best one",
        "eval.keep_best 为 none，因此没有哪次测量算最佳",
    ),
    (r"for example (.+)", r"例如 \1"),
    (r"(.+), line (\d+), column (\d+): (?P<t>not valid YAML: .+)", r"\1 第 \2 行第 \3 列：\g<t>"),
    (r"not valid YAML: (.+)", r"不是合法的 YAML：\1"),
    (
        r"write lists as \[a, b\], mappings as \{a: b\}; quote a string that contains YAML characters",
        "列表写作 [a, b]，映射写作 {a: b}；含有 YAML 符号的文字要加引号",
    ),
    # launcher/lifecycle/checks.py
    (r"model.path is not set", "没有设置 model.path"),
    (
        r"set a hub id such as Qwen/Qwen3-8B, or a local directory, with --model or in a job file "
        r"\(`zlaunch init` writes one\)",
        "填写模型库 ID（如 Qwen/Qwen3-8B）或本地目录",
    ),
    (r"data.train is not set", "没有设置 data.train"),
    (
        r"set a JSONL file of instruction / input / output records, with --train-data or in a job file",
        "填写由 instruction / input / output 记录组成的 JSONL 文件",
    ),
    (r"no such directory: (.+)", r"没有这个目录：\1"),
    (r"a local path must contain (.+)", r"本地路径须含有 \1"),
    (
        r"the start of the run was broken off: the command that started it was killed, or could not write down on a "
        r"full disk why it failed",
        "启动中断了：启动它的命令被杀掉，或者磁盘已满，没能写下失败的原因",
    ),
    (r"check the disk for space, then: (.+)", r"检查磁盘空间，然后执行：\1"),
    (r"cannot read (.+?): No such file or directory", r"无法读取 \1：没有这个文件或目录"),
    (r"cannot read (.+?): Permission denied", r"无法读取 \1：没有权限"),
    (r"cannot read (.+?): (.+)", r"无法读取 \1：\2"),
    (
        r"correct (\S+): paths in a job file are relative to the file, paths on the command line to the working "
        r"directory",
        r"请更正 \1：作业文件中的路径相对于该文件，命令行上的路径相对于工作目录",
    ),
    (r"(/[^:]+) is empty", r"\1 是空的"),
    (r"secrets not set in the environment: (.+)", r"环境中没有设置这些机密变量：\1"),
    (r"export (\w+)=\.\.\., or (?P<t>.+)", r"执行 export \1=...，或\g<t>"),
    (r"remove it from `secrets:`", "从 secrets 中去掉它"),
    (r"leave it out: (.+)", r"去掉它：\1"),
    (r"no hosts: .+", "没有主机"),
    (r"(\d+) GPUs requested, (\d+) found on this machine", r"请求了 \1 个 GPU，本机只有 \2 个"),
    # train/records
    (r"(\d+) records? of (.+) cannot be used:", r"\2 中有 \1 条记录无法使用："),
    (r"\.\.\. and ([\d,]+) more", r"……另有 \1 条"),
    (
        r"correct these lines, or set data.on_error=skip to leave them out",
        "请更正这些行，或设 data.on_error=skip 舍去它们",
    ),
    (r"(?P<t>.+); data.columns could be (\{.+\})", r"\g<t>；data.columns 可以写作 \2"),
    (r"\(found: (.+)\)", r"（现有：\1）"),
    (r"data\.columns could be (\{.+\})", r"data.columns 可以写作 \1"),
    (r"(?P<t>[^(].+) \(found: (.+)\)", r"\g<t>（现有：\2）"),
    (
        r"none of the keys 'messages', 'conversations', 'instruction' and their like",
        "没有 messages、conversations、instruction 一类的键",
    ),
    (r"a text alone does not say which part of it is the answer", "只有一段文字，看不出哪一部分是回答"),
    (
        rf"the records are in the list under the key {_Q}: save that list alone \((.+)\)",
        r"记录在键 \1 的列表里：请单独保存该列表（\2）",
    ),
    (r"the answer is empty", "回答为空"),
    (r"the question is empty", "问题为空"),
    (r"no turn is the assistant's: there is no answer to learn", "没有 assistant 的轮次：没有可学的回答"),
    (rf"the key {_Q} is missing", r"缺少键 \1"),
    (rf"(.+): the key {_Q} is missing", r"\1：缺少键 \2"),
    (r"(.+) must be a text, got (\w+)", r"\1 应为文字，得到的是 \2"),
    (r"(.+) must be a list, got (\w+)", r"\1 应为列表，得到的是 \2"),
    (r"an object", "对象"),
    (r"(\d+) cells in this row, (\d+) columns in the header", r"本行有 \1 格，而表头有 \2 列"),
    (
        r"this is preference data \(DPO and its like\), and training needs one answer(.*)",
        r"这是偏好数据（DPO 等），而训练需要一个回答\1",
    ),
    (
        r"label: this is KTO data \(answers marked good or bad\), and training takes good answers only",
        "label：这是 KTO 数据（回答带有好坏标记），而训练只用好的回答",
    ),
    (r"this is (\w+) data, and only text can be trained on", r"这是 \1 数据，而只能用文字训练"),
    (r"not UTF-8 \((.+?)\); (.+)", r"不是 UTF-8（\1）；\2"),
    (r"no such data file: (.+)", r"没有这个数据文件：\1"),
    (r"data.train and data.eval name files of records", "data.train 与 data.eval 填写记录文件"),
    (r"(.+): unknown kind of file; known: (.+)", r"\1：文件类型未知；可用的有：\2"),
    (r"(.+): no file of records in this directory \((.+)\)", r"\1：此目录中没有记录文件（\2）"),
    (r"(.+) holds several splits: (.+)", r"\1 含有多个划分：\2"),
    (r"name one of them: (.+)", r"请指明其一：\1"),
    (r"(.+) has no split (.+)", r"\1 没有划分 \2"),
    (
        rf"data.columns: {_Q} is mapped to {_Q}, which no format of records has",
        r"data.columns：\1 对应到 \2，而没有哪种记录格式有这个键",
    ),
    (r"(\S+) holds no record", r"\1 中没有记录"),
    (r"data.train holds no record that can be trained on", "data.train 中没有可以训练的记录"),
    (r"(.+): cannot load the data set: (.+)", r"\1：无法加载数据集：\2"),
    (
        r"check the spelling and the split; a private one needs HF_TOKEN in `secrets`; offline it must be cached",
        "请检查拼写与划分；私有数据集需要在 secrets 中加入 HF_TOKEN；离线时须已缓存",
    ),
    # launcher/node/agent/causes.py
    (
        r"lower train.micro_batch_size or data.max_length, or set train.gradient_checkpointing or model.quantization",
        "减小 train.micro_batch_size 或 data.max_length，或设置 train.gradient_checkpointing 或 model.quantization",
    ),
    (
        r"free space on the file system of the run directory \(and in /dev/shm and the temporary directory\)",
        "请在运行目录所在的文件系统（以及 /dev/shm 和临时目录）腾出空间",
    ),
    (
        r"the file system named above cannot be used; check its mount on that host, then resume",
        "上面的文件系统无法使用；请检查该主机上的挂载，然后继续训练",
    ),
    (
        r"the directory was removed, or its disk is no longer mounted; start again",
        "目录已被删除，或其磁盘不再挂载；请重新开始",
    ),
    (
        r"another program holds the rendezvous port; start again \(a new port is picked\)",
        "会合端口被其他程序占用；请重新开始（会选新的端口）",
    ),
    (r"correct the job; the message above names the place", "请更正作业；上面的信息指出了位置"),
    (
        r"the engine's words above say why; container\.args adds an argument to its command line, and container\.omit "
        r"leaves one of zlaunch's out",
        "容器引擎的上述输出说明了原因；container.args 在其命令行中增加参数，container.omit 省去 zlaunch 的参数",
    ),
    (r"correct the records named above", "请更正上面指出的记录"),
    (
        r"`nvidia-smi` on that host and `zlaunch doctor` tell more; mend it, or leave the host out \(--exclude\)",
        "该主机上的 nvidia-smi 与 zlaunch doctor 能提供更多信息；请修复，或排除该主机（--exclude）",
    ),
    (
        r"look at the other ranks first: a rank that died shows up as a broken connection on its peers; "
        r"else set env.NCCL_DEBUG=INFO and check the network interfaces",
        "请先看其他进程：某个进程退出后，其他进程会看到连接中断；否则请设 env.NCCL_DEBUG=INFO 并检查网络接口",
    ),
    (
        r"the job needs more of the host's memory than it may have: fewer ranks per host, no offload to the CPU, "
        r"or ask for more \(slurm\.mem, the container's limit\)",
        "作业所需的主机内存超过了允许的量：请减少每台主机的进程数，不要卸载到 CPU，或请求更多（slurm.mem、容器的限制）",
    ),
    (
        r"another process sent a signal that nobody asked zlaunch for: a person, a scheduler's limit, systemd-oomd or "
        r"earlyoom \(journalctl has them\); the message says what the kernel knows",
        "其他进程发送了未经 zlaunch 请求的信号：某个人、调度器的限制、systemd-oomd 或 earlyoom（见 journalctl）；"
        "上面的信息说明了内核所知的情况",
    ),
    (
        r"logs/node-\*/stack-\*\.txt have the stacks of all threads; look at the rank that differs from the others\. "
        r"If its work only takes long, raise train.hang_timeout",
        "logs/node-*/stack-*.txt 有全部线程的调用栈；请看与其他不同的进程。如果只是耗时较长，请调大 train.hang_timeout",
    ),
    (
        r"check the host; with max_restarts and elastic: true the run continues without it",
        "请检查该主机；设置 max_restarts 与 elastic: true 后，训练会在没有它的情况下继续",
    ),
    (r"the last lines of the rank's log show where it failed", "进程日志的最后几行显示失败的位置"),
    # launcher/rundir/timeline.py
    (r"node (\S+) is up on (\S+)", r"节点 \1 已在 \2 上启动"),
    (r"engine (\w+): (?P<t>.+)", r"引擎 \1：\g<t>"),
    (r"(stop|checkpoint|kill) requested(?: by (.+))?", r"收到请求：\1 \2"),
    (r"warning: (?P<t>.+)", r"警告：\g<t>"),
    (r"the job started", "作业已启动"),
    (r"queued again", "已重新排队"),
    (
        r"plain transformers and PEFT: no faster engine covers a CPU",
        "使用普通的 transformers 与 PEFT：更快的引擎不支持 CPU",
    ),
)
