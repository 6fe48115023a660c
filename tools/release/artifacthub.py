"""`artifacthub-repo.yml`, with which a publisher claims repositories at Artifact Hub.

What Artifact Hub shows about the releases themselves are annotations: of the chart (`chart`), the plugin (`krew`) and
the image (`image`). It reads no `artifacthub-pkg.yml` for any of these three kinds.
"""

from __future__ import annotations

import yaml

from release.facts import Publisher

_COMMENT = """\
# Belongs beside the image and the chart under the tag artifacthub.io, and at the root of the krew index. To become a
# verified publisher, add the repositoryID that Artifact Hub gave to each of the three.
"""


def repository(publisher: Publisher) -> str:
    fields: dict[str, object] = {}
    if maintainer := publisher.maintainer:
        fields["owners"] = [{"name": maintainer.name, "email": maintainer.email}]
    text: str = yaml.safe_dump(fields, sort_keys=False)
    return _COMMENT + text
