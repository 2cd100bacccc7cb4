"""What a notice says, and the form in which a service takes it."""

from __future__ import annotations

import base64
import hashlib
import hmac

TYPE_CHECKING = False  # importing typing costs every host milliseconds
if TYPE_CHECKING:
    from typing import Any, Dict, Optional, Tuple

    from ..files import Json

KINDS = ("end", "failure", "preemption", "hang")
FORMS = ("json", "slack", "dingtalk", "feishu", "wecom")
FORM_OF_HOST = {
    "hooks.slack.com": "slack",
    "hooks.slack-gov.com": "slack",
    "oapi.dingtalk.com": "dingtalk",
    "open.feishu.cn": "feishu",
    "open.larksuite.com": "feishu",
    "qyapi.weixin.qq.com": "wecom",
}
MOST_BYTES = 2000
"""Of a text; WeCom takes 2048."""
TITLES = {"json": "a web address", "slack": "Slack", "dingtalk": "DingTalk", "feishu": "Feishu", "wecom": "WeCom"}


def form_of(address: str) -> str:
    """Return the form that the host of an address takes."""
    from urllib.parse import urlsplit

    return FORM_OF_HOST.get((urlsplit(address).hostname or "").lower(), "json")


def body_of(form: str, notice: Json, key: Optional[str], now: float) -> Tuple[Dict[str, str], Json]:
    """Return (parameters to add to the address, the JSON to send). `key` signs what DingTalk and Feishu take."""
    text = cut(str(notice["text"]))
    if form == "slack":  # escaped: a failure's text must not call a whole channel
        return {}, {"text": text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")}
    if form == "dingtalk":
        stamp = str(int(now * 1000))
        added = {"timestamp": stamp, "sign": signature(key.encode(), (stamp + "\n" + key).encode())} if key else {}
        return added, {"msgtype": "text", "text": {"content": text}}
    if form == "feishu":
        stamp = str(int(now))
        signed = {"timestamp": stamp, "sign": signature((stamp + "\n" + key).encode(), b"")} if key else {}
        return {}, {**signed, "msg_type": "text", "content": {"text": text.replace("<at", "< at")}}
    if form == "wecom":
        return {}, {"msgtype": "text", "text": {"content": text.replace("<@", "< @")}}
    return {}, notice


def signature(key: bytes, message: bytes) -> str:
    return base64.b64encode(hmac.new(key, message, hashlib.sha256).digest()).decode()


def cut(text: str, most: int = MOST_BYTES) -> str:
    """Return the text with at most so many bytes, whole characters only."""
    data = text.encode("utf-8", "replace")
    return text if len(data) <= most else data[: most - 3].decode("utf-8", "ignore") + "…"


def refusal_of(form: str, answer: Any) -> Optional[str]:
    """Return why a service did not take a notice: some answer 200 and an error. None: it did."""
    if not isinstance(answer, dict) or form not in ("dingtalk", "feishu", "wecom"):
        return None
    code = answer.get("errcode", answer.get("code", answer.get("StatusCode", 0)))
    if code in (0, "0"):
        return None
    return "error %s: %s" % (code, answer.get("errmsg") or answer.get("msg") or answer.get("StatusMessage") or "")


def text_of(notice: Json) -> str:
    """Return a notice as a few lines for people."""
    lines = ["zlaunch: %s %s" % (notice["run"], headline(notice))]
    if notice.get("message"):
        lines.append("%s: %s" % (notice["cause"], notice["message"]) if notice.get("cause") else str(notice["message"]))
    if notice.get("step") is not None:
        total = " of %s" % notice["total_steps"] if notice.get("total_steps") else ""
        said = ["step %s%s" % (notice["step"], total)]
        for word, key in (("loss", "loss"), ("held-out loss", "eval_loss")):
            if notice.get(key) is not None:
                said.append("%s %.4g" % (word, notice[key]))
        lines.append(", ".join(said))
    if notice.get("scores"):
        lines.append("scores: " + ", ".join("%s %.4g" % pair for pair in notice["scores"].items()))
    lines += [str(line) for line in (notice.get("advice") or [])[:2]]
    lines += notice.get("links") or []
    return "\n".join(lines)


def headline(notice: Json) -> str:
    state, kind, restart = notice["state"], notice["kind"], notice.get("restart")
    after = "restarted (%s of %s)" % (restart, notice["max_restarts"]) if restart else ""
    if kind == "hang":
        said = "hung and was %s" % (after or "ended")
    elif kind == "failure":
        said = "failed and was %s" % after if after else "failed"
    elif kind == "preemption":
        how = "with a checkpoint" if state == "STOPPED" else "without a new checkpoint"
        said = "was stopped from outside (%s), %s" % (notice.get("signal") or "scheduler", how)
    else:
        words = {"SUCCEEDED": "succeeded", "STOPPED": "was stopped, with a checkpoint", "CANCELLED": "was cancelled"}
        said = words.get(state, "ended %s" % state)
    return "%s on %s%s" % (said, notice["host"], duration(notice.get("seconds")))


def duration(seconds: Optional[float]) -> str:
    if seconds is None:
        return ""
    minutes = int(seconds) // 60
    if minutes >= 60:
        return " after %d h %d min" % (minutes // 60, minutes % 60)
    return " after %d min" % minutes if minutes else " after %d s" % int(seconds)
