"""Pushing to the Hub, against an endpoint of our own on this machine: never the real one."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cruxtune.errors import ConfigError
from cruxtune.hub import check_access, push
from cruxtune.settings import build
from cruxtune.stage_settings import HubSettings

TOKEN = "hf_of_a_test"


@dataclass
class FakeHub:
    """What an endpoint was asked, what it holds, and which requests it refuses with which status."""

    url: str = ""
    asked: list[str] = field(default_factory=list)
    created: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)


def handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    """The few requests that a push makes; all others are not found."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def reply(self, content: Any, status: int = 200) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self.answer(b"")

        def do_POST(self) -> None:
            self.answer(self.rfile.read(int(self.headers["Content-Length"] or 0)))

        def answer(self, body: bytes) -> None:
            path = self.path.split("?")[0]
            hub.asked.append(path)
            for part, status in hub.refused.items():
                if part in path:
                    return self.reply({"error": f"refused with {status}"}, status)
            if self.headers["Authorization"] != f"Bearer {TOKEN}" and not path.endswith("validate-yaml"):
                return self.reply({"error": "Invalid credentials"}, 401)
            if path == "/api/whoami-v2":
                return self.reply({"type": "user", "name": "tester", "orgs": []})
            if path == "/api/repos/create":
                hub.created.append(json.loads(body))
                made = hub.created[-1]
                return self.reply({"url": f"{hub.url}/{made['organization']}/{made['name']}"})
            if "/auth-check" in path:
                return self.reply({})
            if path == "/api/validate-yaml":
                return self.reply({"errors": [], "warnings": []})
            if "/preupload/" in path:
                names = [entry["path"] for entry in json.loads(body)["files"]]
                modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
                return self.reply({"files": modes})
            if "/commit/" in path:
                for line in body.splitlines():
                    entry = json.loads(line)
                    if entry["key"] == "file":
                        hub.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
                return self.reply(
                    {"success": True, "commitOid": "0" * 40, "commitUrl": f"{hub.url}/tester/mine/commit/0"}
                )
            return self.reply({"error": "not found"}, 404)

    return Handler


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    """An endpoint that answers while the test runs."""
    fake = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(fake))
    fake.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield fake
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def online(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """The endpoint, as that of this process."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return hub


def settings(name: str, **leaves: Any) -> HubSettings:
    """Settings of a push."""
    return build(HubSettings, {"push_to_hub": name, **leaves})


@pytest.mark.parametrize("public", [False, True])
def test_a_repository_is_made_private_unless_asked_otherwise(online: FakeHub, public: bool) -> None:
    """A bare name is that of the user; the right to write is checked."""
    assert check_access(settings("mine", public=public)) == "tester/mine"
    (made,) = online.created
    assert (made["organization"], made["name"]) == ("tester", "mine")
    assert made["visibility"] == ("public" if public else "private")
    assert any("auth-check" in path and path.endswith("write") for path in online.asked)


@pytest.mark.parametrize(
    ("refused", "token", "message"),
    [
        ({}, "hf_wrong", "Invalid user token"),
        ({"whoami": 500}, TOKEN, "500"),
        ({"repos/create": 403, "api/models": 404}, TOKEN, "403"),
        ({"auth-check": 403}, TOKEN, "403"),
    ],
)
def test_no_access_is_one_line_before_work_begins(
    online: FakeHub, monkeypatch: pytest.MonkeyPatch, refused: dict[str, int], token: str, message: str
) -> None:
    """A wrong token, a server that fails, a namespace or a repository of others: what happened and what to do."""
    online.refused = refused
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(
        ConfigError, match=rf"--push-to-hub org/mine cannot be written.*{message}.*hf auth login"
    ) as found:
        check_access(settings("org/mine"))
    assert "\n" not in str(found.value)


def test_offline_is_one_line(online: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the Hub switched off nothing is asked of it."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"--push-to-hub mine cannot be written.*offline"):
        check_access(settings("mine"))
    assert online.asked == []


def test_a_push_uploads_what_is_finished(online: FakeHub, tmp_path: Path) -> None:
    """Every file of the directory but the lock is in the commit."""
    (tmp_path / "README.md").write_text("---\ntags: [cruxtune]\n---\n# Mine\n")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / ".lock").write_text("")
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    assert push(tmp_path, "tester/mine") == f"{online.url}/tester/mine/commit/0"
    assert sorted(online.files) == ["README.md", "base/config.json", "model.safetensors"]
    assert online.files["model.safetensors"] == b"weights"


def test_a_failed_push_says_how_to_push_again(online: FakeHub, tmp_path: Path) -> None:
    """The directory is named as finished, and both ways to go on."""
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    online.refused = {"/commit/": 403}
    with pytest.raises(
        ConfigError, match=rf"finished in {tmp_path}, but it could not.*hf upload tester/mine {tmp_path}"
    ):
        push(tmp_path, "tester/mine")


def test_the_command_pushes_after_training_and_again_after_a_failure(
    hub: FakeHub, tmp_path: Path, tiny_checkpoint: Any
) -> None:
    """No token ends the command before training; a failed push keeps the result, and the same command pushes it."""
    model = tiny_checkpoint(tmp_path / "model")
    rows = [{"question": f"{n} + 1?", "answer": str(n + 1), "solution": f"It is {n + 1}."} for n in range(4)]
    (tmp_path / "gold.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    program = Path(sys.executable).with_name("cruxtune")
    command = [program, "train", "--method", "gold", "--model", model, "--dtype", "float64", "--problems", "gold.jsonl"]
    command += ["--batch-size", "2", "--epochs", "1", "--output", "out", "--push-to-hub", "mine"]
    quiet = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = {**quiet, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}

    def run(**more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=tmp_path, env={**environment, **more}, capture_output=True, text=True)

    without = run()
    assert without.returncode == 2
    assert "--push-to-hub mine cannot be written" in without.stderr
    assert not (tmp_path / "out" / "model.safetensors").exists()
    hub.refused = {"/commit/": 403}
    failed = run(HF_TOKEN=TOKEN)
    assert failed.returncode == 2, failed.stderr
    assert "the result is finished in out" in failed.stderr
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    hub.refused = {}
    done = run(HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert hub.files["model.safetensors"] == weights
    assert b"method `gold`" in hub.files["README.md"]
    assert {"config.json", "manifest.json", "tokenizer.json", "training_log.jsonl"} <= hub.files.keys()
    asked = len(hub.asked)
    again = run(HF_TOKEN=TOKEN)
    assert again.returncode == 0
    assert len(hub.asked) == asked
