"""The hub: files arrive whole and checked, and each way in which a network is blocked is one sentence, soon."""

import hashlib
import os
import socket
import ssl
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.utils import close_session

from calmctl import hub as module
from calmctl.errors import HubError
from calmctl.hub import cached, fetch, list_files, revision_of

SMALL, LARGE = b'{"a": 1}', os.urandom(50_000)
FILES = {"config.json": SMALL, "model.safetensors": LARGE, "sub/vocabulary.txt": b"words"}
REPOSITORY = "owner/model"


@pytest.fixture
def served(hub):
    hub.add(REPOSITORY, FILES)
    return hub


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(module, "ANSWER_S", 0.4)
    monkeypatch.setattr(module, "STALL_S", 0.4)


def refusal(name="model.safetensors", **keys) -> str:
    """The sentence with which a file is refused; nothing is left in the cache."""
    begun = time.monotonic()
    with pytest.raises(HubError) as fault:
        fetch(REPOSITORY, name, what="backbone.weights: ViT 'tag'", **keys)
    assert time.monotonic() - begun < 5
    text = str(fault.value)
    assert text.startswith("backbone.weights: ViT 'tag'") and "\n" not in text and "Traceback" not in text
    assert cached(REPOSITORY, name) is None
    return text


def points_at(monkeypatch, endpoint):
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    close_session()


def test_files_lie_where_the_hubs_own_client_looks(served):
    for name, content in FILES.items():
        path = fetch(REPOSITORY, name)
        assert path.read_bytes() == content
        assert try_to_load_from_cache(REPOSITORY, name) == str(path)
        assert try_to_load_from_cache(REPOSITORY, name, revision=served.commit(REPOSITORY)) == str(path)
        assert revision_of(path) == served.commit(REPOSITORY)
    n = len(served.requests)
    served.fault = "503"
    assert fetch(REPOSITORY, "model.safetensors").read_bytes() == LARGE and len(served.requests) == n, "not asked again"


def test_one_request_and_its_redirect_bring_a_file(served):
    fetch(REPOSITORY, "model.safetensors")
    assert [path.split("/")[1] for _, path, _ in served.requests] == ["owner", "cdn"]


def test_the_listing_and_a_folder_of_files(served):
    listing = list_files(REPOSITORY)
    assert listing.names == tuple(sorted(FILES)) and listing.revision == served.commit(REPOSITORY)
    paths = [fetch(REPOSITORY, name, revision=listing.revision) for name in listing.names]
    (folder,) = {path.parents[name.count("/")] for path, name in zip(paths, listing.names, strict=True)}
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == set(FILES)


@pytest.mark.parametrize("fault", ["cut", "no ranges"])
def test_a_download_that_is_cut_goes_on_and_is_whole(served, fault):
    served.fault = fault
    path = fetch(REPOSITORY, "model.safetensors", sha256=hashlib.sha256(LARGE).hexdigest())
    assert path.read_bytes() == LARGE
    assert served.requests[-1][2] == f"bytes={len(LARGE) // 2}-"


def test_the_next_process_goes_on_where_the_last_was_cut(served, quick):
    served.fault = "short"
    text = refusal()
    assert "the download was cut after 25,000 of 50,000 bytes" in text and "goes on from there" in text
    served.fault, served.requests[:] = None, []
    assert fetch(REPOSITORY, "model.safetensors").read_bytes() == LARGE
    assert served.requests[-1][2] == "bytes=25000-"


def test_a_beginning_that_went_wrong_does_not_stay(served, quick):
    served.fault = "short"
    refusal()
    (part,) = Path(constants.HF_HUB_CACHE).rglob("*.incomplete")
    part.write_bytes(bytes(25_000))
    served.fault = None
    assert "its digest is another" in refusal() and not part.exists()
    assert fetch(REPOSITORY, "model.safetensors").read_bytes() == LARGE


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("404", ["has no model.safetensors at revision main", "answers 404"]),
        ("gated", ["answers 403: it is gated or private", "accept its conditions at http", "HF_TOKEN"]),
        ("private", ["there is no owner/model", "or it is private (401)", "hf auth login"]),
        ("429", ["answers 429: too many requests", "again in 30 s", "HF_ENDPOINT="]),
        ("503", ["answers 503", "again later", "HF_ENDPOINT=", "hf download owner/model model.safetensors"]),
        ("407", ["the proxy wants a name and a password (407)", "HTTPS_PROXY="]),
        ("portal", ["answers with a web page", "a login page of this network", "hf download", "HF_HUB_OFFLINE=1"]),
        ("silent", ["did not answer within 0.4 s", "HF_ENDPOINT=", "models--owner--model into"]),
        ("store refused", ["refuses the connection", "hf download"]),
        ("stalls", ["the download was cut after", "run again: it goes on from there"]),
        ("wrong", ["what came is not the file that the hub names", "nothing of it was kept"]),
    ],
)
def test_each_fault_is_one_sentence_with_the_ways_out(served, quick, fault, words):
    served.fault = fault
    text = refusal()
    for word in words:
        assert word in text
    assert not [path for path in Path(constants.HF_HUB_CACHE).rglob("*.incomplete") if fault == "wrong"]
    assert len(served.requests) <= 4, "no storm"


def test_the_limits_are_short_enough():
    assert module.ANSWER_S <= 5 and module.ANSWER_S + module.STALL_S <= 10


def test_nobody_listens_and_names_that_do_not_resolve(served, quick, monkeypatch):
    points_at(monkeypatch, sys.modules["loopback_hub"].refused_endpoint())
    assert "refuses the connection" in refusal()
    points_at(monkeypatch, "http://hub.invalid")

    def unknown(*arguments, **keys):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert "the name of hub.invalid does not resolve (Name or service not known)" in refusal()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **keys: time.sleep(3))
    assert "did not answer within 0.4 s" in refusal(), "a name server that says nothing"


def test_a_black_hole(served, quick, monkeypatch):
    with socket.socket() as hole:
        hole.bind(("127.0.0.1", 0))
        hole.listen(0)
        full = [socket.socket() for _ in range(4)]  # the system takes no more, and says nothing
        for each in full:
            each.setblocking(False)
            each.connect_ex(hole.getsockname())
        points_at(monkeypatch, f"http://127.0.0.1:{hole.getsockname()[1]}")
        assert "did not answer within 0.4 s" in refusal()
        for each in full:
            each.close()


def test_a_certificate_that_nobody_knows(served, quick, monkeypatch, tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    try:
        subprocess.run([*made, "-keyout", key, "-out", certificate], check=True, capture_output=True, timeout=30)
    except FileNotFoundError:
        pytest.skip("openssl is not installed: no certificate to be refused")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    served._server.socket = context.wrap_socket(served._server.socket, server_side=True)
    points_at(monkeypatch, served.endpoint.replace("http:", "https:"))
    text = refusal()
    assert "the certificate of 127.0.0.1" in text and "self" in text and "SSL_CERT_FILE" in text


def test_a_proxy_that_wants_a_password(served, quick, monkeypatch):
    served.fault = "407"
    monkeypatch.setenv("HTTPS_PROXY", served.endpoint)
    points_at(monkeypatch, "https://hub.invalid")
    assert "the proxy wants a name and a password (407): HTTPS_PROXY=" in refusal()
    assert served.requests[-1][:2] == ("CONNECT", "hub.invalid:443")


def test_offline_says_how_to_bring_the_file(served, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    text = refusal()
    assert "HF_HUB_OFFLINE forbids to ask" in text and "hf download owner/model model.safetensors" in text
    assert "unset HF_HUB_OFFLINE" in text and served.requests == []


def test_a_full_disk_and_a_cache_that_cannot_be_written(served, monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patched:
        patched.setattr(module.shutil, "disk_usage", lambda path: usage(1, 1, 1000))
        text = refusal()
    assert "the disk is full: 0 MB are needed" in text and "HF_HUB_CACHE" in text
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file"))
    assert "cannot be written (Not a directory)" in refusal()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module.os, "access", lambda path, mode: False)
    assert "cannot be written (it is read-only)" in refusal() and len(served.requests) == 2, "asked for the first alone"


def test_another_file_than_the_pinned_is_not_downloaded(served):
    assert "the hub has another file" in refusal(sha256="0" * 64)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../b", "C:\\x", ""])
def test_names_lead_nowhere_else(served, name):
    with pytest.raises(HubError, match="is no name of a file"):
        fetch(REPOSITORY, name)


def test_what_is_left_of_a_longer_file_is_not_gone_on_with(served):
    part = Path(constants.HF_HUB_CACHE) / "models--owner--model/blobs"
    part.mkdir(parents=True)
    (part / f"{hashlib.sha256(LARGE).hexdigest()}.calmctl.incomplete").write_bytes(bytes(60_000))
    assert fetch(REPOSITORY, "model.safetensors").read_bytes() == LARGE


def test_the_token_goes_to_the_hub_and_not_to_where_large_files_lie(served, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    store = sys.modules["loopback_hub"].Hub()
    store.add(REPOSITORY, FILES)
    served.store = store.endpoint
    assert fetch(REPOSITORY, "model.safetensors").read_bytes() == LARGE
    store.close()
    assert served.tokens == ["Bearer hf_secret"] and store.tokens == [None]


def test_revisions_lead_nowhere_else(served):
    for revision in ("../../x", "/etc", ""):
        with pytest.raises(HubError, match="is no branch, tag or commit"):
            list_files(REPOSITORY, revision=revision or "..")


def test_repositories_have_two_names(served):
    for name in ("../../x", "a/b/c", "a b/c", "https://hub/a"):
        with pytest.raises(HubError, match="is no name of a repository"):
            fetch(name, "a")


def test_a_listing_of_a_stranger_leads_nowhere_else(served):
    served.add("evil/model", {"../../x": b"1"})
    with pytest.raises(HubError, match="no file of a hub"):
        list_files("evil/model")


def test_what_is_downloaded_is_told_before(served):
    told = []

    class Watcher(module.DownloadWatcher):
        def begin(self, download):
            told.append(download)

        def progress(self, done, total):
            told.append((done, total))

    module.watch_downloads(Watcher())
    try:
        fetch(REPOSITORY, "model.safetensors")
    finally:
        module.watch_downloads(module.DownloadWatcher())
    first, *rest = told
    assert (first.size, first.have, first.repository) == (len(LARGE), 0, REPOSITORY)
    assert first.endpoint == served.endpoint and first.revision == served.commit(REPOSITORY)
    assert rest[-1] == (len(LARGE), len(LARGE))
