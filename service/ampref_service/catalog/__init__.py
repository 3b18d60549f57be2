"""The catalog: the only place that knows SQL.

Open one with `Catalog.open(url)`; `with catalog.session() as s` reads, `with catalog.begin() as s` writes. Queries are
functions that
take such a session and return plain records:

* `clips`: `submit`, `request_rollout`, `get`, `get_with_rollouts`, `delete_clip`, `add_tags`
* `curriculum`: `ClipQuery`, `list_clips`
* `rollouts`: `get`, `find`, `for_clip`, `add`
* `datasets`: `begin_version`, `select_members`, `publish_version`, `get_dataset`, `get_version`, `set_alias`, `yank_version`, …
* `job_rows`: jobs as rows; the queue itself is `ampref_service.jobs`
* `audit`: `list_events`
* `schema`: `upgrade`, `downgrade`, `check`
"""

from __future__ import annotations

from ampref_service.catalog.engine import Catalog, Session

__all__ = ["Catalog", "Session"]
