"""Keep the loggers and progress bars of the libraries behind the frontends quiet."""

from __future__ import annotations

import logging
import warnings
from typing import Any

__all__ = ["quiet"]


def quiet() -> None:
    """Errors only from transformers and the hub; what matters to users becomes a diagnostic."""
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from transformers.utils import logging as untyped

    transformers_logging: Any = untyped
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(transformers|huggingface_hub)\b")
