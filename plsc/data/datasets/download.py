"""Official archives, fetched by Paddle and checked against the checksums that Paddle knows."""

from pathlib import Path
from typing import Annotated

from plsc.errors import DataError
from plsc.registry import InputPath

Root = Annotated[str, InputPath(made=True)]  # the folder that official archives are in, or are fetched to


def download_official(url: str, md5: str, folder: Path) -> Path:
    """Fetch a file that is not in `folder` yet, as it is; one process of a machine does, the others wait.

    Raises:
        DataError: it cannot be fetched, or its MD5 sum is another. Nothing of it stays.
    """
    from paddle.utils.download import get_path_from_url

    target = folder / url.rsplit("/", 1)[-1]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        get_path_from_url(url, str(folder), md5, decompress=False)
    except (OSError, RuntimeError) as error:
        target.unlink(missing_ok=True)
        raise DataError(
            f"{url}: cannot be downloaded, or arrives damaged ({error}); fetch it by other means (MD5 {md5}) "
            f"and put it into {folder}"
        ) from error
    return target
