"""A model of the Hugging Face hub, as a folder in the hub's own cache."""

from __future__ import annotations

from pathlib import Path

from prunec.ir.diagnostics import fail

__all__ = ["snapshot"]

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
FILES = ("*.json", "*.txt", "*.model", "*.jinja")
CODE = ("*.py",)
# Other formats and copies of the same weights, which some repositories carry along.
IGNORED = ("*/*", "consolidated*", "*.msgpack", "*.h5")
DOWNLOAD = "connect to the network once, or download the model and give its folder"


def snapshot(repo: str, *, weights: bool = True, code: bool = False) -> Path:
    """The folder of `repo`, downloaded if needed; python files only when `code` is allowed.

    Raises P115 when the repository cannot be had.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
            OfflineModeIsEnabled,
            RepositoryNotFoundError,
        )
    except ImportError as error:
        raise fail(
            "P115",
            f"{repo} is no file or folder, and the hub needs huggingface_hub",
            help="pip install prunec[torch]",
        ) from error

    allowed = [*FILES, *(WEIGHTS if weights else ()), *(CODE if code else ())]
    try:
        return Path(snapshot_download(repo, allow_patterns=allowed, ignore_patterns=list(IGNORED)))
    except GatedRepoError as error:
        fact, remedy = "the repository is gated", "accept its terms and log in with `hf auth login`"
        raise fail("P115", fact, where=repo, help=remedy) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        fact = "neither a file or folder nor a public repository of the hub"
        raise fail("P115", fact, where=repo, help="check the spelling") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        fact = "neither a file or folder nor in the hub's cache, and the hub cannot be reached"
        raise fail("P115", fact, where=repo, help=DOWNLOAD) from error
    except (HfHubHTTPError, OSError) as error:
        fact = f"the hub does not answer: {str(error).splitlines()[0]}"
        raise fail("P115", fact, where=repo, help=DOWNLOAD) from error
