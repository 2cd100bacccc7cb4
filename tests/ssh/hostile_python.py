"""A Python of a host that passes everything to a real one, and changes what the far end answers: HOSTILE MODE ARGS...

The run starts as on any host. Lies begin with the second answer about the node: they meet a run that is watched.
"""

import json
import os
import subprocess
import sys
import threading
import time

MODE, NODE, REAL, *ARGS = sys.argv[1:]
LINES = (b"y" * 99 + b"\n") * 1_000
NAMES = (
    "../../run.json", "run.json", "job.yaml", "code/train/__main__.py", "plan.json", "/tmp/zlaunch-out", ".ssh/config",
    "logs/node-0/../../run.json", "nodes/node-0.json", "adapter/../../../out", "logs/node-1/rank-1.log/x",
)  # fmt: skip
WORD = b"zlaunch cancel; \x1b]52;c;eA==\x07 {}\n"


def lie(answer, payload, count):
    """(answer, payload) instead of the true ones; does not return where the host never answers properly again."""
    out = sys.stdout.buffer
    if MODE == "names":
        name = NAMES[count % len(NAMES)]
        return {**answer, "files": [*answer["files"], [name, 0, len(WORD)]]}, payload + WORD
    if MODE == "more":
        return {**answer, "files": [], "more": True}, b""
    if MODE == "endless":
        time.sleep(0.2)  # faster than a line that is only slow
        name = f"logs/node-{NODE}/rank-{NODE}.log"
        return {**answer, "files": [[name, count * len(LINES), len(LINES)]], "more": True}, LINES
    if MODE == "flood":
        while True:
            out.write(b"[" * (1 << 20))
    if MODE == "drip":
        while True:
            out.write(b"{")
            out.flush()
            time.sleep(0.2)
    if MODE == "mute":
        time.sleep(3600)
    if MODE == "lies":
        other = {"state": "SUCCEEDED", "pid": 1, "warden": {"pid": 1, "start_time": 0}, "host": "\x1b[2J"}
        return {**answer, "record": {**(answer["record"] or {}), **other}, "alive": False}, payload
    return answer, payload


def forward(end):
    while data := sys.stdin.buffer.read1(1 << 16):
        end.write(data)
        end.flush()
    end.close()


def main():
    real = subprocess.Popen([REAL, *ARGS], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    threading.Thread(target=forward, args=(real.stdin,), daemon=True).start()
    out, count = sys.stdout.buffer, 0
    out.write(real.stdout.readline() + real.stdout.readline())  # an empty line and the greeting
    out.flush()
    while line := real.stdout.readline():
        answer = json.loads(line)
        payload = real.stdout.read(answer["payload"])
        if answer.get("record"):
            count += 1
            if count > 1:
                answer, payload = lie(answer, payload, count - 2)
                answer["payload"] = len(payload)
        out.write(json.dumps(answer).encode() + b"\n" + payload)
        out.flush()
    os._exit(0)  # the thread still reads


main()
