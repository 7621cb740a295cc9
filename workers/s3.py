"""A run in object storage that speaks S3. The only module that does.

``create`` is one PUT with ``If-None-Match: *``: the server stores the object whole if its key is free, and answers 412
otherwise. A 412 may also be the answer to a repetition of a PUT that had landed while its answer was lost; what is
stored then tells which.
"""

from __future__ import annotations

import contextlib
import io
import re
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import boto3
from boto3.exceptions import S3UploadFailedError
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    NoCredentialsError,
    ParamValidationError,
    ProfileNotFound,
)

from stn_core.naming import one_line
from workers import layout, retries
from workers.store import (
    ObjectMissing,
    S3Options,
    StoredObject,
    StoreError,
    Unfinished,
    check_endpoint,
    checked,
    checked_prefix,
    is_key,
)

#: botocore's adaptive mode slows down when throttled; ten tries outlast a server's restart.
_ATTEMPTS = 10
#: Times an object is fetched anew when its body breaks off, which botocore does not repeat.
_READ_ATTEMPTS = 5
_PAUSE_S = 0.5

_ALONE = "set store.single_writer (or --single-writer) if nobody else writes to this run"

#: What stands in a URL before its host, and what signs a request.
_SIGNED = re.compile(r"[^\s/\"'@]*@|(?<=Signature=)\w+|(?<=Credential=)[^\s,&]+|(?<=Token=)[^\s,&]+", re.IGNORECASE)
#: Shorter than any that AWS hands out: words, not secrets.
_SHORTEST_SECRET = 8

_ABSENT = {"NoSuchKey", "404", "NotFound"}
#: Good credentials, and no permission to have that object.
_DENIED = {"403", "AccessDenied", "Forbidden"}
_REFUSED = {"403", "AccessDenied", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"}


class ObjectRefused(StoreError):
    """There is no permission to have that object."""


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
        self._single_writer, self._options = options.single_writer, options
        config = Config(
            retries={"mode": "adaptive", "total_max_attempts": _ATTEMPTS},
            connect_timeout=10,
            read_timeout=60,
            **({} if options.checksums is None else {"request_checksum_calculation": options.checksums}),
        )
        self._credentials: Any = None
        with self._told("open"):
            session = boto3.session.Session()
            self._credentials = session.get_credentials()
            self._client: Any = session.client("s3", endpoint_url=options.endpoint_url, config=config)
            self._client.meta.events.register("request-created.s3", _count_repeated)
            # The spec is checked when it is read; the environment and AWS's files may say it too.
            check_endpoint(self._client.meta.endpoint_url)

    def __reduce__(self) -> tuple[type[Self], tuple[str, S3Options]]:
        # A connection is no other process's: that opens its own.
        return type(self), (self.uri, self._options)

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
                    retries.repeated()
                    time.sleep(_PAUSE_S)  # another writer is at it: whoever is first will show
        raise AssertionError("unreachable")

    def replace(self, key: str, content: bytes) -> None:
        with self._told("write"):
            self._client.put_object(Bucket=self._bucket, Key=self._key(key), Body=content)

    def replace_file(self, key: str, file: Path) -> None:
        with self._told("write"):
            self._client.upload_file(str(file), self._bucket, self._key(key))

    def read(self, key: str) -> bytes:
        return self._get(key)

    def _get(self, key: str, **part: str) -> bytes:
        with self._told("read", key):
            for attempt in range(_READ_ATTEMPTS):
                try:
                    return self._client.get_object(Bucket=self._bucket, Key=self._key(key), **part)["Body"].read()
                except (HTTPClientError, OSError):
                    if attempt == _READ_ATTEMPTS - 1:
                        raise
                    retries.repeated()
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
        within = self._prefix + checked_prefix(prefix)
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=within)
        with self._told("list"):
            entries = [entry for page in pages for entry in page.get("Contents", ())]
        objects = (
            StoredObject(entry["Key"][len(self._prefix) :], entry["Size"], entry["LastModified"].timestamp())
            for entry in entries
        )
        # AWS lists in this order; servers that keep folders may not.
        yield from sorted((stored for stored in objects if is_key(stored.key)), key=lambda stored: stored.key)

    def delete(self, key: str) -> None:
        with self._told("delete"):
            self._client.delete_object(Bucket=self._bucket, Key=self._key(key))

    def check_exclusive(self) -> None:
        if self._single_writer:
            return
        probe = layout.probe()
        with self._removed(probe):
            honoured = self.create(probe, b"first") and not self.create(probe, b"second")
        if not honoured:
            raise StoreError(
                f"{self.uri}: this server ignores If-None-Match: two drivers could overwrite each other's votes; "
                + _ALONE
            )

    def probe(self) -> None:
        probe, content = layout.probe(), uuid.uuid4().bytes
        with self._removed(probe):
            self.replace(probe, content)
            if self.read(probe) != content or not self.exists(probe):
                raise StoreError(f"what was written under {self.uri} reads back as something else")

    @contextlib.contextmanager
    def _removed(self, key: str) -> Iterator[None]:
        """Remove an object after the block. Where the block fails, what it says is told."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(StoreError):
                self.delete(key)
            raise
        self.delete(key)

    def unfinished(self) -> Iterator[Unfinished]:
        pages = self._client.get_paginator("list_multipart_uploads").paginate(Bucket=self._bucket, Prefix=self._prefix)
        with self._told("list uploads"):
            uploads = [entry for page in pages for entry in page.get("Uploads", ())]
        for entry in uploads:
            key = entry["Key"][len(self._prefix) :]
            if is_key(key):
                parts = [*self._parts(entry)]
                times = [entry["Initiated"], *(part["LastModified"] for part in parts)]
                yield Unfinished(
                    key, sum(part["Size"] for part in parts), max(times).timestamp(), upload=entry["UploadId"]
                )

    def _parts(self, upload: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The parts of a multipart upload that have arrived; none where it was ended meanwhile."""
        pages = self._client.get_paginator("list_parts").paginate(
            Bucket=self._bucket, Key=upload["Key"], UploadId=upload["UploadId"]
        )
        with self._told("list uploads"), _unless_ended():
            for page in pages:
                yield from page.get("Parts", ())

    def discard(self, unfinished: Unfinished) -> None:
        with self._told("abort an upload"), _unless_ended():
            self._client.abort_multipart_upload(
                Bucket=self._bucket, Key=self._key(unfinished.key), UploadId=unfinished.upload
            )

    def _key(self, key: str) -> str:
        return self._prefix + checked(key)

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
                raise (ObjectRefused if key and code in _DENIED else StoreError)(
                    f"no permission to {doing} under {self.uri} ({code}): "
                    "check the AWS credentials and the bucket's policy"
                ) from None
            if not code:
                status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
                place = self._client.meta.endpoint_url
                raise StoreError(
                    f"cannot {doing} under {self.uri}: {place} answers HTTP {status}, and not as S3 does: "
                    "check the endpoint"
                ) from None
            raise StoreError(f"cannot {doing} under {self.uri}: {self._says(error)}") from None
        except NoCredentialsError:
            raise StoreError(
                f"{self.uri}: no AWS credentials; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ) from None
        except ParamValidationError as error:
            named = "Invalid bucket name" in str(error)
            why = f"{self._bucket!r} is no bucket's name" if named else self._says(error)
            raise StoreError(f"{self.uri}: {why}") from None
        except (ProfileNotFound, ValueError) as error:
            raise StoreError(f"{self.uri}: {self._says(error)}") from None
        except (BotoCoreError, S3UploadFailedError, OSError) as error:
            raise StoreError(f"cannot {doing} under {self.uri}: {self._says(error)}") from None

    def _says(self, error: Exception) -> str:
        """What an error says, without what is nobody's business. A wrong server may send back all it was sent."""
        text = str(error)
        with contextlib.suppress(BotoCoreError):  # credentials that expired and cannot be had again
            own = self._credentials and self._credentials.get_frozen_credentials()
            for secret in (own.secret_key, own.token, own.access_key) if own else ():
                if secret and len(secret) >= _SHORTEST_SECRET:
                    text = text.replace(secret, "…")
        return one_line(StoreError(_SIGNED.sub("…", text)))


def _count_repeated(request: Any, **_: Any) -> None:
    if request.context.get("retries", {}).get("attempt", 1) > 1:
        retries.repeated()


@contextlib.contextmanager
def _unless_ended() -> Iterator[None]:
    """Pass over that an upload was completed or aborted meanwhile."""
    try:
        yield
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") != "NoSuchUpload":
            raise


class S3Reader(S3Store):
    """Data or weights below ``s3://bucket/prefix``. Their keys are of somebody else's making: any is taken as it is."""

    def list(self, prefix: str) -> Iterator[StoredObject]:
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=self._prefix + prefix
        )
        with self._told("list"):
            for page in pages:
                for entry in page.get("Contents", ()):
                    key = entry["Key"][len(self._prefix) :]
                    yield StoredObject(key, entry["Size"], entry["LastModified"].timestamp())

    def children(self) -> Iterator[StoredObject | str]:
        """Objects directly below the prefix, and the names of what would be folders there."""
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=self._prefix, Delimiter="/"
        )
        cut = len(self._prefix)
        with self._told("list"):
            for page in pages:
                for entry in page.get("Contents", ()):
                    yield StoredObject(entry["Key"][cut:], entry["Size"], entry["LastModified"].timestamp())
                for entry in page.get("CommonPrefixes", ()):
                    yield entry["Prefix"][cut:-1]

    def size(self, key: str) -> int:
        """An object's size, bytes. Raises ObjectMissing."""
        with self._told("read", key):
            return int(self._client.head_object(Bucket=self._bucket, Key=self._key(key))["ContentLength"])

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        """Bytes ``start`` up to ``stop`` of an object. Raises ObjectMissing."""
        if start >= stop:
            return b""
        try:
            return self._get(key, Range=f"bytes={start}-{stop - 1}")
        except StoreError as error:
            if "InvalidRange" in str(error):  # it ends before, as a file may
                return b""
            raise

    def _key(self, key: str) -> str:
        return self._prefix + key


class ObjectFile(io.RawIOBase):
    """An object as a file to seek in. Each read is one request for just those bytes: who reads chooses them well."""

    def __init__(self, reader: S3Reader, key: str, size: int) -> None:
        self._reader, self._key, self._size, self._at = reader, key, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        content = self._reader.read_range(self._key, self._at, min(self._size, self._at + len(buffer)))
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)

    def readall(self) -> bytes:
        return self.read(max(0, self._size - self._at)) or b""
