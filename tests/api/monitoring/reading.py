"""Metrics as Prometheus reads them."""

from __future__ import annotations

import httpx
from prometheus_client.parser import text_string_to_metric_families


class Series:
    """The samples of one scrape."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = {family.name: family for family in text_string_to_metric_families(text)}

    def value(self, name: str, **labels: str) -> float:
        """Return the sum of the samples of that name with at least those labels."""
        return sum(
            sample.value
            for family in self.families.values()
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def names(self) -> set[str]:
        """Return the names that a query may use, also those of families that have no sample yet."""
        found = set()
        for family in self.families.values():
            endings = {
                "counter": ("_total",),
                "histogram": ("_bucket", "_sum", "_count"),
                "summary": ("_sum", "_count"),
            }.get(family.type, ("",))
            found |= {family.name + ending for ending in endings}
        return found

    def labels(self, name: str) -> set[str]:
        """Return the names of a family's labels."""
        return {label for sample in self.families[name].samples for label in sample.labels}


def scraped(http: httpx.Client, path: str = "/metrics") -> Series:
    answer = http.get(path)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return Series(answer.text)
