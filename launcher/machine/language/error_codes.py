"""Every kind of error: its code, what it means and what to do, in both languages.

`zlaunch explain CODE` prints it; docs/errors.md and docs/errors.zh-CN.md are made from it (`make reference`). A code
stays what it is once it was released: people search for it.
"""

from __future__ import annotations

from typing import NamedTuple


class Text(NamedTuple):
    title: str
    means: str
    do: str


class Code(NamedTuple):
    english: Text
    chinese: Text


AREAS: dict[str, tuple[str, str]] = {
    "JOB": ("The job file", "作业文件"),
    "OPT": ("The command line", "命令行"),
    "PLAN": ("The plan", "规划"),
    "DATA": ("Records", "记录"),
    "MODEL": ("Model, tokenizer, adapter", "模型、分词器与适配器"),
    "GPU": ("GPUs", "GPU"),
    "MACHINE": ("This machine", "本机"),
    "FILE": ("Files and disks", "文件与磁盘"),
    "RUN": ("Runs", "运行"),
    "HOST": ("Lists of hosts", "主机列表"),
    "SSH": ("SSH hosts", "SSH 主机"),
    "SLURM": ("Slurm", "Slurm"),
    "IMAGE": ("Containers", "容器"),
    "TRAIN": ("Training", "训练"),
    "EXPORT": ("Exports", "导出"),
    "CONVERT": ("Conversion", "转换"),
    "WEB": ("Browser and chat", "浏览器与对话"),
}
"""The second part of a code, and the heading of its chapter."""


def of_cause(cause: str) -> str:
    """The code of a failed rank's cause (launcher/node/agent/causes.py); empty: the cause has none."""
    return _OF_CAUSE.get(cause, "")


_OF_CAUSE = {
    "out_of_memory": "ZL-TRAIN-02",
    "disk_full": "ZL-FILE-03",
    "storage": "ZL-FILE-03",
    "vanished": "ZL-FILE-03",
    "port_taken": "ZL-MACHINE-03",
    "bad_configuration": "ZL-TRAIN-05",
    "engine": "ZL-IMAGE-03",
    "data": "ZL-DATA-02",
    "gpu": "ZL-GPU-04",
    "nccl": "ZL-TRAIN-03",
    "out_of_host_memory": "ZL-TRAIN-07",
    "killed": "ZL-TRAIN-08",
    "hang": "ZL-TRAIN-09",
    "lost_host": "ZL-TRAIN-10",
    "bug": "ZL-TRAIN-11",
}


def _code(english: tuple[str, str, str], chinese: tuple[str, str, str]) -> Code:
    return Code(Text(*english), Text(*chinese))


CODES: dict[str, Code] = {
    # the job file
    "ZL-JOB-01": _code(
        (
            "a key or a value of the job is wrong",
            "The job file, `--set` or an option has a key that does not exist, or a value that the key cannot take. "
            "The message names file, line and key; all mistakes are listed at once.",
            "Correct the line. `zlaunch keys NAME` explains a key, also by the name that other programs have for it.",
        ),
        (
            "作业的键或值有误",
            "作业文件、`--set` 或选项中有不存在的键，或有该键不能取的值。信息指明文件、行号和键；全部错误一次列出。",
            "改正该行。`zlaunch keys 名称` 说明一个键，也可用其他程序中的名称查找。",
        ),
    ),
    "ZL-JOB-02": _code(
        (
            "the job file cannot be read",
            "There is no such file, it is not UTF-8, or it is not YAML.",
            "Check the path; `zlaunch init` writes a new one. Quote strings with `:`, `#` or `{`, and save as UTF-8.",
        ),
        (
            "无法读取作业文件",
            "没有这个文件，或它不是 UTF-8，或不是 YAML。",
            "检查路径；`zlaunch init` 写出一份新的。含有 `:`、`#` 或 `{` 的文字要加引号，并保存为 UTF-8。",
        ),
    ),
    "ZL-JOB-03": _code(
        (
            "model or data are not named",
            "A training needs `model.path` and `data.train`, and one of them is not set.",
            "Set them in the job file, or with `--model` and `--train-data`.",
        ),
        (
            "没有指明模型或数据",
            "训练需要 `model.path` 和 `data.train`，其中之一没有设置。",
            "在作业文件中设置，或用 `--model` 和 `--train-data`。",
        ),
    ),
    "ZL-JOB-04": _code(
        (
            "a secret is missing, or would be shown",
            "A variable that `secrets` names is not set in this shell, or a secret stands where others could read it.",
            "Run `export NAME=...` before zlaunch. Name secrets in `secrets`, never their values.",
        ),
        (
            "缺少机密变量，或机密会被看到",
            "`secrets` 所列的变量没有在当前 shell 中设置，或机密写在了别人能读到的地方。",
            "先执行 `export 名称=...` 再运行 zlaunch。`secrets` 中只写名称，不写值。",
        ),
    ),
    "ZL-JOB-05": _code(
        (
            "the address for notices is wrong",
            "`notify.url` or `notify.secret` is not an address or variable that notices can be sent with.",
            "Write `url: $NAME`, where the variable NAME holds the address, or the address itself.",
        ),
        (
            "通知的地址有误",
            "`notify.url` 或 `notify.secret` 不是可用来发送通知的地址或变量。",
            "写 `url: $NAME`，由变量 NAME 给出地址，或直接写地址。",
        ),
    ),
    "ZL-JOB-06": _code(
        (
            "a file of another program cannot be imported",
            "`zlaunch init --from` does not recognize the file or command, or it asks for what zlaunch does not train.",
            "docs/import.md lists what is read. Name the training file or the whole command in quotes.",
        ),
        (
            "无法导入其他程序的文件",
            "`zlaunch init --from` 不认识这个文件或命令，或它要求 zlaunch 不训练的内容。",
            "docs/import.md 列出能读取的内容。请给出训练的配置文件，或把整条命令放在引号里。",
        ),
    ),
    "ZL-JOB-07": _code(
        (
            "the DeepSpeed configuration cannot be used",
            "The file of `train.ds_config` cannot be read, is not JSON, or sets what the job sets otherwise.",
            "Correct the file; docs/deepspeed.md says which keys are taken and which the job decides.",
        ),
        (
            "DeepSpeed 配置无法使用",
            "`train.ds_config` 的文件无法读取、不是 JSON，或其设置与作业矛盾。",
            "改正该文件；docs/deepspeed.md 说明采用哪些键、哪些由作业决定。",
        ),
    ),
    "ZL-JOB-08": _code(
        (
            "a template or variable file of yours cannot be used",
            "Your own batch script, `node.sh` or file of variables cannot be read or rendered.",
            "`zlaunch templates diff` shows how a template differs from the stock one.",
        ),
        (
            "你自己的模板或变量文件无法使用",
            "你自己的批处理脚本、`node.sh` 或变量文件无法读取或生成。",
            "`zlaunch templates diff` 显示它与自带模板的差别。",
        ),
    ),
    # the command line
    "ZL-OPT-01": _code(
        (
            "options contradict each other, or one has no effect",
            "Two options exclude each other, or an option belongs to another command or needs a further one.",
            "Leave one out, as the message says. `--help` of the command lists its options.",
        ),
        (
            "选项互相矛盾，或不起作用",
            "两个选项互相排斥，或一个选项属于其他命令，或还需要另一个选项。",
            "按信息所说去掉一个。命令的 `--help` 列出它的选项。",
        ),
    ),
    "ZL-OPT-02": _code(
        (
            "--set or --sweep is wrong",
            "`--set` takes `key=value`, `--sweep` takes `key=value,value`; a key stands in one of them, once.",
            "Write for example `--set lora.r=8` or `--sweep lora.r=8,16`.",
        ),
        (
            "--set 或 --sweep 写法有误",
            "`--set` 的写法是 `键=值`，`--sweep` 的写法是 `键=值,值`；同一个键只能在其中之一出现一次。",
            "例如写 `--set lora.r=8` 或 `--sweep lora.r=8,16`。",
        ),
    ),
    "ZL-OPT-03": _code(
        (
            "the value of an option is not known",
            "An option or argument names something that does not exist: a rank, a key, a shell, a template.",
            "Choose one of those that the message lists.",
        ),
        (
            "选项的值未知",
            "选项或参数指明了不存在的进程、键、shell 或模板。",
            "从信息列出的内容中选择。",
        ),
    ),
    "ZL-OPT-04": _code(
        (
            "the command line is not understood",
            "There is no such command, option or argument, or the value of an option has another type.",
            "Read `zlaunch COMMAND --help`. Words of other programs are answered with ours.",
        ),
        (
            "无法理解命令行",
            "没有这个命令、选项或参数，或选项的值类型不符。",
            "请看 `zlaunch 命令 --help`。输入其他程序的词时，会告诉你这里的写法。",
        ),
    ),
    # the plan
    "ZL-PLAN-01": _code(
        (
            "settings cannot work together",
            "Each setting is allowed, but not with the others: for example fp8 with an engine that has none.",
            "Change one of those that the message names. `auto` picks a value that fits the others.",
        ),
        (
            "设置不能同时使用",
            "每个设置单独可用，但不能与其他设置同时使用，例如在不支持 fp8 的引擎上用 fp8。",
            "改变信息所指的其中一个设置。`auto` 会选取与其他设置相配的值。",
        ),
    ),
    "ZL-PLAN-02": _code(
        (
            "the model does not fit the GPU",
            "No setting within what the job fixes needs less memory than a GPU has. Nothing was started.",
            "Take one of the changes that the message lists. `zlaunch plan JOB --gpu h100` tries another GPU.",
        ),
        (
            "GPU 放不下模型",
            "在作业已定的范围内，没有哪种设置所需的显存不超过一个 GPU。什么都没有启动。",
            "采用信息列出的一种改动。`zlaunch plan JOB --gpu h100` 可试其他 GPU。",
        ),
    ),
    "ZL-PLAN-03": _code(
        (
            "no batch size fits these ranks",
            "`train.global_batch_size` must be micro batch x accumulation x ranks, in whole numbers.",
            "Set one of the nearby sizes that the message names, or leave the micro batch to `auto`.",
        ),
        (
            "批大小与进程数不相配",
            "`train.global_batch_size` 必须等于微批 × 累积 × 进程数，且都是整数。",
            "设为信息给出的相近值，或把微批设为 `auto`。",
        ),
    ),
    "ZL-PLAN-04": _code(
        (
            "the model or the GPU of a plan is not known",
            "A plan needs the shape of the model (config.json or a built-in name) and the memory of the GPU.",
            "Give a directory with config.json, `--gpu` with a name of the table, or `--gpu-memory 24GiB`.",
        ),
        (
            "规划所用的模型或 GPU 未知",
            "规划需要模型的形状（config.json 或内置名称）和 GPU 的显存。",
            "给出含有 config.json 的目录、表中的 `--gpu` 名称，或 `--gpu-memory 24GiB`。",
        ),
    ),
    # records
    "ZL-DATA-01": _code(
        (
            "a data file cannot be read",
            "There is no such file, it is empty, or you may not read it.",
            "Check the path: in a job file it is relative to the file, on the command line to the working directory.",
        ),
        (
            "无法读取数据文件",
            "没有这个文件、文件是空的，或没有读取权限。",
            "检查路径：作业文件中的路径相对于该文件，命令行上的路径相对于工作目录。",
        ),
    ),
    "ZL-DATA-02": _code(
        (
            "records cannot be trained on",
            "Some records have no answer, another form, or are no valid text. The message names file and line.",
            "Correct these lines, name your columns in `data.columns`, or leave them out with `data.on_error: skip`. "
            "`zlaunch data check JOB` reads all of them.",
        ),
        (
            "记录无法用于训练",
            "有些记录没有回答、格式不同，或不是合法的文字。信息指明文件和行号。",
            "改正这些行，用 `data.columns` 指明列名，或设 `data.on_error: skip` 舍去它们。"
            "`zlaunch data check JOB` 会检查全部记录。",
        ),
    ),
    "ZL-DATA-03": _code(
        (
            "no record is left to train on or to evaluate",
            "The files hold no record, or all were left out: too long, unreadable, or without an answer to learn.",
            "`zlaunch data check JOB` says what becomes of each. Often `data.max_length` is too small.",
        ),
        (
            "没有剩下可训练或可评测的记录",
            "文件中没有记录，或全部被舍去：过长、无法读取，或没有可学的回答。",
            "`zlaunch data check JOB` 说明各条记录的去向。常见原因是 `data.max_length` 太小。",
        ),
    ),
    "ZL-DATA-04": _code(
        (
            "it is not clear which files hold the records",
            "The kind of a file is unknown, or a directory has several splits or none.",
            "Name the file, or a split as `DIRECTORY:train`. docs/data.md lists the kinds of files.",
        ),
        (
            "不清楚哪些文件是记录",
            "文件类型未知，或目录中有多个划分，或没有划分。",
            "指明文件，或以 `目录:train` 指明划分。docs/data.md 列出文件的类型。",
        ),
    ),
    "ZL-DATA-05": _code(
        (
            "data.columns names a key that no format has",
            "`data.columns` maps your columns to keys of a format of records, such as `instruction` or `messages`.",
            "Use one of the keys that the message lists.",
        ),
        (
            "data.columns 中的键不属于任何格式",
            "`data.columns` 把你的列对应到记录格式的键，如 `instruction` 或 `messages`。",
            "改用信息列出的键。",
        ),
    ),
    "ZL-DATA-06": _code(
        (
            "records changed, or differ between nodes",
            "A file was written while it was read, changed during the run, or is another one on another node.",
            "Start again when nothing writes to it. Give every node the same files.",
        ),
        (
            "记录发生了变化，或各节点不同",
            "文件在读取期间被写入、在运行期间改变，或各节点上的文件不同。",
            "在没有程序写入时重新开始。让每个节点使用同样的文件。",
        ),
    ),
    "ZL-DATA-07": _code(
        (
            "a data set of the hub cannot be loaded",
            "The name or split is wrong, the data set is private, or the hub cannot be reached.",
            "Write `hub:owner/name:split`. A private one needs HF_TOKEN in `secrets`; see docs/guide/mirrors.md.",
        ),
        (
            "无法加载模型库中的数据集",
            "名称或划分有误、数据集是私有的，或无法连接模型库。",
            "写作 `hub:owner/name:split`。私有数据集需要在 `secrets` 中加入 HF_TOKEN；"
            "另见 docs/guide/mirrors.zh-CN.md。",
        ),
    ),
    # model
    "ZL-MODEL-01": _code(
        (
            "there is no such model",
            "`model.path` is neither a directory here nor a name that the hub knows.",
            "Check the spelling (`owner/name`), or give a directory. Gated models need HF_TOKEN in `secrets`.",
        ),
        (
            "没有这个模型",
            "`model.path` 既不是本地目录，也不是模型库中的名字。",
            "检查拼写（`owner/name`），或给出目录。需申请的模型要在 `secrets` 中加入 HF_TOKEN。",
        ),
    ),
    "ZL-MODEL-02": _code(
        (
            "files of the model are missing or damaged",
            "The directory lacks a file that its index names, or a file was cut short while it was downloaded.",
            "Download the model again, whole.",
        ),
        (
            "模型文件缺失或损坏",
            "目录缺少索引所列的文件，或某个文件下载不完整。",
            "重新完整地下载模型。",
        ),
    ),
    "ZL-MODEL-03": _code(
        (
            "the model cannot be loaded",
            "The directory holds an adapter instead of a model, or an architecture that transformers does not know.",
            "An adapter belongs in `lora.adapter`. A model with code of its own needs `model.trust_remote_code: true`.",
        ),
        (
            "无法加载模型",
            "目录中是适配器而不是模型，或 transformers 不认识这种架构。",
            "适配器应写在 `lora.adapter`。自带代码的模型需要 `model.trust_remote_code: true`。",
        ),
    ),
    "ZL-MODEL-04": _code(
        (
            "the tokenizer cannot be used",
            "It is missing, is no fast tokenizer, or has no end-of-sequence token. Only a fast tokenizer says which "
            "tokens belong to an answer.",
            "Add a `tokenizer.json`; transformers converts most tokenizers.",
        ),
        (
            "分词器无法使用",
            "没有分词器、不是 fast 分词器，或没有序列结束词元。只有 fast 分词器能说明哪些词元属于回答。",
            "加上 `tokenizer.json`；transformers 能转换大多数分词器。",
        ),
    ),
    "ZL-MODEL-05": _code(
        (
            "the chat template cannot show the conversations",
            "The template is not valid, refuses a conversation, or asks for an answer otherwise than it shows one, so "
            "that training and use would differ.",
            "Give `data.chat_template` a template of your own; docs/prompts.md explains what it must do.",
        ),
        (
            "聊天模板无法显示对话",
            "模板不合法、拒绝某个对话，或请求回答的写法与显示回答的写法不同，使训练与使用不一致。",
            "给 `data.chat_template` 一个自己的模板；docs/prompts.md 说明它须做到什么。",
        ),
    ),
    "ZL-MODEL-06": _code(
        (
            "LoRA has no such place in this model",
            "`lora.target_modules` or `lora.modules_to_save` names layers that the model does not have, or that LoRA "
            "cannot adapt.",
            "Use one of the names in the message, or leave the key out: the usual layers are the default.",
        ),
        (
            "这个模型没有 LoRA 所指的层",
            "`lora.target_modules` 或 `lora.modules_to_save` 指明了模型没有的层，或 LoRA 不能适配的层。",
            "改用信息中的名称，或去掉这个键：默认就是常用的层。",
        ),
    ),
    "ZL-MODEL-07": _code(
        (
            "the adapter cannot be continued",
            "`lora.adapter` is not a LoRA adapter, belongs to another base model, or has settings that were changed.",
            "Name the `adapter/` directory of a finished run and its own base model.",
        ),
        (
            "无法继续训练这个适配器",
            "`lora.adapter` 不是 LoRA 适配器、属于另一个基础模型，或其设置与作业不同。",
            "指明一次已结束的运行的 `adapter/` 目录，以及它自己的基础模型。",
        ),
    ),
    "ZL-MODEL-08": _code(
        (
            "a conversation does not fit the model",
            "It has more tokens than the model has positions, or a token that the model has no embedding for.",
            "Shorten it, or use the tokenizer that belongs to the model.",
        ),
        (
            "对话超出模型的范围",
            "对话的词元数超过模型的位置数，或有模型没有嵌入的词元。",
            "缩短对话，或使用该模型自己的分词器。",
        ),
    ),
    "ZL-MODEL-09": _code(
        (
            "the hub cannot be reached",
            "The model is not in the cache, and the hub does not answer.",
            "Set HF_ENDPOINT to a mirror, `model.source: modelscope`, or give a directory; see docs/guide/mirrors.md.",
        ),
        (
            "无法连接模型库",
            "模型不在缓存中，而模型库没有应答。",
            "把 HF_ENDPOINT 设为镜像，设 `model.source: modelscope`，或给出目录；见 docs/guide/mirrors.zh-CN.md。",
        ),
    ),
    # GPUs
    "ZL-GPU-01": _code(
        (
            "there is no GPU",
            "The machine or host has no NVIDIA GPU that can be used.",
            "Use `--device cpu --procs N`, leave the host out, or see `zlaunch doctor`.",
        ),
        (
            "没有 GPU",
            "本机或该主机没有可用的 NVIDIA GPU。",
            "用 `--device cpu --procs N`，排除该主机，或执行 `zlaunch doctor`。",
        ),
    ),
    "ZL-GPU-02": _code(
        (
            "there are fewer GPUs than requested",
            "More ranks were asked for than GPUs are visible.",
            "Request fewer, or check CUDA_VISIBLE_DEVICES and `nvidia-smi`.",
        ),
        (
            "GPU 少于请求的数目",
            "请求的进程数多于可见的 GPU。",
            "减少请求，或检查 CUDA_VISIBLE_DEVICES 与 `nvidia-smi`。",
        ),
    ),
    "ZL-GPU-03": _code(
        (
            "the GPUs cannot be counted",
            "`nvidia-smi` does not answer, or CUDA_VISIBLE_DEVICES holds what is no GPU of this machine.",
            "Run `nvidia-smi`; correct CUDA_VISIBLE_DEVICES; for a plan, name the GPU with `--gpu`.",
        ),
        (
            "无法得知 GPU 的情况",
            "`nvidia-smi` 没有应答，或 CUDA_VISIBLE_DEVICES 中有不属于本机的 GPU。",
            "执行 `nvidia-smi`；改正 CUDA_VISIBLE_DEVICES；规划时用 `--gpu` 指明 GPU。",
        ),
    ),
    "ZL-GPU-04": _code(
        (
            "the driver or a GPU fails",
            "CUDA could not start: the driver is too old for torch, the GPU is in use, or it reports a hardware error.",
            "`nvidia-smi` and `zlaunch doctor` on that host tell more; leave the host out with `--exclude`.",
        ),
        (
            "驱动或 GPU 出错",
            "CUDA 无法启动：驱动对 torch 来说太旧、GPU 被占用，或它报告硬件错误。",
            "在该主机上执行 `nvidia-smi` 和 `zlaunch doctor`；可用 `--exclude` 排除该主机。",
        ),
    ),
    # this machine
    "ZL-MACHINE-01": _code(
        (
            "a program failed, or is not installed",
            "zlaunch started another program, which ended with an error. Its last lines are shown.",
            "Read these lines; install the program if it is missing.",
        ),
        (
            "一个程序失败，或没有安装",
            "zlaunch 启动的另一个程序以错误结束。信息中有它的最后几行。",
            "阅读这几行；如果缺少该程序，请安装。",
        ),
    ),
    "ZL-MACHINE-02": _code(
        (
            "the training environment is missing or incomplete",
            "The Python that should train does not exist, or lacks packages such as torch.",
            "`pip install 'zlaunch[train]'`, or name another interpreter with `--python`.",
        ),
        (
            "没有训练环境，或环境不完整",
            "用来训练的 Python 不存在，或缺少 torch 等软件包。",
            "执行 `pip install 'zlaunch[train]'`，或用 `--python` 指明另一个解释器。",
        ),
    ),
    "ZL-MACHINE-03": _code(
        (
            "a port is taken",
            "Another program listens on the port, or no free port was found.",
            "Start again: a new port is picked. For `zlaunch ui`, name another `--port`.",
        ),
        (
            "端口被占用",
            "另一个程序正在监听该端口，或找不到空闲端口。",
            "重新开始即可，会选新的端口。`zlaunch ui` 可用 `--port` 换一个。",
        ),
    ),
    # files
    "ZL-FILE-01": _code(
        (
            "the file or directory exists already",
            "zlaunch writes over nothing that it was not asked to.",
            "Name another one, remove it, or use `--force` where the command has it.",
        ),
        (
            "文件或目录已存在",
            "没有得到要求时，zlaunch 不覆盖任何内容。",
            "另取一个名字，删除它，或在命令支持时使用 `--force`。",
        ),
    ),
    "ZL-FILE-02": _code(
        (
            "a file cannot be read or written",
            "A file or directory that you named does not exist, or you may not use it.",
            "Check the path and its permissions.",
        ),
        (
            "无法读取或写入文件",
            "你指明的文件或目录不存在，或没有权限。",
            "检查路径与权限。",
        ),
    ),
    "ZL-FILE-03": _code(
        (
            "the disk is full or cannot be used",
            "No space or no inode is left, the quota is used up, the file system is read-only, or its mount is gone.",
            "Free space (`zlaunch clean`), check the mount, then run the command again. Checkpoints are untouched.",
        ),
        (
            "磁盘已满或无法使用",
            "没有剩余空间或 inode、配额用尽、文件系统只读，或挂载已消失。",
            "腾出空间（`zlaunch clean`），检查挂载，然后重新执行命令。检查点不受影响。",
        ),
    ),
    # runs
    "ZL-RUN-01": _code(
        (
            "there is no such run, or several",
            "No run of that name is in the directory of runs, or the name is the beginning of several.",
            "`zlaunch list` shows the runs; give more of the name, or set ZLAUNCH_RUNS to their directory.",
        ),
        (
            "没有这次运行，或不止一次",
            "运行的目录中没有这个名字，或它是多次运行的前缀。",
            "`zlaunch list` 列出各次运行；多给出几个字符，或把 ZLAUNCH_RUNS 设为存放运行的目录。",
        ),
    ),
    "ZL-RUN-02": _code(
        (
            "the record of a run cannot be read",
            "run.json or another file of the run is damaged, missing, or of a newer version of zlaunch.",
            "Logs, checkpoints and adapter are files of their own and stay usable (docs/run-directory.md).",
        ),
        (
            "无法读取运行的记录",
            "run.json 或运行的其他文件损坏、缺失，或由更新版本的 zlaunch 写出。",
            "日志、检查点和适配器是单独的文件，仍可使用（docs/run-directory.md）。",
        ),
    ),
    "ZL-RUN-03": _code(
        (
            "the state of the run does not allow this",
            "The run is still running, has succeeded, was only rendered, or is half removed.",
            "Do what the arrow says: wait, cancel it, or start it.",
        ),
        (
            "运行的状态不允许这样做",
            "运行仍在进行、已经成功、只写出了文件，或只删除了一半。",
            "按箭头所说的做：等待、取消或启动它。",
        ),
    ),
    "ZL-RUN-04": _code(
        (
            "another command works on the run",
            "Two commands must not change or copy one run at the same time.",
            "Wait for the other one; `zlaunch status RUN` works meanwhile.",
        ),
        (
            "另一个命令正在处理这次运行",
            "两个命令不能同时改变或复制同一次运行。",
            "等待另一个命令完成；其间可以用 `zlaunch status RUN`。",
        ),
    ),
    "ZL-RUN-05": _code(
        (
            "the run did not succeed",
            "It was started and failed, was lost or was stopped.",
            "`zlaunch status RUN` names the rank that failed first, and its cause; `zlaunch resume RUN` continues.",
        ),
        (
            "运行没有成功",
            "它已启动，但失败了、失联了，或被停止。",
            "`zlaunch status RUN` 指明最先失败的进程与原因；`zlaunch resume RUN` 继续。",
        ),
    ),
    "ZL-RUN-06": _code(
        (
            "the run could not be cancelled",
            "Something of the run may still live: a host or Slurm did not answer, or a process did not end.",
            "Run `zlaunch cancel RUN` again.",
        ),
        (
            "没能取消运行",
            "运行可能仍有部分存活：主机或 Slurm 没有应答，或进程没有结束。",
            "再次执行 `zlaunch cancel RUN`。",
        ),
    ),
    "ZL-RUN-07": _code(
        (
            "the run has no adapter yet",
            "Chat, generate, eval and export need an adapter: a run has one from its first checkpoint on.",
            "Wait for it; `zlaunch status RUN` shows how far it is. For a run elsewhere: `zlaunch pull RUN`.",
        ),
        (
            "运行还没有适配器",
            "chat、generate、eval 和 export 需要适配器：第一个检查点之后才有。",
            "请等待；`zlaunch status RUN` 显示进度。在别处的运行用 `zlaunch pull RUN` 取回。",
        ),
    ),
    "ZL-RUN-08": _code(
        (
            "the checkpoint was made with other settings",
            "A resumed run must train the same adapter: rank, quantization and such stay as they were.",
            "Resume with the settings of the run, or start a new one.",
        ),
        (
            "检查点是用其他设置保存的",
            "续训必须训练同一个适配器：秩、量化等保持不变。",
            "用原来的设置续训，或重新开始一次运行。",
        ),
    ),
    "ZL-RUN-09": _code(
        (
            "a checkpoint cannot be used",
            "It is incomplete, damaged, or was made by a newer version.",
            "`zlaunch resume` takes the newest complete one by itself; for `init_from`, name another.",
        ),
        (
            "检查点无法使用",
            "它不完整、已损坏，或由更新的版本写出。",
            "`zlaunch resume` 会自行采用最新的完整检查点；`init_from` 请指明另一个。",
        ),
    ),
    "ZL-RUN-10": _code(
        (
            "the run did not start",
            "The agent that watches the ranks did not come up on this machine or on a host.",
            "The lines below say why. What was started is ended; start again when the reason is gone.",
        ),
        (
            "运行没有启动",
            "看护各进程的 agent 没能在本机或某台主机上启动。",
            "下面几行说明原因。已启动的部分都已结束；排除原因后重新开始。",
        ),
    ),
    "ZL-RUN-11": _code(
        (
            "the run is not removed",
            "Only directories of runs are removed, and points only with their sweep.",
            "Do what the arrow says, or remove the directory yourself.",
        ),
        (
            "运行没有删除",
            "只删除运行的目录；扫描的点只随扫描一起删除。",
            "按箭头所说的做，或自行删除该目录。",
        ),
    ),
    # hosts
    "ZL-HOST-01": _code(
        (
            "the list of hosts is wrong",
            "A line of the hostfile or an entry of `--hosts` is not a host, or a host is there twice.",
            "One line per host: `worker-0 slots=8`; or `--hosts node[1-4]`.",
        ),
        (
            "主机列表有误",
            "hostfile 的某一行或 `--hosts` 的某一项不是主机，或同一台主机出现两次。",
            "每台主机一行：`worker-0 slots=8`；或 `--hosts node[1-4]`。",
        ),
    ),
    "ZL-HOST-02": _code(
        (
            "--include or --exclude is wrong",
            "They name a host or slot that the list does not have, or both are given.",
            "Write `NODE[:SLOT,SLOT]`, several joined by `@`, as for DeepSpeed.",
        ),
        (
            "--include 或 --exclude 有误",
            "它们指明了列表中没有的主机或插槽，或两者同时给出。",
            "写作 `NODE[:SLOT,SLOT]`，多个之间用 `@` 连接，与 DeepSpeed 相同。",
        ),
    ),
    # ssh
    "ZL-SSH-01": _code(
        (
            "a host cannot be reached",
            "The name does not resolve, nothing listens on the port, or a jump host lets no connection through.",
            "Try `ssh HOST`; `zlaunch doctor ssh --hosts HOST` says where it stops.",
        ),
        (
            "无法连接主机",
            "主机名无法解析、端口上没有服务，或跳板机不放行。",
            "试试 `ssh HOST`；`zlaunch doctor ssh --hosts HOST` 说明停在哪一步。",
        ),
    ),
    "ZL-SSH-02": _code(
        (
            "the host accepts no login",
            "None of your keys is accepted. zlaunch asks for no password.",
            "Copy a key with `ssh-copy-id HOST`; load keys with a passphrase or of hardware with `ssh-add`.",
        ),
        (
            "主机不接受登录",
            "你的密钥都没有被接受。zlaunch 不询问密码。",
            "用 `ssh-copy-id HOST` 复制密钥；有口令的密钥或硬件密钥用 `ssh-add` 载入。",
        ),
    ),
    "ZL-SSH-03": _code(
        (
            "the key of a host is not trusted",
            "The host is not in known_hosts, shows another key than before, or one that is revoked.",
            "Compare the fingerprint with the host's administrator. For new hosts: `--accept-new-host-keys`.",
        ),
        (
            "主机密钥不可信",
            "主机不在 known_hosts 中、出示的密钥与以前不同，或密钥已被吊销。",
            "向主机的管理员核对指纹。新主机可用 `--accept-new-host-keys`。",
        ),
    ),
    "ZL-SSH-04": _code(
        (
            "the SSH configuration cannot be used",
            "~/.ssh/config or the file of `--ssh-config` cannot be read, or ssh itself refuses it.",
            "`ssh -G HOST` shows what ssh makes of it.",
        ),
        (
            "SSH 配置无法使用",
            "~/.ssh/config 或 `--ssh-config` 的文件无法读取，或 ssh 本身拒绝它。",
            "`ssh -G HOST` 显示 ssh 的理解。",
        ),
    ),
    "ZL-SSH-05": _code(
        (
            "a host cannot be worked with",
            "Login works, but Python is missing or too old, the login files print or exit, or the session broke.",
            "Name the interpreter with `--python`; a non-interactive login must be silent: `ssh HOST true`.",
        ),
        (
            "主机无法使用",
            "可以登录，但没有 Python 或版本太旧、登录文件有输出或会退出，或会话中断。",
            "用 `--python` 指明解释器；非交互登录不应有任何输出：`ssh HOST true`。",
        ),
    ),
    "ZL-SSH-06": _code(
        (
            "a host answers what no host answers",
            "The answer of the far end has another form than ours. Nothing of it was used.",
            "Does something on the host print into the session? Else please report it.",
        ),
        (
            "主机的回答不是应有的",
            "远端的回答格式与我们的不同。其内容没有被采用。",
            "主机上是否有程序向会话输出内容？如果不是，请告诉我们。",
        ),
    ),
    "ZL-SSH-07": _code(
        (
            "some of the hosts failed",
            "The lines below name each host and its reason; the others did their part.",
            "Mend these hosts, or leave them out with `--exclude`. `zlaunch doctor ssh` shows all of them.",
        ),
        (
            "部分主机失败",
            "下面几行列出每台主机与原因；其他主机都已完成。",
            "修复这些主机，或用 `--exclude` 排除它们。`zlaunch doctor ssh` 显示全部主机。",
        ),
    ),
    "ZL-SSH-08": _code(
        (
            "the hosts do not reach each other",
            "Ranks talk to each other directly, and no address of the first host is open to all others.",
            "Open TCP ports 10000-29999 between the hosts, or name an address with `--master-addr`.",
        ),
        (
            "主机之间无法互相连接",
            "各进程直接通信，而第一台主机没有一个地址能让其他主机都连上。",
            "在主机之间开放 TCP 端口 10000-29999，或用 `--master-addr` 指明地址。",
        ),
    ),
    # slurm
    "ZL-SLURM-01": _code(
        (
            "sbatch refused the job",
            "Slurm's own words are shown: often account, partition, QOS or a limit.",
            "Change what they name; `zlaunch doctor slurm JOB` checks beforehand.",
        ),
        (
            "sbatch 拒绝了作业",
            "信息中有 Slurm 的原话：常见的是账户、分区、QOS 或限额。",
            "改变它所指的内容；`zlaunch doctor slurm JOB` 可事先检查。",
        ),
    ),
    "ZL-SLURM-02": _code(
        (
            "Slurm does not answer",
            "squeue, sacct or scontrol failed. Runs that were submitted are not affected.",
            "Try again later; `scontrol ping` tells whether the controller is up.",
        ),
        (
            "Slurm 没有应答",
            "squeue、sacct 或 scontrol 失败。已提交的运行不受影响。",
            "稍后再试；`scontrol ping` 说明控制器是否在运行。",
        ),
    ),
    "ZL-SLURM-03": _code(
        (
            "no partition or node has what the job asks for",
            "The partition does not exist, or none of its nodes has so many GPUs of that type.",
            "Take one of the partitions or types that the message lists.",
        ),
        (
            "没有分区或节点满足作业的要求",
            "分区不存在，或其中没有节点有这么多该型号的 GPU。",
            "改用信息列出的分区或型号。",
        ),
    ),
    "ZL-SLURM-04": _code(
        (
            "an option for sbatch is wrong",
            "A value of the section `slurm` is no option of sbatch, or zlaunch sets it by another key.",
            "Use the key that the message names. Time limits are written like 04:00:00.",
        ),
        (
            "sbatch 的选项有误",
            "`slurm` 一节的某个值不是 sbatch 的选项，或由 zlaunch 的其他键设置。",
            "使用信息所指的键。时间上限写作 04:00:00。",
        ),
    ),
    "ZL-SLURM-05": _code(
        (
            "the login host fails",
            "`slurm.login` cannot be reached, or files cannot be copied to or from it.",
            "Try `ssh LOGIN`; check `slurm.workdir` and the space there.",
        ),
        (
            "登录主机出错",
            "无法连接 `slurm.login`，或无法与它互相复制文件。",
            "试试 `ssh LOGIN`；检查 `slurm.workdir` 及其空间。",
        ),
    ),
    "ZL-SLURM-06": _code(
        (
            "this is no allocation of Slurm, or too small a one",
            "The command uses the nodes of the allocation that it runs in.",
            "Run it in a batch script or below `salloc -N 2`.",
        ),
        (
            "不在 Slurm 的分配之中，或分配太小",
            "该命令使用它所处的分配中的节点。",
            "在批处理脚本中运行，或先执行 `salloc -N 2`。",
        ),
    ),
    # containers
    "ZL-IMAGE-01": _code(
        (
            "the container engine is missing",
            "The image needs docker, podman, Apptainer, enroot or Charliecloud, which is not installed there.",
            "Install it, choose another with `--container`, or use `--container none`.",
        ),
        (
            "没有容器引擎",
            "镜像需要 docker、podman、Apptainer、enroot 或 Charliecloud，而那里没有安装。",
            "安装它，用 `--container` 选择另一个，或用 `--container none`。",
        ),
    ),
    "ZL-IMAGE-02": _code(
        (
            "the image is not named or not there",
            "`container.image` names no image, an archive, or a file of an unknown kind.",
            "`zlaunch build` makes one; `zlaunch image load` loads an archive on hosts without a registry.",
        ),
        (
            "没有指明镜像，或没有这个镜像",
            "`container.image` 没有指明镜像，或它是归档文件，或文件类型未知。",
            "`zlaunch build` 构建一个；`zlaunch image load` 在没有镜像仓库的主机上载入归档。",
        ),
    ),
    "ZL-IMAGE-03": _code(
        (
            "the engine refuses to start the container",
            "The engine's own words are shown.",
            "`container.args` adds an argument to its command line, `container.omit` leaves one of zlaunch's out.",
        ),
        (
            "引擎拒绝启动容器",
            "信息中有引擎的原话。",
            "`container.args` 在其命令行中增加参数，`container.omit` 省去 zlaunch 的参数。",
        ),
    ),
    "ZL-IMAGE-04": _code(
        (
            "an argument or a mount for the container is wrong",
            "`container.args`, `container.omit` or `container.mounts` cannot be given to this engine so.",
            "Write a mount as `/host:/container[:rw]`, and an option with its value as one word.",
        ),
        (
            "容器的参数或挂载有误",
            "`container.args`、`container.omit` 或 `container.mounts` 不能这样交给引擎。",
            "挂载写作 `/主机路径:/容器路径[:rw]`，选项和值写成一个词。",
        ),
    ),
    "ZL-IMAGE-05": _code(
        (
            "the image was not built, saved or loaded",
            "The engine failed, or the ending of the file names no format that it can be written in.",
            "Read the output above; the endings are .tar, .sif and .sqsh.",
        ),
        (
            "镜像没有构建、保存或载入成功",
            "引擎失败，或文件名后缀不是可写的格式。",
            "阅读上面的输出；后缀为 .tar、.sif 和 .sqsh。",
        ),
    ),
    # training
    "ZL-TRAIN-01": _code(
        (
            "the training has diverged",
            "Loss or gradients became infinite or no number.",
            "Set a tenth of `train.learning_rate`, keep `train.max_grad_norm: 1.0`, and avoid float16.",
        ),
        (
            "训练已发散",
            "损失或梯度变成无穷大或不是数。",
            "把 `train.learning_rate` 调到十分之一，保留 `train.max_grad_norm: 1.0`，不要用 float16。",
        ),
    ),
    "ZL-TRAIN-02": _code(
        (
            "out of GPU memory",
            "A step needed more memory than the GPU has.",
            "Take one of the settings below the message: a smaller micro batch, checkpointing, nf4, shorter records.",
        ),
        (
            "显存不足",
            "某一步所需的显存超过 GPU 的容量。",
            "采用信息下面的设置之一：更小的微批、激活值重计算、nf4、更短的记录。",
        ),
    ),
    "ZL-TRAIN-03": _code(
        (
            "the ranks lost their connection",
            "NCCL or gloo reports a broken connection. Often another rank died first.",
            "Look at the rank that failed first (`zlaunch status`); else set `env: {NCCL_DEBUG: INFO}`.",
        ),
        (
            "进程之间的连接中断",
            "NCCL 或 gloo 报告连接中断。常常是另一个进程先退出了。",
            "先看最先失败的进程（`zlaunch status`）；否则设 `env: {NCCL_DEBUG: INFO}`。",
        ),
    ),
    "ZL-TRAIN-04": _code(
        (
            "a process that reads records died",
            "A helper process of the tokenization was killed, usually for want of memory.",
            "Use fewer ranks per host, or a machine with more memory.",
        ),
        (
            "读取记录的进程退出了",
            "分词的辅助进程被杀掉，通常是因为内存不足。",
            "减少每台主机的进程数，或使用内存更大的机器。",
        ),
    ),
    "ZL-TRAIN-05": _code(
        (
            "the run's own files do not fit the start",
            "train.json or a file beside it was changed by hand, or a number of ranks started that was not planned.",
            "Start by `zlaunch`, or render the run again with `--dry-run`.",
        ),
        (
            "运行的文件与启动方式不符",
            "train.json 或旁边的文件被手工改动，或启动的进程数与规划不同。",
            "用 `zlaunch` 启动，或用 `--dry-run` 重新写出运行的文件。",
        ),
    ),
    "ZL-TRAIN-06": _code(
        (
            "the engine cannot train this here",
            "The engine that the job names is not installed, or lacks the model or the quantization.",
            "Set `train.engine: auto`, or the quantization that the message names; docs/models.md has the table.",
        ),
        (
            "引擎在这里无法训练",
            "作业指明的引擎没有安装，或不支持该模型或量化。",
            "设 `train.engine: auto`，或信息所指的量化；表格见 docs/models.md。",
        ),
    ),
    "ZL-TRAIN-07": _code(
        (
            "out of host memory",
            "The kernel ended a rank because the machine, the job or the container had no memory left.",
            "Fewer ranks per host, no offload to the CPU, or more memory (`slurm.mem`, the container's limit).",
        ),
        (
            "主机内存不足",
            "机器、作业或容器的内存用尽，内核结束了一个进程。",
            "减少每台主机的进程数，不要卸载到 CPU，或请求更多内存（`slurm.mem`、容器的限制）。",
        ),
    ),
    "ZL-TRAIN-08": _code(
        (
            "a rank was killed",
            "Another program sent a signal that nobody asked zlaunch for.",
            "Ask the administrators, and look into journalctl: systemd-oomd, earlyoom, limits of the site.",
        ),
        (
            "一个进程被杀掉",
            "其他程序发送了未经 zlaunch 请求的信号。",
            "询问管理员，并查看 journalctl：systemd-oomd、earlyoom、站点的限制。",
        ),
    ),
    "ZL-TRAIN-09": _code(
        (
            "the ranks hang",
            "No rank made progress within `train.hang_timeout`. The stacks of all threads were written.",
            "Look at the rank that differs from the others; docs/hangs.md shows how.",
        ),
        (
            "进程卡住",
            "在 `train.hang_timeout` 之内没有任何进程有进展。全部线程的调用栈已写出。",
            "看与其他不同的那个进程；方法见 docs/hangs.md。",
        ),
    ),
    "ZL-TRAIN-10": _code(
        (
            "a host was lost",
            "The agent of a host no longer answers: it was switched off, rebooted or cut off.",
            "Check the host. With `max_restarts` and `elastic: true` the run continues without it.",
        ),
        (
            "主机失联",
            "某台主机的看护进程不再应答：主机关机、重启或断网。",
            "检查该主机。设置 `max_restarts` 与 `elastic: true` 后，训练会在没有它的情况下继续。",
        ),
    ),
    "ZL-TRAIN-11": _code(
        (
            "a rank ended with an unknown error",
            "Its log holds a traceback that zlaunch has no name for: a bug of ours, of a library or of your program.",
            "Read the last lines of the rank's log; please report a bug of ours.",
        ),
        (
            "进程以未知的错误结束",
            "它的日志中有 zlaunch 叫不出名字的 traceback：可能是我们、某个库或你的程序的缺陷。",
            "阅读该进程日志的最后几行；如果是我们的缺陷，请告诉我们。",
        ),
    ),
    # exports
    "ZL-EXPORT-01": _code(
        (
            "the adapter cannot be exported so",
            "This kind of export cannot hold the model, its adapter or its chat template.",
            "Use `--to adapter`, which every PEFT loads, or `--to merged`.",
        ),
        (
            "适配器不能这样导出",
            "这种导出格式无法容纳该模型、适配器或聊天模板。",
            "使用 `--to adapter`（PEFT 都能加载），或 `--to merged`。",
        ),
    ),
    "ZL-EXPORT-02": _code(
        (
            "the export is not the trained model",
            "Prompts, logits or answers of the export differ from the run's by more than rounding.",
            "Nothing was written, or the comparison says what differs. `--to adapter` keeps what was trained.",
        ),
        (
            "导出的不是训练所得的模型",
            "导出模型的提示、logits 或回答与训练所得的相差超过舍入误差。",
            "要么没有写出任何内容，要么比较结果说明了差别。`--to adapter` 保留训练所得。",
        ),
    ),
    "ZL-EXPORT-03": _code(
        (
            "the server does not answer as one",
            "`--server` must be a server with OpenAI's HTTP interface, such as vLLM or SGLang.",
            "Check the address, the port and, with several models, `--server-model`.",
        ),
        (
            "服务没有按约定应答",
            "`--server` 须是提供 OpenAI HTTP 接口的服务，如 vLLM 或 SGLang。",
            "检查地址、端口；有多个模型时还要检查 `--server-model`。",
        ),
    ),
    "ZL-CONVERT-01": _code(
        (
            "the checkpoint cannot be converted",
            "It is not one of ChatGLM2, ChatGLM3 or Baichuan in the original layout, or a file is missing or damaged.",
            "Download it whole; docs/original-formats.md says what is converted.",
        ),
        (
            "检查点无法转换",
            "它不是原始格式的 ChatGLM2、ChatGLM3 或 Baichuan，或有文件缺失或损坏。",
            "重新完整下载；docs/original-formats.md 说明能转换什么。",
        ),
    ),
    "ZL-WEB-01": _code(
        (
            "a page or a chat asked for what cannot be done",
            "The request of the browser, or a line to `zlaunch generate --jsonl`, has another form than expected.",
            "Load the page again.",
        ),
        (
            "页面或对话的请求无法满足",
            "浏览器的请求，或交给 `zlaunch generate --jsonl` 的一行，格式与预期不同。",
            "重新加载页面。",
        ),
    ),
}
"""By area, in the order of AREAS."""
