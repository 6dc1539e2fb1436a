from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from pipeline import data
from pipeline.errors import AccessError, InputError, PipelineError, ResourceError, UnsupportedError, UsageError
from pipeline.source import _hub_errors, _manifest


def _names(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_fetches_what_is_needed_and_nothing_else(hub: Any, files: dict[str, bytes], fetch: Any) -> None:
    """The folder holds config, tokenizer, licence and safetensors as the Hub has them, and no other file."""
    sha = next(iter(hub.repo("org/m", files).commits))
    source = fetch("org/m")
    unwanted = {"pytorch_model.bin", "training_args.bin", "onnx/model.onnx", "original/params.json", ".gitattributes"}
    assert _names(source.folder) == files.keys() - unwanted
    assert all((source.folder / n).read_bytes() == files[n] for n in files.keys() - unwanted)
    assert (source.name, source.repository, source.revision, source.commit) == ("m", "org/m", "main", sha)


def test_second_fetch_asks_nothing(hub: Any, files: dict[str, bytes], fetch: Any) -> None:
    """With everything in the cache and the commit recorded no request is made; an update makes one."""
    hub.repo("org/m", files)
    first = fetch("org/m")
    hub.requests.clear()
    assert fetch("org/m") == first
    assert hub.requests == []
    assert fetch("org/m", update=True) == first
    assert [(m, p.partition("?")[0]) for m, p in hub.requests] == [("GET", "/api/models/org/m/revision/main")]


def test_branch_tag_and_commit_are_resolved(hub: Any, files: dict[str, bytes], fetch: Any) -> None:
    """A branch with a slash, a tag and a commit give the files of that commit."""
    repo = hub.repo("org/m", files)
    old = repo.refs["main"]
    new = repo.commit({**files, "README.md": b"new"}, "refs/pr/1")
    repo.refs["v1"] = old
    assert fetch("org/m", "refs/pr/1").commit == new
    assert (fetch("org/m", "refs/pr/1").folder / "README.md").read_bytes() == b"new"
    assert fetch("org/m", "v1").commit == old
    assert fetch("org/m", new).commit == new


def test_only_the_shards_of_the_index_come(hub: Any, files: dict[str, bytes], fetch: Any) -> None:
    """With an index its shards are fetched, not a second copy of the weights under other names."""
    shard = files.pop("model.safetensors")
    weight_map = {"w": "model-00001-of-00002.safetensors", "v": "model-00002-of-00002.safetensors"}
    files["model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    files |= dict.fromkeys([*weight_map.values(), "consolidated.safetensors"], shard)
    hub.repo("org/m", files)
    got = {p.name for p in fetch("org/m").folder.glob("*.safetensors")}
    assert got == set(weight_map.values())


def test_names_that_climb_out_are_not_taken() -> None:
    """What a Hub lists outside the places that are read is left out, however it begins."""
    good = ["config.json", "model.safetensors", "LICENSE", "additional_chat_templates/tool.jinja"]
    good += ["modules.json", "1_Pooling/config.json"]
    evil = [
        "LICENSE/../../x",
        "tokenizer/../x.json",
        "additional_chat_templates/../../x.jinja",
        "../_Pooling/config.json",
        "a/b_Pooling/config.json",
        "/LICENSE",
        "../README.md",
    ]
    assert sorted(_manifest.choose_files(evil + good, "org/m")) == sorted(good)


def test_branch_that_moves_in_between_gives_one_commit(hub: Any, files: dict[str, bytes], fetch: Any) -> None:
    """If the branch moves after it was asked about, all files are those of the commit that it was."""
    repo = hub.repo("org/m", files)
    old = repo.refs["main"]
    old_info = hub.answer("/api/models/org/m", "")
    repo.commit({**files, "tokenizer.json": b'{"new": 1}'})
    hub.faults.append(("/api/models/org/m", old_info))
    source = fetch("org/m")
    assert source.commit == old
    assert (source.folder / "tokenizer.json").read_bytes() == files["tokenizer.json"]


def test_progress_tells_every_byte(hub: Any, files: dict[str, bytes], fetch: Any) -> None:
    """The callback sees the sum over all files grow to their size, in more than one step for a large one."""
    files["model.safetensors"] += bytes(30_000_000)
    hub.repo("org/m", files)
    seen: list[tuple[str, int, int | None]] = []
    source = fetch("org/m", progress=lambda *told: seen.append(told))
    all_bytes = sum(len(files[n]) for n in _names(source.folder))
    assert seen[-1] == ("model.safetensors", all_bytes, all_bytes)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert len(seen) > 20


def test_nothing_is_printed(hub: Any, files: dict[str, bytes], capfd: pytest.CaptureFixture[str], fetch: Any) -> None:
    """Neither bars nor the client's advice reach the terminal, and its log level is as before."""
    from huggingface_hub.utils import logging as client

    hub.repo("org/m", files)
    hub.fail("/api/models", 404, X_Error_Code="RepoNotFound", X_HF_Warning="unauthenticated; set a token")
    with pytest.raises(AccessError):
        fetch("org/m")
    fetch("org/m")
    assert capfd.readouterr() == ("", "")
    assert client.get_verbosity() == logging.WARNING


def test_token_opens_gated_and_private(
    hub: Any, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, fetch: Any
) -> None:
    """HF_TOKEN is sent, and a repository that needs it is fetched."""
    hub.repo("org/gated", files).gated = True
    hub.repo("org/private", files).private = True
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    assert fetch("org/gated").commit
    assert fetch("org/private").commit


REFUSALS = {
    "gated": ({"gated": True}, "", AccessError, ["gated", "https://huggingface.co/org/m", "hf auth login"]),
    "gated, no access": ({"gated": True}, "hf_limited", AccessError, ["gated", "ask for access", "HTTP 403"]),
    "private": ({"private": True}, "", AccessError, ["no such repository, or it is private", "HF_TOKEN"]),
    "disabled": ({"disabled": True}, "", AccessError, ["disabled", "choose another"]),
    "bad token": ({}, "hf_bad", AccessError, ["does not accept the token", "stale HF_TOKEN", "HTTP 401"]),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_say_the_next_step(
    case: str, hub: Any, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, fetch: Any
) -> None:
    """Each way to be refused has its own message with what to do."""
    settings, token, error, parts = REFUSALS[case]
    repo = hub.repo("org/m", files)
    for key, value in settings.items():
        setattr(repo, key, value)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(error) as caught:
        fetch("org/m")
    assert type(caught.value) is error
    for part in ["org/m@main", *parts]:
        assert part in str(caught.value)


STATUSES = {
    403: ({}, ["refuses access", "token's rights", "HTTP 403"]),
    404: ({}, ["does not know this", "check the spelling"]),
    429: ({"Retry_After": "17"}, ["slow down", "run again in 17 seconds", "HTTP 429"]),
    500: ({"X_Error_Message": "oops"}, ["in trouble", "HTTP 500, oops"]),
    503: ({}, ["in trouble", "HTTP 503"]),
}


@pytest.mark.parametrize("status", STATUSES)
def test_status_is_explained(status: int, hub: Any, files: dict[str, bytes], fetch: Any) -> None:
    """An HTTP status that says nothing about the repository is an AccessError with its own hint."""
    headers, parts = STATUSES[status]
    hub.repo("org/m", files)
    hub.fail("/api/models", status, times=5, **headers)
    with pytest.raises(AccessError) as caught:
        fetch("org/m")
    for part in parts:
        assert part in str(caught.value)


def test_missing_repository_and_revision(hub: Any, files: dict[str, bytes], fetch: Any) -> None:
    """A repository and a revision that do not exist are told apart."""
    hub.repo("org/m", files)
    with pytest.raises(AccessError, match="no such repository"):
        fetch("org/other")
    with pytest.raises(InputError, match=r"(?s)no such revision.*/org/m/tree/main"):
        fetch("org/m", "v9")


def test_file_that_vanishes(hub: Any, files: dict[str, bytes], fetch: Any) -> None:
    """A file that was listed and is not there says so."""
    hub.repo("org/m", files)
    hub.fail("resolve/", 404, X_Error_Code="EntryNotFound")
    with pytest.raises(InputError, match="lacks a file that it listed"):
        fetch("org/m")


def test_error_behind_the_clients_own_is_found(hub: Any, files: dict[str, bytes], fetch: Any) -> None:
    """A status during the download, which the client hides behind "not in the cache", is said."""
    hub.repo("org/m", files)
    hub.fail("/tokenizer.json", 403)
    with pytest.raises(AccessError, match=r"(?s)refuses access.*HTTP 403"):
        fetch("org/m")


def test_short_download_is_refused(hub: Any, files: dict[str, bytes], fetch: Any) -> None:
    """A body that is always longer than announced leaves no file, and the next run succeeds."""
    hub.repo("org/m", files)
    hub.spoil("tokenizer.json", times=5, extra=b"!")
    with pytest.raises(AccessError, match=r"(?s)broke off.*run the command again"):
        fetch("org/m")
    assert (fetch("org/m").folder / "tokenizer.json").read_bytes() == files["tokenizer.json"]


@pytest.mark.parametrize("body", [b"<html>log in</html>", b"[]", b'"text"', b"{}", b'{"id": "org/m", "sha": 7}'])
def test_not_a_hub(body: bytes, hub: Any, fetch: Any) -> None:
    """A login page or another service behind the address is recognised."""
    hub.faults.append(("/api/models", type(hub.answer("/x", ""))(200, {}, body)))
    with pytest.raises(AccessError, match=r"(?s)does not answer like a Hugging Face Hub.*HF_ENDPOINT"):
        fetch("org/m")


def _closed_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{s.getsockname()[1]}"


def test_without_network_the_cache_serves(
    hub: Any, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, fetch: Any, pauses: list[float]
) -> None:
    """What was fetched once is found again with no server; the log says so if the Hub was to be asked."""
    hub.repo("org/m", files)
    online = fetch("org/m")
    monkeypatch.setenv("HF_ENDPOINT", _closed_port())
    lines: list[str] = []
    assert fetch("org/m", log=lines.append) == online
    assert lines == []
    assert fetch("org/m", update=True, log=lines.append) == online
    assert fetch("org/m", online.commit, log=lines.append).folder == online.folder
    assert len(lines) == 2
    assert all(str(online.commit) in line for line in lines)
    assert pauses == []


def test_the_clients_own_cache_serves(
    hub: Any, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, fetch: Any
) -> None:
    """What another program fetched through the client is taken, by branch, without network."""
    from huggingface_hub import snapshot_download

    sha = hub.repo("org/m", files).refs["main"]
    snapshot_download("org/m", endpoint=hub.url, cache_dir=os.environ["HF_HOME"] + "/hub")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetch("org/m").commit == sha


def test_without_network_and_cache(hub: Any, monkeypatch: pytest.MonkeyPatch, fetch: Any) -> None:
    """With neither, the message is about the network."""
    monkeypatch.setenv("HF_ENDPOINT", _closed_port())
    with pytest.raises(AccessError, match=r"(?s)cannot be reached.*check the network"):
        fetch("org/m")


def test_server_in_trouble_leaves_the_cache(hub: Any, files: dict[str, bytes], fetch: Any) -> None:
    """An answer of 503 does not stop who has the files; a refusal does."""
    hub.repo("org/m", files)
    online = fetch("org/m")
    hub.fail("/api/models", 503)
    assert fetch("org/m", update=True) == online
    hub.fail("/api/models", 403)
    with pytest.raises(AccessError, match="refuses"):
        fetch("org/m", update=True)


def test_offline_sends_nothing(hub: Any, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, fetch: Any) -> None:
    """HF_HUB_OFFLINE, set at any time, keeps every request back."""
    hub.repo("org/m", files)
    online = fetch("org/m")
    hub.requests.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetch("org/m") == online
    with pytest.raises(AccessError, match=r"(?s)HF_HUB_OFFLINE is set.*unset"):
        fetch("org/other")
    assert hub.requests == []


def test_cache_may_lie_anywhere(
    hub: Any, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fetch: Any
) -> None:
    """HF_HUB_CACHE, with a tilde or a variable in it, counts before HF_HOME, even after the client was imported."""
    hub.repo("org/m", files)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", "b")
    monkeypatch.setenv("HF_HUB_CACHE", "~/a/$PLACE")
    assert fetch("org/m").folder.is_relative_to(tmp_path / "a" / "b")


@pytest.mark.parametrize("gone", ["model.safetensors", "shard"])
@pytest.mark.parametrize("is_recorded", [True, False])
def test_half_a_model_in_the_cache_is_not_taken(
    gone: str, is_recorded: bool, hub: Any, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, fetch: Any
) -> None:
    """Offline, a snapshot without its weights, or without one shard, is refused with what to do."""
    if gone == "shard":
        shard = files.pop("model.safetensors")
        files["model.safetensors.index.json"] = b'{"weight_map": {"w": "a.safetensors", "v": "b.safetensors"}}'
        files |= {"a.safetensors": shard, "b.safetensors": shard + b"!"}
        gone = "b.safetensors"
    hub.repo("org/m", files)
    path = fetch("org/m").folder / gone
    path.resolve().unlink()
    path.unlink()
    if not is_recorded:
        (data.data_home() / "models.lock.json").unlink()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    expected = "not whole in the cache.*unset it" if is_recorded else "only a part.*gguf-pipeline pull org/m"
    with pytest.raises(AccessError, match=f"(?s){expected}"):
        fetch("org/m")


def test_small_disk_is_refused_before_the_download(
    hub: Any, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, fetch: Any
) -> None:
    """If the weights do not fit, nothing of them is requested."""
    files["model.safetensors"] += bytes(1_000_000)
    hub.repo("org/m", files)
    usage = type(shutil.disk_usage("/"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(9_000_000, 8_000_000, 1_000_000))
    with pytest.raises(ResourceError, match=r"(?s)not enough disk space.*1,000,000 bytes free.*HF_HOME"):
        fetch("org/m")
    assert not [p for _, p in hub.requests if "safetensors" in p]


def test_full_disk_is_a_resource_error() -> None:
    """ENOSPC from anywhere below is exit 5, even inside the client's own error."""
    full = OSError(errno.ENOSPC, "No space left on device")
    assert isinstance(_hub_errors.translate(full, "org/m", "main"), ResourceError)


OTHER_FORMATS = {
    "pickle": ({"config.json", "model.pt"}, "refs/pr/1"),
    "gguf": ({"config.json", "m.Q4_K_M.gguf"}, "already GGUF"),
    "adapter": ({"config.json", "adapter_config.json", "adapter_model.safetensors"}, "--adapter"),
    "no config": ({"model.safetensors"}, "original weights"),
    "deeper": ({"unet/config.json", "unet/model.safetensors"}, "original weights"),
    "empty": (set(), "original weights"),
}


@pytest.mark.parametrize("case", OTHER_FORMATS)
def test_other_formats_are_named(case: str, hub: Any, fetch: Any) -> None:
    """A repository without a safetensors checkpoint is refused before a file is fetched, with the way out."""
    names, hint = OTHER_FORMATS[case]
    hub.repo("org/m", dict.fromkeys(sorted(names), b"x"))
    with pytest.raises(UnsupportedError, match=hint):
        fetch("org/m")
    assert len(hub.requests) == 1


@pytest.mark.parametrize("address", ["hub.example", "ftp://hub.example", "http://[::1"])
def test_endpoint_that_is_no_address(address: str, hub: Any, monkeypatch: pytest.MonkeyPatch, fetch: Any) -> None:
    """A misspelt HF_ENDPOINT is the user's setting, not a network that is down."""
    monkeypatch.setenv("HF_ENDPOINT", address)
    with pytest.raises(UsageError, match="HF_ENDPOINT is not an address"):
        fetch("org/m")


def test_impossible_name_sends_nothing(hub: Any, fetch: Any) -> None:
    """A name that the Hub cannot have is a usage error without a request."""
    with pytest.raises(UsageError, match="cannot be the name of a repository"):
        fetch("org/m--x")
    assert hub.requests == []


def test_every_error_of_the_client_has_a_row() -> None:
    """Each exception that reading can raise in huggingface_hub is translated, and all rows can be filled in."""
    from huggingface_hub import errors

    reading = (errors.HfHubHTTPError, errors.EntryNotFoundError, errors.HFValidationError, OSError)
    kinds = [v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, reading)]
    assert len(kinds) > 10
    for kind in kinds:
        ours = _hub_errors.translate(kind.__new__(kind), "org/m", "main")
        assert isinstance(ours, PipelineError), kind
        assert ours.hint
        assert "{" not in ours.hint


def test_foreign_errors_pass() -> None:
    """What is not in the table is a bug, and is not dressed up as trouble with the network."""
    assert _hub_errors.translate(ZeroDivisionError(), "org/m", "main") is None
