"""Names of the run's own vocabulary in both languages of the page. A name that is missing here is shown as it is."""

from __future__ import annotations

WORDS: dict[str, tuple[str, str]] = {
    # states
    "PENDING": ("Queued", "排队中"),
    "RUNNING": ("Running", "运行中"),
    "SUCCEEDED": ("Succeeded", "已完成"),
    "FAILED": ("Failed", "失败"),
    "CANCELLED": ("Stopped", "已停止"),
    "STOPPED": ("Stopped", "已停止"),
    "LOST": ("Lost", "失联"),
    # phases
    "start": ("Starting", "启动"),
    "tokenizer": ("Loading the tokenizer", "加载分词器"),
    "model": ("Loading the model", "加载模型"),
    "adapter": ("Adding the adapter", "添加适配器"),
    "data": ("Tokenizing the records", "数据分词"),
    "evaluate_before": ("Evaluation before training", "训练前评估"),
    "train": ("Training", "训练"),
    "evaluate_after": ("Evaluation after training", "训练后评估"),
    "save": ("Saving the adapter", "保存适配器"),
    "rendered": ("Not started", "未启动"),
    "queued": ("Waiting to start", "等待启动"),
    "starting": ("Starting the ranks", "正在启动进程"),
    "program": ("Running the program", "正在运行程序"),
    "ended": ("Ended", "已结束"),
    # metrics
    "loss": ("Loss", "损失"),
    "training_loss": ("Training loss", "训练损失"),
    "accuracy": ("Accuracy", "准确率"),
    "exact_match": ("Exact match", "完全匹配"),
    "macro_f1": ("Macro F1", "宏平均 F1"),
    "rouge_1": ("ROUGE-1", "ROUGE-1"),
    "rouge_2": ("ROUGE-2", "ROUGE-2"),
    "rouge_l": ("ROUGE-L", "ROUGE-L"),
    "bleu": ("BLEU", "BLEU"),
    # parts and problems of the data
    "part.train": ("Training", "训练集"),
    "part.eval": ("Held out", "留出集"),
    "too_long": ("Too long, left out", "过长，已舍弃"),
    "cut": ("Cut to the maximum length", "超长，已截断"),
    "unreadable": ("Unreadable", "无法读取"),
    "duplicates": ("Duplicates", "重复"),
    "conflicts": ("Same question, other answer", "同题异答"),
    "unanswered": ("Turns after the last answer, left out", "末尾无回答的轮次，已舍弃"),
    "untrained": ("No answer to learn from", "没有可学习的回答"),
    "unlike_use": ("After other text than in use (turns: joined)", "训练时的前文与使用时不同（turns: joined）"),
    "ignored_keys": ("Keys that are not used", "未使用的字段"),
    "left_out": ("Left out", "已舍弃"),
    "special_tokens": ("Special tokens in the text", "正文含特殊词元"),
    # events
    "checkpoint": ("Checkpoint", "检查点"),
    "checkpoint_moved": ("Checkpoint moved", "检查点已转移"),
    "checkpoint_damaged": ("Checkpoint damaged", "检查点损坏"),
    "restart": ("Restart", "重启"),
    "resumed": ("Resumed", "已续训"),
    "request": ("Request", "请求"),
    "rank_exit": ("Rank ended", "进程退出"),
    "end": ("End", "结束"),
    "warning": ("Warning", "警告"),
    "note": ("Note", "提示"),
    "length_changed": ("Number of steps changed", "总步数改变"),
    "early_stopping": ("Early stopping", "提前结束"),
    "best": ("Best step", "最佳步"),
    "data_changed": ("Data changed", "数据改变"),
    "convert": ("Conversion", "转换"),
    "not_started": ("Not started", "未能启动"),
    "slurm_submit": ("Submitted to Slurm", "提交到 Slurm"),
    "slurm_start": ("Started by Slurm", "Slurm 已启动"),
    "slurm_requeue": ("Requeued by Slurm", "Slurm 重新排队"),
    "slurm_end": ("Ended by Slurm", "Slurm 已结束"),
    "hang": ("Hang", "卡住"),
    "engine": ("Engine", "引擎"),
    "evaluation": ("Evaluation", "评估"),
    "node_lost": ("Node lost", "节点失联"),
    "failure": ("Failure", "故障"),
    "tracker": ("Tracker", "跟踪器"),
    "notice": ("Notice", "通知"),
    "router_loss": ("Router loss", "路由损失"),
    "loss_schedule": ("Measurements of the loss", "损失测量安排"),
}

HEADLINES: dict[str, tuple[str, str]] = {
    "PENDING": ("Waiting to start", "等待启动"),
    "RUNNING": ("Running", "运行中"),
    "SUCCEEDED": ("The training has finished", "训练已完成"),
    "PROGRAM": ("The program has ended", "程序已结束"),
    "FAILED": ("The run failed", "运行失败"),
    "CANCELLED": ("Stopped before its end; it can be resumed", "提前停止，可以续训"),
    "LOST": ("Lost: no process of the run answers", "失联：没有进程响应"),
}
"""What a page says of a run that has no verdict."""


def both(name: str, kind: str = "") -> tuple[str, str]:
    """(English, Chinese) of a name; `kind` tells apart names that mean two things."""
    return WORDS.get(f"{kind}.{name}") or WORDS.get(name) or (name.replace("_", " "), name.replace("_", " "))
