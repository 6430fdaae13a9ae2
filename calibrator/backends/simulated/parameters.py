"""What a simulated engine is: numbers with units, and five engines of different shape."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from calibrator.core.workload.classes import Workload, WorkloadClass
from calibrator.errors import ConfigurationError


class Refusal(StrEnum):
    """The two forms in which vLLM turns a request away (facts measured on 0.32, `--max-num-queued-reqs`)."""

    STATUS_503 = "status_503"
    ERROR_EVENT = "error_event"  # HTTP 200, then one SSE event that carries the error


@dataclass(frozen=True, slots=True)
class Faults:
    """Trouble on demand. Ratios are probabilities: of a step for stalls, of a request for everything else."""

    stall_ratio: float = 0.0
    stall_s: float = 0.0  # what such a step takes longer
    truncate_ratio: float = 0.0
    reset_ratio: float = 0.0
    hang_ratio: float = 0.0
    refuse_ratio: float = 0.0
    refusal: Refusal | None = None  # None: the engine's own form

    def __post_init__(self) -> None:
        ratios = (self.stall_ratio, self.truncate_ratio, self.reset_ratio, self.hang_ratio, self.refuse_ratio)
        cut = self.truncate_ratio + self.reset_ratio + self.hang_ratio
        if not all(0.0 <= ratio <= 1.0 for ratio in ratios) or cut > 1.0 or self.stall_s < 0.0:
            raise ConfigurationError(
                f"Impossible faults: {self}.", "Ratios lie within 0..1 (those of cut streams together), stall_s above."
            )

    @property
    def cuts_streams(self) -> bool:
        return self.truncate_ratio + self.reset_ratio + self.hang_ratio > 0.0


@dataclass(frozen=True, slots=True)
class EngineParameters:
    """Costs in seconds and tokens; `engine` has the formula."""

    slots: int = 256  # requests in the running batch
    decode_base_s: float = 0.006  # one pass through the weights
    decode_per_request_s: float = 0.0
    prefill_fixed_s: float = 0.0
    prefill_per_token_s: float = 0.0
    prefill_chunk_tokens: int = 2048  # prompt tokens and decoding requests of one step
    kv_capacity_tokens: int = 262_144
    max_context_tokens: int = 16_384
    max_queue: int | None = None  # waiting requests; further ones are refused
    refusal: Refusal = Refusal.STATUS_503
    prefix_cache_tokens: int = 65_536  # 0: off
    natural_output_tokens: float = 128.0  # mean length where the client does not force one
    reasoning_tokens: int = 0  # of each chat answer, thought before its first word is said
    faults: Faults = field(default_factory=Faults)
    seed: int = 1

    def __post_init__(self) -> None:
        if self.max_context_tokens > self.kv_capacity_tokens:
            raise ConfigurationError(
                f"A request of {self.max_context_tokens} tokens does not fit {self.kv_capacity_tokens} tokens of KV "
                "memory: it could never run.",
                "Lower max_context_tokens or raise kv_capacity_tokens.",
            )
        no_queue = self.max_queue is not None and self.max_queue < 1
        if self.prefill_chunk_tokens <= self.slots or self.slots < 1 or self.decode_base_s <= 0.0 or no_queue:
            raise ConfigurationError(
                "Prompts would never be computed, or steps take no time.",
                "prefill_chunk_tokens must exceed slots; slots, decode_base_s and max_queue must be above 0.",
            )

    def fits(self, prompt_tokens: int, output_tokens: int) -> bool:
        return prompt_tokens + output_tokens <= self.max_context_tokens


# Names are contract: `calibrator demo --parameters NAME`. Residence at low levels is below 200 ms, so sweeps are quick.
PARAMETER_SETS: dict[str, EngineParameters] = {
    # The seed document's curve with its workload below: P99 TTFT about 90 ms at 8, 280 at 32, 480 at 64 in flight.
    # Up to 12 the tail is that of the prompts, above that requests queue for a slot.
    "seed": EngineParameters(
        slots=12,
        decode_base_s=0.0048,
        decode_per_request_s=0.00006,
        prefill_per_token_s=0.000_011,
        prefill_chunk_tokens=512,
    ),
    # Four slots: queueing starts at five, whatever the rest does.
    "small": EngineParameters(
        slots=4,
        decode_base_s=0.008,
        decode_per_request_s=0.0004,
        prefill_per_token_s=0.000_03,
        prefill_chunk_tokens=256,
    ),
    # Slots to spare, prompts of thousands of tokens: the prompt queue limits.
    "long_prompts": EngineParameters(
        slots=64,
        decode_base_s=0.004,
        decode_per_request_s=0.00005,
        prefill_fixed_s=0.001,
        prefill_per_token_s=0.000_012,
        prefill_chunk_tokens=2048,
    ),
    # Memory for some twenty requests: above that the youngest are preempted and computed again.
    "tight_memory": EngineParameters(
        slots=128,
        decode_base_s=0.005,
        decode_per_request_s=0.0001,
        prefill_per_token_s=0.000_01,
        prefill_chunk_tokens=1024,
        kv_capacity_tokens=6_000,
        max_context_tokens=2_048,
    ),
    # Room for hundreds: nobody waits, the batch itself makes everybody slower.
    "large": EngineParameters(
        slots=512,
        decode_base_s=0.018,
        decode_per_request_s=0.0004,
        prefill_per_token_s=0.000_02,
        prefill_chunk_tokens=4096,
    ),
}

# The traffic that each set is meant for.
WORKLOADS: dict[str, Workload] = {
    "seed": Workload((WorkloadClass(prompt_tokens=160, output_tokens=6, spread_ratio=0.5, prompt_sigma=1.05),)),
    "small": Workload((WorkloadClass(prompt_tokens=64, output_tokens=10, spread_ratio=0.3),)),
    "long_prompts": Workload((WorkloadClass(prompt_tokens=2000, output_tokens=8, spread_ratio=0.5, prompt_sigma=0.5),)),
    "tight_memory": Workload((WorkloadClass(prompt_tokens=240, output_tokens=24, spread_ratio=0.5),)),
    "large": Workload((WorkloadClass(prompt_tokens=100, output_tokens=8, spread_ratio=0.5, prompt_sigma=0.6),)),
}

SEED_WORKLOAD = WORKLOADS["seed"]


def workload_for(parameters: EngineParameters) -> Workload:
    """The traffic that these parameters are meant for; the seed's if they are nobody's."""
    return next((WORKLOADS[name] for name, known in PARAMETER_SETS.items() if known == parameters), SEED_WORKLOAD)
