"""The lines and reasons of launcher/rundir/verdict.py in Chinese."""

from __future__ import annotations

_N = r"([-+.\w%]+)"
"""A number or a share."""

ROWS = (
    # lines
    (rf"diverged: the training loss rose from {_N} to {_N}", r"训练发散：训练损失从 \1 升到 \2"),
    (r"diverged: (.+)", r"训练发散：\1"),
    (rf"not learning: the training loss is flat \({_N} to {_N}\)", r"没有学到东西：训练损失基本不变（\1 到 \2）"),
    (
        rf"training and held-out data overlap: {_N} of {_N} held-out records are training records too",
        r"训练集与留出集重叠：\2 条留出数据中有 \1 条也在训练集里",
    ),
    (rf"answers are empty: {_N} of {_N}", r"回答为空：\2 条中有 \1 条"),
    (
        rf"answers never end: {_N} of {_N} are longer than eval.max_new_tokens, and those expected are not",
        r"回答停不下来：\2 条中有 \1 条超过 eval.max_new_tokens，而期望的回答没有这么长",
    ),
    (
        rf"overfits since step {_N}: held-out loss {_N} to {_N}, training loss {_N}",
        r"第 \1 步起过拟合：留出集损失从 \2 升到 \3，训练损失 \4",
    ),
    (rf"overfits: training loss {_N}, held-out loss {_N}", r"过拟合：训练损失 \1，留出集损失 \2"),
    (r"no better than the majority class: (.+)", r"不比总猜多数类更好：\1"),
    (
        rf"too few held-out records to judge: {_N}: {_N} to {_N} on (?:{_N} of )?the held-out records",
        r"留出数据太少，无法判断：\1 条，损失从 \2 到 \3",
    ),
    (
        rf"too few held-out records to judge: there are none; the training loss went from {_N} to {_N}",
        r"没有留出数据，无法判断；训练损失从 \1 到 \2",
    ),
    (r"too few held-out records to judge: there are none", "没有留出数据，无法判断"),
    (rf"too few held-out records to judge: {_N}", r"留出数据太少，无法判断：\1 条"),
    (rf"learned: {_N} to {_N} on the held-out records", r"学到了：留出集损失从 \1 降到 \2"),
    (rf"learned: {_N} to {_N} on {_N} of the held-out records", r"学到了：留出集中 \3 条的损失从 \1 降到 \2"),
    (rf"learned little: {_N} to {_N} on the held-out records", r"学到的不多：留出集损失从 \1 到 \2"),
    (rf"learned little: {_N} to {_N} on {_N} of the held-out records", r"学到的不多：留出集中 \3 条的损失从 \1 到 \2"),
    (
        rf"not judged: held-out loss {_N} after the training, and none before it",
        r"未作判断：训练后留出集损失 \1，训练前没有测量",
    ),
    (r"not judged: no held-out loss was measured", "未作判断：没有测量留出集损失"),
    # reasons
    (r"set a lower train.learning_rate", "请调低 train.learning_rate"),
    (
        rf"the learning rate of {_N} is too large for this model and batch; try a tenth",
        r"学习率 \1 对此模型与批大小来说过大，可试十分之一",
    ),
    (
        rf"is train.learning_rate too small \({_N}\)\? or does the model know these records already\?",
        r"train.learning_rate（\1）是否太小？还是模型本来就会这些数据？",
    ),
    (
        r"scores on them show memory, not learning; keep records in data.eval that data.train does not have",
        "在这些数据上的得分反映的是记忆而非学习；data.eval 中应是 data.train 没有的数据",
    ),
    (
        r"the model ends its answers at once; look at the records \(`zlaunch data show`\) and at the chat template",
        "模型一开口就结束；请检查数据（zlaunch data show）与对话模板",
    ),
    (
        r"the model has not learned the token that ends an answer; `zlaunch data show` says which tokens carry loss",
        "模型没有学会结束回答的词元；zlaunch data show 会显示哪些词元计入损失",
    ),
    (
        rf"it learns its records by heart; train about {_N} steps, or with more records",
        r"模型在死记数据；训练约 \1 步，或增加数据",
    ),
    (
        r"it knows its records by heart and not others; train fewer steps, or with more records",
        "模型只记住了训练数据；减少步数，或增加数据",
    ),
    (r"train longer, or balance the answers in data.train", "延长训练，或让 data.train 中各类答案更均衡"),
    (r"name records that are not trained on as data.eval", "请用未参与训练的数据作为 data.eval"),
    (rf"give data.eval at least {_N} records, better some hundred", r"data.eval 至少要有 \1 条，最好有几百条"),
    (
        r"the held-out loss was still falling at the end: training longer may help",
        "结束时留出集损失仍在下降，延长训练可能有帮助",
    ),
    (rf"the held-out loss was smallest after step {_N}", r"留出集损失在第 \1 步之后最小"),
    (
        rf"the adapter is that of step {_N}; more records would let it learn for longer",
        r"适配器取第 \1 步；数据更多时可以学得更久",
    ),
    (rf"the adapter is that of step {_N}, the best one of the training", r"适配器取第 \1 步，即训练中最好的一步"),
    (r"train longer, or with a higher train.learning_rate", "延长训练，或调高 train.learning_rate"),
    (r"set eval.before: true, or leave eval.every at auto", "请设 eval.before: true，或让 eval.every 保持 auto"),
)
