# SPDX-License-Identifier: Apache-2.0
"""The rules of resctrl, to be tried on the simulator, on the simulator behind a mount, and on a kernel's.

Each rule is a function of a :class:`Bench`. It raises AssertionError with the reason, or :class:`Inapplicable` if it says nothing of this machine::

    @pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
    def test_resctrl(rule, bench):
        with bench.tidy():
            rule(bench)
"""

from __future__ import annotations

from deviceplugin.testing.resctrl.conformance import groups, masks, tasks
from deviceplugin.testing.resctrl.conformance.bench import Bench, Inapplicable, Rule

RULES: tuple[Rule, ...] = (*groups.RULES, *masks.RULES, *tasks.RULES)

__all__ = ["RULES", "Bench", "Inapplicable", "Rule"]
