"""A small strict reader of Dockerfiles: what it does not know, it refuses. The tests have no daemon to ask."""

import json
import re
import shlex
import subprocess
from dataclasses import dataclass, field

FLAGS = {
    "FROM": {"platform"}, "COPY": {"from", "chown", "chmod", "link"}, "HEALTHCHECK": {"interval", "timeout", "start-period", "retries"},
    "ARG": set(), "ENV": set(), "RUN": set(), "USER": set(), "WORKDIR": set(), "STOPSIGNAL": set(), "ENTRYPOINT": set(), "CMD": set(), "LABEL": set(),
}  # fmt: skip


@dataclass
class Instruction:
    word: str
    flags: dict
    rest: str
    line: int


@dataclass
class Stage:
    image: str
    name: str | None
    instructions: list = field(default_factory=list)

    def all(self, word):
        return [item for item in self.instructions if item.word == word]


class DockerfileError(ValueError):
    pass


def logical_lines(text):
    """Instructions over several lines joined; comments and empty lines gone."""
    joined, start = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#") or (not line.strip() and not joined):
            continue
        if not line.strip():
            raise DockerfileError(f"line {number}: an empty line inside an instruction")
        start = start or number
        joined += line.rstrip().removesuffix("\\") + " " if line.rstrip().endswith("\\") else line.rstrip()
        if not line.rstrip().endswith("\\"):
            yield start, joined.strip()
            joined, start = "", 0
    if joined:
        raise DockerfileError("the file ends inside an instruction")


def read(number, line):
    word, _, rest = line.partition(" ")
    if word not in FLAGS:
        raise DockerfileError(f"line {number}: unknown instruction {word!r}")
    flags = {}
    while match := re.match(r"--([a-z-]+)=(\S+)\s+", rest.lstrip()):
        if match[1] not in FLAGS[word]:
            raise DockerfileError(f"line {number}: {word} has no --{match[1]}")
        flags[match[1]] = match[2]
        rest = rest.lstrip()[match.end() :]
    rest = rest.strip()
    if not rest or rest.startswith("--"):
        raise DockerfileError(f"line {number}: {word} without an argument, or an unknown flag")
    check(word, rest, number)
    return Instruction(word, flags, rest, number)


def check(word, rest, number):
    if word == "RUN":
        done = subprocess.run(["sh", "-n", "-c", rest], check=False, capture_output=True, text=True)
        if done.returncode:
            raise DockerfileError(f"line {number}: {done.stderr}")
    elif word in ("ENTRYPOINT", "CMD") or (word == "HEALTHCHECK" and rest.startswith("CMD ")):
        value = json.loads(rest.removeprefix("CMD "))
        if not (isinstance(value, list) and value and all(isinstance(item, str) for item in value)):
            raise DockerfileError(f"line {number}: not in exec form")
    elif word == "ENV":
        for pair in shlex.split(rest):
            if not re.fullmatch(r"[A-Z_]+=.*", pair):
                raise DockerfileError(f"line {number}: {pair!r} is not NAME=value")
    elif word == "ARG" and not re.fullmatch(r'[A-Z_]+(=("[^"]*"|\S*))?', rest):
        raise DockerfileError(f"line {number}: not an ARG")
    elif word in ("USER", "WORKDIR", "STOPSIGNAL") and len(rest.split()) != 1:
        raise DockerfileError(f"line {number}: {word} takes one word")


def parse(text):
    """Stages, and the arguments before the first."""
    arguments, stages = {}, []
    for number, line in logical_lines(text):
        item = read(number, line)
        if item.word == "FROM":
            match = re.fullmatch(r"(\S+)(?:\s+AS\s+([a-z][a-z0-9-]*))?", item.rest)
            if match is None:
                raise DockerfileError(f"line {number}: not FROM image [AS name]")
            stages.append(Stage(match[1], match[2]))
        elif not stages:
            if item.word != "ARG":
                raise DockerfileError(f"line {number}: {item.word} before FROM")
            name, _, value = item.rest.partition("=")
            arguments[name] = value
        else:
            stages[-1].instructions.append(item)
    names = [stage.name for stage in stages]
    for index, stage in enumerate(stages):
        for copy in stage.all("COPY"):
            if "from" in copy.flags and copy.flags["from"] not in names[:index]:
                raise DockerfileError(f"line {copy.line}: copies from no earlier stage")
    if not stages:
        raise DockerfileError("no FROM")
    return arguments, stages
