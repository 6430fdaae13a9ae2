"""A callback of the LiteLLM proxy that limits each model group to its share of the cap.

LiteLLM looks for `callbacks: module.object` beside its configuration; deploy/gateways/litellm/calibrator_cap.py is that
module and creates a `CapGuard`. It runs in each worker process of the proxy, and each process has its own share.

| end of a request | hook that LiteLLM calls |
|---|---|
| response that is not streamed | `async_post_call_success_hook` |
| stream: end, error, client disconnected | `async_post_call_streaming_iterator_hook`, its `finally` |
| `/v1/messages` stream | the same, or in some versions `async_log_success_event` only |
| error of the backend | `async_log_failure_event`, then perhaps `async_post_call_failure_hook` |
| rejected by a later callback | `async_post_call_failure_hook` only |
| none of them (its logging worker may drop events) | the lease expires |

All of them release the slot, by `litellm_call_id`. Clients may choose that id (`x-litellm-call-id`); two concurrent
requests under one id would count once, so the second gets a new id. If a client disconnects before a response that is
not streamed is ready, its slot is kept until the backend has finished, which is still working on it.

LiteLLM only calls hooks that the object's own class defines: do not subclass. A retry by its router would run after the
failure of the first attempt has released the slot, so `num_retries` must be 0.
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
from calibrator.gateways.leases import SlotLeases

Data = dict[str, Any]  # of a request or a call, in LiteLLM's format


class CapGuard(CustomLogger):  # type: ignore[misc] # LiteLLM lives in an environment of its own
    """Enforces the caps of some backends.

    `static_caps`: by backend name, the cap until the first response of the calibrator and after the last one expires.
    `groups`: maps the model names that clients send, including aliases, to backends; by default each backend's own
    name. Other models are not limited. With `max_wait_s` above 0 requests wait that long for a slot. Raises
    ConfigurationError.
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
            raise ConfigurationError(
                f"No static cap for {', '.join(unknown)}.", "Add one for each backend of `groups`."
            )
        self._caps = {
            backend: AsyncCap(url, backend, static_cap=cap, token=token, poll_s=poll_s, wait_s=poll_wait_s)
            for backend, cap in static_caps.items()
        }
        self._leases = SlotLeases(lease_s)
        self._max_wait_s, self._retry_after_s = max_wait_s, retry_after_s
        with contextlib.suppress(RuntimeError):  # no running loop: the first request starts the polling
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
                except GeneratorExit:  # the client disconnected
                    await _interrupt(response)
                    raise
        finally:
            try:  # the backend must be free before its slot is
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

    Its `/v1/messages` stream begins with an event of LiteLLM's own. If the client disconnects at that point, nothing of
    the backend's response has been read yet; `aclose` then closes generators that do not know the call, and the backend
    works on to the end. Cancelling a read that waits for the backend does close its connection. So read on, and cancel.
    """
    while True:
        reading = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.0)  # let it start: a read cancelled before that does not reach LiteLLM's call
        reading.cancel()
        outcome: Any = (await asyncio.gather(reading, return_exceptions=True))[0]
        if isinstance(
            outcome, BaseException
        ):  # cancelled, or the end of the stream; else another event of LiteLLM's own
            return
