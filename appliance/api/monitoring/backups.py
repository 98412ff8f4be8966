"""How old the last good backup and the last good drill are."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from appliance.backup.errors import BackupError
from appliance.backup.record import last_backup, last_good_drill
from appliance.backup.shelf import is_to_come
from appliance.clock import now_ms
from appliance.config import Settings

log = logging.getLogger(__name__)


class BackupCollector(Collector):
    """Reads the folder of backups at every scrape, so it runs in the thread that renders.

    A series is absent while there is nothing that it could be the age of: also of what a wrong clock dated.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def collect(self) -> Iterator[Metric]:
        """Yield a family for each."""
        try:
            made = last_backup(self._settings)
        except BackupError as error:
            log.warning("%s", error.message)
            made = None
        for name, text, since in (
            ("appliance_backup_age_seconds", "Since the newest backup was made.", made),
            (
                "appliance_backup_drill_age_seconds",
                "Since a backup was last tried with success.",
                last_good_drill(self._settings),
            ),
        ):
            family, now = GaugeMetricFamily(name, text), now_ms()
            if since is not None and not is_to_come(since, now):
                family.add_metric([], max(0, now - since) / 1000)
            yield family
