# SPDX-License-Identifier: Apache-2.0
"""Measurements beside a peer or an oracle, in one run. ``python -m bench [SECTION ...]``; nothing here asserts a time."""
