"""The client for training nodes: `load_dataset`, `load_clips`, `pull`, `ApiClient`.

It needs numpy and an HTTP library: no MuJoCo, no JAX, no web stack. Errors are those of `amp_core.errors`, whose tree is drawn
at the top of that file; the ones to expect here:

    AmprefError
    ├── InputRefused            a spec, address or digest that cannot be read
    ├── NotFound                no such dataset, version or alias
    ├── Unauthorized            the service asks for a key: `token=…` or AMPREF_TOKEN
    ├── Forbidden               the key does not permit this
    ├── IntegrityError          bytes differ from a digest
    ├── FeatureCodeMismatch     this machine computes features with other code
    ├── NotReady                a version that is not ready for training, without `allow_not_ready=True`
    └── Unavailable             no service and no complete cache, or no room for one

`DatasetWarning`: a version is yanked or not ready for training, or an alias was resolved from memory.
"""

from amp_core.client.api import ApiClient
from amp_core.client.clips import ClipSet, ReferenceClip, load_clips
from amp_core.client.dataset import STD_FLOOR, Dataset, DatasetBucket, DatasetPart, load_dataset
from amp_core.client.download import Progress
from amp_core.client.http import DEFAULT_URL, Retry
from amp_core.client.readiness import Readiness
from amp_core.client.resolve import DatasetWarning
from amp_core.client.spec import Spec, parse_spec
from amp_core.client.versions import PulledVersion, pull

__all__ = [
    "DEFAULT_URL",
    "STD_FLOOR",
    "ApiClient",
    "ClipSet",
    "Dataset",
    "DatasetBucket",
    "DatasetPart",
    "DatasetWarning",
    "Progress",
    "PulledVersion",
    "Readiness",
    "ReferenceClip",
    "Retry",
    "Spec",
    "load_clips",
    "load_dataset",
    "parse_spec",
    "pull",
]
