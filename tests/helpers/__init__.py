# SPDX-License-Identifier: Apache-2.0
"""What several test modules need. Imported by name; nothing here collects or configures anything."""
