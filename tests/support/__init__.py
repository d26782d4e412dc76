"""What several test modules use: models, analyses, strategies and ways to run a command.

Nothing here is collected as a test.
"""

import pytest

pytest.register_assert_rewrite("tests.support.commands")  # so that its asserts show values
