# SPDX-License-Identifier: Apache-2.0
"""Compiled modules, built from native/."""
