"""The only door to huggingface_hub for reading: resolve a revision to a commit, fetch what a conversion needs.

Files lie in the client's own cache, shared with every other program that uses it.  The client honours HF_TOKEN,
HF_HUB_OFFLINE, proxies and the rest by itself; HF_ENDPOINT and the cache's place, which it reads once when imported,
are handed to it at each call, so that setting them later counts.  It is imported inside functions: that takes long.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pipeline.errors import AccessError, ResourceError, UnsupportedError
from pipeline.source._hub_errors import is_unreachable, translate
from pipeline.types import Source

Log = Callable[[str], None]
Progress = Callable[[str, int, int | None], None]

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_MAX_INDEX = 100_000_000
_TIMEOUT = 30.0  # seconds for the one request that asks about the repository
_TRUE = {"1", "ON", "YES", "TRUE"}

# Everything but weights that a conversion, a Modelfile or a licence may need, at the top of the repository.
_NEEDED = (
    CONFIG, "generation_config.json", "tokenizer*.json", "tokenizer*.model", "spiece.model", "sentencepiece*.model",
    "*.tiktoken", "vocab.json", "vocab.txt", "merges.txt", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jin*", "chat_template.json", "modules.json", "README.md",
    "LICENSE*", "LICENCE*", "COPYING*", "NOTICE*", "USE_POLICY*",
)  # fmt: skip
# And in folders: more templates, and how an embedding model pools.
_NEEDED_DEEPER = ("additional_chat_templates/*.jinja", "*_Pooling/config.json")


def silent(_line: str) -> None:
    """Drop a log line."""


def fetch(repo: str, revision: str | None = None, *, log: Log = silent, progress: Progress | None = None) -> Source:
    """Bring the checkpoint *repo* at *revision* (default "main") into the cache, as far as it is not there.

    If the Hub gives no answer, a complete copy in the cache serves, and *log* is told.

    Raises:
        AccessError: if the Hub refuses or cannot be reached, with the next step as a hint.
        InputError: if the revision does not exist, or the repository holds no safetensors checkpoint.
        ResourceError: if the disk is too small.
    """
    wanted = revision or "main"
    with _quiet(), _translated(repo, wanted):
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE:
            return _cached(repo, wanted)
        try:
            info = _info(repo, wanted)
        except Exception as error:
            if not is_unreachable(error):
                raise
            source = _cached(repo, wanted, error)
            log(f"the Hub cannot be reached; {repo} comes from the cache, commit {source.commit}")
            return source
        return _download(repo, wanted, info, progress)


def choose_files(names: list[str], repo: str) -> list[str]:
    """Choose from a repository's file *names* what a conversion needs; an index stands for its shards.

    `model.safetensors` comes before an index, and an index before loose files; other formats never come.

    Raises:
        UnsupportedError: if there is no config.json or no safetensors among them.
    """
    top = [n for n in names if "/" not in n]
    if SINGLE in top:
        weights = [SINGLE]
    elif INDEX in top:
        weights = [INDEX]
    else:
        weights = [n for n in top if n.endswith(".safetensors") and not n.startswith("adapter")]
    if CONFIG not in top or not weights:
        raise UnsupportedError(
            "the repository holds no safetensors checkpoint",
            where=repo,
            expected=f"{CONFIG} and *.safetensors",
            found=", ".join(top[:12]) or "no files",
            hint=_other_format(top),
        )
    deeper = [n for n in names if n.count("/") == 1 and any(fnmatchcase(n, p) for p in _NEEDED_DEEPER)]
    return [n for n in top if any(fnmatchcase(n, p) for p in _NEEDED)] + deeper + weights


def _other_format(names: list[str]) -> str:
    if "adapter_config.json" in names:
        return "this is an adapter (LoRA): merge it into its base model and save that"
    if any(n.endswith(".gguf") for n in names):
        return "this repository is already GGUF: Ollama pulls it as hf.co/org/name; or name the original repository"
    if any(n.endswith((".bin", ".pt", ".pth")) for n in names):
        return "weights as pickle are not read: try its safetensors revision, often @refs/pr/1, or convert it first"
    return "name the repository of the original weights"


def _info(repo: str, revision: str) -> Any:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import FileMetadataError

    api = HfApi(endpoint=_settings()["endpoint"], library_name="gguf-pipeline")
    try:
        info = api.model_info(repo, revision=revision, files_metadata=True, timeout=_TIMEOUT)
    except (AttributeError, KeyError, TypeError) as error:  # the client trusts the answer's shape
        raise FileMetadataError("the answer does not describe a model") from error
    if not isinstance(info.sha, str) or info.siblings is None:
        raise FileMetadataError("the answer has no commit or no files")
    return info


def _download(repo: str, revision: str, info: Any, progress: Progress | None) -> Source:
    choose_files([s.rfilename for s in info.siblings], repo)
    # By the branch's name, which makes the cache remember the branch for times without network.
    config = _file(repo, CONFIG, revision, progress)
    commit = config.parent.name
    if commit != info.sha:  # the branch moved in between
        info = _info(repo, commit)
    sizes: dict[str, int] = {s.rfilename: s.size or 0 for s in info.siblings}
    files = choose_files(list(sizes), repo)
    if INDEX in files:
        shards = _shards(_file(repo, INDEX, commit, progress))
        files += [name for name in sizes if name in shards]
    _check_disk(repo, commit, {name: sizes[name] for name in files})
    for name in files:
        _file(repo, name, commit, progress)
    return _source(repo, revision, config)


def _shards(index: Path) -> set[str]:
    """List the shards that *index* names; none if it is broken, which the checkpoint's strict reader will say."""
    try:
        if index.stat().st_size > _MAX_INDEX:
            return set()
        return set(map(str, json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return set()


def _cached(repo: str, revision: str, error: BaseException | None = None) -> Source:
    """Take the checkpoint from the cache alone, if it is whole there; else raise *error* or say what to do."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import OfflineModeIsEnabled

    config = try_to_load_from_cache(repo, CONFIG, cache_dir=_settings()["cache_dir"], revision=revision)
    if not isinstance(config, str):
        raise error or OfflineModeIsEnabled("nothing is asked of the Hub")
    folder = Path(config).parent
    # Weights are fetched last, so where they are whole, everything is.
    if not _has_weights(folder):
        raise AccessError(
            "only a part of the model is in the cache, and the Hub is out of reach",
            where=f"{repo}@{revision}",
            expected=f"{CONFIG} and all weights",
            found=", ".join(sorted(p.name for p in folder.iterdir())[:12]),
            hint=f"run: gguf-pipeline pull {repo}  while online",
        )
    return _source(repo, revision, Path(config))


def _has_weights(folder: Path) -> bool:
    """Say whether all weights are in *folder*: one file, or an index and every shard that it names."""
    if (folder / SINGLE).exists():
        return True
    if not (folder / INDEX).exists():
        return any(folder.glob("*.safetensors"))
    return all((folder / shard).exists() for shard in _shards(folder / INDEX))


def _source(repo: str, revision: str, config: Path) -> Source:
    return Source(repo.rpartition("/")[2], config.parent, repo, revision, config.parent.name)


def _file(repo: str, name: str, revision: str, progress: Progress | None) -> Path:
    """Fetch one file, or find it in the cache, and return its path there."""
    from huggingface_hub import hf_hub_download

    settings = _settings()
    path = hf_hub_download(
        repo,
        name,
        revision=revision,
        endpoint=settings["endpoint"],
        cache_dir=settings["cache_dir"],
        library_name="gguf-pipeline",
        tqdm_class=_bar_class(name, progress or (lambda *_: None)),
    )
    return Path(path)


def _bar_class(name: str, progress: Progress) -> type:
    """Make a progress bar class for the client that draws nothing and tells *progress*."""
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            # Xet counts each byte twice: as it comes over the network, and as it is written.  The latter is ours.
            self._is_network = str(kwargs.get("name", "")).endswith(".transfer")
            self._done = int(kwargs.get("initial") or 0)
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            if not self._is_network:
                self._done += int(n or 0)
                progress(name, self._done, None if self.total is None else int(self.total))

    return Bar


def _check_disk(repo: str, commit: str, sizes: dict[str, int]) -> None:
    """Refuse before the download what the disk cannot hold; the client itself only warns."""
    from huggingface_hub import constants, try_to_load_from_cache

    cache = _settings()["cache_dir"]
    missing = [n for n in sizes if not isinstance(try_to_load_from_cache(repo, n, cache, commit), str)]
    need = sum(sizes[n] for n in missing)
    folder = Path(cache or constants.HF_HUB_CACHE)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if need > free:
        raise ResourceError(
            f"not enough disk space to download {repo}",
            where=folder,
            expected=f"{need:,} bytes",
            found=f"{free:,} bytes free",
            hint="free some space, or set HF_HOME to a folder on a bigger disk",
        )


def _settings() -> dict[str, str | None]:
    """Read the two settings that the client fixes when it is imported; None leaves them to it."""
    home = os.environ.get("HF_HOME")
    cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or (home and f"{home}/hub")
    return {
        "endpoint": os.environ.get("HF_ENDPOINT", "").rstrip("/") or None,
        "cache_dir": str(Path(os.path.expandvars(cache)).expanduser()) if cache else None,
    }


@contextmanager
def _translated(repo: str, revision: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        ours = translate(error, repo, revision)
        if ours is None:
            raise
        raise ours from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the client's advice ("set a token") off the terminal, unless the user asked for more than warnings."""
    from huggingface_hub.utils import logging as client

    before = client.get_verbosity()
    if before == logging.WARNING:
        client.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        client.set_verbosity(before)
