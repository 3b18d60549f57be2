"""The catalog: the only place that knows SQL.

Open one with `Catalog.open(url)`; `with catalog.session() as s` reads, `with catalog.begin() as s` writes. Queries are
functions that take such a session and return plain records:

* `clips`: `submit`, `request_rollout`, `get`, `get_with_rollouts`, `delete_clip`, `add_tags`
* `curriculum`: `ClipQuery`, `list_clips`
* `recipes`: `add`, `get`, `get_many`
* `rollouts`: `get`, `find`, `for_clip`, `add`
* `datasets`: `list_datasets`, `get_dataset`, `get_version`, `get_file`, `set_alias`, `yank_version`, `archive_version`, …
* `locking`: `begin_version`, `publish_version`, `abandon_version`
* `selection`: `select_members`, `missing_clips`, `unscored_clips`, `missing_buckets`, `pending_clips`, …
* `distribution`: `measure_histogram`, `count_facets`
* `pulls`: `add_pulls`, `list_pulls`
* `statistics`: `find_statistics`, `put_statistics`, `iterate_origins`
* `members`: `list_members`, `get_buckets`
* `job_rows`: jobs as rows; the queue itself is `ampref_service.jobs`
* `audit`: `list_events`
* `schema`: `upgrade`, `downgrade`, `check`
"""

from __future__ import annotations

from ampref_service.catalog.engine import Catalog, Session

__all__ = ["Catalog", "Session"]
