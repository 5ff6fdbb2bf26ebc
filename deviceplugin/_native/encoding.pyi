# SPDX-License-Identifier: Apache-2.0
from collections.abc import Sequence

def encode_list(ids: Sequence[str], healthy: Sequence[bool], numa: Sequence[tuple[int, ...]]) -> bytes: ...
