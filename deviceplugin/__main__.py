# SPDX-License-Identifier: Apache-2.0
"""``python -m deviceplugin``."""

from __future__ import annotations

import sys

from deviceplugin.cli import main

sys.exit(main())
