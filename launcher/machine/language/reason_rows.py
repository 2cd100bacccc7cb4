"""Why settings have their values (plan.json: reasons, notes) and why settings cannot work together, in Chinese."""

from __future__ import annotations

_N = r"([-+.,\w%]+)"
"""A number or a share."""
_GIB = r"([\d.,]+ GiB)"

NETWORK = (
    # launcher/plan/fastest.py
    (
        rf"(\S+) sends {_N} GB per step between hosts: {_N} times slower than ZeRO-2 here, at (.+)",
        r"\1 每步在主机之间发送 \2 GB：在 \4 下比 ZeRO-2 慢 \3 倍",
    ),
    (
        rf"(\S+) sends {_N} GB per step between hosts, and waits {_N} of {_N} s for it, at (.+)",
        r"\1 每步在主机之间发送 \2 GB，在 \5 下 \4 秒中有 \3 秒在等待",
    ),
)

AUTOS = (
    # launcher/plan/autos.py
    (r"most CPUs multiply bfloat16 no faster", "多数 CPU 用 bfloat16 并不更快"),
    (r"(.+) \(compute capability (.+)\) has no bfloat16", r"\1（计算能力 \2）不支持 bfloat16"),
    (r"the GPU's native training format; needs no loss scaling", "GPU 原生的训练精度，无需损失缩放"),
    (
        rf"the largest divisor up to {_N} of the {_N} records per rank and step",
        r"每个进程每步 \2 条记录的约数中，不超过 \1 的最大者",
    ),
    (
        rf"{_N} tokens per pass, of {_N} records per rank and step; needs {_GIB} of the {_GIB} that (.+) has free",
        r"每次前向 \1 个词元，每个进程每步 \2 条记录；需要 \3，\5 可用 \4",
    ),
    (
        rf"nearest to {_N} of what {_N} ranks? can share in passes of {_N}",
        r"\2 个进程按每次 \3 条能均分的、最接近 \1 的数",
    ),
    (rf"nearest to {_N} of what {_N} ranks? can share", r"\2 个进程能均分的、最接近 \1 的数"),
    (
        rf"rows of {_N} tokens for {_N} per step; the training takes more records where they are shorter",
        r"每步 \2 个词元，由 \1 个词元的行组成；记录较短时训练会多取几条",
    ),
    (r"only ZeRO-3 keeps weights outside the GPUs", "只有 ZeRO-3 把权重放在 GPU 之外"),
    (r"saves activation memory on the GPU", "节省 GPU 上激活值的显存"),
    (
        r"a CPU has memory to spare, and recomputing costs a third more work",
        "CPU 内存充裕，而重新计算会多花三分之一的计算量",
    ),
    (
        rf"all activations fit \({_GIB}\); recomputing them costs a third more work",
        r"激活值全部放得下（\1）；重新计算会多花三分之一的计算量",
    ),
    (
        rf"it costs almost no speed here, and without it a pass needs {_GIB}",
        r"在此几乎不影响速度；不用它，一次前向需要 \1",
    ),
    (
        rf"without it a pass needs {_GIB}, more than the {_GIB} there are",
        r"不用它，一次前向需要 \1，超过可用的 \2",
    ),
    (
        r"DeepSpeed keeps the optimizer's state in the host's memory, from ZeRO-1 on",
        "从 ZeRO-1 起，DeepSpeed 可把优化器状态放在主机内存中",
    ),
    # launcher/plan/resolve.py
    (rf"{_N} hosts; unless they set it themselves", r"\1 台主机；主机自行设置的优先"),
    (r"one rank has nothing to share", "只有一个进程，无可分摊"),
    (
        r"LoRA's optimizer state is small: plain data parallelism is fastest where the weights fit each GPU",
        "LoRA 的优化器状态很小：每个 GPU 都放得下权重时，普通数据并行最快",
    ),
    (
        rf"sharing between {_N} ranks frees memory for faster values of the other open settings",
        r"在 \1 个进程间分摊可腾出显存，让其他未定的设置取更快的值",
    ),
    (
        rf"a rank alone needs more memory than one GPU has; {_N} ranks share it",
        r"单个进程所需的显存超过一个 GPU；由 \1 个进程分摊",
    ),
    (
        r"the ranks of each host share the weights among themselves, so that no weights cross the network",
        "每台主机的进程各自分担全部权重，权重不经过网络",
    ),
    (
        rf"one host's {_N} ranks cannot hold the weights, so all ranks share them",
        r"一台主机的 \1 个进程放不下权重，因此由全部进程分担",
    ),
    (
        r"train\.zero_group has no effect: only ZeRO-3 of the fused layers, on hosts with several ranks, has it",
        "train.zero_group 不起作用：只有融合层的 ZeRO-3，且每台主机有多个进程时才用到它",
    ),
    (
        r"records share rows without padding and without seeing each other; as fast as dense batches",
        "记录拼成没有填充的行，互不可见；与满批一样快",
    ),
    (r"records of like lengths share a micro batch within each step", "每步之内，长度相近的记录放在同一个微批"),
    (r"the model's family has fused layers here, the fastest path measured", "该模型家族有融合层，是实测最快的路径"),
    (
        r"Unsloth's kernels \(PEFT, if it is not installed\): the fused layers do not cover this setting",
        "使用 Unsloth 的内核（未安装时用 PEFT）：融合层不支持这种设置",
    ),
    (
        r"plain transformers and PEFT: (?P<t>.+)",
        r"使用普通的 transformers 与 PEFT：\g<t>",
    ),
    # launcher/plan/training.py
    (
        rf"the loss on data.eval is measured about {_N} times, on as many records as {_N} of the training allow",
        r"data.eval 上的损失大约测量 \1 次，记录数以开销不超过训练的 \2 为限",
    ),
    (
        rf"a measurement on {_N} records costs more than {_N} of the training; the loss is measured at the end only",
        r"在 \1 条记录上测量一次的开销超过训练的 \2，因此只在结束时测量",
    ),
    (
        rf"{_N} measurements of the loss on all {_N} records of data.eval cost at most {_N} of the training",
        r"在 data.eval 的全部 \2 条记录上测量 \1 次损失，开销不超过训练的 \3",
    ),
    (
        rf"{_N} measurements of the loss on {_N} of {_N} records of data.eval cost at most {_N} of the training",
        r"在 data.eval 的 \3 条记录中的 \2 条上测量 \1 次损失，开销不超过训练的 \4",
    ),
    (
        rf"{_N} of {_N} records, ten times, because the job compares the measurements",
        r"\2 条记录中的 \1 条，测量十次，因为作业要比较各次测量",
    ),
    (
        r"the adapter is of the step with the smallest loss on data.eval; its checkpoint is kept",
        "适配器取 data.eval 上损失最小的那一步，其检查点会保留",
    ),
    (
        rf"each measurement also writes so many answers of at most {_N} tokens, for (\w+); the predicted time does not "
        r"hold them",
        r"每次测量还会生成这么多条回答（每条最多 \1 个词元），用于 \2；预计时间不包含这部分",
    ),
    (
        r"the planned steps and hours are the most that the training takes",
        "计划的步数与时间是训练的上限",
    ),
    # launcher/plan/resolve.py, launcher/lifecycle/forecast.py
    (r"the setting of the adapter that lora.adapter names", "取自 lora.adapter 所指的适配器"),
    (r"(\S+) = (.+): (?P<t>the setting of the adapter .+|only PEFT continues .+)", r"\1 = \2：\g<t>"),
    (r"only PEFT continues an adapter with (.+)", r"只有 PEFT 能继续训练带有 \1 的适配器"),
    (r"from the job, or the default", "来自作业，或为默认值"),
    (
        rf"{_N} records per step / \({_N} per pass x {_N} ranks\)",
        r"每步 \1 条记录 ÷（每次前向 \2 条 × \3 个进程）",
    ),
    (r"from this shell", "来自当前 shell"),
    (r"from (/\S+)", r"来自 \1"),
    # launcher/backends: container_choice, slurm/site
    (r"(.+) is (?P<t>an? .+); use --container ENGINE for another engine", r"\1 是\g<t>；可用 --container 指定其他引擎"),
    (r"(.+) is (?P<t>an? .+), and (.+) is on this machine", r"\1 是\g<t>，本机装有 \3"),
    (r"a \.sif file", " .sif 文件"),
    (r"a squash file", " squash 文件"),
    (r"an address with a scheme", "带协议的地址"),
    (r"a directory", "目录"),
    (r"a name in a registry or in an engine's store", "镜像仓库或引擎中的名称"),
    (rf"DefCpuPerGPU={_N} of partition '(.+)'", r"分区 \2 的 DefCpuPerGPU=\1"),
    (r"(?P<t>.+), the smallest node that can run this", r"\g<t>，为能运行此作业的最小节点"),
    (
        rf"a node of partition '(.+)' has {_N} CPUs and {_N} GPUs, at most {_N} per job",
        r"分区 \1 的节点有 \2 个 CPU 和 \3 个 GPU，每个作业最多 \4 个",
    ),
    (rf"a node of partition '(.+)' has {_N} CPUs and {_N} GPUs", r"分区 \1 的节点有 \2 个 CPU 和 \3 个 GPU"),
    (rf"(?P<t>.+): the smallest of {_N}", r"\g<t>：\2 种中最小的"),
    (r"(gpu:\S+) of partition '([^']+)'", r"分区 \2 的 \1"),
    (r"(gpu:\S+) \(features (.+)\) of partition '([^']+)'", r"分区 \3 的 \1（特性 \2）"),
    (
        r"the nodes that can run this have (\d+) to (\d+) MB of memory: slurm.mem requests enough",
        r"能运行此作业的节点有 \1 至 \2 MB 内存：可用 slurm.mem 请求足够的内存",
    ),
    (
        r"the job says (.+), and Slurm says (.+) \((.+)\); planned for (.+)",
        r"作业写的是 \1，而 Slurm 报告为 \2（\3）；按 \4 规划",
    ),
    # train/config.py: remark_on_steps
    (
        rf"{_N} steps?; each record {_N} times; set train.global_batch_size below {_N}",
        r"\1 步，每条记录出现 \2 次；请把 train.global_batch_size 设为小于 \3",
    ),
    (
        rf"{_N} steps?; each record {_N} times; set train.global_batch_size to 1",
        r"\1 步，每条记录出现 \2 次；请把 train.global_batch_size 设为 1",
    ),
    (
        rf"{_N} steps?; each record {_N} times; set train.global_batch_size below {_N} for more steps",
        r"\1 步，每条记录出现 \2 次；要更多步，请把 train.global_batch_size 设为小于 \3",
    ),
    (
        rf"{_N} steps?; each record {_N} times, because the last step takes {_N} records more than train.epochs asks "
        rf"for; set train.global_batch_size below {_N} for more steps",
        r"\1 步，每条记录出现 \2 次，因为最后一步比 train.epochs 要求的多用了 \3 条；"
        r"要更多步，请把 train.global_batch_size 设为小于 \4",
    ),
)

COMPAT = (
    # train/compat.py
    (r"the fused layers do not support this model: (.+)", r"融合层不支持此模型：\1"),
    (r"DeepSpeed offloads weights under ZeRO-3 only", "DeepSpeed 只在 ZeRO-3 下卸载权重"),
    (
        r"under ZeRO-3 the fused layers partition the frozen weights themselves and keep them on the GPUs",
        "在 ZeRO-3 下，融合层自行切分冻结的权重，并把它们留在 GPU 上",
    ),
    (r"there are no fused layers for (.+)", r"\1 没有融合层"),
    (r"the fused layers read 16-bit and nf4 weights, not int8", "融合层可读 16 位与 nf4 权重，不能读 int8"),
    (
        r"the fused layers read nf4 weights in place, and ZeRO-3 partitions them",
        "融合层就地读取 nf4 权重，而 ZeRO-3 会把它们切分",
    ),
    (
        r"only the fused layers multiply in fp8, and the engine is (.+)",
        r"只有融合层以 fp8 相乘，而引擎是 \1",
    ),
    (r"fp8 products need a GPU", "fp8 乘法需要 GPU"),
    (r"fp8 products need compute capability 8.9 \(Ada\) or newer", "fp8 乘法需要计算能力 8.9（Ada）或更新"),
    (r"the fp8 kernels add LoRA's part in bfloat16", "fp8 内核以 bfloat16 加上 LoRA 的部分"),
    (r"the fused layers do not support (DoRA|LoRA dropout)", r"融合层不支持 \1"),
    (
        r"the fused layers train LoRA on q, k, v, o, gate, up and down projections and nothing else",
        "融合层只在 q、k、v、o、gate、up、down 投影上训练 LoRA",
    ),
    (r"the attention kernels of the fused layers compute in 16 bits", "融合层的注意力内核以 16 位计算"),
    (
        r"the attention kernels of the fused layers need compute capability 8.0 \(Ampere\)",
        "融合层的注意力内核需要计算能力 8.0（Ampere）",
    ),
    (r"Unsloth cannot train ([^:]+): (.+)", r"Unsloth 不能训练 \1：\2"),
    (r"Unsloth's kernels read 16-bit and nf4 weights, not int8", "Unsloth 的内核可读 16 位与 nf4 权重，不能读 int8"),
    (
        r"Unsloth stores nf4 weights as bytes, and ZeRO-3 partitions only weights in the compute type",
        "Unsloth 把 nf4 权重存为字节，而 ZeRO-3 只切分计算类型的权重",
    ),
    (r"Unsloth's get_peft_model has no DoRA", "Unsloth 的 get_peft_model 没有 DoRA"),
    (
        r"Unsloth trains embed_tokens and lm_head otherwise than the job says: whole matrices instead of LoRA, and one "
        r"of them where both are tied",
        "Unsloth 训练 embed_tokens 与 lm_head 的方式与作业不同：训练整个矩阵而非 LoRA，两者绑定时只训练其一",
    ),
    (r"only PEFT's own loader can continue an adapter", "只有 PEFT 自己的加载器能继续训练适配器"),
    (r"Unsloth's CPU backend has no (\w+) initialization", r"Unsloth 的 CPU 后端没有 \1 初始化"),
    (r"Unsloth trains all modules and layers with one rank", "Unsloth 的所有模块和层只能用同一个秩"),
    (r"Unsloth has no initialization (\w+)", r"Unsloth 没有 \1 初始化"),
    (
        r"int8 weights under ZeRO-3 give wrong losses \(bitsandbytes issue 1451\)",
        "ZeRO-3 下 int8 权重的损失是错的（bitsandbytes issue 1451）",
    ),
    (
        r"(\w+) decomposes the weights, and (\w+) weights cannot be decomposed",
        r"\1 要分解权重，而 \2 权重无法分解",
    ),
    (
        r"(\w+) decomposes whole weights, and no rank has them under ZeRO-3",
        r"\1 要分解完整的权重，而 ZeRO-3 下没有进程拥有完整的权重",
    ),
    (
        r"an existing adapter already has its weights, and (\w+) would replace them",
        r"已有的适配器已有权重，\1 会将其替换",
    ),
    (
        r"an adapter of (\w+) is converted for the original weights as a sum, and DoRA rescales it",
        r"\1 适配器按求和转换到原始权重，而 DoRA 会重新缩放",
    ),
    (
        r"DoRA needs the norms of the weights before the first step, and bitsandbytes prepares int8 weights during it",
        "DoRA 在第一步之前就需要权重的范数，而 bitsandbytes 在第一步中才准备 int8 权重",
    ),
    (
        r"DoRA starts from the norms of whole weights, and no rank has them under ZeRO-3",
        "DoRA 从完整权重的范数开始，而 ZeRO-3 下没有进程拥有完整的权重",
    ),
    (
        r"this model's attention is unknown, so records in one packed row could see each other",
        "此模型的注意力形式未知，拼在一行的记录可能互相可见",
    ),
    (r"these GPUs only emulate bfloat16", "这些 GPU 只能模拟 bfloat16"),
    (r"float16 training on a CPU has no loss scaling and underflows", "CPU 上的 float16 训练没有损失缩放，会下溢"),
    (
        r"DeepSpeed offloads the optimizer, and it is used only with ZeRO",
        "卸载优化器的是 DeepSpeed，只有使用 ZeRO 时才会用到它",
    ),
    (
        r"under ZeRO-3 the fused layers partition the frozen weights and keep the adapter's optimizer on the GPU",
        "ZeRO-3 下融合层切分冻结的权重，并把适配器的优化器留在 GPU 上",
    ),
    (
        r"records of like lengths share a micro batch within each step: (?P<t>.+)",
        r"每步内长度相近的记录共用一个微批：\g<t>",
    ),
    (
        r"(?P<t>.+), so packed rows would need a mask of all pairs of their tokens",
        r"\g<t>，因此拼接的行需要覆盖所有词元对的掩码",
    ),
    (r"its attention caps the scores", "它的注意力限制分数大小"),
    (r"its attention has dropout", "它的注意力带有随机失活"),
    (r"its attention adds a bias to each score", "它的注意力给每个分数加偏置"),
    (
        r"attention by lengths needs 16 bits and compute capability 8.0 \(Ampere\)",
        "按长度的注意力需要 16 位和计算能力 8.0（Ampere）",
    ),
    (r"this model's attention is unknown", "未知该模型的注意力"),
    (r"there is no GPU to offload from", "没有 GPU，无可卸载"),
    (
        r"the fused layers do not support a rotary embedding that depends on the length of the row",
        "融合层不支持随行长变化的旋转位置编码",
    ),
    (r"Unsloth scales the rotary embedding by a rule of its own", "Unsloth 按自己的规则缩放旋转位置编码"),
    (
        r"data.max_length=(\d+), but the model has (\d+) positions; model.rope_scaling stretches them",
        r"data.max_length=\1，而模型只有 \2 个位置；model.rope_scaling 可以扩展",
    ),
    (
        r"float16 overflows and needs loss scaling; these GPUs compute bfloat16 as fast",
        "float16 会溢出并需要损失缩放；这些 GPU 计算 bfloat16 一样快",
    ),
    (
        r"the family has fused layers, the fastest path, and the job asks for plain LoRA",
        "该家族有融合层，是最快的路径，且作业只用普通 LoRA",
    ),
    (r"Unsloth has a fast path for this family", "Unsloth 对该家族有快速路径"),
    (r"(?P<t>.+) \(its CPU backend here\)", r"\g<t>（此处为其 CPU 后端）"),
    (
        r"it uses ALiBi positions, and Unsloth's attention takes no ALiBi bias",
        "它使用 ALiBi 位置，而 Unsloth 的注意力不支持",
    ),
    (r"converted to Llama: (?P<t>.+)", r"转换为 Llama：\g<t>"),
    (r"Unsloth has no path for GLM", "Unsloth 没有 GLM 的路径"),
    (
        r"the model's family is not in the table, and PEFT works with every linear layer",
        "该模型家族不在表中，而 PEFT 适用于任何线性层",
    ),
    (
        r"routers stay frozen, and no loss balances the load of the experts \(router loss: weight 0\)",
        "路由层保持冻结，没有平衡专家负载的损失（路由损失：权重 0）",
    ),
    (
        r"routers stay frozen; a loss balances the load of the experts through the adapters \(weight: (?P<w>.+)\)",
        r"路由层保持冻结；一项损失通过适配器平衡专家负载（权重：\g<w>）",
    ),
    (
        r"a loss of routers balances the load of experts, and for (?P<who>.+) there is none: (?P<t>.+)",
        r"路由损失用于平衡专家负载，\g<who> 没有这种损失：\g<t>",
    ),
    (r"it has no experts", "它没有专家"),
    (r"transformers computes no such loss for it", "transformers 不为它计算这种损失"),
    (r"Unsloth computes its own loss, without that of routers", "Unsloth 自行计算损失，不含路由损失"),
    (
        r"bitsandbytes quantizes linear layers, and this model's experts, nearly all of its weights, are none: "
        r"they would stay in 16 bits, or become 32",
        "bitsandbytes 只量化线性层，而该模型的专家（几乎是全部权重）不是线性层：它们会保持 16 位，或变成 32 位",
    ),
    (
        r"only plain transformers and PEFT read weights that other packages have packed",
        "只有原生 transformers 与 PEFT 能读其他软件包打包的权重",
    ),
    (
        r"packed weights of other packages are no parameters, which is what ZeRO-3 shares",
        "其他软件包打包的权重不是参数，而 ZeRO-3 分担的是参数",
    ),
    (
        r"PEFT has no DoRA beside weights that other packages have packed",
        "PEFT 在其他软件包打包的权重旁没有 DoRA",
    ),
    (r"the fused layers have no NEFTune", "融合层没有 NEFTune"),
    (r"the fused layers have no label smoothing", "融合层没有标签平滑"),
    (r"Unsloth's own loss has no label smoothing", "Unsloth 自己的损失没有标签平滑"),
    (r"DeepSpeed offloads the states of AdamW only", "DeepSpeed 只卸载 AdamW 的状态"),
    (
        r"ZeRO joins the weights of all matrices and cuts them anew for each rank, (?P<t>.+)",
        r"ZeRO 把所有矩阵的权重连在一起并按进程切开，\g<t>",
    ),
    (
        r"DeepSpeed's ZeRO-3 cuts every matrix among the ranks, (?P<t>.+)",
        r"DeepSpeed 的 ZeRO-3 把每个矩阵分给各进程，\g<t>",
    ),
    (r"so blocks of 8-bit states would not fit another number of ranks", "8 位状态的块不适合别的进程数"),
    (r"and Adafactor needs rows and columns", "而 Adafactor 需要行与列"),
    (r"and its states are moved and saved for AdamW only", "而只有 AdamW 的状态能移动与保存"),
    (r"and Muon needs whole matrices", "而 Muon 需要完整的矩阵"),
    (
        r"this model has no fused layers, and Unsloth was not measured to be faster with it",
        "该模型没有融合层，而 Unsloth 未被测得更快",
    ),
    (
        r"only plain transformers was seen to keep the records of this model's packed rows apart",
        "只有原生 transformers 被验证能隔开该模型打包行中的记录",
    ),
    (r"records of a packed row would see each other: (?P<t>.+)", r"打包行中的记录会互相可见：\g<t>"),
    (
        r"layers without attention carry what they read from one record of a row to the next",
        "无注意力的层会把读到的内容从一条记录带到同一行的下一条",
    ),
    (
        r"its positions have three parts, which a packed row does not give",
        "它的位置有三部分，而打包的行不提供",
    ),
    (
        r"transformers gives its attention no mask between records",
        "transformers 不给它的注意力加记录之间的掩码",
    ),
    (r"train.engine=(\w+) in the job", r"作业中 train.engine=\1"),
    (r"Unsloth is not installed here", "这里没有安装 Unsloth"),
    (r"lora\.(\w+) is (.+), but the adapter's is (.+)", r"lora.\1 为 \2，而适配器的是 \3"),
    (
        r"leave these settings out, so that the adapter's own are taken, or train a new adapter without lora.adapter",
        "去掉这些设置以采用适配器自己的，或不用 lora.adapter 而训练新的适配器",
    ),
    # launcher/plan/batch.py, changes.py
    (
        rf"global_batch_size {_N} cannot be shared by {_N} ranks",
        r"global_batch_size \1 无法由 \2 个进程均分",
    ),
    (rf"nearest sizes that can: {_N}(?: and {_N})?", r"最接近的可行值：\1 \2"),
    (
        rf"global_batch_size {_N} is not a multiple of micro_batch_size {_N} x {_N} ranks = {_N}",
        r"global_batch_size \1 不是 micro_batch_size \2 × \3 个进程 = \4 的倍数",
    ),
    (rf"nearest global sizes that can: {_N}(?: and {_N})?", r"最接近的可行全局值：\1 \2"),
    (r"or a micro_batch_size of (.+)", r"或 micro_batch_size 取 \1"),
    (
        rf"(.+) does not fit: it needs at least {_GIB} per GPU, and (.+) has {_GIB} for it",
        r"\1 放不下：每个 GPU 至少需要 \2，而 \3 可用 \4",
    ),
    (r"a smaller model or a larger GPU is needed", "需要更小的模型或更大的 GPU"),
    (rf"(?P<t>.+), (?P<t1>{_N} GPUs like this one.*)", r"\g<t>，\g<t1>"),
    (rf"{_N} GPUs like this one", r"\1 个这样的 GPU"),
    (rf"{_N} GPUs like this one \(ZeRO-3 shares the weights\)", r"\1 个这样的 GPU（ZeRO-3 分摊权重）"),
    (rf"(?P<t>.+), (?P<t1>a GPU of {_GIB} \(.+\))", r"\g<t>，\g<t1>"),
    (rf"a GPU of {_GIB} \((.+)\)", r"一个 \1 的 GPU（\2）"),
    (r"set ((?:[a-z_]+\.[a-z_]+: [\w.]+(?:, )?)+)", r"请设 \1"),
)
ROWS = (*NETWORK, *AUTOS, *COMPAT)
