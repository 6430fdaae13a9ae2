"""A callback of the LiteLLM proxy: each model group has no more in flight than its share of the cap.

LiteLLM looks for `callbacks: module.object` beside its configuration; deploy/gateways/litellm/calibrator_cap.py is that
module and makes a `CapGuard`. It runs in each worker process of the proxy, and each is a sharer of its own.

| end of a request | hook that LiteLLM calls |
|---|---|
| answer in one piece | `async_post_call_success_hook` |
| stream: end, error, client gone | `async_post_call_streaming_iterator_hook`, its `finally` |
| `/v1/messages` stream | the same, or in some versions `async_log_success_event` only |
| error of the backend | `async_log_failure_event`, then perhaps `async_post_call_failure_hook` |
| refused by another callback after us | `async_post_call_failure_hook` only |
| none of them (its logging worker may drop events) | the lease ends |

All of them release, by `litellm_call_id`. A client may choose that id (`x-litellm-call-id`); two requests at once under
one id would be counted once, so the second gets a new one. A client that leaves before an answer in one piece is ready
keeps its place until the backend has finished: it still works.

LiteLLM only calls hooks that the very class of the object defines: do not subclass. A retry by its router would run
after the first attempt's failure had given the place back, so `num_retries` must be 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import HTTPException
from litellm.integrations.custom_logger import CustomLogger

from calibrator.client import AsyncCap, LimitReachedError
from calibrator.errors import ConfigurationError
from calibrator.gateways.leases import Leases

Data = dict[str, Any]  # LiteLLM's, of a request or a call


class CapGuard(CustomLogger):  # type: ignore[misc] # LiteLLM lives in an environment of its own
    """Follows the caps of some backends and holds them.

    `static_caps`: of each backend by the calibrator's name, what holds until its first answer and after the last one's
    validity. `groups`: model names that clients send, aliases included, to backends; by default each backend's own
    name. Other models pass. `max_wait_s` above 0 lets requests wait in line that long. Raises ConfigurationError.
    """

    def __init__(
        self,
        url: str,
        static_caps: Mapping[str, int],
        groups: Mapping[str, str] | None = None,
        *,
        token: str = "",
        poll_s: float = 5.0,
        poll_wait_s: float = 0.0,
        max_wait_s: float = 0.0,
        lease_s: float = 900.0,
        retry_after_s: int = 1,
    ) -> None:
        super().__init__()
        self._groups = dict(groups) if groups is not None else {name: name for name in static_caps}
        unknown = sorted(set(self._groups.values()) - set(static_caps))
        if unknown:
            raise ConfigurationError(f"No static cap for {', '.join(unknown)}.", "Give each backend of `groups` one.")
        self._caps = {
            backend: AsyncCap(url, backend, static_cap=cap, token=token, poll_s=poll_s, wait_s=poll_wait_s)
            for backend, cap in static_caps.items()
        }
        self._leases = Leases(lease_s)
        self._max_wait_s, self._retry_after_s = max_wait_s, retry_after_s
        with contextlib.suppress(RuntimeError):  # no loop runs: the first request begins
            asyncio.get_running_loop()
            self._start()

    def _start(self) -> None:
        for cap in self._caps.values():
            cap.start()

    # --------------------------------------------------------------------------------------------------- beginning
    async def async_pre_call_hook(self, user_api_key_dict: Any, cache: Any, data: Data, call_type: str) -> Data:  # noqa: ARG002 - LiteLLM's signature
        model = data.get("model")
        backend = self._groups.get(model) if isinstance(model, str) else None
        if backend is None:
            return data
        self._start()
        owner = data.get("litellm_logging_obj")
        if owner is not None and self._leases.is_of(data["litellm_call_id"], owner):
            return data  # some routes call this hook twice
        try:
            await self._leases.take(self._free_key(data, owner), owner, self._caps[backend], self._max_wait_s)
        except LimitReachedError as error:
            problem = {"message": str(error), "type": "rate_limit_error", "code": "concurrency_cap"}
            headers = {"Retry-After": str(self._retry_after_s)}
            raise HTTPException(429, detail={"error": problem}, headers=headers) from None
        return data

    def _free_key(self, data: Data, owner: Any) -> str:
        key = data.get("litellm_call_id")
        if isinstance(key, str) and key not in self._leases:
            return key
        data["litellm_call_id"] = key = str(uuid.uuid4())
        if owner is not None:
            owner.litellm_call_id = owner.model_call_details["litellm_call_id"] = key
        return key

    # --------------------------------------------------------------------------------------------------------- ends
    def _end(self, data: Data) -> None:
        self._leases.end(data.get("litellm_call_id"))

    async def async_post_call_success_hook(self, data: Data, user_api_key_dict: Any, response: Any) -> None:  # noqa: ARG002 - LiteLLM's signature
        self._end(data)

    async def async_post_call_streaming_iterator_hook(
        self,
        user_api_key_dict: Any,  # noqa: ARG002 - LiteLLM's signature
        response: AsyncIterator[Any],
        request_data: Data,
    ) -> AsyncIterator[Any]:
        try:
            async for chunk in response:
                try:
                    yield chunk
                except GeneratorExit:  # the client left
                    await _interrupt(response)
                    raise
        finally:
            try:  # the backend must be free before its place is
                if (close := getattr(response, "aclose", None)) is not None:
                    await close()
            finally:
                self._end(request_data)

    async def async_post_call_failure_hook(
        self,
        request_data: Data,
        original_exception: Exception,  # noqa: ARG002 - LiteLLM's signature
        user_api_key_dict: Any,  # noqa: ARG002 - LiteLLM's signature
        traceback_str: str | None = None,  # noqa: ARG002 - LiteLLM's signature
    ) -> None:
        self._end(request_data)

    async def async_log_success_event(self, kwargs: Data, response_obj: Any, start_time: Any, end_time: Any) -> None:  # noqa: ARG002 - LiteLLM's signature
        self._end(kwargs)

    async def async_log_failure_event(self, kwargs: Data, response_obj: Any, start_time: Any, end_time: Any) -> None:  # noqa: ARG002 - LiteLLM's signature
        self._end(kwargs)


async def _interrupt(stream: AsyncIterator[Any]) -> None:
    """End LiteLLM's call of the backend, which closing the stream alone does not do.

    Its `/v1/messages` stream begins with an event of its own. If the client leaves with that one, nothing has been read
    of the backend's answer yet; `aclose` then ends generators that know of no call, and the backend works to its end.
    A read that is cancelled while it waits for the backend does close that connection. So read on, and cancel.
    """
    while True:
        reading = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.0)  # let it begin: one that is cancelled before does not reach LiteLLM's call
        reading.cancel()
        outcome: Any = (await asyncio.gather(reading, return_exceptions=True))[0]
        if isinstance(outcome, BaseException):  # cancelled, or the stream has ended; else another event of its own
            return
