"""Where an object storage is, and who may use it: a URL and the AWS configuration of this machine.

Credentials, region, endpoint and certificates come from where every AWS tool looks for them: environment,
profiles, roles. A URL with credentials in it is refused, as URLs end up in logs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from mixwright.errors import ConfigError, MissingExtraError, first_line

if TYPE_CHECKING:
    import obstore.store

_MAX_RETRIES = 7
_RETRY_SECONDS = 60
_REQUEST_SECONDS = 120
"""For one request, its body included: 4 files of 4 parts of 8 MiB need 1.1 MB/s."""
_CREDENTIAL_SECONDS = 600
"""How long the credentials of one look are used; botocore renews those that expire well before they do."""

_DEFAULT_REGION = "us-east-1"

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


class OpenedStorage(NamedTuple):
    """A storage of the library, obstore, and the names of its parts for messages."""

    store: obstore.store.ObjectStore
    bucket: str
    answers: str
    """What answers its requests."""


def open_storage(url: str) -> OpenedStorage:
    """The objects under a URL; nothing is asked of the storage yet.

    Raises ConfigError for a URL that is none of ours, and without AWS credentials; MissingExtraError.
    """
    parts = _checked(url)
    try:
        import obstore.store  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("obstore", "s3") from error
    return _open_folder(parts) if parts.scheme == "file" else _open_bucket(parts)


def _checked(url: str) -> SplitResult:
    """The parts of a storage URL; raises ConfigError, without the URL where that has a secret in it."""
    parts = urlsplit(url)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigError(
            "MIXWRIGHT_STORE_URL has a user, a query or a fragment in it: write s3://bucket/prefix alone, and "
            "give credentials as the AWS tools take them (AWS_ACCESS_KEY_ID … or a profile)"
        )
    good = parts.scheme == "s3" and _BUCKET.fullmatch(parts.netloc)
    if not good and not (parts.scheme == "file" and not parts.netloc and parts.path.strip("/")):
        raise ConfigError(
            f"MIXWRIGHT_STORE_URL={url!r} is no place for artifacts: write s3://bucket/prefix, or file:///folder"
        )
    if any(part in (".", "..") for part in parts.path.split("/")):
        raise ConfigError(f"MIXWRIGHT_STORE_URL={url!r} has '.' or '..' in it: write the path without them")
    return parts


def _open_folder(parts: SplitResult) -> OpenedStorage:
    from obstore.store import LocalStore

    folder = Path(unquote(parts.path))
    # Not made here: the store of a file system that is not mounted would look empty.
    if not folder.is_dir():
        raise ConfigError(f"MIXWRIGHT_STORE_URL: there is no folder {folder}: make it, or mount its file system")
    return OpenedStorage(LocalStore(folder), str(folder), str(folder))


def _open_bucket(parts: SplitResult) -> OpenedStorage:
    from obstore.store import S3Store

    aws = _aws_configuration()
    store = S3Store(
        parts.netloc,
        prefix=unquote(parts.path).strip("/") or None,
        config={"region": aws.region, "endpoint": aws.endpoint} if aws.endpoint else {"region": aws.region},
        client_options=_client_options(aws),
        retry_config={"max_retries": _MAX_RETRIES, "retry_timeout": timedelta(seconds=_RETRY_SECONDS)},
        credential_provider=aws.credentials,
    )
    # An endpoint could be written with a password in it.
    host = urlsplit(aws.endpoint).hostname
    return OpenedStorage(store, parts.netloc, f"the endpoint {host}" if host else "Amazon S3")


class _AwsConfiguration(NamedTuple):
    credentials: Callable[[], Any]
    region: str
    endpoint: str
    """Empty for Amazon's own."""
    certificates: str | None
    """A file of certificates to trust besides the system's."""


def _client_options(aws: _AwsConfiguration) -> Any:
    options: dict[str, Any] = {
        "timeout": f"{_REQUEST_SECONDS}s",
        "allow_http": aws.endpoint.startswith("http://"),
    }
    if aws.certificates:
        try:
            options["root_certificate"] = Path(aws.certificates).read_bytes()
        except OSError as error:
            raise ConfigError(
                f"AWS_CA_BUNDLE: {aws.certificates} cannot be read ({error.strerror}): correct the path"
            ) from error
    return options


def _aws_configuration() -> _AwsConfiguration:
    """Credentials, region and endpoint, from where every AWS tool looks: environment, profiles, roles."""
    try:
        import botocore.session
        from botocore.exceptions import BotoCoreError
    except ImportError as error:
        raise MissingExtraError("botocore", "s3") from error
    try:
        session = botocore.session.get_session()
        credentials = session.get_credentials()
        region = os.environ.get("AWS_REGION") or session.get_config_variable("region")
        profile = session.get_scoped_config()
        certificates = session.get_config_variable("ca_bundle")
    except BotoCoreError as error:
        raise ConfigError(f"the AWS configuration does not work ({first_line(error)}): correct it") from error
    if credentials is None:
        raise ConfigError(
            "MIXWRIGHT_STORE_URL needs AWS credentials, and there are none: set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )

    def provide() -> dict[str, Any]:
        frozen = credentials.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + timedelta(seconds=_CREDENTIAL_SECONDS),
        }

    endpoint = (
        os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or profile.get("endpoint_url")
    )
    return _AwsConfiguration(provide, region or _DEFAULT_REGION, endpoint or "", certificates)
