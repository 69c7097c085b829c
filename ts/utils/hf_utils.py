"""Model files from the Hugging Face Hub."""

from __future__ import annotations

# Weights in every form that loaders read, configurations, tokenizers; no pictures or papers.
SNAPSHOT_PATTERNS = [
    "*.json",
    "*.pt",
    "*.bin",
    "*.txt",
    "*.model",
    "*.pth",
    "*.safetensors",
    "original/*",
]


def download_model(
    model_id: str = "meta-llama/Meta-Llama-3.1-8B-Instruct",
    revision: str = "main",
    model_path: str = ".cache",
    use_auth_token: bool | str = True,
) -> str:
    """The folder that holds the model's files, after downloading what is not there yet.

    model_id:       `owner/name` on the Hub.
    model_path:     the cache folder; the answer lies below it.
    use_auth_token: a token, or whether to send the one that `hf auth login` stored.
    Raises RuntimeError if huggingface_hub is missing, and what it raises for the download.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise RuntimeError(
            "downloading from the Hugging Face Hub needs huggingface_hub; "
            "install it with: pip install huggingface_hub (or the server's extra: torchserve[hub])"
        ) from error
    return snapshot_download(
        repo_id=model_id,
        revision=revision,
        allow_patterns=SNAPSHOT_PATTERNS,
        cache_dir=model_path,
        token=use_auth_token,
    )
