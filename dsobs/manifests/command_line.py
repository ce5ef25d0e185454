"""How a container starts vLLM: read from its command, args and env, as kubelet and a shell would."""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

SHELLS = {"sh", "bash", "dash", "ash", "zsh", "ksh"}
_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")
_VARIABLE = re.compile(r"\$(?:\{([A-Za-z_][A-Za-z0-9_]*)(?::?-([^}]*))?\}|([A-Za-z_][A-Za-z0-9_]*))")
_SEPARATORS = re.compile(r"[;&|()<>\n]+")
_MODULES = ("vllm.entrypoints.openai.api_server", "vllm.entrypoints.api_server", "vllm.entrypoints.cli.main")


@dataclass(frozen=True, slots=True)
class Command:
    """A command that starts vLLM's server."""

    arguments: tuple[str, ...]
    """Behind `vllm serve` or the module; what is not known keeps its `$`."""
    through_pipe: bool = False
    """Its output goes through a pipe of the shell."""
    options: dict[str, str | None] = field(default_factory=dict)
    """Each option with its value, None for one without; dashes inside, `--tensor-parallel-size`."""

    def option(self, *names: str) -> str | None:
        """The value of the first of these that is given; empty for one without a value."""
        for name in names:
            if name in self.options:
                return self.options[name] or ""
        return None


def serve_command(command: Sequence[str], args: Sequence[str], env: Mapping[str, str]) -> Command | None:
    """The command that starts vLLM's server, if one can be read there. `env`: the values that the manifest gives."""
    words = [_expanded(word, env) for word in (*command, *args)]
    script = _script(words)
    return _from_words(words) if script is None else _from_script(script, env)


def image_command(args: Sequence[str], env: Mapping[str, str]) -> Command | None:
    """The same of an image whose entrypoint is vLLM's server, by the arguments that it gets; None where they name
    another program."""
    words = [_expanded(word, env) for word in args]
    if words and (words[0].rpartition("/")[2] in SHELLS | {"python", "python3"} or words[0].endswith((".sh", ".py"))):
        return None
    return _command(words)


def _expanded(word: str, env: Mapping[str, str]) -> str:
    """`$(NAME)` as kubelet expands it; `$$(NAME)` stays `$(NAME)`."""
    return _REFERENCE.sub(lambda m: "$" if m[0] == "$$" else env.get(m[1], m[0]), word)


def _script(words: Sequence[str]) -> str | None:
    """The text that a shell is to run: `sh -c TEXT`, `bash -exc TEXT`, `env sh -c TEXT`."""
    for index, word in enumerate(words):
        if word.rpartition("/")[2] not in SHELLS:
            continue
        for at in range(index + 1, len(words)):
            if re.fullmatch(r"-[a-z]*c[a-z]*", words[at]):
                rest = [one for one in words[at + 1 :] if not re.fullmatch(r"[-+][a-z]+|--", one)]
                return rest[0] if rest else None
            if not words[at].startswith(("-", "+")) and not re.fullmatch(r"[-+][a-z]*o", words[at - 1]):
                break
    return None


def _from_script(script: str, env: Mapping[str, str]) -> Command | None:
    known = {**env, **_assigned(script)}
    for words, piped in _simple_commands(script):
        found = _from_words([_VARIABLE.sub(lambda m: _value(m, known), word) for word in words])
        if found is not None:
            return _command(found.arguments, through_pipe=piped)
    return None


def _value(match: re.Match[str], env: Mapping[str, str]) -> str:
    name = match[1] or match[3]
    return env.get(name) or (match[2] if match[2] is not None else match[0])


def _assigned(script: str) -> dict[str, str]:
    """Variables that the script sets to plain values, `PORT=9000` and `export PORT=9000`."""
    found = re.findall(r"(?m)(?:^|[;&\s])(?:export\s+)?([A-Za-z_]\w*)=(?:\"([^\"$`]*)\"|'([^']*)'|([\w./:-]+))", script)
    return {name: double or single or bare for name, double, single, bare in found}


def _simple_commands(script: str) -> Iterator[tuple[list[str], bool]]:
    """The words of each simple command, and whether a pipe follows it. A script that no shell would take has none."""
    lexer = shlex.shlex(script.replace("\\\n", " ").replace("\n", " ;\n"), posix=True, punctuation_chars=";&|()<>")
    lexer.commenters = "#"
    lexer.whitespace_split = True
    words: list[str] = []
    try:
        for word in lexer:
            if _SEPARATORS.fullmatch(word):
                if words and "<" not in word and ">" not in word:
                    yield words, word == "|"
                    words = []
            else:
                words.append(word)
    except ValueError:
        return
    if words:
        yield words, False


def _from_words(words: Sequence[str]) -> Command | None:
    for index, word in enumerate(words):
        following = list(words[index + 1 :])
        if word.rpartition("/")[2] == "vllm" and following[:1] == ["serve"]:
            return _command(following[1:])
        if word == "-m" and following and following[0] in _MODULES:
            rest = following[1:]
            return _command(rest[1:] if rest[:1] == ["serve"] else rest)
        if word.endswith("vllm/entrypoints/openai/api_server.py"):
            return _command(following)
    return None


def _command(arguments: Sequence[str], *, through_pipe: bool = False) -> Command:
    options: dict[str, str | None] = {}
    for index, word in enumerate(arguments):
        name, equals, value = word.partition("=")
        if not name.startswith("--"):
            continue
        following = arguments[index + 1] if index + 1 < len(arguments) else ""
        # vLLM takes underscores for dashes; the last of several counts.
        head, dot, tail = name.partition(".")
        key = head.replace("_", "-") + dot + tail
        options[key] = value if equals else (None if not following or following.startswith("-") else following)
    return Command(tuple(arguments), through_pipe, options)
