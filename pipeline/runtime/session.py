"""Runs a GGUF file: a llama.cpp server of our own on a free port, asked over HTTP, gone when the session ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from pipeline.errors import InputError, ToolError
from pipeline.runtime.child import bound_to_us
from pipeline.runtime.llama import BUILD_HINT, find_llama
from pipeline.runtime.prebuilt import prebuilt_command, prebuilt_version

DEFAULT_CONTEXT = 4096

_STOP_SECONDS = 10.0
# For a start with hundreds of gigabytes from a slow disk; for the whole of an answer, or between two pieces of one.
_PATIENCE_SECONDS = 1800.0
_LISTENING = re.compile(rb"listening on (http://\S+)")

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Completion:
    """What the model went on with: the text, and the ids of its tokens."""

    text: str
    tokens: tuple[int, ...]


class ChatSession:
    """A loaded model that answers; `open_runtime` makes it.

    *kind* says which llama.cpp runs it and its version, for people to read.
    """

    def __init__(self, url: str, kind: str, key: str, patience: float = _PATIENCE_SECONDS) -> None:
        self.url = url
        self.kind = kind
        self._patience = patience
        self._http = requests.Session()
        self._http.trust_env = False  # a proxy has no business between us and our own child
        # The server closes a connection after a streamed answer without saying so beforehand: none is used twice.
        self._http.headers.update({"Authorization": f"Bearer {key}", "Connection": "close"})

    def chat(
        self,
        messages: Sequence[Message],
        *,
        stream_to: Callable[[str], object] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        """Answer the conversation *messages* with the model's own chat template and return the answer.

        Args:
            messages: {"role": ..., "content": ...} each.
            stream_to: called with each piece of the answer as it comes, such as `sys.stdout.write`.
            options: more of an OpenAI chat request: "temperature", "top_k", "seed", "max_tokens", "tools" ...

        Raises:
            InputError: if the server refuses the messages.
            ToolError: if the server fails or dies.
        """
        body = {**(options or {}), "messages": list(messages), "stream": stream_to is not None}
        if stream_to is None:
            answer = self._post("/v1/chat/completions", body).json()
            return str(answer["choices"][0]["message"].get("content") or "")
        pieces = []
        for piece in self._stream("/v1/chat/completions", body):
            stream_to(piece)
            pieces.append(piece)
        return "".join(pieces)

    def complete(self, prompt: str | Sequence[int], n_predict: int, temperature: float = 0.0) -> Completion:
        """Continue *prompt* (text, or token ids) by at most *n_predict* tokens, without a template; greedy by default.

        Raises:
            InputError: if the server refuses the prompt.
            ToolError: if the server fails or dies.
        """
        body = {
            "prompt": prompt if isinstance(prompt, str) else list(prompt),
            "n_predict": n_predict,
            "temperature": temperature,
            "return_tokens": True,
            "cache_prompt": False,
        }
        answer = self._post("/completion", body).json()
        return Completion(str(answer["content"]), tuple(answer["tokens"]))

    def apply_template(self, messages: Sequence[Message], options: Mapping[str, Any] | None = None) -> str:
        """Return the prompt that `chat` would send for *messages*; *options* may hold "tools" and template variables.

        Raises:
            InputError: if the template refuses the messages, or llama.cpp cannot run it.
            ToolError: if the server dies.
        """
        body = {**(options or {}), "messages": list(messages)}
        return str(self._post("/apply-template", body, blames=500).json()["prompt"])

    def special_texts(self) -> tuple[str, str]:
        """Return the texts of BOS and EOS that the chat template sees; llama.cpp has some even where the file has none.

        Raises:
            ToolError: if the server fails or dies.
        """
        try:
            response = self._http.get(self.url + "/props", timeout=(10, self._patience))
            response.raise_for_status()
            props = response.json()
            return str(props["bos_token"]), str(props["eos_token"])
        except (requests.RequestException, ValueError, KeyError) as exc:
            raise ToolError("llama.cpp's server does not say what it runs", where=self.url, found=exc) from exc

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """Return the token ids of *text*, with BOS and EOS as the model wants them if *add_special*."""
        body = {"content": text, "add_special": add_special, "parse_special": parse_special}
        return [int(token) for token in self._post("/tokenize", body).json()["tokens"]]

    def embed(self, text: str) -> list[float]:
        """Return the embedding of *text*; the session must have been opened with `embedding=True`."""
        answer = self._post("/v1/embeddings", {"input": text}).json()
        return [float(value) for value in answer["data"][0]["embedding"]]

    def close(self) -> None:
        """Close the connections; the server is not this object's to stop."""
        self._http.close()

    def _post(
        self, path: str, body: Mapping[str, Any], *, stream: bool = False, blames: int = 499
    ) -> requests.Response:
        """Ask; an answer with a status up to *blames* is the fault of what was asked, another one the server's."""
        try:
            response = self._http.post(self.url + path, json=body, timeout=(10, self._patience), stream=stream)
        except requests.RequestException as exc:
            raise ToolError("llama.cpp's server did not answer", where=self.url + path, found=exc) from exc
        if response.ok:
            return response
        message = _message_of(response)
        error = InputError if 400 <= response.status_code <= blames else ToolError
        raise error("llama.cpp's server refused", where=path, found=message)

    def _stream(self, path: str, body: Mapping[str, Any]) -> Iterator[str]:
        """Yield the pieces of a streamed chat answer (server-sent events)."""
        with self._post(path, body, stream=True) as response:
            try:
                for line in response.iter_lines():
                    if not line.startswith(b"data: ") or line == b"data: [DONE]":
                        continue
                    event = json.loads(line.removeprefix(b"data: "))
                    if "error" in event:
                        raise ToolError("llama.cpp's server failed in the middle of an answer", found=event["error"])
                    piece = event["choices"][0]["delta"].get("content") if event.get("choices") else None
                    if piece:
                        yield piece
            except requests.RequestException as exc:
                raise ToolError("llama.cpp's server broke off in the middle of an answer", found=exc) from exc


def runtime_at_hand() -> str | None:
    """Say which llama.cpp `open_runtime` would use, or None; nothing is started and nothing is built."""
    install = find_llama()
    if install is not None:
        return install.label
    version = prebuilt_version()
    if version is None:
        return None
    return f"prebuilt llama.cpp (xllamacpp {version}); `make llama` builds the optimized one"


@contextlib.contextmanager
def open_runtime(
    gguf: Path,
    *,
    n_ctx: int = DEFAULT_CONTEXT,
    threads: int | None = None,
    embedding: bool = False,
    patience: float = _PATIENCE_SECONDS,
) -> Iterator[ChatSession]:
    """Load *gguf* into a server of our own and hand out the session; the server ends with the block.

    The vendored llama.cpp runs it, or, where that is not built, the prebuilt one of the extra `run`.

    Args:
        gguf: the model file.
        n_ctx: context in tokens; llama.cpp caps it at what the model was trained for, 0 takes all of that.
        threads: CPU threads; as llama.cpp thinks best if None.
        embedding: serve `embed` instead of answers, as embedding models need it.
        patience: seconds to wait for the start, and for each answer.

    Raises:
        InputError: if there is no such file.
        ToolError: if no llama.cpp is at hand, or it cannot load the file; its log's end is in the error.
    """
    if not gguf.is_file():
        raise InputError("no such GGUF file", where=gguf)
    kind = runtime_at_hand()
    if kind is None:
        raise ToolError(
            "no llama.cpp is at hand", hint=f"{BUILD_HINT}; or install a prebuilt one: pip install 'gguf-pipeline[run]'"
        )
    install = find_llama()
    if install is not None:
        command = _server_command(install.program("llama-server"), gguf, n_ctx, threads, embedding)
    else:
        command = prebuilt_command(gguf, n_ctx, threads, embedding)
    key = secrets.token_hex(16)  # web pages must not reach a server on localhost
    with (
        _running(command, key, gguf, patience) as url,
        contextlib.closing(ChatSession(url, kind, key, patience)) as session,
    ):
        yield session


def _server_command(program: Path, gguf: Path, n_ctx: int, threads: int | None, embedding: bool) -> list[str]:
    """The command line of llama-server: one slot, no web page, no downloads, thoughts left in the text."""
    command = [str(program), "--model", str(gguf), "--host", "127.0.0.1", "--port", "0", "--ctx-size", str(n_ctx)]
    command += ["--parallel", "1", "--no-webui", "--offline", "--fit", "off", "--reasoning-format", "none"]
    if threads is not None:
        command += ["--threads", str(threads)]
    return [*command, "--embedding"] if embedding else command


@contextlib.contextmanager
def _running(command: list[str], key: str, gguf: Path, patience: float) -> Iterator[str]:
    """Start the server, wait until it has loaded the model, yield its address, and end it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LLAMA_")}
    environment["LLAMA_API_KEY"] = key
    with tempfile.TemporaryFile() as log:
        # A session of its own: Ctrl-C is for the person's answer, not for the server.
        child = subprocess.Popen(
            bound_to_us(command),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            yield _wait_until_ready(child, log.fileno(), gguf, patience)
        finally:
            _end(child)


def _wait_until_ready(child: subprocess.Popen[bytes], log: int, gguf: Path, patience: float) -> str:
    """Return the server's address, once it says it and is healthy."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        ended = child.poll() is not None
        text = os.pread(log, os.fstat(log).st_size, 0)
        if ended:
            break
        found = _LISTENING.search(text)
        if found and _is_healthy(found[1].decode()):
            return found[1].decode()
        time.sleep(0.01)
    end = "\n".join(os.pread(log, os.fstat(log).st_size, 0).decode(errors="replace").splitlines()[-15:])
    status = "did not get ready" if child.returncode is None else f"ended with {child.returncode}"
    raise ToolError(f"llama.cpp could not load the model: its server {status}", where=gguf, found=end)


def _is_healthy(url: str) -> bool:
    try:
        with requests.Session() as http:
            http.trust_env = False
            return http.get(f"{url}/health", timeout=5).ok
    except requests.RequestException:
        return False


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the server: politely, then not."""
    if child.stdin is not None:
        child.stdin.close()
    try:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_STOP_SECONDS)
    finally:  # a second ctrl-C included
        child.kill()
        child.wait()


def _message_of(response: requests.Response) -> str:
    """The server's own words: {"error": {"message": ...}}, or the text."""
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.text.strip() or f"HTTP status {response.status_code}"
