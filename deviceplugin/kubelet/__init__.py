# SPDX-License-Identifier: Apache-2.0
"""All that talks to the kubelet."""
