"""Downloads: whole, checked, resumed, and asked for once."""

from __future__ import annotations

import gzip
import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from click.testing import CliRunner

import generate
from metrics import downloads
from stylegan2_fewshot import cache, files
from training import environment, pickles, sources
from training.sources import SourceError, fetch

BODY = b"\x80\x04" + bytes(range(256)) * 40


class Server(ThreadingHTTPServer):
    """Serves one body in ways that a test sets: cut short, failing, changed, without ranges."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.version, self.ranges = BODY, '"1"', True
        self.cuts, self.failures, self.asked = [], [], []
        self.first, self.total, self.encoding = None, None, None
        self.url = f"http://127.0.0.1:{self.server_port}/nets/a%20b.pkl?x=1"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append(wanted)
        if server.failures:
            self.send_error(server.failures.pop(0))
            return
        fresh = self.headers.get("If-Range") == server.version
        start = int(wanted[6:-1]) if wanted and fresh and server.ranges else 0
        self.send_response(206 if start else 200)
        if start:
            total = server.total or len(server.body)
            first = server.first if server.first is not None else start
            self.send_header("Content-Range", f"bytes {first}-{len(server.body) - 1}/{total}")
        if server.encoding:
            self.send_header("Content-Encoding", server.encoding)
        self.send_header("Content-Length", str(len(server.body) - start))
        if server.version:
            self.send_header("ETag", server.version)
        self.end_headers()
        end = server.cuts.pop(0) if server.cuts else len(server.body)
        self.wfile.write(server.body[start:end])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("STYLEGAN2_FEWSHOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(downloads.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(downloads, "CHUNK", 100)  # what an interruption loses at most
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def files_in(path):
    return {file.name.partition("a_b.pkl")[2] for file in path.iterdir()}


def test_download_once(server):
    path = fetch(server.url)
    assert path.read_bytes() == BODY
    assert path.name.endswith("-a_b.pkl")
    assert fetch(server.url) == path
    assert server.asked == [None]
    assert files_in(path.parent) == {"", ".sha256", ".lock"}
    noted = path.with_name(path.name + ".sha256").read_text().split()
    assert noted == [hashlib.sha256(BODY).hexdigest(), path.name]


def test_each_url_has_its_own_copy(server):
    assert fetch(server.url) != fetch(server.url + "2")


def test_interrupted_download_goes_on_where_it_stopped(server):
    server.cuts = [1000, 5000]
    assert fetch(server.url).read_bytes() == BODY
    assert server.asked == [None, "bytes=1000-", "bytes=5000-"]


def test_a_later_call_goes_on_where_an_earlier_one_gave_up(server, tmp_path):
    server.cuts = [100, 200, 300]
    with pytest.raises(
        SourceError, match=r"b.pkl: the connection failed; run again to resume the download"
    ):
        fetch(server.url)
    assert files_in(tmp_path / "cache") == {".part", ".part.version", ".lock"}
    assert fetch(server.url).read_bytes() == BODY
    assert server.asked[-1] == "bytes=300-"


def test_a_file_that_changed_meanwhile_is_not_patched_together(server, monkeypatch):
    def change(seconds):
        server.body, server.version = b"\x80new" * 1000, '"2"'

    server.cuts = [1000]
    monkeypatch.setattr(downloads.time, "sleep", change)
    assert fetch(server.url).read_bytes() == b"\x80new" * 1000
    assert server.asked == [None, "bytes=1000-"]


@pytest.mark.parametrize(("ranges", "version"), [(False, '"1"'), (True, ""), (True, 'W/"1"')])
def test_a_server_that_cannot_resume_starts_over(server, ranges, version):
    server.cuts, server.ranges, server.version = [1000], ranges, version
    assert fetch(server.url).read_bytes() == BODY


def test_passing_trouble_is_tried_again(server):
    server.failures = [503, 500]
    assert fetch(server.url).read_bytes() == BODY


def test_a_final_answer_is_reported_at_once(server, tmp_path):
    server.failures = [404]
    with pytest.raises(SourceError, match=r"answers 404 Not Found; check the URL"):
        fetch(server.url)
    assert len(server.asked) == 1
    assert files_in(tmp_path / "cache") == {".lock"}


def test_nobody_there(server):
    url = "http://127.0.0.1:9/x.pkl"
    with pytest.raises(SourceError, match=r"^http://127.0.0.1:9/x.pkl: the connection failed; "):
        fetch(url)


def test_download_with_the_wrong_hash_is_thrown_away(server, tmp_path):
    with pytest.raises(SourceError, match=r"SHA-256 is .* expected 00"):
        fetch(server.url, sha256="00")
    assert files_in(tmp_path / "cache") == {".part.version", ".lock"}
    digest = hashlib.sha256(BODY).hexdigest()
    assert fetch(server.url, sha256=digest.upper()).read_bytes() == BODY


def test_a_copy_that_changed_is_refused(server):
    path = fetch(server.url)
    path.write_bytes(b"spoilt")
    with pytest.raises(SourceError, match=r"SHA-256 is .*; delete .*a_b.pkl and run again"):
        fetch(server.url)
    path.unlink()
    assert fetch(server.url).read_bytes() == BODY


def test_a_copy_put_there_by_hand_is_used(server):
    path = cache.folder() / fetch(server.url).name
    for file in path.parent.iterdir():
        file.unlink()
    path.write_bytes(b"by hand")
    assert fetch(server.url).read_bytes() == b"by hand"
    assert len(server.asked) == 1


def test_two_at_once_download_once(server):
    paths = []
    threads = [threading.Thread(target=lambda: paths.append(fetch(server.url))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(paths)) == 1
    assert len(paths) == 4
    assert len(server.asked) == 1


def test_short_names_are_urls_of_nvidia(monkeypatch):
    asked = []
    monkeypatch.setattr(sources, "download", lambda url, **_: asked.append(url))
    fetch("lsundog256")
    server = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/"
    file = "transfer-learning-source-nets/lsundog-res256-paper256-kimg100000-noaug.pkl"
    assert asked == [server + file]
    assert set(sources.SHORT_NAMES) == {
        "ffhq256",
        "ffhq512",
        "ffhq1024",
        "celebahq256",
        "lsundog256",
    }


def test_local_files(tmp_path, monkeypatch):
    path = tmp_path / "x.pkl"
    path.write_bytes(BODY)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert fetch(path) == path
    assert fetch("~/x.pkl", sha256=hashlib.sha256(BODY).hexdigest()) == path
    with pytest.raises(SourceError, match="SHA-256"):
        fetch(path, sha256="00")
    with pytest.raises(SourceError, match=r"ffhq128: no such file; .* ffhq256, ffhq512"):
        fetch("ffhq128")


@pytest.mark.parametrize(
    ("platform", "tail"),
    [
        ("linux", ".cache/stylegan2_fewshot"),
        ("darwin", "Library/Caches/stylegan2_fewshot"),
        ("win32", "AppData/Local/stylegan2_fewshot"),
    ],
)
def test_cache_folder_of_the_platform(monkeypatch, platform, tail):
    monkeypatch.delenv("STYLEGAN2_FEWSHOT_CACHE", raising=False)
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    monkeypatch.setattr(cache.sys, "platform", platform)
    assert cache.folder().as_posix().endswith(tail)


@pytest.mark.parametrize("wrong", [{"first": 7}, {"total": 5}])
def test_a_part_that_is_not_what_was_asked_for_starts_over(server, wrong):
    server.cuts = [500]
    vars(server).update(wrong)
    assert fetch(server.url).read_bytes() == BODY
    assert [asked is None for asked in server.asked] == [True, False, True]


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><p>Sign in", b"\n <HTML><body>quota"])
def test_a_web_page_in_the_place_of_a_file_is_not_kept(server, page):
    server.body = page
    with pytest.raises(SourceError, match="a web page instead of a file"):
        fetch(server.url)
    assert not [p for p in cache.folder().iterdir() if p.suffix not in (".lock", ".version")]


def test_a_compressed_answer_is_refused(server):
    server.encoding = "gzip"
    with pytest.raises(SourceError, match="sent compressed"):
        fetch(server.url)


@pytest.mark.parametrize(  # mtime: the tests' names may not change between two processes
    "body", [gzip.compress(bytes(1000), mtime=0), b"Quota exceeded", b'{"error": "denied"}', b""]
)
def test_what_is_not_a_network_is_not_kept(server, body):
    server.body = body
    with pytest.raises(SourceError, match=r"b\.pkl: not a network file; check the URL"):
        fetch(server.url)
    assert not [p for p in cache.folder().iterdir() if p.suffix not in (".lock", ".version")]


def test_a_copy_that_turns_out_bad_is_named(server):
    server.body = b"\x80\x04 junk"
    for _ in range(2):
        with pytest.raises(pickles.PickleError) as caught:
            pickles.load(server.url)
        (copy,) = (path for path in cache.folder().iterdir() if path.suffix == ".pkl")
        assert f"(downloaded as {copy}; delete that to download it anew): is " in str(caught.value)
    assert len(server.asked) == 1


@pytest.mark.parametrize("body", [b"<html>", b"\x80\x04 junk"])
def test_messages_hold_no_credentials(server, body, tmp_path, monkeypatch, capsys):
    secret = server.url.replace("http://", "http://me:secret@").replace("x=1", "token=secret")
    server.body = body
    command = ["generate.py", f"--network={secret}", "--seeds=1", f"--outdir={tmp_path}"]
    result = CliRunner().invoke(generate.main, command[1:])
    assert result.exit_code == 2 and "/nets/a%20b.pkl" in result.output
    monkeypatch.setattr("sys.argv", command)
    environment.record(tmp_path, torch.device("cpu"))
    said = capsys.readouterr()
    written = (tmp_path / environment.FILE).read_text()
    assert "secret" not in result.output + said.out + said.err + written


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("https://a:b@c/d?e#f; then", "https://c/d then"),
        ("--resume=HTTP://a@b@c/d@e.pkl", "--resume=HTTP://c/d@e.pkl"),
        ("https://c?key=x and http://d:80/e", "https://c and http://d:80/e"),
        ("a@b: 1 ? 2", "a@b: 1 ? 2"),
    ],
)
def test_urls_are_shown_without_secrets(text, seen):
    assert files.legible(text) == seen
