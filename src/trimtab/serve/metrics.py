"""Prometheus metrics under vLLM's names, so that dashboards and autoscalers for vLLM work."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_LATENCY = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """The metrics of one server; each has the label ``model_name``."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        label = ["model_name"]

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"vllm:{name}", text, label, registry=self.registry)

        def counter(name: str, text: str, *more: str) -> Counter:
            return Counter(f"vllm:{name}", text, [*label, *more], registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"vllm:{name}", text, label, buckets=buckets, registry=self.registry)

        self.running = gauge("num_requests_running", "Answers that have a slot.")
        self.waiting = gauge("num_requests_waiting", "Answers without a slot.")
        self.cache_usage = gauge("kv_cache_usage_perc", "Share of the key-value cache in use; 1 is all of it.")
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens read.")
        self.generation_tokens = counter("generation_tokens", "Tokens drawn.")
        self.success = counter("request_success", "Finished requests.", "finished_reason")
        self.first_token = histogram("time_to_first_token_seconds", "From the request to its first token.", _LATENCY)
        self.between_tokens = histogram("inter_token_latency_seconds", "Between two tokens of an answer.", _TOKEN)
        self.per_token = histogram(
            "request_time_per_output_token_seconds", "Mean time per token after the first, by request.", _TOKEN
        )
        self.latency = histogram("e2e_request_latency_seconds", "From the request to its last token.", _LATENCY)
        self.queue_time = histogram("request_queue_time_seconds", "From the request to its slot.", _LATENCY)
        self.refused = Counter(
            "trimtab:requests_refused", "Requests that were refused, by reason.", ["reason"], registry=self.registry
        )

    def text(self) -> bytes:
        """The metrics in Prometheus's text format."""
        return generate_latest(self.registry)
