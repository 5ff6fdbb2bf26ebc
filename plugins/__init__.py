# SPDX-License-Identifier: Apache-2.0
"""The plugins that come with the framework, loaded through entry points like anybody's."""
