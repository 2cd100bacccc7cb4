"""What the commands behind the buttons of a page print, in Chinese: lines about their work and its result."""

from __future__ import annotations

_RUN = r"([^\s:]+)"

ROWS = (
    (rf"{_RUN} is (PENDING|RUNNING|SUCCEEDED|FAILED|CANCELLED|STOPPED|LOST)(?:: (?P<t>.+))?", r"\1 为 \2 \g<t>"),
    (r"(?P<t>\D+): (\d+) of (\d+)", r"\g<t>：\3 台中有 \2 台"),
    # how far it is: train/rundir/counter.py, launcher/machine/byte_progress.py
    (r"(?P<t>[^:]+): (\d+) s so far", r"\g<t>：已用 \2 秒"),
    (r"(?P<t>.+): (\S+) of (\S+) (?P<t2>records|weights), (\d+) s left", r"\g<t>：\2/\3 \g<t2>，还需 \5 秒"),
    (r"(?P<t>.+): (\S+) (?P<t2>records|weights)", r"\g<t>：\2 \g<t2>"),
    (r"(?P<t>.+): (\S+) of (\S+) MB, (\S+) MB/s, (\d+) s left", r"\g<t>：\2/\3 MB，\4 MB/s，还需 \5 秒"),
    (r"(?P<t>.+): (\S+) MB, (\S+) MB/s", r"\g<t>：\2 MB，\3 MB/s"),
    (r"(?P<t>.+): (\S+ [kMG]?B) of (\S+ [kMG]?B), (\S+ [kMG]?B)/s, (\d+) s left", r"\g<t>：\2/\3，\4/s，还需 \5 秒"),
    (r"(?P<t>.+): (\S+ [kMG]?B), (\S+ [kMG]?B)/s(?:, \d+ s left)?", r"\g<t>：\2，\3/s"),
    (r"records", "条记录"),
    (r"weights", "个权重"),
    (r"asking the hub", "正在询问模型库"),
    (r"loading the tokenizer", "正在加载分词器"),
    (r"loading the base model", "正在加载基础模型"),
    (r"fetching the base model", "正在下载基础模型"),
    (r"fetching (\S+)", r"正在下载 \1"),
    (r"reading data\.(\w+)", r"正在读取 data.\1"),
    (r"reading the records", "正在读取数据"),
    (r"answering", "正在作答"),
    (r"loading PyTorch", "正在加载 PyTorch"),
    (r"merging the adapter into the base model", "正在把适配器并入基础模型"),
    (r"writing the merged model", "正在写入合并后的模型"),
    (r"loading it again, from (\S+) weights to 16 bits", r"重新加载：从 \1 权重还原为 16 位"),
    (r"copying results from (.+)", r"正在从 \1 取回结果"),
    (r"copying the checkpoint of step (\d+) from (.+)", r"正在从 \2 复制第 \1 步的检查点"),
    (r"sending the checkpoint of step (\d+) to (.+)", r"正在把第 \1 步的检查点发送到 \2"),
    (r"sending the run to (\d+) hosts?", r"正在把训练发送到 \1 台主机"),
    (r"(\S+): copying results", r"正在从 \1 取回结果"),
    (r"(\S+): send the (?:run directory|input files)", r"正在把文件发送到 \1"),
    # train/exports
    (r"prompt same, answer same: (.+)", r"提示相同，回答相同：\1"),
    (r"prompt not told, answer same: (.+)", r"服务没有给出提示，回答相同：\1"),
    (r"prompt (\S+|not told), answer same but for rounding: (.+)", r"回答除舍入误差外相同（提示：\1）：\2"),
    (r"prompt (\S+|not told), answer (\S+): (.+)", r"不同！提示：\1，回答：\2：\3"),
    (r"(\d+) of (\d+) prompts agree with (.+)", r"\2 个提示中有 \1 个与 \3 一致"),
    (r"an adapter for (.+)", r"\1 的适配器"),
    (r"(\S+) GB of weights in (\S+)", r"权重 \1 GB，类型 \2"),
    (
        r"logits of the merged model \((\S+)\) and of the trained one \((?P<t>.+)\): largest difference "
        r"(\S+), (\S+) of the largest logit",
        r"合并后的模型（\1）与训练所得模型（\g<t>）的 logits：最大差值 \3，为最大 logit 的 \4",
    ),
    (r"not quantized", "未量化"),
    (r"(\w+) weights", r"\1 权重"),
    (r"asking the run's own model and the (export|server)", r"正在询问训练所得模型与导出的模型（\1）"),
    (r"converting (.+)", r"正在转换 \1"),
    (r"(adapter|merged|ollama): (/.+)", r"已导出 \1：\2"),
    (
        r"ollama create (\S+) -f Modelfile +\(in the directory of the export\)",
        r"ollama create \1 -f Modelfile（在导出目录中运行）",
    ),
    (
        r"it adapts experts as transformers 5 holds them; for transformers 4, export --to merged",
        "它按 transformers 5 的方式适配专家；要用于 transformers 4，请导出 merged",
    ),
    (r"(/.+) exists already", r"\1 已存在"),
    (r"name a new directory with --out, or remove this one", "用 --out 另取一个目录，或删除它"),
    (r"(/.+) cannot be written: no space left on the disk", r"无法写入 \1：磁盘已满"),
    (r"(/.+) cannot be written: (.+)", r"无法写入 \1：\2"),
    (r"free some space, or name a directory elsewhere with --out", "请腾出空间，或用 --out 指定别处的目录"),
    (r"name a directory elsewhere with --out", "用 --out 指定别处的目录"),
    (r"(\S+) has no adapter yet", r"\1 还没有适配器"),
    (r"a run has one after its first checkpoint or at its end", "第一个检查点之后或训练结束时才有"),
    (r"the directory '(.+)' is relative, and a page has no place", r"目录 '\1' 是相对路径，而网页没有所在目录"),
    (r"begin with /", "请以 / 开头"),
    # resume, cancel, pull
    (r"from the checkpoint of step (\d+)", r"从第 \1 步的检查点继续"),
    (r"from the newest checkpoint on its hosts", "从其主机上最新的检查点继续"),
    (r"from the start: no checkpoint", "没有检查点，从头开始"),
    (rf"{_RUN} has succeeded", r"\1 已成功结束"),
    (r"to train longer: (zlaunch resume .+)", r"要训练更久：\1"),
    (rf"{_RUN}: (CANCELLED|STOPPED) before it started", r"\1：尚未开始即为 \2"),
    (rf"{_RUN}: (CANCELLED|STOPPED|SUCCEEDED|FAILED|LOST)", r"\1：\2"),
    (rf"{_RUN}: already (\w+)", r"\1：早已是 \2"),
    (rf"{_RUN}: not cancelled", r"\1：未能取消"),
    (
        rf"{_RUN} is unchanged: give these options again to resume it later",
        r"\1 没有改变：以后继续时请再次给出这些选项",
    ),
    (r"(/.+): all files of this (\w+) run are already here", r"\1：这次 \2 训练的文件都已在此"),
    # hub: train/hub/reachable.py, train/records
    (
        r"((?:model\.path: )?\S+) is not in the cache, and (\S+) does not answer: (.+)",
        r"\1 不在缓存中，而 \2 没有应答：\3",
    ),
    (
        r"set HF_ENDPOINT to a mirror, or give files and directories of this machine",
        "把 HF_ENDPOINT 设为镜像，或给出本机的文件和目录",
    ),
    (
        r"(\S+) does not answer \((.+)\), so only what is in the cache can be used",
        r"\1 没有应答（\2），只能使用缓存中的内容",
    ),
)
"""As in bilingual.TABLES."""
