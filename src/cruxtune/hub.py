"""Publishing a finished directory on the Hub: access is checked before work begins, and what is finished stays so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cruxtune.errors import ConfigError
from cruxtune.stage_settings import HubSettings
from cruxtune.store import LOCK

_LONGEST = 300


def check_access(settings: HubSettings) -> str:
    """Return the repository as OWNER/NAME, made (private unless `public`) where it does not exist.

    Raises:
        ConfigError: no token or a wrong one, a name that the Hub refuses, or no right to write there.
    """
    from huggingface_hub import HfApi

    assert settings.push_to_hub is not None
    api, name = HfApi(), settings.push_to_hub
    hint = "log in with `hf auth login` as someone who may write there, or leave --push-to-hub out"
    with _explained(f"--push-to-hub {name} cannot be written, and training would be for nothing", hint):
        user = api.whoami()["name"]
        repository = name if "/" in name else f"{user}/{name}"
        api.create_repo(repository, private=not settings.public, exist_ok=True)
        api.auth_check(repository, write=True)
    return repository


def push(path: Path, repository: str) -> str:
    """Upload a finished directory, and return the address of the commit.

    Raises:
        ConfigError: it failed; the directory is as it was.
    """
    from huggingface_hub import HfApi

    hint = f"run the same command again, which only pushes, or `hf upload {repository} {path}`"
    with _explained(f"the result is finished in {path}, but it could not be pushed to {repository}", hint):
        commit = HfApi().upload_folder(
            repo_id=repository,
            folder_path=path,
            ignore_patterns=[LOCK, ".*.tmp"],
            commit_message="Upload the output of Cruxtune",
        )
    return str(commit.commit_url)


@contextmanager
def _explained(what: str, hint: str) -> Iterator[None]:
    # That of the HTTP client which the Hub's library uses, whichever it is.
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    try:
        yield
    except (HTTPError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        reason = reason if len(reason) <= _LONGEST else reason[:_LONGEST] + " …"
        raise ConfigError(f"{what}: {reason.rstrip('.')}; {hint}") from error
