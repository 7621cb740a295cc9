"""A run in object storage that speaks S3. The only module that does.

``create`` is one PUT with ``If-None-Match: *``: the server stores the object whole if its key is free, and answers 412
otherwise. A 412 may also be the answer to a repetition of a PUT that had landed while its answer was lost; what is
stored then tells which.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
from boto3.exceptions import S3UploadFailedError
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, NoCredentialsError, ProfileNotFound

from stn_core.naming import one_line
from workers.store import ObjectMissing, S3Options, StoredObject, StoreError

#: botocore's adaptive mode slows down when throttled; ten tries outlast a server's restart.
_ATTEMPTS = 10
#: Times an object is fetched anew when its body breaks off, which botocore does not repeat.
_READ_ATTEMPTS = 5
_PAUSE_S = 0.5

_ALONE = "set store.single_writer (or --single-writer) if nobody else writes to this run"

_ABSENT = {"NoSuchKey", "404", "NotFound"}
_REFUSED = {"403", "AccessDenied", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"}


class S3Store:
    """A run below ``s3://bucket/prefix``.

    Args:
        uri: where the run is.
        options: what the environment's AWS settings do not say. Some servers stumble over checksums that S3 does not
            require. With ``single_writer``, ``create`` looks before it writes instead of asking the server to.

    Raises:
        StoreError: the URI names no bucket, or the environment's AWS settings are wrong.
    """

    def __init__(self, uri: str, options: S3Options = S3Options()) -> None:  # noqa: B008 - immutable
        self._bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        self._prefix = prefix.strip("/") + "/" if prefix.strip("/") else ""
        if not self._bucket:
            raise StoreError(f"{uri} names no bucket: expected s3://bucket/prefix")
        self.uri = f"s3://{self._bucket}/{self._prefix}".rstrip("/")
        self._single_writer = options.single_writer
        config = Config(
            retries={"mode": "adaptive", "total_max_attempts": _ATTEMPTS},
            connect_timeout=10,
            read_timeout=60,
            **({} if options.checksums is None else {"request_checksum_calculation": options.checksums}),
        )
        with self._told("open"):
            self._client: Any = boto3.session.Session().client("s3", endpoint_url=options.endpoint_url, config=config)

    def create(self, key: str, content: bytes) -> bool:
        if self._single_writer:
            if self.exists(key):
                return False
            self.replace(key, content)
            return True
        with self._told("write"):
            for attempt in range(_ATTEMPTS):
                try:
                    self._client.put_object(Bucket=self._bucket, Key=self._key(key), Body=content, IfNoneMatch="*")
                    return True
                except ClientError as error:
                    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
                    if status == 412:
                        # Ours, if the answer to a first try was lost.
                        return self.read(key) == content
                    if status == 501:
                        raise StoreError(f"{self.uri}: this server has no conditional writes; {_ALONE}") from None
                    if status != 409 or attempt == _ATTEMPTS - 1:
                        raise
                    time.sleep(_PAUSE_S)  # another writer is at it: whoever is first will show
        raise AssertionError("unreachable")

    def replace(self, key: str, content: bytes) -> None:
        with self._told("write"):
            self._client.put_object(Bucket=self._bucket, Key=self._key(key), Body=content)

    def replace_file(self, key: str, file: Path) -> None:
        with self._told("write"):
            self._client.upload_file(str(file), self._bucket, self._key(key))

    def read(self, key: str) -> bytes:
        with self._told("read", key):
            for attempt in range(_READ_ATTEMPTS):
                try:
                    return self._client.get_object(Bucket=self._bucket, Key=self._key(key))["Body"].read()
                except (HTTPClientError, OSError):
                    if attempt == _READ_ATTEMPTS - 1:
                        raise
                    time.sleep(_PAUSE_S * 2**attempt)
        raise AssertionError("unreachable")

    def exists(self, key: str) -> bool:
        with self._told("read"):
            try:
                self._client.head_object(Bucket=self._bucket, Key=self._key(key))
            except ClientError as error:
                # HEAD has no body to say whether bucket or key is missing.
                if error.response.get("Error", {}).get("Code") in _ABSENT:
                    return False
                raise
        return True

    def list(self, prefix: str) -> Iterator[StoredObject]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._key(prefix))
        found = []
        with self._told("list"):
            for page in pages:
                for entry in page.get("Contents", ()):
                    key = entry["Key"][len(self._prefix) :]
                    found.append(StoredObject(key, entry["Size"], entry["LastModified"].timestamp()))
        # AWS lists in this order; servers that keep folders may not.
        yield from sorted(found, key=lambda stored: stored.key)

    def delete(self, key: str) -> None:
        with self._told("delete"):
            self._client.delete_object(Bucket=self._bucket, Key=self._key(key))

    def check_exclusive(self) -> None:
        if self._single_writer:
            return
        probe = f".probe/{uuid.uuid4().hex}"
        try:
            honoured = self.create(probe, b"first") and not self.create(probe, b"second")
        finally:
            self.delete(probe)
        if not honoured:
            raise StoreError(
                f"{self.uri}: this server ignores If-None-Match: two drivers could overwrite each other's votes; "
                + _ALONE
            )

    def _key(self, key: str) -> str:
        return self._prefix + key

    @contextlib.contextmanager
    def _told(self, doing: str, key: str = "") -> Iterator[None]:
        """What goes wrong as one line that says what to change, without a secret in it."""
        try:
            yield
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if key and code in _ABSENT:
                raise ObjectMissing(f"{self.uri} has no {key}") from None
            if code == "NoSuchBucket":
                raise StoreError(
                    f"{self.uri}: there is no bucket {self._bucket!r}: create it, or name another"
                ) from None
            if code in _REFUSED:
                raise StoreError(
                    f"no permission to {doing} under {self.uri} ({code}): "
                    "check the AWS credentials and the bucket's policy"
                ) from None
            raise StoreError(f"cannot {doing} under {self.uri}: {one_line(error)}") from None
        except NoCredentialsError:
            raise StoreError(
                f"{self.uri}: no AWS credentials; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ) from None
        except (ProfileNotFound, ValueError) as error:
            raise StoreError(f"{self.uri}: {one_line(error)}") from None
        except (BotoCoreError, S3UploadFailedError, OSError) as error:
            raise StoreError(f"cannot {doing} under {self.uri}: {one_line(error)}") from None
